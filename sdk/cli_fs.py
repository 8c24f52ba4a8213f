"""The commands of `lip` on KV files, for their operator: `ls`, `cat`, `cp`, `rm`, `df` and the others.

Paths begin at the real root. Exit status as in Unix: 0; 1 when something was refused, which is reported, while the
other paths are done all the same, and when `fsck` finds something; 2 for wrong use, and when there is no kernel.
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path as Local
from typing import IO, Annotated, Any

import typer

from sdk.client import Client, KernelError
from sdk.command import FAILED, WRONG_USE, Json, print_json, table, with_kernel
from sdk.fs_text import (
    branches,
    counted,
    duration,
    entry_name,
    lock_state,
    mode_bits,
    of_file,
    pinned,
    size,
    where,
)
from sdk.runner import complain

files = typer.Typer(rich_markup_mode=None)

KV = "kv:"  # before a path in the kernel, where it could be one of this machine
STREAM = "-"  # standard input or output, in the place of a file of this machine
OF_DIRECTORIES = ("path", "ino", "kind", "owner", "group", "mode", "created_s_ago", "modified_s_ago")  # of `stat`

Path = Annotated[str, typer.Argument(metavar="PATH", show_default=False)]
Paths = Annotated[list[str], typer.Argument(metavar="PATH", show_default=False)]


async def each(paths: Sequence[str], do: Callable[[str], Awaitable[object]]) -> int:
    """Do this with one path after another. What is refused is reported, and the others are done all the same."""
    status = 0
    for path in paths:
        try:
            await do(path)
        except KernelError as e:
            if not e.status:  # nobody is there to refuse anything
                raise
            complain(str(e))
            status = FAILED
    return status


# --- looking ----------------------------------------------------------------------------------------------------


@files.command()
def ls(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    long: Annotated[
        bool, typer.Option("-l", "--long", help="with mode, owner, tokens, size and where its KV is")
    ] = False,
    json: Json = False,
) -> None:
    """List KV files and directories."""

    async def show(client: Client) -> int:
        files: list[dict[str, Any]] = []
        directories: dict[str, list[dict[str, Any]]] = {}

        async def look(path: str) -> None:
            found = await client.ls(path)
            if [entry["path"] for entry in found] == [path]:
                files.extend(found)
            else:
                directories[path] = found

        status = await each(paths or ["/"], look)
        if json:
            print_json([*files, *(entry for found in directories.values() for entry in found)])
            return status
        if files:
            _list(files, long)
        for i, (path, found) in enumerate(directories.items()):
            if paths and len(paths) > 1:
                print(f"\n{path}:" if files or i else f"{path}:")
            _list(found, long)
        return status

    with_kernel(ctx, show)


def _list(found: Sequence[dict[str, Any]], long: bool) -> None:
    if not long:
        for entry in found:
            print(entry_name(entry))
        return
    rows = [
        (
            mode_bits(f),
            f["n_links"],
            f["owner"],
            f["group"],
            *of_file(f, f["n_tokens"], size(f["n_bytes"]), f["n_shared_pages"], f["n_open"], where(f)),
            duration(f["modified_s_ago"]),
            entry_name(f),
        )
        for f in found
    ]
    table(
        rows,
        *("MODE", "LINKS", "OWNER", "GROUP", "TOKENS", "SIZE", "SHARED", "OPEN", "KV", "CHANGED", "NAME"),
        right=("LINKS", "TOKENS", "SIZE", "SHARED", "OPEN", "CHANGED"),
    )


@files.command()
def tree(ctx: typer.Context, path: Path = "/", json: Json = False) -> None:
    """Show a directory with all that is below it."""

    async def show(client: Client, path: str) -> None:
        found = await client.tree(path)
        if json:
            print_json(found)
            return
        print(path)
        for line in branches(found):
            print(line)
        n_files = sum(entry["kind"] == "file" for entry in found)
        print(f"\n{counted(len(found) - n_files, 'directory', 'directories')}, {counted(n_files, 'file')}")

    with_kernel(ctx, lambda client: each([path], lambda path: show(client, path)))


@files.command()
def stat(ctx: typer.Context, path: Path, json: Json = False) -> None:
    """Show all that is known of a KV file or directory."""

    async def show(client: Client, path: str) -> None:
        found = await client.stat(path)
        if json:
            print_json(found)
            return
        shown = found | {"mode": f"{found['mode']:03o} {mode_bits(found)}", "n_bytes": size(found["n_bytes"])}
        shown["pinned_for_s"] = pinned(found) if found["n_pinned_pages"] else None
        for name, value in shown.items():
            if found["kind"] == "directory" and name not in OF_DIRECTORIES:
                continue
            if name.endswith("_s_ago"):
                value = f"{duration(value)} ago"
            label = name.removesuffix("_s_ago").removesuffix("_for_s")
            print(f"{label:>16}  {'-' if value is None else value}")

    with_kernel(ctx, lambda client: each([path], lambda path: show(client, path)))


@files.command()
def cat(
    ctx: typer.Context,
    paths: Paths,
    tokens: Annotated[bool, typer.Option("--tokens", help="their ids, and not the text")] = False,
) -> None:
    """Print the text of KV files."""

    async def show(client: Client, path: str) -> None:
        found = await client.cat(path, text=not tokens)
        text = " ".join(map(str, found["tokens"])) if tokens else found["text"]
        print(text, end="" if not text or text.endswith("\n") else "\n")

    with_kernel(ctx, lambda client: each(paths, lambda path: show(client, path)))


@files.command()
def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="kv:PATH of a KV file; or a file of this machine, - for its input")],
    target: Annotated[str, typer.Argument(help="the other of the two, or a directory there; - for the output")],
) -> None:
    """Copy a KV file with its KV to this machine, or back.

    `lip cp kv:/doc doc.kv` and `lip cp doc.kv kv:/doc`. The file on this machine is the same for all kernels that serve
    the same model in the same type. In the kernel nothing is replaced: remove what has the name first."""
    inside = [path.removeprefix(KV) if path.startswith(KV) else None for path in (source, target)]
    if (inside[0] is None) == (inside[1] is None):
        complain(f"one of the two is in the kernel, and begins with {KV} as in {KV}/doc; the other is not")
        raise typer.Exit(WRONG_USE)

    try:
        if inside[0] is not None:
            _export(ctx, inside[0], target)
        else:
            _import(ctx, source, inside[1] or "")
    except OSError as e:
        complain(f"{target if inside[1] is None else source}: {e.strerror}")
        raise typer.Exit(FAILED) from None


def _export(ctx: typer.Context, path: str, target: str) -> None:
    """Whole, or not at all."""

    def copy_to(local: IO[bytes], done: Callable[[], object]) -> None:
        async def copy(client: Client, path: str) -> None:
            n_bytes = await client.export(path, local)
            done()
            print(f"{size(n_bytes)} written", file=sys.stderr)

        with_kernel(ctx, lambda client: each([path], lambda path: copy(client, path)))

    if target == STREAM:
        copy_to(sys.stdout.buffer, sys.stdout.flush)
        return
    whole = Local(target)
    if whole.is_dir():
        whole = whole / path.rstrip("/").rpartition("/")[2]
    whole = whole.resolve()
    if whole.exists() and not whole.is_file():  # a device, a pipe: to be written, and never to be replaced
        with whole.open("wb") as local:
            copy_to(local, local.flush)
        return
    part = whole.parent / f"{whole.name}.part"

    def finish() -> None:
        local.close()
        part.replace(whole)

    try:
        with part.open("wb") as local:
            copy_to(local, finish)
    finally:
        part.unlink(missing_ok=True)


def _import(ctx: typer.Context, source: str, path: str) -> None:
    name = "" if source == STREAM else Local(source).name
    with sys.stdin.buffer if source == STREAM else Local(source).open("rb") as local:

        async def copy(client: Client, path: str) -> None:
            found = await client.import_file(path, local, name)
            n_tokens, n_kv = found["n_tokens"], found["n_resident"]
            rest = "" if n_kv == n_tokens else "; the others are computed when they are needed"
            print(f"{counted(n_tokens, 'token')}, {n_kv} of them with their KV{rest}", file=sys.stderr)

        with_kernel(ctx, lambda client: each([path], lambda path: copy(client, path)))


# --- changing ---------------------------------------------------------------------------------------------------


@files.command()
def rm(
    ctx: typer.Context,
    paths: Paths,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="directories with all that is in them")] = False,
) -> None:
    """Remove KV files and empty directories.

    Programs that have a file open keep it."""
    with_kernel(ctx, lambda client: each(paths, lambda path: client.rm(path, recursive=recursive)))


@files.command()
def mv(
    ctx: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="OLD, one or several, and NEW", show_default=False)
    ],
) -> None:
    """Rename KV files or directories, or move them into a directory.

    `lip mv OLD NEW` replaces a file that is called NEW, and moves OLD into the directory NEW where that is one; several
    are moved into one."""
    *old, new = paths
    if not old:
        complain("give both the old name and the new one: lip mv OLD NEW")
        raise typer.Exit(WRONG_USE)

    async def move(client: Client) -> int:
        if len(old) > 1 and (await client.stat(new))["kind"] != "directory":
            complain(f"{new} is no directory, and several are to be moved into it")
            return FAILED
        return await each(old, lambda path: client.mv(path, new))

    with_kernel(ctx, move)


@files.command()
def mkdir(ctx: typer.Context, paths: Paths) -> None:
    """Make directories."""
    with_kernel(ctx, lambda client: each(paths, client.mkdir))


@files.command()
def chmod(
    ctx: typer.Context,
    mode: Annotated[str, typer.Argument(metavar="MODE", help="three octal digits: 640")],
    paths: Paths,
) -> None:
    """Set who may read (4), write (2) and fork (1) KV files.

    The digits are for the owner, for the group, and for all others."""
    if len(mode) not in (3, 4) or set(mode) - set("01234567") or int(mode, 8) > 0o777:
        complain(f"{mode} is no mode: three octal digits, as in 640")
        raise typer.Exit(WRONG_USE)
    with_kernel(ctx, lambda client: each(paths, lambda path: client.chmod(path, int(mode, 8))))


# --- the whole of it --------------------------------------------------------------------------------------------


@files.command()
def df(ctx: typer.Context, json: Json = False) -> None:
    """Show how full devices, main memory and disk are."""

    async def show(client: Client) -> None:
        found = await client.df()
        if json:
            print_json(found)
            return
        rows: list[tuple[object, ...]] = []
        for d in found["devices"]:
            for tier, total, free in (
                ("device", d["n_pages"], d["n_free"]),
                ("host", d["n_host_pages"], d["n_host_free"]),
            ):
                n_files = d["n_files"] if tier == "device" else ""
                amounts = _amounts(total, total - free, d["page_bytes"])
                rows.append((d["device"], tier, *amounts, total, total - free, n_files))
        if (disk := found["disk"]) is not None:
            rows.append(
                (disk["path"], "disk", *_amounts(disk["n_bytes_max"], disk["n_bytes"], 1), "", "", disk["n_files"])
            )
        numbers = ("SIZE", "USED", "FREE", "USE%", "PAGES", "USED PAGES", "FILES")
        table(rows, "DEVICE", "TIER", *numbers, right=numbers)

    with_kernel(ctx, show)


def _amounts(total: int | None, used: int, n_bytes: int) -> tuple[str, ...]:
    """Of so many things of `n_bytes` each: all, those in use, the others, and their share."""
    if total is None:
        return "-", size(used * n_bytes), "-", "-"
    sizes = (size(n * n_bytes) for n in (total, used, total - used))
    return *sizes, f"{-(-100 * used // total)}%" if total else "-"


@files.command()
def fsck(ctx: typer.Context, json: Json = False) -> None:
    """Check every invariant of the file system.

    The kernel stands still meanwhile. Status 1 when one is broken."""

    async def check(client: Client) -> int:
        found = await client.fsck()
        if json:
            print_json(found)
        else:
            for problem in found["problems"]:
                print(problem)
            checked = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in found["checked"].items())
            print(f"{counted(len(found['problems']), 'problem')} in {checked}", file=sys.stderr)
        return FAILED if found["problems"] else 0

    with_kernel(ctx, check)


@files.command()
def lsof(
    ctx: typer.Context,
    pid: Annotated[int | None, typer.Option("-p", "--pid", help="of this process")] = None,
    json: Json = False,
) -> None:
    """List open KV files: who has them, and what is locked.

    Which process has them open and how, and what it has locked or waits to lock."""

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
                lock_state(f),
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
