"""What is computed ahead, moved, and sent elsewhere: chained rows, surplus tokens, swaps and contents, bit for bit."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpuworker.backend import StepError
from gpuworker.engine import Engine
from gpuworker.hosttier import HostTier
from gpuworker.pagepool import PagePool
from gpuworker.wire import Ask, Draw
from sdk.abi.errors import Errno
from sdk.abi.values import Sampling
from tests.gpuworker.world import N_PAGES, File, Job, Kernel, assert_close, contiguous, every, failing, matrix, words


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31])
def test_a_surplus_token_leaves_the_tail_before_it(tiny: Engine, n: int) -> None:
    """Computed ahead and thrown away, in the same page or the next; bit for bit, and in a fork too."""
    kernel, file, tokens = Kernel(tiny), File(), words(13, n)
    kernel.run(Job(file, tokens))
    (want,) = kernel.logits(Job(file, (), [Ask(-1)]))
    kernel.run(Job(file, [299]))
    file.n, surplus = n, file.pages[-(-n // 16) :]
    file.pages = file.pages[: -(-n // 16)]
    forked, own = kernel.logits(Job(kernel.fork(file), (), [Ask(-1)]), Job(file, (), [Ask(-1)]))
    assert torch.equal(own, want)
    assert torch.equal(forked, want)
    file.pages += surplus
    (after,) = kernel.logits(Job(file, [7], [Ask(-1), Ask(0)]))
    assert_close(after, contiguous(tiny, [*tokens, 7])[-2:])


def generated(engine: Engine, n: int, chained: bool) -> list[tuple[list[int | None], Tensor]]:
    """Samples and raw logits of n steps of three rows with a prompt each, which swap places after each step."""
    kernel, draws = Kernel(engine), [Sampling(), Sampling(temperature=0.9), Sampling(temperature=2.0, top_p=0.8)]
    files, fed, steps = [File() for _ in draws], [words(30 + i, 3 + 10 * i) for i in range(3)], []
    for i in range(n):
        order = [(i + k) % 3 for k in range(3)]
        asks = [Ask(len(fed[j]) - 1, Draw(draws[j], j, files[j].n + len(fed[j])), logits=True) for j in order]
        is_chained = chained and i > 0
        tokens = [[0] if is_chained else fed[j] for j in order]
        jobs = [
            Job(files[j], t, [a], chained=is_chained, number=j) for j, t, a in zip(order, tokens, asks, strict=True)
        ]
        done = engine.run(kernel.batch(jobs))
        samples = {row.job: row.answers[0].sample for row in done.head.rows}
        fed = [[samples[j] or 0] for j in range(3)]
        steps.append(([samples[j] for j in range(3)], matrix(done, engine)))
    return steps


def test_chained_rows_go_on_from_what_was_drawn_bit_for_bit(tiny: Engine) -> None:
    for chained, unchained in zip(generated(tiny, 20, True), generated(tiny, 20, False), strict=True):
        assert chained[0] == unchained[0]
        assert torch.equal(chained[1], unchained[1])


def test_a_chain_goes_on_from_the_last_draw_of_the_job(tiny: Engine) -> None:
    """It asked twice; the second time it was made to draw token 7."""
    kernel, file, forced = Kernel(tiny), File(), Sampling(logit_bias={7: 1000.0})
    kernel.run(Job(file, [5, 6], [Ask(1, Draw(Sampling(), 0, 1)), Ask(0, Draw(forced, 0, 1)), Ask(1, target=3)]))
    (got,) = kernel.logits(Job(file, [0, 9], [Ask(0), Ask(1)], chained=True))
    assert_close(got, contiguous(tiny, [5, 6, 7, 9])[2:])


def test_a_chain_breaks_at_a_failure_and_after_a_batch_without_its_job(tiny: Engine) -> None:
    kernel, draw = Kernel(tiny), Ask(0, Draw(Sampling(), 0, 1))
    for between in (Job(File(), [1], number=2), Job(File(), [300])):  # of another job; refused
        file = File()
        kernel.run(Job(file, [5], [draw]))
        with contextlib.suppress(StepError):
            kernel.run(between)
        with pytest.raises(StepError, match="job 0: it is chained") as e:
            kernel.run(Job(file, [0], chained=True))
        assert e.value.errno == Errno.EINVAL


def test_pages_swapped_out_and_in_again_answer_bit_for_bit(tiny: Engine) -> None:
    """Beside a step of another file both times, and after their pages were used for something else."""
    kernel, tokens, other = Kernel(tiny), words(14, 37), words(15, 40)
    stayed, moved, busy = File(), File(), File()
    kernel.run(Job(stayed, tokens), Job(moved, tokens))
    kernel.moves_out = list(zip(moved.pages, (9, 2, 30), strict=True))
    (first,) = kernel.logits(Job(busy, other[:20], every(other[:20])))
    kernel.run(Job(File(pages=moved.pages), words(16, 48)))
    moved.pages = [next(kernel.free) for _ in moved.pages]
    kernel.moves_in = list(zip((9, 2, 30), moved.pages, strict=True))
    (second,) = kernel.logits(Job(busy, other[20:], every(other[20:])))
    assert_close(torch.cat([first, second]), contiguous(tiny, other))
    for job in (Job(File(), (), [Ask(-1)]), Job(File(), [7, 8], [Ask(-1), Ask(0), Ask(1)])):
        (want,) = kernel.logits(replace(job, file=stayed))
        (got,) = kernel.logits(replace(job, file=moved))
        assert torch.equal(got, want)


def test_a_batch_of_moves_alone(tiny: Engine) -> None:
    kernel = Kernel(tiny)
    kernel.moves_out = [(3, 3), (4, 4)]
    done = tiny.run(kernel.batch([]))
    assert (done.head.rows, done.head.n_tokens) == ([], 0)
    assert done.head.move_s > 0
    assert tiny.run(kernel.batch([])).head.move_s == 0


def test_moves_of_a_step_that_fails_are_over_when_it_is_answered(tiny: Engine) -> None:
    kernel, model = failing(tiny, MemoryError("12 bytes"))
    file = File()
    kernel.run(Job(file, [5, 6]))
    want = tiny.fetch(file.pages)
    model.n_failures = 1
    kernel.moves_out = [(file.pages[0], 7)]
    with pytest.raises(StepError):
        kernel.run(Job(File(), [1], [Ask(0)]))
    assert kernel.engine._host.pages[7].numpy().data == want


def test_pages_fetched_and_stored_elsewhere_answer_bit_for_bit(tiny: Engine) -> None:
    pool = PagePool(N_PAGES, 2, 16, 2, 8, 32, torch.float32, "cpu")
    here, there = Kernel(tiny), Kernel(Engine(tiny._model, pool, tiny._attention, tiny.info(), tiny.assets()))
    file, tokens = File(), words(17, 37)
    here.run(Job(file, tokens))
    contents = tiny.fetch(file.pages)
    assert len(contents) == 3 * tiny.info().page_bytes
    copy = File(37, [5, 60, 0])
    there.engine.store(copy.pages, bytes(contents))
    assert there.engine.fetch(copy.pages) == contents
    there.free = iter([8])
    for job in (Job(File(), (), [Ask(-1)]), Job(File(), words(18, 15), [Ask(-1), Ask(14)])):
        (want,) = here.logits(replace(job, file=file))
        (got,) = there.logits(replace(job, file=copy))
        assert torch.equal(got, want)


def test_pages_in_main_memory_are_fetched_from_there_and_stored_there(tiny: Engine) -> None:
    kernel, file = Kernel(tiny), File()
    kernel.run(Job(file, words(17, 37)))
    want = bytes(tiny.fetch(file.pages))
    kernel.moves_out = [(file.pages[1], 4)]
    tiny.run(kernel.batch([]))
    first, second, third = file.pages
    assert tiny.fetch([first, N_PAGES + 4, third]) == want
    tiny.store([N_PAGES + 5, second, N_PAGES + 6], want)
    assert tiny.fetch([N_PAGES + 5, second, N_PAGES + 6]) == want


def test_pages_that_are_not_there_are_neither_fetched_nor_stored(tiny: Engine) -> None:
    contents = bytes(tiny.fetch([1]))
    for refused in (
        lambda: tiny.fetch([N_PAGES + tiny.info().n_host_pages]),
        lambda: tiny.store([N_PAGES + tiny.info().n_host_pages], contents),
        lambda: tiny.store([1], contents[1:]),
    ):
        with pytest.raises(StepError) as e:
            refused()
        assert e.value.errno == Errno.EINVAL
    assert tiny.fetch([1]) == contents


class FullTier(HostTier):
    """A machine that has no memory left for contents on their way."""

    def read(self, pages: Sequence[int]) -> memoryview:
        raise MemoryError(f"{len(pages)} pages")

    def write(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        raise MemoryError(f"{len(pages)} pages")


def test_a_lack_of_memory_for_contents_is_no_bug(tiny: Engine) -> None:
    full = Engine(tiny._model, tiny._pool, tiny._attention, tiny.info(), tiny.assets())
    full._host = FullTier(tiny._pool, 0)
    for refused in (lambda: full.fetch([1]), lambda: full.store([1], tiny.fetch([1]))):
        with pytest.raises(StepError, match="the worker is out of memory: 1 pages") as e:
            refused()
        assert e.value.errno == Errno.ENOSPC
