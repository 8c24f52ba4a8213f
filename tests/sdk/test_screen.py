"""What a user sees of a program, on a terminal and off it."""

import io
import re

from rich.console import Console

from sdk.client import Exit
from sdk.screen import Screen

DONE = Exit(pid=1, code=0)


def screen(*, terminal: bool = False, width: int = 80, **options) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, height=20, color_system=None)
    return Screen(console, **options), out


def test_text_is_shown_as_it_comes_and_values_as_json() -> None:
    s, out = screen()
    s.emit("a ", None)
    assert out.getvalue() == "a "
    s.emit("b", None)
    s.emit({"x": [1]}, None)
    s.end(Exit(pid=1, code=0, result={"n": 1}))
    assert out.getvalue() == 'a b{"x":[1]}\n{"n":1}\n'


def test_markup_is_text() -> None:
    s, out = screen()
    s.emit("[bold]not markup[/]", None)
    s.end(DONE)
    assert out.getvalue() == "[bold]not markup[/]\n"


def test_no_result_is_not_shown() -> None:
    s, out = screen()
    s.end(DONE)
    assert out.getvalue() == ""


def test_a_failed_program_has_no_result() -> None:
    s, out = screen()
    s.emit("half", None)
    s.end(Exit(pid=1, code=1, error="ValueError"))
    assert out.getvalue() == "half\n"


def test_streams_are_shown_one_after_the_other_at_the_end() -> None:
    s, out = screen()
    s.emit("before", None)
    for part in ("x", "y"):
        s.emit(f"{part}1 ", "a")
        s.emit(f"{part}2 ", "b")
    s.emit("between", None)
    assert out.getvalue() == "before\n"
    s.end(Exit(pid=1, code=0, result=3))
    assert out.getvalue() == "before\n--- a ---\nx1 y1 \n--- b ---\nx2 y2 \n--- output ---\nbetween\n3\n"


def test_on_a_terminal_streams_are_side_by_side() -> None:
    s, out = screen(terminal=True)
    s.emit("left text", "one")
    s.emit("right text", "two")
    s.end(Exit(pid=1, code=0, result={"a": 1}))
    text = out.getvalue()
    assert any("one" in line and "two" in line for line in text.splitlines())
    assert any("left text" in line and "right text" in line for line in text.splitlines())
    assert text.endswith('{\n  "a": 1\n}\n')


def test_on_a_terminal_the_whole_text_is_left_on_the_screen() -> None:
    s, out = screen(terminal=True)
    for i in range(100):
        s.emit(f"line {i}\n", "log")
        s.redraw()
    n_chars = len(out.getvalue())
    s.redraw()
    assert len(out.getvalue()) == n_chars, "nothing has changed, so nothing is drawn"
    s.end(DONE)
    assert all(f"line {i} " in out.getvalue() for i in range(100))


def test_a_narrow_terminal_has_fewer_columns() -> None:
    s, out = screen(terminal=True, width=30)
    for name in ("one", "two", "three"):
        s.emit(name, name)
    s.end(DONE)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert max(len(line) for line in text.splitlines()) <= 30


def test_a_prompt_interrupts_the_columns() -> None:
    s, out = screen(terminal=True)
    s.emit("working", "log")
    s.ask("name? ")
    assert out.getvalue().endswith("name? ")
    s.emit(" on", "log")
    s.redraw()
    s.end(DONE)
    assert "working on" in out.getvalue()


def test_json_only_is_the_result_and_nothing_else(capsys) -> None:
    s, out = screen(json_only=True)
    s.emit("text", None)
    s.emit("text", "log")
    s.ask("name? ")
    s.end(DONE)
    assert out.getvalue() == "null\n"
    assert capsys.readouterr().err == "name? "


def test_a_program_that_was_given_up_has_no_result() -> None:
    s, out = screen(json_only=True)
    s.end(None)
    assert out.getvalue() == ""
