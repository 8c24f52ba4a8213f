"""`python -m perf.plot FILE.json... FILE.svg`: figure 3, drawn from what `perf rag` has stored.

Three panels over the skew of popularity, weakest first: throughput, latency per generated token, and hit rate; one
line for each server. SVG by hand, so that drawing needs nothing that measuring does not.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import msgspec

from perf.harness import Result

WIDTH, HEIGHT = 300, 220  # of a panel's field
LEFT, TOP, GAP, BOTTOM = 52, 64, 70, 46
COLOURS = {"none": "#8a8a8a", "lru": "#d1802b", "pin": "#2b6cb0", "swap": "#2f855a", "disk": "#805ad5"}
LABELS = {
    "none": "no cache",
    "lru": "LRU prefix cache",
    "pin": "LIP: keep by frequency",
    "swap": "LIP: the others in main memory",
    "disk": "LIP: durable documents",
}
TITLES = {"latency": "latency per generated token"}
N_TICKS = 4
NAME = re.compile(r"(\w+) at ([\d.]+): (.+)")


class Panel(NamedTuple):
    """One quantity: for each server its values, in the order of the indices."""

    title: str
    unit: str
    lines: dict[str, list[float]]


def read(paths: Sequence[Path]) -> tuple[list[str], list[Panel]]:
    """The indices, from the weakest skew on, and a panel for each quantity, of what the files have together. Raises
    ValueError when there is nothing, or one of the servers lacks an index."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    units: dict[str, str] = {}
    for result in (r for path in paths for r in msgspec.json.decode(path.read_bytes(), type=list[Result])):
        for name, figure in result.figures.items() if result.name == "rag" else ():
            if match := NAME.fullmatch(name):
                server, index, quantity = match.groups()
                found.setdefault(quantity, {}).setdefault(server, {})[index] = figure.median
                units[quantity] = figure.unit
    if not found:
        raise ValueError("there are no figures of `perf rag`")
    indices = sorted({i for servers in found.values() for at in servers.values() for i in at}, key=float, reverse=True)
    if any(at.keys() != set(indices) for servers in found.values() for at in servers.values()):
        raise ValueError(f"not every server has been measured at each of {', '.join(indices)}")
    panels = [
        Panel(quantity, units[quantity], {server: [at[i] for i in indices] for server, at in servers.items()})
        for quantity, servers in sorted(found.items(), key=lambda item: -ord(item[0][0]))
    ]
    return indices, panels


def draw(indices: Sequence[str], panels: Sequence[Panel]) -> str:
    """The picture."""
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    x = LEFT
    for server in panels[0].lines:
        parts.append(f'<circle cx="{x}" cy="18" r="5" fill="{COLOURS[server]}"/>')
        parts.append(text(x + 10, 22, LABELS[server]))
        x += 40 + 7 * len(LABELS[server])
    for i, panel in enumerate(panels):
        parts += field(panel, indices, LEFT + i * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>", ""])


def field(panel: Panel, indices: Sequence[str], left: float) -> list[str]:
    """One panel."""
    top = nice(max(value for line in panel.lines.values() for value in line))

    def at(i: int, value: float) -> tuple[float, float]:
        step = WIDTH / max(1, len(indices) - 1)
        return round(left + i * step, 1), round(TOP + HEIGHT * (1 - value / top), 1)

    parts = [text(left, TOP - 14, f"{TITLES.get(panel.title, panel.title)}, {panel.unit}", weight="bold")]
    for tick in range(N_TICKS + 1):
        value = top * tick / N_TICKS
        _, y = at(0, value)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + WIDTH}" y2="{y}" stroke="#dddddd"/>')
        parts.append(text(left - 6, y + 4, f"{value:g}", anchor="end"))
    for i, index in enumerate(indices):
        parts.append(text(at(i, 0)[0], TOP + HEIGHT + 18, index, anchor="middle"))
    parts.append(text(left + WIDTH / 2, TOP + HEIGHT + 36, "Pareto index (skew grows to the right)", anchor="middle"))
    for server, line in panel.lines.items():
        points = [at(i, value) for i, value in enumerate(line)]
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[server]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{COLOURS[server]}"/>' for x, y in points]
    return parts


def nice(highest: float) -> float:
    """A round number that is not below."""
    unit = 10.0 ** (len(str(int(highest))) - 1)
    return next(m * unit for m in (1, 2, 4, 6, 8, 10, 20) if m * unit >= highest)


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="#222222">{escape(words)}</text>'


def main(words: Sequence[str]) -> int:
    """The command. Exit status 2 for wrong use."""
    try:
        *sources, target = map(Path, words)
        target.write_text(draw(*read(sources)))
    except (ValueError, OSError, msgspec.DecodeError) as e:
        print(f"perf.plot: {e}; give files of results and then one to draw to", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
