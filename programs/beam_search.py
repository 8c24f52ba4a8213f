"""Beam search: the program owns the decoding, the kernel batches its beams.

What is computed, and when: the prompt once; then, for each step, one token on each beam that lives on, all of them
in one batch. A beam is a fork, so what beams have in common is stored and computed once. Beams that fall out are
closed, and their pages are free again.
"""

import asyncio
import heapq
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from sdk import Distribution, KVFile, kv, model


class Beam(NamedTuple):
    """A hypothesis: its log-probability and tokens, and the file that has read them with what may come next."""

    logprob: float
    tokens: list[int]
    file: KVFile
    next: Distribution

    async def grow(self, logprob: float, token: int) -> "Beam":
        """This beam and one more token, on a fork."""
        fork = await self.file.fork()
        following = await fork.pred([token], top_k=len(self.next.top_tokens))
        return Beam(self.logprob + logprob, [*self.tokens, token], fork, following)


async def main(
    prompt: str = "What is the capital of France?",
    width: Annotated[int, Meta(ge=1, le=1024)] = 4,
    max_tokens: int = 24,
    length_penalty: float = 1.0,
) -> dict[str, Any]:
    """The most probable answer found, and the other candidates, best first.

    Candidates are ranked by log-probability / length ** `length_penalty`: 0 favours short ones, 1 is the mean.
    """
    eos_tokens = set((await model.info()).eos_tokens)
    ended: list[tuple[float, list[int]]] = []
    async with await kv.chat([("user", prompt)]) as base:
        beams = [Beam(0.0, [], await base.fork(), await base.next(top_k=width))]
        for _ in range(max_tokens):
            grown = [(b.logprob + lp, lp, token, b) for b in beams for token, lp in b.next.top(width)]
            best = heapq.nlargest(width, grown, key=lambda g: g[0])
            ended += [(logprob, b.tokens) for logprob, _, token, b in best if token in eos_tokens]
            alive = [(lp, token, b) for _, lp, token, b in best if token not in eos_tokens]
            older, beams = beams, await asyncio.gather(*(b.grow(lp, token) for lp, token, b in alive))
            for beam in older:
                await beam.file.close()
            if not beams or len(ended) >= width:
                break
        for beam in beams:
            ended.append((beam.logprob, beam.tokens))
            await beam.file.close()
    ranked = sorted(ended, key=lambda e: e[0] / max(1, len(e[1])) ** length_penalty, reverse=True)
    texts = [{"text": await model.detokenize(tokens), "logprob": round(lp, 4)} for lp, tokens in ranked[:width]]
    return {"best": texts[0]["text"], "candidates": texts}
