"""The command line, with a whole measurement of the kernel on a null worker."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner
from typer.testing import Result as Outcome

from perf.__main__ import app, plan
from perf.harness import Result
from perf.registry import measurements


def perf(*words: str) -> Outcome:
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_list_names_every_measurement():
    shown = perf("--list")
    assert shown.exit_code == 0
    for name, m in measurements().items():
        assert f"{name} " in shown.stdout
        assert m.question in shown.stdout


def test_no_name_lists_them_too():
    assert perf().stdout == perf("--list").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "there is no measurement 'speed'; there are decode, durable, gather"),
        (["kernel", "speed"], "there is no measurement 'speed'"),
        (["kernel", "--base", "http://x"], "no --base in kernel"),
        (["gather", "--model"], "parameter model needs a value"),
        (["table", "/nowhere.json"], "cannot read /nowhere.json"),
    ],
)
def test_wrong_use_is_one_line(words, said):
    shown = perf(*words)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stdout == ""


def test_an_option_goes_to_those_that_take_it():
    jobs = plan(measurements(), ["kernel", "gather"], ["--dtype", "float32"])
    assert [(name, given) for name, _, given in jobs] == [("kernel", {}), ("gather", {"dtype": "float32"})]


def test_all_is_each_of_them():
    assert [name for name, _, _ in plan(measurements(), ["all"], [])] == list(measurements())


def test_the_kernel_is_measured_end_to_end(tmp_path: Path):
    stored = tmp_path / "kernel.json"
    shown = perf("kernel", "--quick", "--json", str(stored))
    assert shown.exit_code == 0, shown.stderr
    assert "batch of 64: plan" in shown.stdout
    (result,) = msgspec.json.decode(stored.read_bytes(), type=list[Result])
    assert (result.name, result.quick, result.parameters) == ("kernel", True, {})
    assert result.question == measurements()["kernel"].question
    assert result.elapsed_s > 0
    assert {f.unit for f in result.figures.values()} == {"1/s", "ms", "us"}
    for name, figure in result.figures.items():
        assert figure.median > 0, name
        assert figure.n == len(figure.raw), name


def test_what_was_measured_becomes_a_table(tmp_path: Path):
    stored = tmp_path / "kernel.json"
    perf("kernel", "--quick", "--json", str(stored))
    shown = perf("table", str(stored), str(stored))
    assert shown.exit_code == 0
    assert "| spread | kernel |" in shown.stdout
    assert "(1.00x) |" in shown.stdout  # as fast as itself
