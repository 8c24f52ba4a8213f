"""Who computes what at the moment: of those who want the same prompt at once one computes it, and the others wait.

Whoever is about to compute a long stretch of a prompt puts up a sign, which is an empty file in `~/.cache/growing`, and
has it locked exclusively until what came of it is in the prefix cache. The sign's name says

    KEY.CHUNKS.PRIORITY

that the prompt has this key after so many chunks, the middle of what is to be computed, and how urgent that is. A
prompt with the same key there has half of it in common or more, so waiting for it is no slower than computing the
same beside it. No other is kept waiting, nor is one that is more urgent.

A lock ends with whoever has it, so nobody waits for a program that was ended or whose client has left; the sign that
such a one leaves behind is taken down by the next who sees it. Nobody waits while he has a sign up, for longer than
`WAIT_S`, or for anything but time: an error here means that more is computed, and reaches nobody.

Called by `programs/prefix_cache.py`. Never add here: tokens, or what becomes of them.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from sdk import FileExists, FileNotFound, KVFile, SyscallError, kv, process, syscalls
from sdk.abi.values import DirEntry, FileKind

DIRECTORY = "~/.cache/growing"
NAME = re.compile(r"([0-9a-f]{16})\.([1-9][0-9]{0,8})\.(0|-?[1-9][0-9]{0,9})")
N_CHUNKS_MIN = 16  # what is less is computed sooner than agreed upon
WAIT_S = 60.0


class Sign(NamedTuple):
    """A sign, as its name has it."""

    key: str
    n_chunks: int
    priority: int

    @property
    def path(self) -> str:
        return f"{DIRECTORY}/{'.'.join(map(str, self))}"

    @classmethod
    def parse(cls, entry: DirEntry) -> "Sign | None":
        """None for what somebody else has put there."""
        found = NAME.fullmatch(entry.name)
        if found is None or entry.kind is not FileKind.FILE:
            return None
        return cls(found[1], int(found[2]), int(found[3]))


async def waited(keys: Sequence[str], n_known: int) -> bool:
    """Wait for whoever computes what this prompt goes on with after `n_known` chunks, if anybody does. True: that has
    ended, so look again. `keys` are those of the prompt: of no chunk, of one, and so on."""
    if len(keys) - 1 - n_known < N_CHUNKS_MIN:
        return False
    with suppress(SyscallError):
        await make_directory(DIRECTORY)
        mine = await process.priority()
        for entry in await kv.readdir(DIRECTORY):
            sign = Sign.parse(entry)
            if sign is None or not await is_up(sign):
                continue
            is_far = n_known + N_CHUNKS_MIN // 2 <= sign.n_chunks < len(keys)
            if is_far and sign.key == keys[sign.n_chunks] and sign.priority <= mine:
                await until_down(sign)
                return True
    return False


async def is_up(sign: Sign) -> bool:
    """Whether anybody has this sign; one that nobody has is taken down."""
    with suppress(FileNotFound):
        if (await kv.stat(sign.path)).n_open:
            return True
        await kv.unlink(sign.path)
    return False


async def until_down(sign: Sign) -> None:
    """Wait until whoever has this sign lets it go, and take it down if he could not."""
    with suppress(FileNotFound):
        async with await kv.open(sign.path, "r") as file, file.lock("shared", WAIT_S):
            if (await file.stat()).n_links:
                await kv.unlink(sign.path)


@asynccontextmanager
async def growing(keys: Sequence[str], n_known: int) -> AsyncIterator[None]:
    """While the block lasts, what this prompt goes on with after `n_known` chunks is being computed."""
    sign = await put_up(keys, n_known)
    try:
        yield
    finally:
        if sign is not None:
            await take_down(*sign)


async def put_up(keys: Sequence[str], n_known: int) -> tuple[Sign, KVFile] | None:
    """None where it is not worth it, or cannot be."""
    n_chunks = len(keys) - 1
    if n_chunks - n_known < N_CHUNKS_MIN:
        return None
    with suppress(SyscallError):
        middle = (n_known + n_chunks) // 2
        sign = Sign(keys[middle], middle, await process.priority())
        await make_directory(DIRECTORY)
        file = await kv.create(sign.path)
        await syscalls.lock(file.fd, timeout=0.0)
        return sign, file
    return None


async def take_down(sign: Sign, file: KVFile) -> None:
    with suppress(SyscallError):
        await kv.unlink(sign.path)
    with suppress(SyscallError):
        await file.close()


async def make_directory(path: str) -> None:
    """With those above it, from the home on."""
    parts = path.split("/")
    for i in range(2, len(parts) + 1):
        with suppress(FileExists):
            await kv.mkdir("/".join(parts[:i]))
