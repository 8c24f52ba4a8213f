"""`lip top`: frames from two looks, how they look on a screen, and the command itself, off a terminal and on one."""

import copy
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sdk.cli import app
from sdk.top import frame, render


def process(pid: int, name: str = "react", **usage: float) -> dict:
    known = {"service": 0.0, "n_prompt_tokens": 0, "n_generated_tokens": 0, "cpu_s": 0.0, "n_pages": 3}
    terms = {"state": "blocked", "wait": "generate #7", "tenant": "local", "priority": 0}
    return {"pid": pid, "name": name, **terms, "usage": known | usage}


def worker(name: str = "w", **done: float) -> dict:
    known = {"n_batches": 0, "n_rows": 0, "n_tokens": 0, "step_s": 0.0}
    pages = {"n_pages": 100, "n_free": 60, "n_host_pages": 50, "n_host_used": 5}
    return {"name": name, "state": "ready", "n_calls": 2, **pages} | known | done


@pytest.fixture
def before() -> dict:
    zero = dict.fromkeys(("n_prompt_tokens", "n_generated_tokens", "n_recomputed_tokens", "n_surplus_tokens"), 0)
    return {
        "now_s": 100.0,
        "uptime_s": 3725.0,
        "model": "null",
        "n_ready": 4,
        "calls": {"running": 1, "waiting": 2, "swapped": 3},
        "totals": zero | {"n_batches": 0, "kernel_s": 0.0},
        "workers": [worker(n_batches=10, n_rows=20, n_tokens=200, step_s=1.0)],
        "processes": [process(1), process(2)],
    }


def shown(console_width: int, renderable) -> list[str]:
    console = Console(width=console_width)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_rates_are_differences_over_the_time_between(before) -> None:
    after = copy.deepcopy(before)
    after["now_s"] += 2.0
    after["totals"] |= {"n_prompt_tokens": 10, "n_generated_tokens": 30, "n_batches": 4, "kernel_s": 0.0005}
    after["workers"] = [worker(n_batches=14, n_rows=32, n_tokens=240, step_s=1.2), worker("v")]
    after["processes"] = [
        process(1, service=5.0, n_prompt_tokens=4, n_generated_tokens=6, cpu_s=0.5),
        process(3, service=9.0),
    ]
    found = frame(before, after)
    assert found["prompt_tokens_per_s"] == 5.0
    assert found["generation_tokens_per_s"] == 15.0
    assert found["kernel_s_per_batch"] == 0.000125
    one, new = found["workers"]
    assert (one["mean_step_s"], one["rows_per_batch"], one["tokens_per_s"]) == (pytest.approx(0.05), 3.0, 20.0)
    assert (new["mean_step_s"], new["rows_per_batch"], new["tokens_per_s"]) == (None, None, None)
    rates = [(p["pid"], p["tokens_per_s"], p["cpu_share"]) for p in found["processes"]]
    assert rates == [(3, None, None), (1, 5.0, 0.25)]


def test_a_worker_that_came_back_begins_at_nothing(before) -> None:
    """Under its old name, with counts that start again: no negative rates."""
    after = copy.deepcopy(before)
    after["now_s"] += 1.0
    after["workers"] = [worker(n_batches=3, n_rows=3, n_tokens=3, step_s=0.1)]
    (found,) = frame(before, after)["workers"]
    assert (found["mean_step_s"], found["tokens_per_s"]) == (None, None)


def test_one_look_has_no_rates(before) -> None:
    found = frame(before, before)
    assert found["prompt_tokens_per_s"] is None
    assert found["kernel_s_per_batch"] is None
    assert "-" in shown(200, render(found))[0]


def test_the_screen(before) -> None:
    after = copy.deepcopy(before)
    after["now_s"] += 1.0
    after["totals"] |= {"n_prompt_tokens": 7, "n_generated_tokens": 11, "n_batches": 1, "kernel_s": 0.0001}
    after["processes"] = [process(12, service=42.4, n_generated_tokens=11)]
    assert shown(200, render(frame(before, after))) == [
        "null, up 1:02:05, kernel 100 us per batch",
        "programs  0 running, 0 ready, 1 blocked; 4 answers wait for their turn",
        "calls     1 running, 2 waiting, 3 swapped",
        "tokens/s  7 prompt, 11 drawn; in all 0 recomputed, 0 surplus",
        "",
        "WORKER  STATE  STEP ms  ROWS/BATCH  TOKENS/s  CALLS   PAGES  HOST PAGES",
        "w       ready        -           -         0      2  40/100        5/50",
        "",
        "PID  TENANT  PRIO  STATE    WAITS FOR    SERVICE  TOKENS/s  PAGES  CPU %  NAME",
        " 12  local      0  blocked  generate #7       42         -      3      -  react",
    ]


def test_programs_that_do_not_fit_are_counted(before) -> None:
    before["processes"] = [process(pid, service=float(pid)) for pid in range(1, 6)]
    lines = shown(200, render(frame(before, before), 2))
    assert [line.split()[0] for line in lines[-3:]] == ["5", "4", "and"]
    assert lines[-1] == "and 3 more"


def test_names_are_text_and_not_markup(before) -> None:
    before["processes"] = [process(1, name="[bold]x[/bold]")]
    assert shown(200, render(frame(before, before)))[-1].endswith("[bold]x[/bold]")


# --- the command ---


def test_off_a_terminal_it_is_one_frame(kernel_socket: Path) -> None:
    for words in ([], ["--once"]):
        result = CliRunner().invoke(app, ["--socket", str(kernel_socket), "top", *words])
        assert result.exit_code == 0
        assert result.stdout.startswith("null, up 0:")
        (worker,) = (line for line in result.stdout.splitlines() if "4096" in line)
        assert worker.split()[1] == "ready"


def test_as_json(kernel_socket: Path) -> None:
    result = CliRunner().invoke(app, ["--socket", str(kernel_socket), "top", "--json"])
    found = json.loads(result.stdout)
    assert found["workers"][0]["tokens_per_s"] == 0.0
    assert found["model"] == "null"


def test_without_a_kernel(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--socket", str(tmp_path / "k.sock"), "top"])
    assert (result.exit_code, result.stderr) == (2, "lip: no kernel is running; start one with `python -m kernel`\n")


@pytest.mark.e2e
@pytest.mark.parametrize(("end", "status"), [("q", 0), (signal.SIGINT, 130)])
def test_on_a_terminal_it_is_live_until_told(kernel_socket: Path, end: Any, status: int) -> None:
    ours, theirs = pty.openpty()
    environ = os.environ | {"SYMPHONY_SOCKET": str(kernel_socket), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-c", "from sdk.cli import main; main()", "top"]
    try:
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as lip:
            os.close(theirs)
            shown = read_until(ours, "HOST PAGES")
            if end == "q":
                os.write(ours, b"xq")
            else:
                lip.send_signal(end)
            shown += read_until(ours, None)
        assert lip.returncode == status
    finally:
        os.close(ours)
    assert "\x1b[?1049h" in shown  # the alternate screen, entered and left
    assert shown.index("\x1b[?1049h") < shown.index("null, up") < shown.index("\x1b[?1049l")


def read_until(fd: int, word: str | None) -> str:
    """What a terminal shows until it has shown a word; or, for None, until its last user leaves."""
    text = ""
    while (word is None or word not in text) and select.select([fd], [], [], 30)[0]:
        try:
            text += os.read(fd, 65536).decode()
        except OSError:  # how Linux says that the other side is closed
            break
    return text
