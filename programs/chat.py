"""Talk to the model.

What is computed, and when: the whole chat lives in one KV file. After each of the user's lines `keep` makes the file
hold exactly the tokens of the chat so far, and computes those that are not there yet: the new line and the little
that the template puts around it. Nothing said before is ever computed again, however long the chat gets.
"""

import sdk
from sdk import BrokenPipe, Message, Sampling, kv, model


async def main(
    system: str = "",
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    verbose: bool = False,
) -> dict[str, int]:
    """Chat until the input ends or a line is empty or "/bye". `verbose` shows what each turn had to compute."""
    chat = [Message("system", system)] if system else []
    turns = 0
    async with await kv.create() as file:
        while line := await ask():
            chat.append(Message("user", line))
            tokens = await model.chat_tokens(chat)
            n_computed = await file.keep(tokens)
            if verbose:
                await sdk.emit(f"[{n_computed} of {len(tokens)} tokens computed]\n", stream="debug")
            answer = ""
            sampling = Sampling(temperature=temperature, seed=seed + turns)
            async for chunk in file.stream(sampling=sampling, max_tokens=max_tokens):
                answer += chunk.text
                await sdk.emit(chunk.text)
            await sdk.emit("\n")
            chat.append(Message("assistant", answer))
            turns += 1
        return {"turns": turns, "tokens": (await file.stat()).n_tokens}


async def ask() -> str:
    """The user's next line; empty when the chat is over."""
    try:
        line = (await sdk.input("you> ")).strip()
    except BrokenPipe:
        return ""
    return "" if line == "/bye" else line
