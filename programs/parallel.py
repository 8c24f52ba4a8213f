"""Answer one prompt n times at once (figure 2 of the paper: parallel generation over a shared prefix).

What is computed, and when: the prompt, once, when `kv.chat` returns. Each fork shares its pages and computes only
its own answer; the kernel puts the tokens of all n branches into the same batches. A server of prompts, with no
cache, computes the prompt n times; the last lines of the result say what that would have cost.
"""

import asyncio
from typing import Annotated, Any

from msgspec import Meta

import sdk
from sdk import KVFile, Sampling, kv


async def main(
    prompt: str = "Name a colour, and say in one sentence what it reminds you of.",
    n: Annotated[int, Meta(ge=1)] = 4,
    max_tokens: int = 48,
    temperature: float = 0.8,
    seed: int = 0,
) -> dict[str, Any]:
    """The answers, and the tokens computed for them. Each answer streams to the client as `branch i`."""
    async with await kv.chat([("user", prompt)]) as base:
        n_prompt = (await base.stat()).n_tokens
        samplings = [Sampling(temperature=temperature, seed=seed + i) for i in range(n)]
        answers = await asyncio.gather(*(branch(base, i, s, max_tokens) for i, s in enumerate(samplings)))
    usage = await sdk.rusage()
    computed = usage.n_prompt_tokens + usage.n_generated_tokens
    separate = n * n_prompt + usage.n_generated_tokens
    return {
        "answers": answers,
        "prompt_tokens": n_prompt,
        "generated_tokens": usage.n_generated_tokens,
        "computed_tokens": computed,
        "tokens_if_separate": separate,
        "saved_tokens": separate - computed,
    }


async def branch(base: KVFile, i: int, sampling: Sampling, max_tokens: int) -> str:
    """One answer, on its own fork of the prompt."""
    answer = ""
    async with await base.fork() as fork:
        async for chunk in fork.stream(sampling=sampling, max_tokens=max_tokens):
            answer += chunk.text
            await sdk.emit(chunk.text, stream=f"branch {i}")
    return answer
