"""Programs to simulate: what users write, in many variants. Each is a coroutine on the sdk and nothing else.

A variant is one number, `seed`, from which a program draws all that it does, so that the same variant does the same
in every run. `tag` makes channels and paths its own. Most return what they saw, and must return the same whatever
happens around them: that is the promise of the system. They may look at the time and cancel what takes too long as
long as nothing of that gets into their result. What a program emits is compared as a beginning, at any time.

Programs check some things themselves, as no observer can: `assert` here is a promise of the sdk's documents.
Here are those that compute alone; those that know the time, or others, are in company.py.
"""

import asyncio
import random
from typing import Any

from sdk import CrossDevice, KVFile, Sampling, channel, kv, model
from sdk.abi.values import PositionMode
from tests.sim.material import decoding, kind, pause, sampling, words

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
async def windowed(seed: int, tag: str) -> Any:
    """Attends to a part of its files alone. Each call begins with a token of its own: the distribution after the last
    one sees more when it has to be computed again, which is no promise."""
    dice = random.Random(seed)
    texts: list[Any] = []
    async with await kv.prompt(words(dice, 1, 60)) as base:
        for _ in range(dice.randint(1, 3)):
            runs = [(0, dice.randint(1, 9)), (-dice.randint(1, 30), None)][dice.randint(0, 1) :]
            async with await base.fork() as file:
                await file.append(words(dice, 1, 30), visible=runs)
                options = decoding(dice, 14)
                texts.append(await file.text(sampling(dice), prompt=words(dice, 1, 5), visible=runs, **options))
                last = await file.pred(words(dice, 1, 5), top_k=3, visible=dice.choice([None, runs]))
                texts.append([[t, round(p, 6)] for t, p in last.top()])
            await base.append(words(dice, 1, 9))
    return texts


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
async def surgeon(seed: int, tag: str) -> Any:
    """Cuts parts out of files, joins files and replaces parts, and reads on. The null model sees tokens and positions
    alone, so an edited file says what a computed one does, even where its KV was lost and computed again."""
    dice = random.Random(seed)
    seen: list[Any] = []
    file = await kv.prompt(words(dice, 8, 40))
    for _ in range(dice.randint(1, 4)):
        tokens, positions = await file.tokens(), await file.positions()
        cuts = sorted(dice.sample(range(len(tokens) + 1), 4))
        ranges = [(start, stop) for start, stop in (cuts[:2], cuts[2:]) if start < stop]
        mode = dice.choice(list(PositionMode))
        match dice.randrange(3):
            case 0:
                edit = file.extract(*ranges, positions=mode)
                parts = [i for start, stop in ranges for i in range(start, stop)]
            case 1:
                edit, mode = kv.merge(file, file), PositionMode.PACK
                parts = [*range(len(tokens))] * 2
            case _:
                edit = file.fork()
                parts = [*range(cuts[1]), *range(cuts[2], len(tokens))]
        try:
            other = await edit
            if len(parts) != len(await other.tokens()):
                await other.splice(cuts[1], cuts[2], positions=mode)
        except CrossDevice:  # relatives that were computed again on different workers
            other = await kv.create()
            await other.pred(
                [tokens[i] for i in parts],
                positions=[positions[i] for i in parts] if mode is PositionMode.KEEP else range(len(parts)),
            )
        await file.close()
        file = other
        assert await file.tokens() == [tokens[i] for i in parts]
        seen.append(await file.positions())
        seen.append(await file.text(sampling(dice), max_tokens=dice.randint(1, 5), ignore_eos=True))
        if len(await file.tokens()) > 90:
            await file.truncate(dice.randint(8, 60))
        elif len(await file.tokens()) < 8:
            await file.append(words(dice, 8, 12))
    async with file:
        return [seen, await file.read_text()]


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
