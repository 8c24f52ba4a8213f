"""Programs to simulate, continued: those that lock files before they write them. See programs.py."""

import asyncio
import random
from typing import Any

from sdk import Deadlock, TimedOut, kv, process
from sdk.abi.errors import NoSuchProcess
from tests.sim.material import kind, pause, words


def path_of(tag: str, name: str) -> str:
    return f"/{tag.replace('/', '-')}-{name}"


@kind
async def scribes(seed: int, tag: str) -> Any:
    """Threads that need two files at a time and lock them in any order: deadlocks are broken, and nobody writes while
    another one does."""
    dice = random.Random(seed)
    paths = [path_of(tag, name) for name in ("one", "two", "three")[: dice.randint(2, 3)]]
    for path in paths:
        await (await kv.create(path)).close()

    async def write(number: int) -> str:
        own = random.Random(f"{seed} {number}")
        text, first, second = words(own, 1, 5), *own.sample(paths, 2)
        while True:
            async with await kv.open(first) as a, await kv.open(second) as b:
                try:
                    async with a.lock(own.choice(["shared", "exclusive"])) as lock:
                        await pause(own, 0.02)
                        async with b.lock(timeout=own.choice([None, 0.01, 1.0])):
                            await lock.convert("exclusive")
                            for file in (a, b):
                                n = len(await file.tokens())
                                await file.append(text)
                                await file.generate(max_tokens=2, ignore_eos=True)
                                assert len(await file.tokens()) == n + len(text) + 2, "somebody else has written"
                            return text
                except Deadlock:
                    pass
                except TimedOut:
                    await pause(own, 0.1)

    written = await asyncio.gather(*(write(i) for i in range(dice.randint(2, 5))))
    n_tokens = 0
    for path in paths:
        async with await kv.open(path) as file, file.lock(timeout=0):
            n_tokens += len(await file.tokens())
        await kv.unlink(path)
    assert n_tokens == 2 * sum(len(text) + 2 for text in written)
    return sorted(written)


@kind
async def heirs(seed: int, tag: str, role: int = -1) -> Any:
    """Processes that wait for one file in turn, one of which is killed: the others get it all the same."""
    dice = random.Random(f"{seed} {role}")
    path = path_of(tag, "book")
    if role >= 0:
        entry = chr(97 + role)
        async with await kv.open(path) as file:
            for _ in range(dice.randint(1, 3)):
                async with file.lock():
                    await file.append(entry)
                    await pause(dice, 0.02)
                    await file.append(entry.upper())
        return entry
    await (await kv.create(path)).close()
    n = dice.randint(2, 4)
    children = [await process.spawn(".", seed=seed, tag=tag, role=i) for i in range(n)]
    doomed = dice.randrange(n)
    await pause(dice, 0.05)
    try:
        await children[doomed].kill()
    except NoSuchProcess:
        pass
    statuses = [await child.wait() for child in children]
    whole = [i for i, s in enumerate(statuses) if i != doomed and s.code == 0]
    async with await kv.open(path) as file, file.lock(timeout=0):
        text = "".join(letter for letter in await file.read_text() if ord(letter.lower()) - 97 in whole)
    await kv.unlink(path)
    assert all(a.upper() == b for a, b in zip(text[::2], text[1::2], strict=True)), text
    return [(s.code, s.result.decode(), s.error) for i, s in enumerate(statuses) if i != doomed] + [sorted(text)]
