"""Workers come, share the work, fail and go; programs on them get an errno and the others never notice."""

import asyncio
import threading

import msgspec
import pytest

from gpuworker.address import listen
from gpuworker.backend import StepError
from gpuworker.null import NullBackend
from gpuworker.stepcost import StepCost
from gpuworker.stream import pieces
from gpuworker.wire import WIRE_HASH, Welcome, encode_greeting
from kernel.attachment import AttachError
from sdk import kv, syscalls
from sdk.abi.errors import Errno, SyscallError
from sdk.abi.values import NOTHING, Decoding


async def answer(prompt: str) -> str:
    async with await kv.prompt(prompt) as f:
        return await f.text(max_tokens=30, ignore_eos=True)


async def test_two_workers_share_the_load_and_answer_alike(make_house):
    prompts = [f"prompt number {i}" for i in range(16)]
    async with make_house() as house:
        alone = [await house.value(answer, prompt=p) for p in prompts]
    async with make_house(n_workers=2) as house:
        processes = [house.start(answer, prompt=p) for p in prompts]
        both = [await p.wait_exit() for p in processes]
        n_tokens = [w.n_tokens for w in house.kernel.workers]
    import msgspec

    assert [msgspec.json.decode(s.result) for s in both] == alone
    assert min(n_tokens) > 0.3 * sum(n_tokens)


class Gate:
    """A device that waits for leave before each step."""

    def __init__(self) -> None:
        self.device = NullBackend()
        self.open = threading.Event()
        self.open.set()
        self.began = threading.Event()

    def info(self):
        return self.device.info()

    def assets(self):
        return self.device.assets()

    def run(self, batch):
        self.began.set()
        self.open.wait(10)
        return self.device.run(batch)


async def test_a_lost_worker_costs_time_and_nothing_else(make_house):
    gate = Gate()

    async def main():
        fd = await syscalls.create()
        await syscalls.pred(fd=fd, tokens=[1, 2, 3], want=NOTHING)
        before = (await syscalls.fstat(fd=fd)).worker
        done = await syscalls.generate(fd=fd, decoding=Decoding(max_tokens=20, ignore_eos=True))
        return [before, (await syscalls.fstat(fd=fd)).worker, done.tokens, await syscalls.tokens(fd=fd)]

    async with make_house(backends=[gate, None]) as house:
        first, second = (w.name for w in house.kernel.workers)
        gate.began.clear()
        gate.open.clear()
        processes = [house.start(main) for _ in range(4)]
        await asyncio.to_thread(gate.began.wait, 10)
        house.lose(first)
        results = [msgspec.json.decode((await p.wait_exit()).result) for p in processes]
        gate.open.set()
        assert [r[1] for r in results] == [second] * 4
        assert len({tuple(r[2]) for r in results}) == 1, "greedy, and so all alike"
        assert all(r[3] == [1, 2, 3, *r[2]] for r in results)
        assert house.kernel.counters.n_workers_lost == 1
        assert house.kernel.healthy


async def test_calls_wait_for_a_worker_and_not_for_ever(make_house, null_at):
    async with make_house(no_worker_s=1.0) as house:
        name = next(iter(house.kernel.workers)).name
        house.kernel.fleet.recovery.seek = lambda name: None
        house.lose(name)
        assert not house.kernel.healthy
        status = await house.run(answer, prompt="x")
        assert status.error.startswith("ENODEV")
        with null_at("other", NullBackend(verify=True)) as address:
            waiting = house.start(answer, prompt="x")
            await house.kernel.attach(address)
            assert (await waiting.wait_exit()).code == 0
            await house.kernel.detach(address, drain=False)


async def test_a_worker_that_was_cut_off_is_found_again(house):
    name = next(iter(house.kernel.workers)).name
    house.lose(name)
    assert house.kernel.fleet.recovery.sought == [name]
    assert await house.value(answer, prompt="x")
    assert [w.name for w in house.kernel.workers] == [name]
    assert house.kernel.fleet.recovery.sought == []


async def test_a_worker_that_is_let_go_while_it_proves_itself_is_gone(house, null_at):
    gate = Gate()
    gate.open.clear()
    n_before = len(list(house.kernel.workers))
    with null_at("other", gate) as address:
        attaching = asyncio.create_task(house.kernel.attach(address))
        await asyncio.to_thread(gate.began.wait, 10)
        assert address in [w.name for w in house.kernel.workers]
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        assert len(list(house.kernel.workers)) == len(house.kernel.fleet.all_attached()) == n_before
        gate.open.set()


async def test_a_worker_drains_and_its_programs_go_on(make_house):
    async with make_house(n_workers=2, cost=StepCost(step_s=0.001)) as house:
        first, second = (w.name for w in house.kernel.workers)

        async def main():
            base = await kv.prompt("the same for all")
            forks = [await base.fork() for _ in range(4)]
            texts = await asyncio.gather(*(f.text(max_tokens=60, ignore_eos=True) for f in forks))
            return [*texts, (await base.stat()).worker]

        processes = [house.start(main) for _ in range(4)]
        while house.kernel.counters.n_generated_tokens < 100:
            await house.kernel.fleet.attached(first).changed()
        recomputed = house.kernel.counters.n_recomputed_tokens
        await house.kernel.detach(first, drain=True)
        assert [w.name for w in house.kernel.workers] == [second]
        results = [msgspec.json.decode((await p.wait_exit()).result) for p in processes]
        assert {r[-1] for r in results} == {second}
        assert len({t for r in results for t in r[:-1]}) == 1
        assert house.kernel.counters.n_pages_migrated > 0
        assert house.kernel.counters.n_recomputed_tokens == recomputed
        with pytest.raises(AttachError, match="only worker"):
            await house.kernel.detach(second, drain=True)


async def test_more_files_than_pages(make_house):
    async with make_house(n_pages=8) as house:

        async def main():
            files = [await kv.create() for _ in range(6)]
            for i, f in enumerate(files):
                await f.append([65 + i] * 40)
            texts = [await f.text(max_tokens=8, ignore_eos=True) for f in files]
            return [texts, [len(await f.tokens()) for f in files]]

        texts, lengths = await house.value(main)
        assert lengths == [48] * 6
        assert house.kernel.counters.n_pages_out > 0
    async with make_house(n_pages=100) as house:
        assert (await house.value(main))[0] == texts


async def test_no_pages_left_in_the_middle_of_a_generation(make_house):
    async with make_house(n_pages=4) as house:

        async def main():
            async with await kv.prompt("0123456789") as f:
                try:
                    await f.text(max_tokens=1000, ignore_eos=True)
                except SyscallError as e:
                    return [e.errno, len(await f.tokens())]

        assert await house.value(main) == ["ENOSPC", 64]


class Picky(Gate):
    """A device that refuses every step in which token 13 occurs."""

    def run(self, batch):
        if 13 in list(batch.tokens):
            raise StepError(Errno.EINVAL, "not that token")
        return self.device.run(batch)


async def test_a_refused_batch_harms_only_the_row_at_fault(make_house):
    async with make_house(backends=[Picky()]) as house:

        async def main(token: int):
            fd = await syscalls.create()
            try:
                (dist,) = await syscalls.pred(fd=fd, tokens=[token])
                return dist.position
            except SyscallError as e:
                return [e.errno, len(await syscalls.tokens(fd=fd))]

        processes = [house.start(main, token=t) for t in (11, 12, 13, 14)]
        results = [(await p.wait_exit()).result for p in processes]
        assert results == [b"0", b"0", b'["EINVAL",0]', b"0"]


async def test_work_that_comes_together_is_computed_together(house):
    before = house.kernel.counters.n_batches

    async def main():
        base = await kv.prompt("the same for all")
        forks = [await base.fork() for _ in range(8)]
        await asyncio.gather(*(f.text(max_tokens=10, ignore_eos=True) for f in forks))

    await house.value(main)
    assert house.kernel.counters.n_batches - before == 1 + 1 + 10  # the prompt, the tails, ten tokens each


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_another_model_is_refused_by_name(make_house, null_at):
    async with make_house() as house:
        with null_at("other", NullBackend(vocab_size=300, name="other-model")) as address:
            with pytest.raises(AttachError, match="other-model.*while this kernel serves null"):
                await house.kernel.attach(address)
        assert await house.value(answer, prompt="x")


async def test_attaching_twice_and_to_nobody(house):
    (worker,) = house.kernel.workers
    with pytest.raises(AttachError, match="attached already"):
        await house.kernel.attach(worker.name)
    with pytest.raises(AttachError, match="no address"):
        await house.kernel.attach("nonsense")
    with pytest.raises(AttachError, match="no worker nobody"):
        await house.kernel.detach("nobody")


async def test_a_worker_that_serves_another_kernel_refuses(make_house):
    async with make_house() as one, make_house() as two:
        (worker,) = one.kernel.workers
        with pytest.raises(AttachError, match="serves kernel"):
            await two.kernel.attach(worker.name)


async def test_a_detached_worker_can_be_attached_again(house):
    (worker,) = house.kernel.workers
    await house.kernel.detach(worker.name)
    assert not house.kernel.healthy
    await house.kernel.attach(worker.name)
    assert await house.value(answer, prompt="x")


async def test_a_worker_that_dies_while_it_is_attached(make_house, tmp_path):
    """It greets, and is gone before it has sent its tokenizer."""
    address, facts = f"ipc://{tmp_path}/dying", NullBackend().info()
    with listen(address) as listener:
        listener.setblocking(True)

        def greet_and_die() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                welcome = Welcome(WIRE_HASH, "w", 1, "none", "null", facts.model, 1, 0, 1, 1, 1)
                for piece in pieces(encode_greeting(welcome)):
                    connection.sendall(piece)
                connection.recv(4096)  # it is asked for its tokenizer

        async with make_house(n_workers=0) as house:
            death = asyncio.create_task(asyncio.to_thread(greet_and_die))
            with pytest.raises(AttachError, match="lost while it was being attached: the connection was closed"):
                await house.kernel.attach(address)
            await death
            assert list(house.kernel.workers) == []
