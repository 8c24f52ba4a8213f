"""`python -m perf`: names of measurements in, tables and a JSON file out.

Exit status: 0, 1 when a measurement failed or a promise is broken, 2 for wrong use. What is measured is none of
this file's business: it hands each measurement its options, and adds to the findings where and when they were made.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from kernel.loader import LoadError, options
from kernel.parameters import Parameters
from perf import compare, show
from perf.harness import Failed, Result
from perf.machine import Others, commit, this_machine
from perf.registry import Measure, Measurement, defaults, load, measurements

ALL, TABLE = "all", "table"
FAILED, WRONG_USE = 1, 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
def main(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME... [--OPTION VALUE]...",
            help="Measurements, or `all`, and their own options; or `table [FILE]...` for Markdown.",
            show_default=False,
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="The measurements, and their options.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results there, as a list.")] = None,
    quick: Annotated[bool, typer.Option(help="A smoke test of a few seconds; its figures mean nothing.")] = False,
) -> None:
    """Measure. Figures are medians; the spread is the interquartile range, or the range of fewer than four."""
    found = measurements()
    names, rest = split(words or [])
    if listing or not names:
        show.listing(Console(), found.values())
        return
    if names[0] == TABLE:
        table([*names[1:], *rest])
        return
    try:
        jobs = plan(found, names, rest)
    except LoadError as e:
        raise wrong(str(e)) from None
    raise typer.Exit(run(found, jobs, quick, json))


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and from the first option on the rest."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:first]), list(words[first:])


def plan(
    found: dict[str, Measurement], names: Sequence[str], rest: Sequence[str]
) -> list[tuple[str, Measure, dict[str, Any]]]:
    """Each measurement with those of the options that it takes. Raises LoadError, also for one that none takes."""
    for name in names:
        if name not in (*found, ALL):
            raise LoadError(f"there is no measurement {name!r}; there are {', '.join(found)} ({ALL}: each of them)")
    chosen = list(found) if ALL in names else list(dict.fromkeys(names))
    given = options(rest)
    known = {option for name in chosen for option in found[name].options}
    for option in given:
        if option not in known:
            raise LoadError(f"no --{option.replace('_', '-')} in {', '.join(chosen)}: `--list` shows the options")
    jobs = []
    for name in chosen:
        measure = load(name)
        own = {option: value for option, value in given.items() if option in found[name].options}
        jobs.append((name, measure, Parameters(measure).bind(own, text=True)))
    return jobs


def run(
    found: dict[str, Measurement], jobs: Sequence[tuple[str, Measure, dict[str, Any]]], quick: bool, json: Path | None
) -> int:
    """Measure one after another; what is done is stored before the next one begins. Returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: list[Result] = []
    status = 0
    for name, measure, given in jobs:
        date, began, others = datetime.now(UTC), time.perf_counter(), Others()
        try:
            findings = measure(quick=quick, **given)
        except Failed as e:
            print(f"perf: {name}: {e}", file=sys.stderr, flush=True)
            status = FAILED
            continue
        made = Result(
            name=name,
            question=found[name].question,
            date=date.isoformat(timespec="seconds"),
            commit=commit(),
            machine=this_machine(),
            command=shlex.join(["python", "-m", "perf", *sys.argv[1:]]),
            parameters=defaults(measure) | given,
            quick=quick,
            elapsed_s=round(time.perf_counter() - began, 3),
            foreign_cores=round(others.cores(), 3),
            figures=findings.figures,
            ratios=findings.ratios,
            notes=findings.notes,
            failures=findings.failures,
        )
        show.result(console, made)
        results.append(made)
        if json is not None:
            json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        if findings.failures:
            status = FAILED
    return status


def table(words: Sequence[str]) -> None:
    """The newest result, or that of a file, against the peers and against the other files."""
    try:
        print(compare.table([Path(word) for word in words]))
    except compare.NoResults as e:
        raise wrong(str(e)) from None


def wrong(message: str) -> typer.Exit:
    print(f"perf: {message}", file=sys.stderr)
    return typer.Exit(WRONG_USE)


if __name__ == "__main__":
    app(prog_name="python -m perf")
