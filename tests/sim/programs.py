"""Programs to simulate: what users write, in many variants. Each is a coroutine on the sdk and nothing else.

A variant is one number, `seed`, from which a program draws all that it does, so that the same variant does the same
in every run. `tag` makes channels and paths its own. Most return what they saw, and must return the same whatever
happens around them: that is the promise of the system. They may look at the time and cancel what takes too long as
long as nothing of that gets into their result. What a program emits is compared as a beginning, at any time.

Programs check some things themselves, as no observer can: `assert` here is a promise of the sdk's documents.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from sdk import KVFile, Sampling, channel, kv, model, process, syscalls
from sdk.abi.errors import Busy, FileExists, FileNotFound, InvalidArgument, NoSuchProcess, QuotaExceeded

Main = Callable[..., Coroutine[Any, Any, Any]]
KINDS: dict[str, Main] = {}


def kind(main: Main) -> Main:
    """Register a program under its name."""
    KINDS[main.__name__] = main
    return main


# --- material ---------------------------------------------------------------------------------------------------


def words(dice: random.Random, least: int, most: int) -> str:
    """Text of so many characters, which are as many tokens."""
    return "".join(chr(dice.randint(97, 122)) for _ in range(dice.randint(least, most)))


def sampling(dice: random.Random) -> Sampling:
    """Greedy, or any other way that does not depend on chance."""
    if dice.random() < 0.3:
        return Sampling()
    options: dict[str, Any] = {"temperature": dice.uniform(0.3, 1.2), "seed": dice.getrandbits(32)}
    match dice.randrange(6):
        case 0:
            options["top_k"] = dice.randint(1, 5)
        case 1:
            options["top_p"] = dice.uniform(0.3, 1.0)
        case 2:
            options["min_p"] = dice.uniform(0.01, 0.3)
        case 3:
            options["frequency_penalty"] = 0.5
        case 4:
            options["repetition_penalty"] = 1.2
    return Sampling(**options)


def decoding(dice: random.Random, most: int) -> dict[str, Any]:
    """When to stop. Text of the null model is printable, so that single characters do come up."""
    options: dict[str, Any] = {"max_tokens": dice.randint(1, most)}
    if dice.random() < 0.3:
        options["stop"] = [chr(dice.randint(33, 126)) for _ in range(dice.randint(1, 8))]
    if dice.random() < 0.2:
        options["stop_tokens"] = [dice.randint(33, 126) for _ in range(6)]
    if dice.random() < 0.2:
        options["include_stop"] = True
    if dice.random() < 0.2:
        options["min_tokens"] = dice.randint(1, options["max_tokens"])
    if dice.random() < 0.2:
        options["logprobs"] = dice.randint(0, 3)
    return options


async def pause(dice: random.Random, longest_s: float) -> None:
    """A tool at work."""
    await process.sleep(dice.random() * longest_s)


# --- many branches ----------------------------------------------------------------------------------------------


@kind
async def parallel(seed: int, tag: str) -> Any:
    """One prompt, answered several times at once. Its files are left open."""
    dice = random.Random(seed)
    base = await kv.prompt(words(dice, 1, 40))
    branches = [await base.fork() for _ in range(dice.randint(2, 6))]
    if dice.random() < 0.5:
        await base.close()
    plans = [(b, sampling(dice), decoding(dice, 14)) for b in branches]
    return await asyncio.gather(*(b.text(s, **d) for b, s, d in plans))


@kind
async def tree(seed: int, tag: str) -> Any:
    """Thoughts that branch: every fork writes a little, and forks again."""
    dice = random.Random(seed)

    async def grow(file: KVFile, depth: int, branch: int) -> list[Any]:
        own = random.Random(f"{seed} {depth} {branch}")
        async with file:
            text = await file.text(sampling(own), max_tokens=own.randint(1, 6))
            forks = [await file.fork() for _ in range(own.randint(1, 3) if depth else 0)]
            if forks and own.random() < 0.3:
                await file.append(words(own, 1, 3))  # the parent goes on and shares its last page no more
            return [text, *await asyncio.gather(*(grow(f, depth - 1, branch * 3 + i) for i, f in enumerate(forks)))]

    return await grow(await kv.prompt(words(dice, 1, 20)), dice.randint(1, 3), 0)


@kind
async def beam(seed: int, tag: str) -> Any:
    """Beam search: the program owns the decoding."""
    dice = random.Random(seed)
    width, length = dice.randint(2, 3), dice.randint(2, 5)
    file = await kv.prompt(words(dice, 1, 16))
    beams = [(0.0, file, await file.next(top_k=width))]
    for _ in range(length):
        grown = [(s + lp, i, t) for i, (s, _, dist) in enumerate(beams) for t, lp in dist.top(width)]
        best = sorted(grown, reverse=True)[:width]
        forks = [await beams[i][1].fork() for _, i, _ in best]
        dists = await asyncio.gather(*(f.pred([t], top_k=width) for f, (_, _, t) in zip(forks, best, strict=True)))
        for _, b, _ in beams:
            await b.close()
        beams = [(s, f, d) for (s, _, _), f, d in zip(best, forks, dists, strict=True)]
    return [[round(s, 6), await f.read_text()] for s, f, _ in beams]


@kind
async def chooser(seed: int, tag: str) -> Any:
    """`pred` loops whose every token the program decides on, several at once."""
    dice = random.Random(seed)
    base = await kv.prompt(words(dice, 1, 20))

    async def walk(number: int) -> str:
        own = random.Random(f"{seed} {number}")
        async with await base.fork() as file:
            dist = await file.next(top_k=4)
            for _ in range(own.randint(2, 10)):
                token = own.choice(dist.top_tokens[:3])
                if own.random() < 0.2:
                    token = ord("{")  # a grammar that knows better
                dist = await file.pred([token], top_k=4, entropy=own.random() < 0.2)
            return await file.read_text()

    return await asyncio.gather(*(walk(i) for i in range(dice.randint(1, 4))))


# --- one file ---------------------------------------------------------------------------------------------------


@kind
async def reader(seed: int, tag: str) -> Any:
    """A long prompt, which is computed in chunks beside everybody else's tokens."""
    dice = random.Random(seed)
    async with await kv.create() as file:
        n = await file.append(words(dice, 60, 200))
        scores = await file.score(words(dice, 1, 6))
        text = await file.text(sampling(dice), prompt=words(dice, 0, 9) or None, max_tokens=dice.randint(1, 8))
        return [n, [round(x, 6) for x in scores], text]


@kind
async def decoder(seed: int, tag: str) -> Any:
    """All ways to end a generation; the file is the text."""
    dice = random.Random(seed)
    results = []
    async with await kv.prompt(words(dice, 1, 12)) as file:
        for _ in range(dice.randint(1, 3)):
            before = await file.tokens()
            prompt = words(dice, 0, 4)
            g = await file.generate(prompt or None, sampling(dice), **decoding(dice, 20))
            assert await file.tokens() == before + await model.tokenize(prompt) + g.tokens
            assert g.text == await model.detokenize(g.tokens, skip_special=True)
            results.append([g.text, g.tokens, g.finish, g.stop_reason, [(p.token, p.logprob) for p in g.logprobs]])
    return results


@kind
async def editor(seed: int, tag: str) -> Any:
    """Cuts, looks, and reads on: tails that are stored, cut off and computed again."""
    dice = random.Random(seed)
    seen: list[Any] = []
    async with await kv.prompt(words(dice, 6, 30)) as file:
        for _ in range(dice.randint(2, 7)):
            n = (await file.stat()).n_tokens
            match dice.randrange(7):
                case 0 if n > 1:
                    await file.truncate(dice.randint(1, n - 1))
                case 1:
                    seen.append((await file.next(sample=sampling(dice))).sample)
                case 2:
                    seen.append(await file.keep([*(await file.tokens())[: dice.randint(1, n)], 120, 121]))
                case 3:
                    found = await file.pred_all(words(dice, 2, 5), at=[-1, 1], top_k=2)
                    seen.append([d.top_tokens for d in found])
                case 4:
                    seen.append((await file.pred(words(dice, 1, 3), logits=True)).argmax())
                case 5:
                    seen.append(await file.text(sampling(dice), max_tokens=dice.randint(1, 4)))
                case _:
                    async with await file.fork() as fork:
                        seen.append(await fork.text(max_tokens=3))
        return [seen, await file.read_text(), (await file.positions())[-1]]


@kind
async def streamer(seed: int, tag: str) -> Any:
    """Tells its client what it writes while it writes."""
    dice = random.Random(seed)
    plans = [(str(i), sampling(dice), decoding(dice, 16)) for i in range(dice.randint(1, 3))]
    async with await kv.prompt(words(dice, 1, 20)) as base:

        async def tell(name: str, s: Sampling, d: dict[str, Any]) -> str:
            text = ""
            async with await base.fork() as file:
                async for chunk in file.stream(None, s, **d):
                    text += chunk.text
                    await channel.emit(chunk.text, stream=name)
                    if dice.random() < 0.1:
                        await pause(dice, 0.02)
            return text

        return await asyncio.gather(*(tell(*plan) for plan in plans))


@kind
async def asker(seed: int, tag: str) -> Any:
    """Talks with its client, and waits for it."""
    dice = random.Random(seed)
    async with await kv.prompt(words(dice, 1, 16)) as file:
        for _ in range(dice.randint(1, 3)):
            await file.append(await channel.input("and then? "))
            await channel.emit(await file.text(sampling(dice), max_tokens=dice.randint(1, 8)))
        return await file.read_text()


@kind
async def skimmer(seed: int, tag: str) -> Any:
    """Leaves streams before their end, by `break` and by `aclose`, and goes on with the file."""
    dice = random.Random(seed)
    seen = []
    async with await kv.prompt(words(dice, 2, 20)) as file:
        for _ in range(dice.randint(1, 3)):
            n = (await file.stat()).n_tokens
            s = sampling(dice)
            async with await file.fork() as twin:
                whole = (await twin.generate(None, s, max_tokens=12)).tokens
            stream = file.stream(None, s, max_tokens=12)
            n_wanted, read = dice.randint(0, 6), []
            async for chunk in stream:
                read += chunk.tokens
                if len(read) >= n_wanted:
                    break
            if dice.random() < 0.5:
                await stream.aclose()
            del stream
            held = await file.fork()  # as committed, while the stream may still be running
            kept = (await held.tokens())[n:]
            assert read == whole[: len(read)], (read, whole)
            assert kept == whole[: len(kept)], (kept, whole)
            await file.truncate(n)  # not Busy: the generation ends with its handle
            seen.append(await file.text(sampling(dice), prompt=words(dice, 1, 2), max_tokens=dice.randint(1, 4)))
    return seen


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
    await syscalls.priority(dice.choice([0, 1, 10]))
    texts: list[str] = []
    async with await kv.prompt(words(dice, 1, 16)) as file:
        try:
            while len(texts) < 20:
                texts.append(await file.text(sampling(dice), max_tokens=dice.randint(1, 9), ignore_eos=True))
                await file.append(words(dice, 1, 3))
        except QuotaExceeded:
            pass
        return [texts, (await file.stat()).n_tokens <= limit]


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
