"""`perf.plot`: a picture of what `perf rag` has stored."""

from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from perf.harness import Result, figure
from perf.machine import this_machine
from perf.plot import draw, main, nice, read

SVG = "{http://www.w3.org/2000/svg}"


def store(path: Path, servers: dict[str, dict[str, float]], name: str = "rag") -> Path:
    figures = {
        f"{server} at {index}: {quantity}": figure(unit, [value])
        for quantity, unit in (("latency", "ms"), ("throughput", "tok/s"), ("hit rate", "%"))
        for server, at in servers.items()
        for index, value in at.items()
    }
    result = Result(name, "?", "2026-01-01", "c0ffee", this_machine(), "perf", {}, False, 1.0, 0.0, figures)
    path.write_bytes(msgspec.json.encode([result]))
    return path


def test_a_panel_for_each_quantity_and_a_line_for_each_server(tmp_path: Path) -> None:
    path = store(tmp_path / "a.json", {"none": {"2.0": 5, "0.5": 7}, "pin": {"0.5": 90, "2.0": 30}})
    indices, panels = read([path])
    assert indices == ["2.0", "0.5"], "skew grows to the right"
    assert [(panel.title, panel.unit) for panel in panels] == [
        ("throughput", "tok/s"),
        ("latency", "ms"),
        ("hit rate", "%"),
    ]
    assert panels[0].lines == {"none": [5, 7], "pin": [30, 90]}
    tree = ET.fromstring(draw(indices, panels))
    lines = [line.get("points") or "" for line in tree.iter(f"{SVG}polyline")]
    assert len(lines) == 6
    heights = [float(point.split(",")[1]) for point in lines[1].split()]
    assert heights[0] > heights[1], "more is higher up"
    assert "LIP: keep by frequency" in {word.text for word in tree.iter(f"{SVG}text")}


def test_files_are_put_together(tmp_path: Path) -> None:
    first = store(tmp_path / "a.json", {"none": {"2.0": 5}})
    second = store(tmp_path / "b.json", {"none": {"0.5": 6}})
    assert read([first, second])[1][0].lines == {"none": [5, 6]}
    assert main([str(first), str(second), str(tmp_path / "out.svg")]) == 0
    assert (tmp_path / "out.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("highest", [0.4, 3, 9.9, 10, 41, 99, 101, 850])
def test_a_scale_ends_at_a_round_number(highest: float) -> None:
    assert highest <= nice(highest) <= 2.5 * max(1, highest)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = store(tmp_path / "a.json", {"none": {"2.0": 5}}, name="tax")
    part = store(tmp_path / "b.json", {"none": {"2.0": 5}, "pin": {"0.5": 1}})
    for words in ([], [str(other), "x.svg"], [str(part), "x.svg"], [str(tmp_path / "missing"), "x.svg"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("perf.plot: ")
        assert said.count("\n") == 1
