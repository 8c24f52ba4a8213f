"""`lip top`: what the kernel is doing, twice a second.

`frame` makes what is shown from two looks at the kernel, since rates are differences; `render` puts it on a screen;
`watch` looks, draws and waits for a key. Nothing is worked out in the kernel for this but what `GET /top` returns.
"""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sdk.client import Client

PERIOD_S = 0.5
N_LINES_ELSE = 9  # of a screen, beside the workers and the programs
QUIT = (b"q", b"Q")

Sample = dict[str, Any]  # what `Client.top` returned


def frame(before: Sample, after: Sample) -> dict[str, Any]:
    """What is shown: the newer sample, with rates over the time between the two, None where it is not known. `lip top
    --json` prints it."""
    seconds = after["now_s"] - before["now_s"]
    total, past = after["totals"], before["totals"]
    old_workers = {w["name"]: w for w in before["workers"]}
    workers = []
    for w in after["workers"]:
        old = old_workers.get(w["name"])
        if old is not None and old["n_batches"] > w["n_batches"]:
            old = None  # it was lost, and is back
        rates = {
            "mean_step_s": _mean(w, old, "step_s", "n_batches"),
            "rows_per_batch": _mean(w, old, "n_rows", "n_batches"),
            "tokens_per_s": _rate(w, old, seconds, "n_tokens"),
        }
        workers.append(w | rates)
    usages = {p["pid"]: p["usage"] for p in before["processes"]}
    processes = []
    for p in after["processes"]:
        new, old = p["usage"], usages.get(p["pid"])
        rates = {
            "tokens_per_s": _rate(new, old, seconds, "n_prompt_tokens", "n_generated_tokens"),
            "cpu_share": _rate(new, old, seconds, "cpu_s"),
        }
        processes.append(p | rates)
    processes.sort(key=lambda p: (-p["usage"]["service"], p["pid"]))
    return after | {
        "prompt_tokens_per_s": _rate(total, past, seconds, "n_prompt_tokens"),
        "generation_tokens_per_s": _rate(total, past, seconds, "n_generated_tokens"),
        "kernel_s_per_batch": _mean(total, past, "kernel_s", "n_batches"),
        "workers": workers,
        "processes": processes,
    }


def _rate(new: Sample, old: Sample | None, seconds: float, *names: str) -> float | None:
    """How much of these, together, a second."""
    if old is None or seconds <= 0:
        return None
    rate: float = sum(new[name] - old[name] for name in names) / seconds
    return rate


def _mean(new: Sample, old: Sample | None, total: str, count: str) -> float | None:
    """How much of `total` for each of `count`."""
    if old is None or new[count] == old[count]:
        return None
    share: float = (new[total] - old[total]) / (new[count] - old[count])
    return share


def render(shown: dict[str, Any], n_processes: int | None = None) -> RenderableType:
    """The frame as lines. `n_processes`: no more programs than that; None for all."""
    found = shown["processes"]
    cut = found if n_processes is None else found[: max(0, n_processes)]
    parts: list[RenderableType] = [_header(shown), _workers(shown["workers"]), Text(), _processes(cut)]
    if len(cut) < len(found):
        parts.append(Text(f"and {len(found) - len(cut)} more", style="dim"))
    return Group(*parts)


def _header(shown: dict[str, Any]) -> Text:
    states = [p["state"] for p in shown["processes"]]
    by_state = ", ".join(f"{states.count(state)} {state}" for state in ("running", "ready", "blocked"))
    calls, total = shown["calls"], shown["totals"]
    minutes, seconds = divmod(int(shown["uptime_s"]), 60)
    hours, minutes = divmod(minutes, 60)
    kernel_us = _number(shown["kernel_s_per_batch"], 1e6)
    lines = [
        f"{shown['model'] or 'no model'}, up {hours}:{minutes:02}:{seconds:02}, kernel {kernel_us} us per batch",
        f"programs  {by_state}; {shown['n_ready']} answers wait for their turn",
        f"calls     {calls['running']} running, {calls['waiting']} waiting, {calls['swapped']} swapped",
        f"tokens/s  {_number(shown['prompt_tokens_per_s'])} prompt, {_number(shown['generation_tokens_per_s'])} drawn; "
        f"in all {total['n_recomputed_tokens']} recomputed, {total['n_surplus_tokens']} surplus",
        "",
    ]
    return Text("\n".join(lines))


def _workers(workers: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            w["name"],
            w["state"],
            _number(w["mean_step_s"], 1e3, 1),
            _number(w["rows_per_batch"], 1, 1),
            _number(w["tokens_per_s"]),
            w["n_calls"],
            f"{w['n_pages'] - w['n_free']}/{w['n_pages']}",
            f"{w['n_host_used']}/{w['n_host_pages']}",
        )
        for w in workers
    ]
    return _table(rows, "WORKER", "STATE", "STEP ms", "ROWS/BATCH", "TOKENS/s", "CALLS", "PAGES", "HOST PAGES")


def _processes(processes: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            p["pid"],
            p["tenant"],
            p["priority"],
            p["state"],
            p["wait"] or "-",
            _number(p["usage"]["service"]),
            _number(p["tokens_per_s"]),
            p["usage"]["n_pages"],
            _number(p["cpu_share"], 100),
            p["name"],
        )
        for p in processes
    ]
    head = ("PID", "TENANT", "PRIO", "STATE", "WAITS FOR", "SERVICE", "TOKENS/s", "PAGES", "CPU %", "NAME")
    return _table(rows, *head)


TEXT = ("WORKER", "STATE", "TENANT", "WAITS FOR", "NAME")  # columns of words, the others are numbers


def _table(rows: Sequence[Sequence[object]], *head: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        grid.add_column(name, justify="left" if name in TEXT else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    return grid


def _number(value: float | None, scale: float = 1, digits: int = 0) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


# --- showing ---


async def watch(client: Client, *, once: bool, as_json: bool) -> None:
    """Show frames until `q` or Ctrl-C on a terminal; one frame anywhere else, or when asked to. Raises KernelError."""
    before = await client.top()
    if once or as_json or not sys.stdout.isatty():
        await asyncio.sleep(PERIOD_S)
        shown = frame(before, await client.top())
        if as_json:
            print(msgspec.json.encode(shown).decode())
        else:
            _print(render(shown))
        return
    console = Console()
    quitting = asyncio.Event()
    with _keys(quitting), Live(console=console, screen=True, auto_refresh=False) as live:
        after = before
        while not quitting.is_set():
            n_processes = console.height - N_LINES_ELSE - len(after["workers"])
            live.update(render(frame(before, after), n_processes), refresh=True)
            await _either(quitting, PERIOD_S)
            before, after = after, await client.top()


def _print(shown: RenderableType) -> None:
    """On standard output, never cut where nobody sees a screen."""
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as capture:
        console.print(shown)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


@contextmanager
def _keys(quitting: asyncio.Event) -> Iterator[None]:
    """While this lasts keys are read as they are pressed, and `q` sets the event."""
    fd = 0
    if not os.isatty(fd):
        yield
        return

    def pressed() -> None:
        keys = os.read(fd, 1024)
        if not keys or any(key in keys for key in QUIT):
            quitting.set()

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, pressed)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
