"""From a file or a name to a program: its `main`, what it takes, and the arguments converted to that.

A program is one module with an `async def main`: a Python file, read anew for every run, or an installed name,
which is `programs/<name>.py` of this house or an entry point of the group `lip.programs`, imported once. Names are
found without importing anything. A program's module is its own: `sys.path` is never changed, so a file imports
only what is installed. Every mistake of the program's author or caller is a `LoadError` of one line.

`kernel/core.py`, the front doors and `python -m kernel run` load programs here; `python -m kernel.loader TARGET
[--parameter value ...]` checks one without a kernel. Never add here how a program runs.
"""

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import sys
import traceback
import typing
import weakref
from collections.abc import Callable, Coroutine, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec
from msgspec import Struct

from kernel.heart import heart
from kernel.parameters import LoadError, Parameters

__all__ = ["Description", "LoadError", "Program", "installed", "load", "load_file", "load_installed", "options"]

ENTRY_POINTS = "lip.programs"
HOUSE = Path(__file__).parents[1] / "programs"

Main = Callable[..., Coroutine[Any, Any, Any]]

_numbers = itertools.count(1)


class Description(Struct, frozen=True):
    """What a program is and takes."""

    name: str
    doc: str
    path: str
    help: str  # what `lip run X --help` shows: the docstring, and the parameters as options
    parameters: list[dict[str, Any]]  # of each: name, type, required, and default where it has one
    schema: dict[str, Any]  # JSON schema of the arguments


class Program:
    """Something that can be spawned."""

    def __init__(self, name: str, main: Main, path: Path, doc: str) -> None:
        """Raises LoadError when `main` takes what cannot be given from outside."""
        self.name = name
        self.main = main
        self.path = path
        self.doc = doc
        try:
            self._parameters = Parameters(main)
        except LoadError as e:
            raise LoadError(f"{path}: {e}") from None

    def bind(self, args: dict[str, Any], *, text: bool) -> dict[str, Any]:
        """Arguments for `main`, checked and converted. With `text` they are words of a command line, as `options`
        returns them; otherwise JSON values. Raises LoadError."""
        return self._parameters.bind(args, text=text)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        return self._parameters.schema

    def describe(self) -> Description:
        described = f"{self.doc}\n\n{self._parameters.help()}".strip()
        return Description(self.name, self.doc, str(self.path), described, self._parameters.rows(), self.schema())


# --- finding ----------------------------------------------------------------------------------------------------


def load(target: str) -> Program:
    """The program that a user means: a file where there is a `/` or `.py` in it, else an installed name."""
    return load_file(Path(target)) if "/" in target or target.endswith(".py") else load_installed(target)


def installed() -> dict[str, str]:
    """Names of all installed programs with the first line of each one's docstring."""
    names = {path.stem: _first_line(path) for path in HOUSE.glob("[!_]*.py")}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        names.setdefault(entry.name, f"from {entry.value}")
    return dict(sorted(names.items()))


def load_installed(name: str) -> Program:
    """The program installed as `name`; dashes and underscores are the same. Raises LoadError."""
    try:
        return _load_installed(name.replace("-", "_"))
    except KeyError:
        raise LoadError(
            f"no program {name!r} is installed; `lip programs` lists them, and a file is given by its path"
        ) from None


@functools.cache
def _load_installed(name: str) -> Program:
    """Raises KeyError when there is none, and LoadError when it cannot be loaded."""
    if name.isidentifier() and not name.startswith("_") and (HOUSE / f"{name}.py").is_file():
        return _program(name, _imported(f"programs.{name}", name), "main")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.name.replace("-", "_") == name:
            return _program(name, _imported(entry.module, name), entry.attr or "main")
    raise KeyError(name)


def _imported(module: str, name: str) -> ModuleType:
    try:
        with heart.loading():
            return importlib.import_module(module)
    except (Exception, SystemExit) as e:
        raise LoadError(f"program {name} cannot be imported: {_blame(e, '')}") from None


def load_file(path: Path) -> Program:
    """The program in a Python file, as it is now. Raises LoadError."""
    if path.suffix != ".py":
        raise LoadError(f"{path} is not a .py file; an installed program is given by its name alone")
    path = path.absolute()
    if not path.is_file():
        raise LoadError(f"there is no file {path}")
    name = f"lip_{next(_numbers)}_{path.stem}"  # unique: two runs of one file share nothing
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and typing look names up
    try:
        with heart.loading():
            spec.loader.exec_module(module)
        program = _program(path.stem, module, "main")
    except LoadError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise LoadError(_blame(e, str(path))) from None
    weakref.finalize(program, sys.modules.pop, name, None)
    return program


class _Source(SourceFileLoader):
    """Compiles the file each time and leaves no bytecode behind: two edits in a second are two programs."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _program(name: str, module: ModuleType, attribute: str) -> Program:
    path = Path(module.__file__ or module.__name__)
    main = getattr(module, attribute, None)
    if main is None:
        raise LoadError(f"{path} has no {attribute}: a program is an `async def {attribute}(...)`")
    if not inspect.iscoroutinefunction(main):
        raise LoadError(f"{path}: {attribute} is not an `async def`")
    return Program(name, typing.cast(Main, main), path, inspect.getdoc(main) or inspect.getdoc(module) or "")


def _blame(error: BaseException, path: str) -> str:
    """Where and why an import failed, in one line; the place is the last one inside `path`."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno or 1}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    at = [f for f in frames if f.filename == path] or frames
    where = f"{at[-1].filename}:{at[-1].lineno}: " if at else ""
    text = " ".join(str(error).split())
    return f"{where}{type(error).__name__}" + (f": {text}" if text else "")


def _first_line(path: Path) -> str:
    """Of a module's docstring, without importing it."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return ""
    return doc.split("\n", 1)[0] if doc else ""


# --- the command line -------------------------------------------------------------------------------------------


def options(words: Sequence[str]) -> dict[str, Any]:
    """`--n 4 --name=x --tag a --tag b --flag` as {"n": "4", "name": "x", "tag": ["a", "b"], "flag": True}.

    A value that begins with two dashes is given with `=`. Raises LoadError for what is not an option.
    """
    found: dict[str, list[Any]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise LoadError(f"{word!r} was not expected: parameters are given as `--name value`")
        name, equals, value = word[2:].partition("=")
        given: Any = value if equals else rest.pop(0) if rest and not rest[0].startswith("--") else True
        found.setdefault(name.replace("-", "_"), []).append(given)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def main(words: Sequence[str]) -> int:
    """Check a program and the arguments given to it, and print its description as JSON. Needs no kernel."""
    try:
        if not words:
            raise LoadError("give a program: python -m kernel.loader FILE|NAME [--parameter value ...]")
        program = load(words[0])
        if "--help" not in words:
            program.bind(options(words[1:]), text=True)
    except LoadError as e:
        print(e, file=sys.stderr)
        return 2
    print(msgspec.json.encode(program.describe()).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
