"""Continue a text.

What is computed, and when: the prompt when `kv.prompt` returns, then each token of the answer, streamed as it comes.
"""

import sdk
from sdk import Sampling, kv


async def main(
    prompt: str = "The three laws of robotics are",
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The text that follows `prompt`."""
    text = ""
    async with await kv.prompt(prompt) as file:
        async for chunk in file.stream(sampling=Sampling(temperature=temperature, seed=seed), max_tokens=max_tokens):
            text += chunk.text
            await sdk.emit(chunk.text)
    return text
