"""Programs to simulate, continued: those that have something to say about where their files' pages should be."""

import random
from typing import Any

from sdk import KVFile, kv
from sdk.abi.values import Outcome
from tests.sim.material import kind, pause, sampling, words


@kind
async def keeper(seed: int, tag: str) -> Any:
    """Keeps documents by name, pins some, forks them when it needs them, and leaves most of them behind."""
    dice = random.Random(seed)
    stem = f"/{tag.replace('/', '-')}-doc"
    paths = [f"{stem}-{i}" for i in range(dice.randint(1, 4))]
    for path in paths:
        async with await kv.prompt(words(dice, 10, 50), path) as file:
            await insist(dice, file)
    texts = []
    for _ in range(dice.randint(1, 4)):
        await pause(dice, dice.choice([0.01, 0.2, 1.0]))
        async with await kv.open(dice.choice(paths), "r") as document:
            await insist(dice, document)
            async with await document.fork() as file:
                await insist(dice, file)
                texts.append(await file.text(sampling(dice), prompt=words(dice, 1, 9), max_tokens=dice.randint(1, 8)))
    for path in paths:
        if dice.random() < 0.3:
            await kv.unlink(path)
    return texts


@kind
async def holder(seed: int, tag: str) -> Any:
    """Pins a file that it writes, cuts and lets go in every order."""
    dice = random.Random(seed)
    seen: list[Any] = []
    path = f"/{tag.replace('/', '-')}-held"
    file = await kv.prompt(words(dice, 6, 60), path if dice.random() < 0.5 else None)
    is_named = (await file.stat()).n_links > 0
    for _ in range(dice.randint(2, 6)):
        n = (await file.stat()).n_tokens
        match dice.randrange(6):
            case 0 if n > 1:
                await file.truncate(dice.randint(1, n - 1))
            case 1:
                seen.append(await file.text(sampling(dice), max_tokens=dice.randint(1, 6)))
            case 2 if is_named:
                await kv.unlink(path)
                is_named = False
            case 3:
                await pause(dice, 0.5)
            case 4:
                await file.append(words(dice, 1, 12))
            case _:
                async with await file.fork() as fork:
                    await insist(dice, fork)
                    seen.append(await fork.text(max_tokens=2))
        await insist(dice, file)
    seen.append(await file.read_text())
    await file.close()
    return seen


async def insist(dice: random.Random, file: KVFile) -> None:
    """Say something about a file's pages. What is answered depends on the world, so it is only looked at."""
    before = await file.stat()
    match dice.randrange(6):
        case 0 | 1:
            done = await file.pin(dice.choice([0.01, 0.3, 1.0, 5.0]))
        case 2:
            done = await file.pin()
        case 3:
            await file.unpin()
            return
        case 4:
            done = await file.willneed()
        case _:
            done = await file.dontneed()
    assert done.detail or done.outcome is Outcome.ACCEPTED
    assert done.n_pages == 0 or done.outcome is not Outcome.REFUSED
    assert before.n_tokens == (await file.stat()).n_tokens
