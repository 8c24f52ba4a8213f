"""What does a cache policy of one's own bring? Questions to documents, by the skew of their popularity: figure 3.

D documents are asked about at random times (Poisson), so fast that a server which computes every document anew falls
behind. How often each is asked about follows Pareto's law: the weight of the document of rank r is r ** (-1 / index),
so a smaller index is a stronger skew (with an index of 1.16 a fifth of very many documents has four fifths of the
weight). There is room for the KV of a fifth of the documents, beside that of the requests under way. Servers:

    none    computes document, question and answer of each request
    lru     a radix tree of prefixes, `programs/prefix_cache.py`, that lets the least recently used go
    pin     a LIP that keeps what was asked about most often: `programs/rag_cache.py`
    swap    the same, which moves the other documents to main memory instead of dropping them
    disk    the same, whose documents have names in a kernel with `--kv-dir` (not simulated)

Each serves the same requests in the same order, after some that warm it and do not count. With `--simulated` it is the
real kernel in virtual time, on a worker with the costs of a model of eight billion parameters and documents of 3,000
tokens; else the real model of this machine. `--indices 2,0.5` takes those alone. `python -m perf.plot` draws it.
"""

import asyncio
import random
import statistics
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gpuworker.options import DEFAULT_MODEL
from kernel.config import Config
from perf.harness import Failed, Findings
from perf.inside import Inside, inside
from programs import prefix_cache, rag_cache
from programs.prefix_cache import Entry, PrefixCache
from programs.rag_cache import Shelf
from sdk import FileNotFound, kv, process, rusage
from tests.sim.scenarios import BASE, Job, perform

PAGE = 16
FIRST_ID, LAST_ID = 97, 122  # tokens that every model has
SERVERS = ("none", "lru", "pin", "swap")
DURABLE = "disk"  # wants a kernel of its own
LATENCY, THROUGHPUT, HITS = "latency", "throughput", "hit rate"


class Plan(Struct, frozen=True):
    """Sizes of a run; lengths in tokens."""

    n_documents: int = 25
    n_document: int = 1500
    n_question: int = 24
    n_out: int = 16
    n_warm: int = 40  # requests before those that count
    n_requests: int = 50
    rate: float = 30.0  # requests that arrive in a second
    n_at_once: int = 8  # requests under way; the others wait
    indices: tuple[float, ...] = (4.0, 2.0, 1.16, 0.5, 0.33)

    @property
    def n_kept(self) -> int:
        """Documents that there is room for."""
        return max(1, self.n_documents // 5)

    @property
    def n_tokens(self) -> int:
        """Room on the device."""
        request = self.n_document + self.n_question + self.n_out + 2 * PAGE
        return self.n_kept * (self.n_document + PAGE) + self.n_at_once * request


QUICK = Plan(n_documents=10, n_document=48, n_question=8, n_out=4, n_warm=4, n_requests=8, indices=(2.0, 0.5))
LARGE = Plan(n_documents=100, n_document=3000, n_question=64, n_warm=300, n_requests=200, rate=80.0)


class Outcome(Struct, frozen=True):
    """What a run gave."""

    latency_ms: float  # from arrival to end, over the tokens generated: the mean of all requests
    throughput: float  # generated tokens in a second
    hit_rate: float  # share of the documents' tokens that were not computed


def measure(
    quick: bool = False,
    simulated: bool = False,
    indices: str = "",
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    backend: str = "torch",
    seed: int = 1,
) -> Findings:
    plan = QUICK if quick else LARGE if simulated else Plan()
    if indices:
        plan = replace(plan, indices=tuple(float(index) for index in indices.split(",")))
    if simulated:
        outcomes = {(s, i): simulate(plan, s, i, seed) for i in plan.indices for s in SERVERS}
    else:
        n_pages = plan.n_tokens // PAGE + 1
        config = Config(http=False, model=model, dtype=dtype, backend=backend, num_pages=n_pages)
        outcomes = real(plan, config, seed)
    found = Findings()
    for (server, index), outcome in outcomes.items():
        base = f"none at {index}: "
        for name, unit, value in (
            (LATENCY, "ms", outcome.latency_ms),
            (THROUGHPUT, "tok/s", outcome.throughput),
            (HITS, "%", 100 * outcome.hit_rate),
        ):
            against = base + name if server != "none" and name != HITS else None
            found.add(f"{server} at {index}: {name}", unit, value, against=against)
    compare(found, plan, outcomes)
    found.note(f"latency is per generated token; {plan}")
    if simulated:
        found.note("virtual time, costs of a model of eight billion parameters")
    return found


def compare(found: Findings, plan: Plan, outcomes: dict[tuple[str, float], Outcome]) -> None:
    """Say what a policy of one's own brings, and where it stops to."""
    for server in [s for s in ("pin", "swap", DURABLE) if (s, plan.indices[0]) in outcomes]:
        times = {
            index: tuple(
                outcomes[server, index].throughput / outcomes[other, index].throughput for other in SERVERS[:2]
            )
            for index in plan.indices
        }
        said = "; ".join(f"index {index}: {none:.2f} x none, {lru:.2f} x lru" for index, (none, lru) in times.items())
        lost = [index for index, (_, lru) in times.items() if lru <= 1.0]
        where = f"no better than lru at {', '.join(map(str, lost))}" if lost else "better than lru at each index"
        found.note(f"throughput of {server}: {said}: {where}")


# --- where it runs ----------------------------------------------------------------------------------------------


def real(plan: Plan, config: Config, seed: int) -> dict[tuple[str, float], Outcome]:
    """All runs on one worker of this machine. Raises Failed."""
    outcomes = inside(config, partial(run_all, plan=plan, servers=SERVERS, seed=seed))
    with TemporaryDirectory(prefix="rag-") as directory:
        durable = replace(config, kv_dir=Path(directory))
        outcomes |= inside(durable, partial(run_all, plan=plan, servers=[DURABLE], seed=seed))
    return {(server, index): outcomes[server, index] for index in plan.indices for server in (*SERVERS, DURABLE)}


async def run_all(house: Inside, plan: Plan, servers: Sequence[str], seed: int) -> dict[tuple[str, float], Outcome]:
    """Those runs that one kernel does, after one that warms it up."""
    warm = replace(plan, n_warm=0, n_requests=plan.n_at_once)
    await house.value(serve, server="none", plan=warm, index=1.0, seed=0)
    outcomes = {}
    for index in plan.indices:
        for server in servers:
            value = await house.value(serve, server=server, plan=plan, index=index, seed=seed)
            outcomes[server, index] = msgspec.convert(value, Outcome)
    return outcomes


def simulate(plan: Plan, server: str, index: float, seed: int) -> Outcome:
    """One run on a simulated worker. Raises Failed."""
    job = Job(serve, {"server": server, "plan": plan, "index": index, "seed": seed})
    room = replace(BASE, host_share=plan.n_documents * plan.n_document / plan.n_tokens)
    try:
        perform([job], room, n_tokens=plan.n_tokens)
    except AssertionError as e:
        raise Failed(str(e)) from None
    return msgspec.json.decode(job.result, type=Outcome)


# --- the servers ------------------------------------------------------------------------------------------------

Documents = dict[str, list[int]]


class Server(Protocol):
    """One way to answer."""

    async def answer(self, name: str, question: list[int], max_tokens: int, *, ignore_eos: bool) -> Any: ...


class NoCache:
    """Every prompt is computed."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def answer(self, name: str, question: list[int], max_tokens: int, *, ignore_eos: bool) -> None:
        async with await kv.create() as file:
            await file.generate([*self._documents[name], *question], max_tokens=max_tokens, ignore_eos=ignore_eos)


class Lru:
    """As the OpenAI-compatible programs do it: what is computed is stored, a long prompt before its answer begins."""

    def __init__(self, documents: Documents, n_tokens_max: int) -> None:
        self._documents = documents
        self._cache = PrefixCache(policy=idle, n_tokens_max=n_tokens_max)

    async def answer(self, name: str, question: list[int], max_tokens: int, *, ignore_eos: bool) -> None:
        prompt = [*self._documents[name], *question]
        file, _, rest = await self._cache.read(prompt, leave=len(question) + 1)
        async with file:
            await file.generate(rest, max_tokens=max_tokens, ignore_eos=ignore_eos)
            await self._cache.store(file)


def idle(entry: Entry) -> float:
    return entry.idle_s


def server_of(name: str, plan: Plan, documents: Documents) -> Server:
    match name:
        case "none":
            return NoCache(documents)
        case "lru":
            return Lru(documents, plan.n_kept * plan.n_document)
        case "swap" | "disk":
            return Shelf(documents, plan.n_kept, name)
    return Shelf(documents, plan.n_kept)


class Request(Struct, frozen=True):
    """One of them."""

    document: str
    question: list[int]
    gap_s: float  # since the one before


async def serve(server: str, plan: Plan, index: float, seed: int) -> Outcome:
    """A program: answer requests as they arrive."""
    dice = random.Random(f"rag/{index}/{seed}")
    documents = {str(i): tokens(dice, plan.n_document) for i in range(plan.n_documents)}
    warm, asked = (draw(dice, plan, index, n) for n in (plan.n_warm, plan.n_requests))
    answers = server_of(server, plan, documents)
    turn = asyncio.Semaphore(plan.n_at_once)

    async def answer(request: Request) -> float:
        """Seconds that it took, with its waiting."""
        began = await process.now()
        async with turn:
            await answers.answer(request.document, request.question, plan.n_out, ignore_eos=True)
        return await process.now() - began

    await clear()
    if server != "none":
        await asyncio.gather(*map(answer, warm))
    before, began = await n_computed(), await process.now()
    seconds = await arrive(asked, answer)
    took, computed = await process.now() - began, await n_computed() - before
    await clear()
    n_read = computed - plan.n_requests * plan.n_question
    return Outcome(
        latency_ms=1e3 * statistics.mean(seconds) / plan.n_out,
        throughput=plan.n_requests * plan.n_out / took,
        hit_rate=max(0.0, 1 - n_read / (plan.n_requests * plan.n_document)),
    )


def draw(dice: random.Random, plan: Plan, index: float, n: int) -> list[Request]:
    """Requests by popularity: of rank r, r ** (-1 / index)."""
    weights = [(rank + 1) ** (-1 / index) for rank in range(plan.n_documents)]
    picks = dice.choices(range(plan.n_documents), weights, k=n)
    return [Request(str(pick), tokens(dice, plan.n_question), dice.expovariate(plan.rate)) for pick in picks]


async def arrive(requests: list[Request], answer: Callable[[Request], Coroutine[Any, Any, float]]) -> list[float]:
    """Requests at their times, each whether or not those before it are answered."""
    tasks: list[asyncio.Task[float]] = []
    at = await process.now()
    async with asyncio.TaskGroup() as group:
        for request in requests:
            at += request.gap_s
            await process.sleep(max(0.0, at - await process.now()))
            tasks.append(group.create_task(answer(request)))
    return [task.result() for task in tasks]


async def clear() -> None:
    """Remove what servers have left under names."""
    await prefix_cache.main(clear=True)
    with suppress(FileNotFound):
        for entry in await kv.readdir(rag_cache.DIRECTORY):
            await kv.unlink(f"{rag_cache.DIRECTORY}/{entry.name}")


async def n_computed() -> int:
    """Tokens computed so far, but for those that were generated."""
    used = await rusage()
    return used.n_prompt_tokens + used.n_recomputed_tokens


def tokens(dice: random.Random, n: int) -> list[int]:
    return [dice.randint(FIRST_ID, LAST_ID) for _ in range(n)]
