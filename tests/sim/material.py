"""What all simulated programs are made of: their registry, and words, samplings and pauses drawn from their dice."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

from sdk import Sampling, process

Main = Callable[..., Coroutine[Any, Any, Any]]
KINDS: dict[str, Main] = {}  # by name; filled by importing programs.py and company.py


def kind(main: Main) -> Main:
    """Register a program under its name."""
    KINDS[main.__name__] = main
    return main


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
