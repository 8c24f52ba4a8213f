"""Which measurements there are: files of this directory that have a `measure`, found without importing them.

Called by `perf/__main__.py`. A new measurement is a new file, and nothing else.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from perf.harness import Findings

HERE = Path(__file__).parent

Measure = Callable[..., Findings]


class Measurement(Struct, frozen=True):
    """One entry of `--list`."""

    name: str
    question: str  # first line of the module's docstring
    options: list[str]  # parameters of `measure` beside `quick`


def measurements() -> dict[str, Measurement]:
    """All of them, by name."""
    found = (_read(path) for path in sorted(HERE.glob("*.py")))
    return {m.name: m for m in found if m is not None}


def _read(path: Path) -> Measurement | None:
    module = ast.parse(path.read_text())
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == "measure":
            parameters = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            question = (ast.get_docstring(module) or "").split("\n", 1)[0]
            return Measurement(path.stem, question, [name for name in parameters if name != "quick"])
    return None


def load(name: str) -> Measure:
    """The function itself; imports the file."""
    found: Measure = importlib.import_module(f"perf.{name}").measure
    return found


def defaults(measure: Measure) -> dict[str, Any]:
    """Its options with their default values."""
    parameters = inspect.signature(measure).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "quick"}
