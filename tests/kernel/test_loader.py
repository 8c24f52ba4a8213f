"""Programs from files and names, and one clear line for every way in which that can go wrong."""

import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import msgspec
import pytest

from kernel import loader
from kernel.loader import LoadError, installed, load, load_file, load_installed, options

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(source: str) -> Path:
        path = tmp_path / "prog.py"
        path.write_text(source)
        return path

    return write


def why(path: Path) -> str:
    """The message of the LoadError, which must be one line."""
    with pytest.raises(LoadError) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------


async def test_a_file_is_a_program(write: Write) -> None:
    program = load_file(write('async def main(n: int = 2) -> int:\n    """Doubles."""\n    return 2 * n\n'))
    assert (program.name, program.doc) == ("prog", "Doubles.")
    assert await program.main(n=4) == 8


async def test_the_module_docstring_describes_a_main_without_one(write: Write) -> None:
    assert load_file(write('"""From the module."""\nasync def main(): ...\n')).doc == "From the module."


async def test_every_load_reads_the_file_and_has_its_own_globals(write: Write) -> None:
    first = load_file(write("count = 0\nasync def main():\n    global count\n    count += 1\n    return count\n"))
    assert [await first.main(), await first.main()] == [1, 2]
    assert await load_file(first.path).main() == 1
    second = load_file(write("count = 9\nasync def main():\n    global count\n    count += 1\n    return count\n"))
    assert await second.main() == 10  # same size, same second: no bytecode may be trusted


def test_loading_leaves_no_bytecode_and_no_path_entry(write: Write, tmp_path: Path) -> None:
    before = list(sys.path)
    load_file(write("async def main(): ...\n"))
    assert [p.name for p in tmp_path.iterdir()] == ["prog.py"]
    assert sys.path == before


def test_the_module_lives_as_long_as_its_program(write: Write) -> None:
    program = load_file(write("async def main(): ...\n"))
    name = program.main.__module__
    assert name in sys.modules
    del program
    assert name not in sys.modules


async def test_string_annotations_are_resolved_in_the_program(write: Write) -> None:
    source = (
        "from __future__ import annotations\nimport msgspec\n"
        "class Point(msgspec.Struct):\n    x: int\n"
        "async def main(p: Point) -> int:\n    return p.x\n"
    )
    program = load_file(write(source))
    assert await program.main(**program.bind({"p": {"x": 3}}, text=False)) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "has no main"),
        ("def main(): ...\n", "main is not an `async def`"),
        ("main = 3\n", "main is not an `async def`"),
        ("async def main(:\n", "prog.py:1: SyntaxError"),
        ("import os\nimport no_such_module_here\nasync def main(): ...\n", "prog.py:2: ModuleNotFoundError"),
        (
            "def f():\n    raise ValueError('bad\\nluck')\nf()\nasync def main(): ...\n",
            "prog.py:2: ValueError: bad luck",
        ),
        ("raise SystemExit(3)\n", "prog.py:1: SystemExit: 3"),
        ("\x00", "prog.py:1: SyntaxError"),
        ("async def main(*args): ...\n", "main takes `*args`"),
        ("async def main(**kw): ...\n", "main takes `**kw`"),
        ("async def main(x, /): ...\n", "main takes `x`"),
        ("async def main(x: 'Nowhere'): ...\n", "annotations of main cannot be read"),
        ("class Foo: ...\nasync def main(x: Foo): ...\n", "parameter x of main is a Foo, which cannot be given"),
    ],
)
def test_what_cannot_be_a_program_is_told_in_one_line(write: Write, source: str, message: str) -> None:
    assert message in why(write(source))
    assert not [name for name in sys.modules if name.startswith("lip_") and name.endswith("_prog")]


def test_paths_that_are_no_programs(tmp_path: Path) -> None:
    assert "there is no file" in why(tmp_path / "nix.py")
    assert "is not a .py file" in why(tmp_path / "nix.txt")
    (tmp_path / "dir.py").mkdir()
    assert "there is no file" in why(tmp_path / "dir.py")


def test_a_failing_import_is_told_without_a_chain(write: Write) -> None:
    with pytest.raises(LoadError) as caught:
        load_file(write("1 / 0\n"))
    assert "During handling" not in "".join(traceback.format_exception(caught.value))


# --- names ------------------------------------------------------------------------------------------------------


def test_programs_of_the_house_are_found_by_name_without_being_imported() -> None:
    found = installed()
    assert {"completions", "chat_completions"} <= found.keys()
    assert found["completions"].startswith("OpenAI's `/v1/completions`")
    assert not any(name.startswith("_") for name in found)


def test_dashes_and_underscores_are_the_same_and_a_name_is_imported_once() -> None:
    assert load_installed("chat-completions") is load_installed("chat_completions")


@pytest.mark.parametrize("name", ["nix", "_openai", "../sdk/cli", "__init__", "os", "programs.chat", ""])
def test_only_installed_names_are_loaded(name: str) -> None:
    with pytest.raises(LoadError, match=r"no program .* is installed"):
        load_installed(name)


def test_an_entry_point_is_a_program(monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path) -> None:
    (tmp_path / "outside_lip.py").write_text("async def answer(n: int): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = EntryPoints(
        [EntryPoint("out-side", "outside_lip:answer", "lip.programs"), EntryPoint("broken", "no_mod:f", "lip.programs")]
    )
    monkeypatch.setattr(loader.importlib.metadata, "entry_points", lambda **_: points)
    assert load_installed("out_side").main.__name__ == "answer"
    assert installed()["out-side"] == "from outside_lip:answer"
    with pytest.raises(LoadError, match=r"program broken cannot be imported: .*No module named 'no_mod'"):
        load_installed("broken")


def test_a_target_with_a_slash_or_a_suffix_is_a_file(write: Write) -> None:
    assert load(str(write("async def main(): ...\n"))).name == "prog"
    assert load("completions").path.name == "completions.py"
    with pytest.raises(LoadError, match="there is no file"):
        load("completions.py")
    with pytest.raises(LoadError, match=r"not a \.py file"):
        load("./completions")


# --- the command line -------------------------------------------------------------------------------------------


def test_options() -> None:
    words = ["--n", "4", "--name=x y", "--tag", "a", "--tag=b", "--dry-run", "--k", "-3", "--last"]
    assert options(words) == {
        "n": "4", "name": "x y", "tag": ["a", "b"], "dry_run": True, "k": "-3", "last": True,
    }  # fmt: skip
    assert options(["--prompt=--not-an-option"]) == {"prompt": "--not-an-option"}
    assert options([]) == {}


@pytest.mark.parametrize("words", [["x"], ["--n", "1", "2"], ["-n", "1"], ["--"]])
def test_what_is_no_option_is_told(words: list[str]) -> None:
    with pytest.raises(LoadError, match="was not expected: parameters are given as `--name value`"):
        options(words)


def test_describing_a_program_needs_no_kernel(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write('async def main(prompt: str, n: int = 4):\n    """Do."""\n')
    assert loader.main([str(path), "--prompt", "x"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert found["name"] == "prog"
    assert found["doc"] == "Do."
    assert found["parameters"] == [
        {"name": "prompt", "type": "str", "required": True},
        {"name": "n", "type": "int", "required": False, "default": "4"},
    ]
    assert found["schema"]["required"] == ["prompt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a program"),
        (["nix"], "no program 'nix' is installed"),
        (["PROG"], "parameter prompt is missing: give --prompt PROMPT"),
        (["PROG", "--promt", "x"], "there is no parameter promt; did you mean prompt?"),
    ],
)
def test_checking_a_command_line(
    write: Write, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    path = write("async def main(prompt: str): ...\n")
    assert loader.main([str(path) if word == "PROG" else word for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_help_needs_no_arguments(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert loader.main([str(write("async def main(prompt: str): ...\n")), "--help"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["name"] == "prog"
