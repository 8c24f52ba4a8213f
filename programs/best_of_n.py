"""Sample n answers and return the one the model is surest of (best of n, by mean log-probability).

What is computed, and when: the prompt once; then n answers at once, each on a fork. The scores cost nothing: they
are the log-probabilities of the tokens as they were sampled.
"""

import asyncio
from statistics import fmean
from typing import Annotated, Any

from msgspec import Meta

from sdk import Generation, KVFile, Sampling, kv


async def main(
    prompt: str = "Explain in one sentence why the sky is blue.",
    n: Annotated[int, Meta(ge=1)] = 4,
    max_tokens: int = 48,
    temperature: float = 0.8,
    seed: int = 0,
) -> dict[str, Any]:
    """The best answer, and all answers with their scores, best first."""
    async with await kv.chat([("user", prompt)]) as base:
        samplings = [Sampling(temperature=temperature, seed=seed + i) for i in range(n)]
        answers = await asyncio.gather(*(sample(base, s, max_tokens) for s in samplings))
    ranked = sorted(answers, key=score, reverse=True)
    return {"best": ranked[0].text, "answers": [{"text": a.text, "score": round(score(a), 4)} for a in ranked]}


async def sample(base: KVFile, sampling: Sampling, max_tokens: int) -> Generation:
    """One answer with the log-probability of each of its tokens."""
    async with await base.fork() as fork:
        return await fork.generate(sampling=sampling, max_tokens=max_tokens, logprobs=0)


def score(answer: Generation) -> float:
    """Mean log-probability of a token under the model (before temperature). No answer is the worst answer."""
    return fmean(t.logprob for t in answer.logprobs) if answer.logprobs else float("-inf")
