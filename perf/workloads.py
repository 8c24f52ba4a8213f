"""The seven workloads of `openai`: what is asked of a server, and what is counted.

Each is a frozen set of sizes with a `run`. Prompts are random ids from streams that are seeded by the workload's
name and the repeat's seed, so that every server sees the same tokens and no cache carries over from one run to the
next; what is shared *within* a workload is what it measures. The definitions are fixed: to change a size, a seed or
the order of draws is to make all stored figures, and those of every peer, incomparable.
"""

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from perf.client import Answer, Api
from perf.harness import Failed

FIRST_ID, LAST_ID = 1000, 40_000  # plain pieces of words, clear of special tokens
SEED, SEED_STEP = 1234, 17  # of the first repeat, and from one to the next

UNITS = {
    "ttft": "ms",  # time to first token
    "tpot": "ms",  # time per output token after the first, of a request
    "throughput": "tok/s",  # output tokens of all requests
    "prefill": "tok/s",
    "per output token": "ms",  # of a request, its waiting included: end to end over tokens, the mean of all
    "requests": "req/s",
    "total": "s",
    "cached": "of prompt",  # share of prompt tokens that the server says it did not compute
}

T = TypeVar("T")


class Outcome(NamedTuple):
    """What one run gave: values by the names of UNITS, and the output tokens it counted."""

    values: dict[str, float]
    n_out: int


class Workload(Protocol):
    """One of them."""

    @property
    def n_out_total(self) -> int:
        """Output tokens that a run must give."""
        ...

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        """Raises Failed."""
        ...


@dataclass(frozen=True)
class Single:
    """One stream, alone: the latency of a user."""

    n_prompt: int = 128
    n_out: int = 128

    @property
    def n_out_total(self) -> int:
        return self.n_out

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        answer = await api.stream(ids(random.Random(f"{name}/{seed}"), self.n_prompt), self.n_out)
        return Outcome({"ttft": 1e3 * answer.ttft_s, "tpot": 1e3 * answer.tpot_s}, answer.n_out)


@dataclass(frozen=True)
class Concurrent:
    """Independent requests, so many at a time: throughput."""

    n_at_once: int
    n_requests: int = 32
    n_prompt: int = 128
    n_out: int = 64

    @property
    def n_out_total(self) -> int:
        return self.n_requests * self.n_out

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        dice = random.Random(f"{name.split('.')[0]}/{seed}/{self.n_at_once}")
        prompts = [ids(dice, self.n_prompt) for _ in range(self.n_requests)]
        answers, s = await timed(at_once(self.n_at_once, [partial(api.stream, p, self.n_out) for p in prompts]))
        values = {"throughput": total(answers) / s}
        values |= {"ttft": 1e3 * statistics.median(a.ttft_s for a in answers)}
        return Outcome(values | {"tpot": 1e3 * statistics.median(a.tpot_s for a in answers)}, total(answers))


@dataclass(frozen=True)
class Prefill:
    """One long prompt and a single token."""

    n_prompt: int = 1500
    n_out_total: int = 1

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        answer = await api.once(ids(random.Random(f"{name}/{seed}"), self.n_prompt), 1)
        return Outcome({"prefill": self.n_prompt / answer.e2e_s}, answer.n_out)


@dataclass(frozen=True)
class Rag:
    """Questions to documents, some of which are asked about far more often (Zipf, s = 1): prefix caching."""

    n_documents: int = 20
    n_document: int = 1000
    n_queries: int = 60
    n_query: int = 30
    n_out: int = 16
    n_at_once: int = 4

    @property
    def n_out_total(self) -> int:
        return self.n_queries * self.n_out

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        dice = random.Random(f"{name}/{seed}")
        documents = [ids(dice, self.n_document) for _ in range(self.n_documents)]
        weights = [1 / (rank + 1) for rank in range(self.n_documents)]
        picks = dice.choices(range(self.n_documents), weights=weights, k=self.n_queries)
        prompts = [documents[pick] + ids(dice, self.n_query) for pick in picks]
        answers, s = await timed(at_once(self.n_at_once, [partial(api.stream, p, self.n_out) for p in prompts]))
        values = {"per output token": 1e3 * statistics.mean(a.e2e_s / a.n_out for a in answers)}
        values |= {"requests": self.n_queries / s, "ttft": 1e3 * statistics.mean(a.ttft_s for a in answers)}
        told = [a.n_cached for a in answers if a.n_cached is not None]
        if told:
            values["cached"] = sum(told) / sum(map(len, prompts))
        return Outcome(values, total(answers))


@dataclass(frozen=True)
class Agents:
    """Agents with a system prompt in common that call a tool between turns: each turn's prompt extends the last."""

    n_agents: int = 8
    n_turns: int = 6
    n_system: int = 400
    n_task: int = 20
    n_out: int = 24
    tool_s: float = 0.05
    n_observation: int = 40

    @property
    def n_out_total(self) -> int:
        return self.n_agents * self.n_turns * self.n_out

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        system = ids(random.Random(f"{name}/{seed}"), self.n_system)

        async def agent(i: int) -> int:
            dice = random.Random(f"{name}/{seed}/{i}")
            history, n = system + ids(dice, self.n_task), 0
            for _ in range(self.n_turns):
                answer = await api.once(history, self.n_out, return_token_ids=True)
                n += answer.n_out
                await asyncio.sleep(self.tool_s)
                history = history + reply(api, dice, answer, self.n_out) + ids(dice, self.n_observation)
            return n

        counts, s = await timed(asyncio.gather(*map(agent, range(self.n_agents))))
        return Outcome({"total": s, "throughput": sum(counts) / s}, sum(counts))


@dataclass(frozen=True)
class Tree:
    """Tree of thought: every node extends its parent's text, and all that can be computed at once is asked at once."""

    n_prompt: int = 300
    n_branches: int = 4
    depth: int = 3
    n_mark: int = 4  # ids that make a branch differ from its siblings
    n_out: int = 24

    @property
    def n_out_total(self) -> int:
        level_sizes = (math.prod([self.n_branches] * level) for level in range(1, self.depth + 1))
        return self.n_out * sum(level_sizes)

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        async def node(path: list[int], level: int, key: str) -> int:
            dice = random.Random(f"{name}/{seed}/{key}")
            prompt = path + ids(dice, self.n_mark)
            answer = await api.once(prompt, self.n_out, return_token_ids=True)
            below = await branches(prompt + reply(api, dice, answer, self.n_out), level + 1, key)
            return answer.n_out + below

        async def branches(path: list[int], level: int, key: str) -> int:
            if level > self.depth:
                return 0
            return sum(await asyncio.gather(*(node(path, level, f"{key}{b}") for b in range(self.n_branches))))

        n, s = await timed(branches(ids(random.Random(f"{name}/{seed}"), self.n_prompt), 1, ""))
        return Outcome({"total": s, "throughput": n / s}, n)


@dataclass(frozen=True)
class BestOf:
    """Many samples of one prompt."""

    n_prompt: int = 500
    n: int = 16
    n_out: int = 32

    @property
    def n_out_total(self) -> int:
        return self.n * self.n_out

    async def run(self, api: Api, name: str, seed: int) -> Outcome:
        prompt = ids(random.Random(f"{name}/{seed}"), self.n_prompt)
        answer, s = await timed(api.once(prompt, self.n_out, n=self.n, temperature=0.8))
        if answer.n_choices != self.n:
            raise Failed(f"the server gave {answer.n_choices} choices of {self.n}")
        n = max(answer.n_out, answer.n_choices * self.n_out)  # some servers count one choice alone
        return Outcome({"total": s, "throughput": n / s}, n)


WORKLOADS: dict[str, Workload] = {
    "W1": Single(),
    **{f"W2.c{c}": Concurrent(c) for c in (1, 4, 8, 16)},
    "W3": Prefill(),
    "W4": Rag(),
    "W5": Agents(),
    "W6": Tree(),
    "W7": BestOf(),
}
QUICK: dict[str, Workload] = {
    "W1": Single(n_prompt=16, n_out=4),
    "W2.c4": Concurrent(4, n_requests=4, n_prompt=16, n_out=4),
    "W3": Prefill(n_prompt=64),
    "W4": Rag(n_documents=2, n_document=32, n_queries=4, n_query=4, n_out=2),
    "W5": Agents(n_agents=2, n_turns=2, n_system=16, n_task=4, n_out=2, n_observation=4),
    "W6": Tree(n_prompt=16, n_branches=2, depth=2, n_out=2),
    "W7": BestOf(n_prompt=16, n=4, n_out=2),
}

WARM_UP, WARM_UP_QUICK = ((128, 16), (1024, 4)), ((16, 2),)


async def warm_up(api: Api, shapes: Sequence[tuple[int, int]]) -> None:
    """Requests of each shape (prompt, output), so that the first that counts finds nothing to compile or allocate."""
    dice = random.Random(7)
    for n_prompt, n_out in shapes:
        await asyncio.gather(*(api.once(ids(dice, n_prompt), n_out) for _ in range(4)))


def ids(dice: random.Random, n: int) -> list[int]:
    return [dice.randrange(FIRST_ID, LAST_ID) for _ in range(n)]


def reply(api: Api, dice: random.Random, answer: Answer, n: int) -> list[int]:
    """Exactly `n` ids of what was generated, so that the next prompt extends what the server has seen: the server's
    own, else its text encoded again. Ids are drawn in any case, so that what is drawn next does not depend on it."""
    return ((answer.ids or api.encode(answer.text)) + ids(dice, n))[:n]


async def at_once(n: int, requests: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All of them, at most `n` at a time."""
    turn = asyncio.Semaphore(n)

    async def one(request: Callable[[], Awaitable[T]]) -> T:
        async with turn:
            return await request()

    return await asyncio.gather(*map(one, requests))


async def timed(work: Awaitable[T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = await work
    return result, time.perf_counter() - began


def total(answers: Sequence[Answer]) -> int:
    return sum(a.n_out for a in answers)
