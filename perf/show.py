"""How results look: a table for the terminal, and Markdown for `perf/LOG.md`.

Called by `perf/__main__.py`; knows no measurement by name.
"""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perf.harness import Figure, Result
from perf.machine import NOTICEABLE_CORES
from perf.registry import Measurement


def number(x: float) -> str:
    """Four significant digits, never an exponent."""
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.4g}" if abs(x) >= 1e-4 or x == 0 else f"{x:.6f}"


def listing(console: Console, found: Iterable[Measurement]) -> None:
    """One line for each measurement, its options beneath."""
    for m in found:
        options = "".join(f" --{option.replace('_', '-')}" for option in m.options)
        console.print(Text.assemble((f"{m.name:<10}", "bold"), m.question), soft_wrap=True)
        if options:
            console.print(Text(f"{'':<9}{options}", style="dim"), soft_wrap=True)


def result(console: Console, r: Result) -> None:
    """Everything a reader wants of one result."""
    title = Text.assemble((r.name, "bold"), ": ", r.question, style="default")
    table = Table("figure", title=title, title_justify="left")
    for header in ("median", "unit", "spread", "min", "max", "n", "ratio"):
        table.add_column(header, justify="left" if header in ("unit", "ratio") else "right", no_wrap=True)
    for name, f in r.figures.items():
        numbers = (number(f.median), f.unit, number(f.spread), number(f.min), number(f.max), str(f.n), ratio(f))
        table.add_row(Text(name), *map(Text, numbers))
    console.print(table)
    if r.ratios:
        console.print(_ratios(r.ratios))
    console.print(Text(f"{r.machine}; commit {r.commit}; {r.date}; {r.elapsed_s:.0f} s", style="dim"), soft_wrap=True)
    for line in remarks(r):
        console.print(Text(line), soft_wrap=True)


def remarks(r: Result) -> list[str]:
    """What must be said beside the figures."""
    said = [f"note: {note}" for note in r.notes]
    if r.quick:
        said.append("note: quick: a smoke test, not a measurement")
    if r.foreign_cores > NOTICEABLE_CORES:
        said.append(
            f"note: other processes took {r.foreign_cores:.2f} cores meanwhile: measure again on a quiet machine"
        )
    return said + [f"BROKEN: {failure}" for failure in r.failures]


def ratio(f: Figure) -> str:
    return "" if f.ratio is None else f"{f.ratio:.2f} x {f.against}"


def _ratios(ratios: Mapping[str, Mapping[str, float]]) -> Table:
    peers = list(dict.fromkeys(peer for row in ratios.values() for peer in row))
    table = Table("times as fast as", title="more than 1: we are faster", title_justify="left")
    for peer in peers:
        table.add_column(peer, justify="right", overflow="fold")
    for name, row in ratios.items():
        table.add_row(Text(name), *(f"{row[peer]:.2f}" if peer in row else "" for peer in peers))
    return table


def markdown(r: Result, others: Mapping[str, Mapping[str, float]]) -> str:
    """One result against others: columns of medians, each with how many times as fast as it we are.

    `others` has the medians of each column's figures by name."""
    columns = {name: medians for name, medians in others.items() if medians.keys() & r.figures.keys()}
    head = ["", "unit", "median", "spread", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for name, f in r.figures.items():
        cells = [name, f.unit, number(f.median), number(f.spread)]
        for medians in columns.values():
            theirs = medians.get(name)
            speed = None if theirs is None else speedup(f, theirs)
            cells.append("" if theirs is None else number(theirs) + ("" if speed is None else f" ({speed:.2f}x)"))
        lines.append("| " + " | ".join(cells) + " |")
    facts = f"{r.date[:10]}, {r.machine}, commit {r.commit}: `{r.command}`"
    return "\n".join([facts, "", *lines])


BETTER_MORE = {"tok/s", "req/s", "GB/s", "GFLOP/s", "1/s"}
BETTER_LESS = {"s", "ms", "us"}


def speedup(ours: Figure, theirs: float) -> float | None:
    """How many times as fast we are; None for a unit that is no speed."""
    if not ours.median or not theirs:
        return None
    if ours.unit in BETTER_MORE:
        return ours.median / theirs
    return theirs / ours.median if ours.unit in BETTER_LESS else None
