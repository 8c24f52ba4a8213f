"""Programs to simulate, continued: those that wait, cancel, fail, and live with others. See programs.py."""

import asyncio
import random
import sys
from contextlib import suppress
from typing import Any

from sdk import KVFile, channel, kv, model, process, syscalls
from sdk.abi.errors import Busy, FileExists, FileNotFound, InvalidArgument, NoSuchProcess, QuotaExceeded
from tests.sim.material import decoding, kind, pause, sampling, words

# --- time -------------------------------------------------------------------------------------------------------


@kind
async def agent(seed: int, tag: str) -> Any:
    """Thinks, calls a tool, reads what it found: its file is idle most of the time."""
    dice = random.Random(seed)
    async with await kv.prompt(words(dice, 10, 60)) as file:
        for _ in range(dice.randint(1, 4)):
            await file.text(sampling(dice), **decoding(dice, 10))
            await pause(dice, dice.choice([0.01, 0.2, 1.0, 3.0]))
            await file.append(words(dice, 1, 12))
        return await file.read_text()


@kind
async def impatient(seed: int, tag: str) -> Any:
    """Cancels what takes too long. A generation leaves a beginning of what it would have written, a `pred` nothing."""
    dice = random.Random(seed)
    async with await kv.prompt(words(dice, 1, 30)) as base:
        n = (await base.stat()).n_tokens
        for _ in range(dice.randint(1, 3)):
            s = sampling(dice)
            async with await base.fork() as twin:
                whole = (await twin.generate(None, s, max_tokens=16)).tokens
            async with await base.fork() as file:
                with suppress(TimeoutError):
                    async with asyncio.timeout(dice.random() * 0.12):
                        await file.generate(None, s, max_tokens=16)
                kept = (await file.tokens())[n:]
                assert kept == whole[: len(kept)], (kept, whole)
                more, n_kept = words(dice, 1, 20), n + len(kept)
                with suppress(TimeoutError):
                    async with asyncio.timeout(dice.random() * 0.02):
                        await file.pred(more)
                assert (await file.stat()).n_tokens in (n_kept, n_kept + len(more))
                await file.truncate(n)
                assert await file.text(s, max_tokens=16) == await model.detokenize(whole, skip_special=True)
        return await base.text(max_tokens=3)


@kind
async def group(seed: int, tag: str) -> Any:
    """A TaskGroup of which one member fails, so that the others are cancelled wherever they are."""
    dice = random.Random(seed)
    base = await kv.prompt(words(dice, 1, 16))

    async def write(file: KVFile) -> None:
        async with file:
            await file.generate(max_tokens=40)
            await file.append("on and on")

    async def fail(after_s: float) -> None:
        await process.sleep(after_s)
        raise LookupError("as planned")

    caught = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(dice.randint(1, 4)):
                tasks.create_task(write(await base.fork()))
            tasks.create_task(fail(dice.random() * 0.15))
    except* LookupError:
        caught += 1
    return [caught, await base.text(sampling(dice), max_tokens=4)]


@kind
async def frugal(seed: int, tag: str) -> Any:
    """Sets itself a limit, says how much it will compute, makes way for others, and goes on until it is stopped."""
    dice = random.Random(seed)
    limit = dice.randint(20, 60)
    await syscalls.limits(tokens=limit, horizon_tokens=limit)
    await syscalls.priority(dice.choice([5, 10]))
    texts: list[str] = []
    async with await kv.prompt(words(dice, 1, 16)) as file:
        try:
            while len(texts) < 20:
                texts.append(await file.text(sampling(dice), max_tokens=dice.randint(1, 9), ignore_eos=True))
                await file.append(words(dice, 1, 3))
        except QuotaExceeded:
            pass
        return texts


@kind
async def crowd(seed: int, tag: str) -> Any:
    """Threads that want to write one file at once: one does, the others are told so at once."""
    dice = random.Random(seed)
    async with await kv.prompt(words(dice, 1, 8)) as file:
        mine = asyncio.ensure_future(file.text(max_tokens=dice.randint(2, 8)))
        await asyncio.sleep(0)
        n_busy = 0
        for _ in range(dice.randint(1, 3)):
            try:
                await file.append("x")
            except Busy:
                n_busy += 1
        assert n_busy or mine.done()
        return await mine


# --- processes --------------------------------------------------------------------------------------------------


@kind
async def pair(seed: int, tag: str, role: str = "asks") -> Any:
    """Two programs that talk: one asks, its child answers."""
    dice = random.Random(f"{seed} {role}")
    rounds = random.Random(seed).randint(1, 4)
    to, back = channel.Channel(f"{tag}/to"), channel.Channel(f"{tag}/back")
    if role == "answers":
        async with await kv.prompt("answer") as file:
            for _ in range(rounds):
                await file.append(await to.recv())
                await back.send(await file.text(sampling(dice), max_tokens=dice.randint(1, 6)))
        return rounds
    child = await process.spawn(".", seed=seed, tag=tag, role="answers")
    end = asyncio.ensure_future(child.wait())
    heard = []
    for _ in range(rounds):
        if dice.random() < 0.5:
            await pause(dice, 0.1)
        await to.send(words(dice, 1, 6))
        answer = asyncio.ensure_future(back.recv())
        await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            break
        heard.append(answer.result())
    status = await end
    return [heard, status.code, status.error]


@kind
async def family(seed: int, tag: str, depth: int = -1) -> Any:
    """Children and grandchildren, waited for in any order, some of them killed."""
    dice = random.Random(f"{seed} {depth}")
    depth = depth if depth >= 0 else dice.randint(1, 2)
    if not depth:
        async with await kv.prompt(words(dice, 1, 12)) as file:
            await pause(dice, 0.05)
            return await file.text(sampling(dice), max_tokens=dice.randint(1, 10))
    numbers = [dice.getrandbits(16) for _ in range(dice.randint(1, 4))]
    children = [await process.spawn(".", seed=n, tag=f"{tag}/{n}", depth=depth - 1) for n in numbers]
    doomed = dice.randrange(len(children)) if dice.random() < 0.5 else None
    if doomed is not None:
        await pause(dice, 0.1)
        with suppress(NoSuchProcess):
            await children[doomed].kill()
    results: dict[str, Any] = {}
    for i in dice.sample(range(len(children)), len(children)):
        status = await children[i].wait()
        if i != doomed:
            results[str(i)] = [status.code, status.result.decode(), status.error]
        else:
            assert status.code in (0, 137), status
    return sorted(results.items())


@kind
async def clumsy(seed: int, tag: str) -> Any:
    """Ends in one of the ways in which programs end, with threads running and files open."""
    dice = random.Random(seed)
    base = await kv.prompt(words(dice, 1, 12))

    async def linger(file: KVFile) -> None:
        try:
            await file.generate(max_tokens=60)
        except asyncio.CancelledError:
            await process.sleep(0.01)  # a thread of a dying process does not get so far
            raise

    for _ in range(dice.randint(0, 3)):
        asyncio.ensure_future(linger(await base.fork()))
    await pause(dice, 0.08)
    match dice.randrange(5):
        case 0:
            raise ValueError("as planned")
        case 1:
            sys.exit(3)
        case 2:
            await process.exit(4)
        case 3:
            await base.truncate(1000)
        case _:
            return await base.text(max_tokens=4)


@kind
async def sharer(seed: int, tag: str) -> Any:
    """A prefix cache among programs, by name: whoever comes first computes it."""
    dice = random.Random(seed)
    number = dice.randrange(3)
    path = f"/prefix-{number}"
    try:
        prefix = await kv.open(path, "r")
    except FileNotFound:
        try:
            prefix = await kv.prompt(f"prefix {number} " + "of all " * 4, path)
        except FileExists:
            prefix = await kv.open(path, "r")
    own = f"/{tag.replace('/', '-')}-own"
    async with await prefix.fork(own) as file:
        await prefix.close()
        text = await file.text(sampling(dice), prompt=words(dice, 1, 12), max_tokens=dice.randint(1, 8))
    if dice.random() < 0.5:
        await kv.rename(own, own + "-renamed")
        own += "-renamed"
    async with await kv.open(own, "r") as again:
        assert await again.read_text() == await again.read_text(0, None)
        held = (await again.read_text()).endswith(text)
    await kv.unlink(own)
    try:
        await kv.open(own)
        raise InvalidArgument("an unlinked file was opened")
    except FileNotFound:
        return [text, held]
