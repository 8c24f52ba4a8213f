"""A program that saves files until it is killed; what `make chaos-store` runs in a whole kernel.

It first reads all files that the kernels before it have left, and says what is in them: a file must be what was saved,
as a whole, and continue as the same tokens do that were never saved. Then it writes, renames and removes, and says what
it does before and after each call. Lines go to standard output, so that what was said outlives the kernel.
"""

import random
from itertools import count
from typing import Any

from sdk import kv

N_NAMES = 6


def say(*words: object) -> None:
    print(*words, flush=True)


def content(number: int) -> list[int]:
    """The tokens that a file with that number has."""
    dice = random.Random(number)
    return [number % 500, number // 500 % 500, *(dice.randrange(500) for _ in range(dice.randint(1, 120)))]


async def continued(f: kv.KVFile) -> Any:
    found = await f.next(top_k=4)
    return list(found.top_tokens), list(found.top_logprobs)


async def look() -> None:
    """Say the number of each file, or what is wrong with it."""
    for entry in await kv.readdir("/"):
        if entry.kind != "file":
            continue
        async with await kv.open(f"/{entry.name}", mode="r") as f:
            tokens = await f.tokens()
            number = tokens[0] + 500 * tokens[1] if len(tokens) > 1 else -1
            is_whole = number >= 0 and tokens == content(number)
            async with await kv.create() as fresh:
                await fresh.append(tokens)
                same = await continued(fresh) == await continued(f)
            say("found", entry.name, number if is_whole and same else f"wrong:{len(tokens)}:{same}")
    say("looked")


async def main(first: int = 0, seed: int = 0) -> None:
    await look()
    dice = random.Random(seed)
    for number in count(first):
        name, other = (f"f{dice.randrange(N_NAMES)}" for _ in range(2))
        names = {entry.name for entry in await kv.readdir("/")}
        act = dice.choice(["save", "save", "save", "rename", "unlink"])
        if act == "save":
            say("begin", "save", name, number)
            f = await (kv.open(f"/{name}") if name in names else kv.create(f"/{name}"))
            await f.truncate(0)
            await f.append(content(number))
            await f.close()
        elif name not in names or name == other:
            continue
        elif act == "rename":
            say("begin", "rename", name, other)
            await kv.rename(f"/{name}", f"/{other}")
        else:
            say("begin", "unlink", name)
            await kv.unlink(f"/{name}")
        say("done")
