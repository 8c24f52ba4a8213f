"""`python -m sdk.abi --write | --check`: derive the stubs and the manual from the table of system calls.

Owns nothing but the spelling of the two generated files, `sdk/syscalls.py` and `docs/syscalls.md`; what they say
comes from `sdk/abi/calls.py`. The stubs are laid out as `ruff format` would, so that a formatter run leaves them
current. Importing this package imports the stubs, so after a conflict take either side of them, then `--write`.
"""

import argparse
import builtins
import inspect
import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields

from sdk.abi import calls as declared  # noqa: F401  (importing the calls fills the table)
from sdk.abi.errors import SyscallError
from sdk.abi.table import TABLE, Entry

ROOT = Path(__file__).parents[2]
WIDTH = 120  # line-length of pyproject.toml

GROUPS = {
    "model": "Running the model.",
    "file": "KV files: paths, handles and what they hold.",
    "process": "Processes, time and chance.",
    "ipc": "Messages between programs, and the client.",
}


def spell(tp: Any) -> str:
    """A type as one writes it; the limits of `Annotated` stay with the struct."""
    origin, args = get_origin(tp), get_args(tp)
    if origin is Annotated:
        return spell(args[0])
    if origin in (Union, UnionType):
        return " | ".join(spell(a) for a in args)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(spell(a) for a in args)}]"
    return "None" if tp is NoneType else str(tp.__name__)


def default_of(field: FieldInfo) -> str:
    """A field's default as an expression."""
    if field.default_factory is not msgspec.NODEFAULT:
        return repr(field.default_factory())
    match field.default:
        case Enum() as member:
            return f"{type(member).__name__}.{member.name}"
        case msgspec.Struct() as struct:
            assert struct == type(struct)(), "only a struct's own default has a spelling"
            return f"{type(struct).__name__}()"
        case value:
            return repr(value).replace("'", '"')


class Parameter(NamedTuple):
    """One parameter of a stub."""

    name: str
    type: str  # as the manual and the struct have it
    default: str | None
    keyword_only: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.default is None else f" = {self.default}")

    def relaxed(self) -> "Parameter":
        """What a stub accepts: any sequence or mapping, copied into the call. Their defaults cannot be mutated."""
        accepted = self.type.replace("list[", "Sequence[").replace("dict[", "Mapping[")
        return self._replace(type=accepted, default="()" if self.default == "[]" else self.default)

    def argument(self) -> str:
        """The keyword argument that hands this parameter to the struct."""
        copy = next((kind for kind in ("list", "dict") if self.type.startswith(f"{kind}[")), None)
        if copy is None:
            return f"{self.name}={self.name}"
        if self.type.endswith("| None"):
            return f"{self.name}=None if {self.name} is None else {copy}({self.name})"
        return f"{self.name}={copy}({self.name})"


def parameters(entry: Entry) -> list[Parameter]:
    """Of one call: the first field and all required ones may be given by position, the others by keyword."""
    return [
        Parameter(f.name, spell(f.type), None if f.required else default_of(f), i > 0 and not f.required)
        for i, f in enumerate(fields(entry.call))
    ]


def with_star(params: list[Parameter], write: Callable[[Parameter], str] = str) -> list[str]:
    """The parameters as written in a signature, with the `*` before the first keyword-only one."""
    at = next((i for i, p in enumerate(params) if p.keyword_only), None)
    written = [write(p) for p in params]
    return written if at is None else [*written[:at], "*", *written[at:]]


# --- sdk/syscalls.py --------------------------------------------------------------------------------------------

HEADER = '''"""Every system call as an async function. GENERATED from sdk/abi/calls.py by `python -m sdk.abi --write`.

`sdk.kv`, `sdk.model`, `sdk.process` and `sdk.channel` are the friendlier spelling; docs/syscalls.md is the manual.
"""
'''


def stub(entry: Entry) -> str:
    """One function of sdk/syscalls.py."""
    lines = [*_signature(entry), *_docstring(inspect.cleandoc(entry.doc).split("\n\n")[0].splitlines()), *_body(entry)]
    return "\n".join(lines)


def _signature(entry: Entry) -> list[str]:
    """On one line where that fits, else one parameter a line. A frozen struct is a safe default: not B008."""
    params = with_star([p.relaxed() for p in parameters(entry)])
    head, tail = f"async def {entry.name}(", f") -> {spell(entry.result)}:"

    def marked(line: str) -> str:
        codes = ["A001"] if line.startswith(head) and hasattr(builtins, entry.name) else []
        codes += ["B008"] if re.search(r"= \w+\(\)", line) else []
        return f"{line}  # noqa: {', '.join(codes)}" if codes else line

    one = head + ", ".join(params) + tail
    if len(one) <= WIDTH:
        return [marked(one)]
    return [marked(head), *(marked(f"    {p},") for p in params), tail]


def _docstring(paragraph: list[str]) -> list[str]:
    one = f'    """{paragraph[0]}"""'
    if len(paragraph) == 1 and len(one) <= WIDTH:
        return [one]
    return [f'    """{paragraph[0]}', *(f"    {line}" for line in paragraph[1:]), '    """']


def _body(entry: Entry) -> list[str]:
    result = "" if entry.result is NoneType else "return "
    arguments = [p.argument() for p in parameters(entry)]
    call = f"calls.{entry.call.__name__}({', '.join(arguments)})"
    one = f"    {result}await trap({call})"
    if len(one) <= WIDTH:
        return [one]
    if len(call) + 8 <= WIDTH:
        return [f"    {result}await trap(", f"        {call}", "    )"]
    inner = f"            {', '.join(arguments)}"
    lines = [inner] if len(inner) <= WIDTH else [f"            {argument}," for argument in arguments]
    return [f"    {result}await trap(", f"        calls.{entry.call.__name__}(", *lines, "        )", "    )"]


def names_of(tp: Any) -> set[str]:
    """The names of our own types within a type."""
    if get_origin(tp) is None:
        return {tp.__name__} if getattr(tp, "__module__", "") == "sdk.abi.values" else set()
    return set().union(*(names_of(part) for part in get_args(tp)))


def stubs() -> str:
    """The text of sdk/syscalls.py."""
    body = "\n\n\n".join(stub(e) for e in entries())
    types = [tp for e in entries() for tp in (e.result, *(f.type for f in fields(e.call)))]
    used = set().union(*(names_of(tp) for tp in types))
    imports = [
        "from collections.abc import Mapping, Sequence",
        "from typing import Any",
        "",
        "from sdk.abi import calls",
        "from sdk.abi.trap import trap",
        "from sdk.abi.values import (",
        *(f"    {name}," for name in sorted(used)),
        ")",
    ]
    return "\n".join([HEADER, *imports, "\n", body, ""])


# --- docs/syscalls.md -------------------------------------------------------------------------------------------

INTRODUCTION = """# System calls

GENERATED from `sdk/abi/calls.py` by `python -m sdk.abi --write`.

What a program asks of the kernel. `sdk.syscalls` has one async function for each; `sdk.kv`, `sdk.model`,
`sdk.process` and `sdk.channel` put them in friendlier words. A call that *blocks* may wait and let others run; the
others answer at once. A failed call raises the `SyscallError` that stands for its errno.
"""


def manual() -> str:
    """The text of docs/syscalls.md."""
    parts = [INTRODUCTION]
    for group, purpose in GROUPS.items():
        rows = [e for e in entries() if e.group == group]
        parts.append(f"## {group}\n\n{purpose}\n\n| nr | name | signature | blocks | errors |\n|---|---|---|---|---|")
        parts += [*(_row(e) for e in rows), ""]
    return "\n".join([*parts, "## The calls\n", *(_page(e) for e in entries())])


def _row(entry: Entry) -> str:
    signature = f"{entry.name}({', '.join(with_star(parameters(entry), lambda p: p.name))}) -> {spell(entry.result)}"
    blocks = "yes" if entry.blocks else ""
    return f"| {entry.nr} | [`{entry.name}`](#{entry.name}) | `{signature}` | {blocks} | {' '.join(entry.errnos)} |"


def _page(entry: Entry) -> str:
    errors = ", ".join(f"{e} (`{SyscallError.BY_ERRNO[e].__name__}`)" for e in entry.errnos) or "none"
    params = with_star(parameters(entry))
    synopsis = f"{entry.name}({', '.join(params)}) -> {spell(entry.result)}"
    if len(synopsis) > WIDTH:
        synopsis = "\n".join([f"{entry.name}(", *(f"    {p}," for p in params), f") -> {spell(entry.result)}"])
    return f"### {entry.name}\n\n```python\n{synopsis}\n```\n\n{inspect.cleandoc(entry.doc)}\n\nErrors: {errors}.\n"


def entries() -> list[Entry]:
    """The table by number. A group that the manual does not introduce is a mistake of whoever added the call."""
    assert {e.group for e in TABLE.values()} <= GROUPS.keys(), "introduce the new group in GROUPS"
    return sorted(TABLE.values(), key=lambda e: e.nr)


GENERATED: dict[str, Callable[[], str]] = {"sdk/syscalls.py": stubs, "docs/syscalls.md": manual}


def stale(root: Path) -> list[str]:
    """The generated files under `root` that are missing or not what the table says."""

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8") if path.exists() else ""

    return [name for name, derive in GENERATED.items() if text(root / name) != derive()]


def main(argv: list[str], root: Path = ROOT) -> int:
    """The command line. 0: done or current; 1: something is stale."""
    parser = argparse.ArgumentParser(prog="python -m sdk.abi", description="Derive the stubs and the manual.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write the generated files")
    mode.add_argument("--check", action="store_true", help="exit with 1 when one of them is stale")
    options = parser.parse_args(argv)
    names = stale(root)
    for name in names:
        if options.write:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(GENERATED[name](), encoding="utf-8")
        print(f"{name}: {'written' if options.write else 'stale: run `python -m sdk.abi --write`'}")
    return 1 if names and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
