"""What programs do while workers die under them. A LIP: all its draws are seeded, so its answer is always the same."""

import asyncio

from sdk import Sampling, emit, kv


async def main(task: int, n: int = 24) -> list:
    """Forks that decode together, a stream that is followed, a loop that decides each token itself."""
    hot = Sampling(temperature=0.9, seed=task)
    async with await kv.prompt(f"Task {task}: the quick brown fox") as base:
        branches = [await base.fork() for _ in range(3)]
        together = await asyncio.gather(
            *(
                b.text(Sampling(temperature=0.7, seed=task + i), max_tokens=n, ignore_eos=True)
                for i, b in enumerate(branches)
            )
        )
        streamed = []
        async with await base.fork() as f:
            async for chunk in f.stream(sampling=hot, max_tokens=n, ignore_eos=True):
                streamed += chunk.tokens
                await emit(chunk.tokens)
        decided = []
        async with await base.fork() as f:
            dist = await f.next(sample=hot)
            for _ in range(n // 2):
                decided.append(dist.sample)
                dist = await f.pred([dist.sample], sample=hot)
            kept = await f.tokens()
        for b in branches:
            await b.close()
        return [together, streamed, decided, kept]
