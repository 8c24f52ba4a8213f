"""What it takes to make a worker one of ours: the greeting, the tokenizer it brings, its pages and its batcher, and the
proof that it computes.

The steps of `kernel/fleet.py`'s `attach`, each by itself. Never add here what is done with a worker that serves.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gpuworker.wire import WIRE_HASH, Assets, Hello, Welcome
from kernel.attachment import Attached, AttachError
from kernel.batcher import Batcher
from kernel.config import Config
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.holders import Holder
from kernel.jobs import Job, PredJob
from kernel.language import Language, load_tokenizer
from kernel.link import Link
from kernel.memory import Memory
from kernel.pacing import firing
from kernel.turns import Order
from kernel.workers import State, Workers
from kvfs.access import KERNEL
from kvfs.fs import Kvfs
from sdk.abi.errors import NoDevice

PROOF_TOKENS = 64  # a new worker computes so many, which also tells what a token costs


async def greet(link: Link, name: str, workers: Workers, timeout_s: float) -> Welcome:
    """Exchange greetings as the kernel of that name. Raises AttachError."""
    try:
        greeting = await link.greet(Hello(WIRE_HASH, name), timeout_s)
    except ConnectionError as e:
        raise AttachError(str(e)) from None
    refusal = workers.refusal(greeting)
    if refusal is not None:
        raise AttachError(f"worker {link.address} is refused: {refusal}")
    assert isinstance(greeting, Welcome)
    return greeting


def speak(assets: Assets, tokenizer: str | None) -> Language:
    """The model's language; with another tokenizer, if one is given that is a file here."""
    if tokenizer is not None and Path(tokenizer).exists():
        assets = Assets(
            load_tokenizer(Path(tokenizer)),
            assets.chat_template,
            assets.special_tokens,
            assets.add_bos,
        )
    return Language(assets)


def equip(
    config: Config,
    fs: Kvfs,
    counters: Counters,
    name: str,
    welcome: Welcome,
    *,
    order: Order,
    holder: Callable[[int], Holder | None],
) -> Batcher:
    """Give a worker's pages to kvfs, and make its batcher."""
    fs.add_device(
        name,
        n_pages=welcome.n_pages,
        page_size=welcome.model.page_size,
        n_host_pages=welcome.n_host_pages,
        page_bytes=welcome.page_bytes,
    )
    costs = StepCosts()
    return Batcher(
        fs,
        max_rows=min(config.max_num_seqs, welcome.max_rows),
        max_tokens=min(config.max_num_batched_tokens, welcome.max_batch_tokens),
        vocab_size=welcome.model.vocab_size,
        memory=Memory(
            fs,
            name,
            costs,
            counters,
            holder,
            mode=config.preemption_mode,
            shares=config.tenant_share,
            hold_s=config.tenant_cache_s,
        ),
        costs=costs,
        firing=firing(config.batch_policy, config.batch_k, config.batch_t_ms / 1000),
        order=order,
        counters=counters,
    )


class Submit(Protocol):
    """Queues a job on the worker that holds its file."""

    def __call__(self, job: Job, account: Any, *, claim: bool, again: bool) -> None: ...


async def prove(
    attached: Attached,
    fs: Kvfs,
    submit: Submit,
    cancel: Callable[[Job], None],
    clock: Callable[[], float],
    timeout_s: float,
) -> None:
    """Have the worker compute: what serves is what was seen to compute. Raises SyscallError."""
    worker = attached.worker
    file = fs.create(None, who=KERNEL, now=clock(), device=worker.name)
    try:
        room = fs.devices()[worker.name]
        for n_tokens in (1, min(PROOF_TOKENS, attached.batcher.max_tokens, room.n_free * room.page_size - 1)):
            proof: asyncio.Future[Any] = attached.loop.create_future()
            job = PredJob.probe(file, fs.length(file), n_tokens, proof.set_result, proof.set_exception)
            submit(job, None, claim=True, again=False)
            try:
                async with asyncio.timeout(timeout_s):
                    await proof
            except TimeoutError:
                raise NoDevice(f"there was no answer within {timeout_s:g} s") from None
            finally:
                cancel(job)  # if nobody waits for it any more
            if worker.state is State.LOST:
                raise NoDevice("it was lost")
    finally:
        fs.close(file, clock())
