"""`lip ls`, `tree`, `stat`, `cat`, `cp`, `rm`, `mv`, `chmod`, `df`, `fsck`, `lsof`: KV files, for their operator.

Paths begin at the real root. Exit status as of all commands (`sdk/cli.py`); `fsck` ends with 1 when something is wrong.
"""

import sys
from pathlib import Path as Local
from typing import Annotated, Any

import typer

from sdk.client import Client
from sdk.command import FAILED, WRONG_USE, Json, print_json, table, with_kernel
from sdk.runner import complain

files = typer.Typer(rich_markup_mode=None)

KV = "kv:"  # before a path in the kernel, where it could be one of this machine
Path = Annotated[str, typer.Argument(metavar="PATH", show_default=False)]
Paths = Annotated[list[str], typer.Argument(metavar="PATH", show_default=False)]


# --- looking ----------------------------------------------------------------------------------------------------


@files.command()
def ls(
    ctx: typer.Context,
    path: Path = "/",
    long: Annotated[
        bool, typer.Option("-l", "--long", help="with mode, owner, tokens, size and where its KV is")
    ] = False,
    json: Json = False,
) -> None:
    """List KV files."""

    async def show(client: Client) -> None:
        found = await client.ls(path)
        if json:
            print_json(found)
        elif not long:
            for entry in found:
                print(_name(entry))
        else:
            rows = [
                (
                    _mode(f),
                    f["n_links"],
                    f["owner"],
                    f["group"],
                    *_of_file(f, f["n_tokens"], size(f["n_bytes"]), f["n_shared_pages"], f["n_open"], _where(f)),
                    _ago(f["modified_s_ago"]),
                    _name(f),
                )
                for f in found
            ]
            table(
                rows,
                *("MODE", "LINKS", "OWNER", "GROUP", "TOKENS", "SIZE", "SHARED", "OPEN", "KV", "CHANGED", "NAME"),
                right=("LINKS", "TOKENS", "SIZE", "SHARED", "OPEN", "CHANGED"),
            )

    with_kernel(ctx, show)


@files.command()
def tree(ctx: typer.Context, path: Path = "/", json: Json = False) -> None:
    """Show a directory with all that is below it, and how many tokens each file has."""

    async def show(client: Client) -> None:
        found = await client.tree(path)
        if json:
            print_json(found)
            return
        print(path)
        for line in branches(found):
            print(line)

    with_kernel(ctx, show)


@files.command()
def stat(ctx: typer.Context, path: Path, json: Json = False) -> None:
    """Show what is known of one KV file or directory."""

    async def show(client: Client) -> None:
        found = await client.stat(path)
        if json:
            print_json(found)
            return
        shown = found | {"mode": f"{found['mode']:03o} {_mode(found)}", "n_bytes": size(found["n_bytes"])}
        for name, value in shown.items():
            if f"{name}_ago" in found:
                value = f"{_ago(found[f'{name}_ago'])} ago"
            if name == "pinned_until_s":
                value = _pinned(found) if found["n_pinned_pages"] else None
            if not name.endswith("_ago") and name != "pinned_for_s":
                print(f"{name.removesuffix('_s'):>16}  {'-' if value is None else value}")

    with_kernel(ctx, show)


@files.command()
def cat(
    ctx: typer.Context,
    path: Path,
    tokens: Annotated[bool, typer.Option("--tokens", help="their ids, and not the text")] = False,
) -> None:
    """Print the text of a KV file."""

    async def show(client: Client) -> None:
        found = await client.cat(path, text=not tokens)
        text = " ".join(map(str, found["tokens"])) if tokens else found["text"]
        print(text, end="" if not text or text.endswith("\n") else "\n")

    with_kernel(ctx, show)


@files.command()
def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="kv:PATH of a KV file, or a file of this machine")],
    target: Annotated[str, typer.Argument(help="the other of the two")],
) -> None:
    """Copy a KV file, with its KV, out of the kernel or into it: `lip cp kv:/doc doc.kv`, `lip cp doc.kv kv:/doc`.

    The file on this machine is the same for all kernels that serve the same model in the same type."""
    inside = [path.removeprefix(KV) if path.startswith(KV) else None for path in (source, target)]
    if (inside[0] is None) == (inside[1] is None):
        complain(f"one of the two is in the kernel, and begins with {KV} as in {KV}/doc; the other is not")
        raise typer.Exit(WRONG_USE)

    try:
        if inside[0] is not None:
            _export(ctx, inside[0], Local(target))
        else:
            _import(ctx, Local(source), inside[1] or "")
    except OSError as e:
        complain(str(e))
        raise typer.Exit(FAILED) from None


def _export(ctx: typer.Context, path: str, target: Local) -> None:
    """Whole, or not at all."""
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as local:

            async def copy(client: Client) -> None:
                n_bytes = await client.export(path, local)
                local.close()
                part.replace(target)
                print(f"{size(n_bytes)} written")

            with_kernel(ctx, copy)
    finally:
        part.unlink(missing_ok=True)


def _import(ctx: typer.Context, source: Local, path: str) -> None:
    with source.open("rb") as local:

        async def copy(client: Client) -> None:
            found = await client.import_file(path, local)
            print(f"{found['n_tokens']} tokens, {found['n_resident']} of them with their KV")

        with_kernel(ctx, copy)


# --- changing ---------------------------------------------------------------------------------------------------


@files.command()
def rm(
    ctx: typer.Context,
    paths: Paths,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="directories with all that is in them")] = False,
) -> None:
    """Remove KV files, and empty directories. Programs that have a file open keep it."""

    async def remove(client: Client) -> None:
        for path in paths:
            await client.rm(path, recursive=recursive)

    with_kernel(ctx, remove)


@files.command()
def mv(ctx: typer.Context, old: Annotated[str, typer.Argument()], new: Annotated[str, typer.Argument()]) -> None:
    """Rename a KV file or directory, or move it into the directory NEW. A file that is called NEW is replaced."""
    with_kernel(ctx, lambda client: client.mv(old, new))


@files.command()
def chmod(
    ctx: typer.Context, mode: Annotated[str, typer.Argument(help="three octal digits: 640")], paths: Paths
) -> None:
    """Set who may read (4), write (2) and fork (1) KV files: the owner, the group, and all others."""
    if len(mode) not in (3, 4) or set(mode) - set("01234567") or int(mode, 8) > 0o777:
        complain(f"{mode} is no mode: three octal digits, as in 640")
        raise typer.Exit(WRONG_USE)

    async def change(client: Client) -> None:
        for path in paths:
            await client.chmod(path, int(mode, 8))

    with_kernel(ctx, change)


# --- the whole of it --------------------------------------------------------------------------------------------


@files.command()
def df(ctx: typer.Context, json: Json = False) -> None:
    """Show how full the devices are, and the main memory of their workers."""

    async def show(client: Client) -> None:
        found = await client.df()
        if json:
            print_json(found)
            return
        rows: list[tuple[object, ...]] = []
        for d in found:
            for where, total, free in (
                ("device", d["n_pages"], d["n_free"]),
                ("host", d["n_host_pages"], d["n_host_free"]),
            ):
                used = total - free
                share = f"{-(-100 * used // total)}%" if total else "-"
                amounts = (size(n * d["page_bytes"]) for n in (total, used, free))
                rows.append(
                    (d["device"], where, *amounts, share, total, used, d["n_files"] if where == "device" else "")
                )
        numbers = ("SIZE", "USED", "FREE", "USE%", "PAGES", "USED PAGES", "FILES")
        table(rows, "DEVICE", "TIER", *numbers, right=numbers)

    with_kernel(ctx, show)


@files.command()
def fsck(ctx: typer.Context, json: Json = False) -> None:
    """Check every invariant of the file system, while the kernel stands still; status 1 when one is broken."""

    async def check(client: Client) -> int:
        found = await client.fsck()
        if json:
            print_json(found)
        else:
            for problem in found["problems"]:
                print(problem)
            counted = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in found["checked"].items())
            print(f"{len(found['problems'])} problems in {counted}", file=sys.stderr)
        return FAILED if found["problems"] else 0

    with_kernel(ctx, check)


@files.command()
def lsof(
    ctx: typer.Context,
    pid: Annotated[int | None, typer.Option("-p", "--pid", help="of this process")] = None,
    json: Json = False,
) -> None:
    """List open KV files: which process has them, how, and what it has locked or waits to lock."""

    async def show(client: Client) -> None:
        found = [f for f in await client.lsof() if pid in (None, f["pid"])]
        if json:
            print_json(found)
            return
        rows = [
            (
                f["pid"],
                f["name"],
                f["fd"],
                f["mode"],
                _lock(f),
                f["n_tokens"],
                f"#{f['ino']}",
                ", ".join(f["paths"]) or "(no name)",
            )
            for f in found
        ]
        table(
            rows,
            *("PID", "PROGRAM", "FD", "MODE", "LOCK", "TOKENS", "FILE", "NAME"),
            right=("PID", "FD", "TOKENS", "FILE"),
        )

    with_kernel(ctx, show)


# --- spelling ---------------------------------------------------------------------------------------------------


def size(n_bytes: float) -> str:
    """For people: 0, 512, 1.5K, 23M."""
    units = iter("KMGTP")
    unit = ""
    while n_bytes >= 1024:
        n_bytes, unit = n_bytes / 1024, next(units)
    return f"{n_bytes:.1f}{unit}" if unit and n_bytes < 10 else f"{n_bytes:.0f}{unit}"


def branches(found: list[dict[str, Any]]) -> list[str]:
    """The lines of a tree, from entries whose names are paths, each directory before what is in it."""
    lines: list[str] = []
    parents = [entry["name"].rpartition("/")[0] for entry in found]
    last = {parent: i for i, parent in enumerate(parents)}  # the entry that comes last in each directory
    for i, entry in enumerate(found):
        steps = entry["name"].split("/")
        above = ("/".join(steps[:n]) for n in range(1, len(steps)))
        bars = "".join("    " if _is_last(path, last, found) else "│   " for path in above)
        branch = "└── " if last[parents[i]] == i else "├── "
        tokens = "" if entry["kind"] == "directory" else f"  ({entry['n_tokens']} tokens)"
        lines.append(f"{bars}{branch}{_name(entry | {'name': steps[-1]})}{tokens}")
    return lines


def _is_last(path: str, last: dict[str, int], found: list[dict[str, Any]]) -> bool:
    return bool(found[last[path.rpartition("/")[0]]]["name"] == path)


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['name']}{'/' if entry['kind'] == 'directory' else ''}"


def _mode(entry: dict[str, Any]) -> str:
    """As `ls -l` has it: -rwxr-x---."""
    bits = "".join(letter if entry["mode"] >> 8 - i & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))
    return f"{'d' if entry['kind'] == 'directory' else '-'}{bits}"


def _of_file(entry: dict[str, Any], *cells: object) -> tuple[object, ...]:
    return ("-",) * len(cells) if entry["kind"] == "directory" else cells


def _where(entry: dict[str, Any]) -> str:
    """Where the KV of a file is, and for how long it stays there."""
    if entry["n_tokens"] == entry["n_resident"]:
        where = "device" if entry["n_tokens"] else "-"
    elif entry["n_host_pages"]:
        where = "host" if not entry["n_pages"] else "host, device"
    elif entry["n_resident"]:
        where = "partial"
    else:
        where = "disk" if entry["is_saved"] else "dropped"
    return f"{where}, pinned {_pinned(entry)}" if entry["n_pinned_pages"] else where


def _pinned(entry: dict[str, Any]) -> str:
    left = entry["pinned_for_s"]
    return "while open" if left is None else f"for {_ago(left)}"


def _ago(seconds: float) -> str:
    for unit, length in (("s", 60), ("m", 60), ("h", 24)):
        if seconds < length:
            return f"{seconds:.0f}{unit}"
        seconds /= length
    return f"{seconds:.0f}d"


def _lock(opened: dict[str, Any]) -> str:
    held, wanted = opened["lock"], opened["waits_for"]
    if wanted is None:
        return held or "-"
    return f"{held}, waits for {wanted}" if held else f"waits for {wanted}"
