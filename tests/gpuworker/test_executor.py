"""One attachment in order: what is void, what counts as a failure, what may be chained, what ends the worker."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworker import wire
from gpuworker.backend import StepError
from gpuworker.executor import Executor
from gpuworker.null import NullBackend
from gpuworker.wire import Ask, Batch, BatchDone, BatchFailed, BatchHead, Draw, Fetch, Fetched, PagesFailed, Row, Stored
from sdk.abi.errors import Errno
from sdk.abi.values import Sampling

GREEDY = Draw(Sampling(), 0, 1)


class Device(NullBackend):
    """Fails at the batches it is told to, and writes down what it was made to do."""

    def __init__(self, *failing: int, error: Exception | None = None) -> None:
        super().__init__(n_pages=8, page_size=4)
        self.failing, self.error = failing, error or StepError(Errno.ENOSPC, "out of memory")
        self.tried: list[int] = []

    def run(self, batch: Batch) -> BatchDone:
        self.tried.append(batch.head.seq)
        if batch.head.seq in self.failing:
            raise self.error
        return super().run(batch)

    def fetch(self, pages: Sequence[int]) -> bytes:
        if 7 in pages:
            raise self.error
        return super().fetch(pages)


def batch(seq: int, n_failed: int = 0, chained: bool = False) -> Batch:
    rows = [Row(0, 0, 1, 1, [Ask(0, GREEDY)], chained=chained)]
    arrays = ([0 if chained else 70], [0], [1], list[int]())
    return Batch(BatchHead(seq, [], rows, n_failed), *(array("I", a) for a in arrays))


def test_what_was_sent_before_a_failure_was_known_is_void_and_untried() -> None:
    device = Device(2)
    executor = Executor(device)
    answers = [executor.answer(batch(seq, n_failed)) for seq, n_failed in ((1, 0), (2, 0), (3, 0), (4, 0), (5, 1))]
    assert [isinstance(a, BatchDone) for a in answers] == [True, False, False, False, True]
    failed = [a for a in answers if isinstance(a, BatchFailed)]
    assert [(a.seq, a.void) for a in failed] == [(2, False), (3, True), (4, True)]
    assert failed[0] == BatchFailed(2, Errno.ENOSPC, "out of memory")
    assert "0 failures were known, after 1" in failed[1].detail
    assert device.tried == [1, 2, 5]


def test_a_failure_that_has_not_happened_is_void_too() -> None:
    answer = Executor(Device()).answer(batch(1, n_failed=1))
    assert isinstance(answer, BatchFailed)
    assert answer.void


def test_what_the_door_refused_counts_in_its_turn() -> None:
    executor, refused = Executor(Device()), BatchFailed(2, Errno.EBUSY, "too many")
    assert isinstance(executor.answer(batch(1)), BatchDone)
    assert executor.answer(refused) is refused
    assert isinstance(executor.answer(batch(3)), BatchFailed)
    assert isinstance(executor.answer(batch(4, n_failed=1)), BatchDone)


@given(st.lists(st.booleans(), max_size=30), st.data())
def test_a_kernel_that_counts_what_it_hears_is_always_understood(fails: list[bool], data: st.DataObject) -> None:
    """A kernel two batches ahead, whose answers reach it late: after a failure, void until it has heard of it."""
    device = Device(*(seq for seq, fail in enumerate(fails) if fail))
    executor, heard, on_the_way = Executor(device), 0, list[BatchDone | BatchFailed]()
    stale = False  # the kernel does not know of the last failure
    for seq in range(len(fails)):
        while on_the_way and (len(on_the_way) > 2 or data.draw(st.booleans())):
            answer = on_the_way.pop(0)
            if isinstance(answer, BatchFailed) and not answer.void:
                heard, stale = heard + 1, False
        sent = executor.answer(batch(seq, heard))
        assert isinstance(sent, BatchDone | BatchFailed)
        assert (isinstance(sent, BatchFailed) and sent.void) == stale
        stale = stale or isinstance(sent, BatchFailed)
        on_the_way.append(sent)


def test_a_new_attachment_has_heard_of_no_failures() -> None:
    executor = Executor(Device(1))
    executor.answer(batch(1))
    executor.begin()
    assert isinstance(executor.answer(batch(2)), BatchDone)


def test_rows_may_be_chained_to_the_last_batch_of_this_attachment_that_was_done() -> None:
    executor = Executor(Device(4))

    def chained(seq: int, n_failed: int = 0) -> str:
        answer = executor.answer(batch(seq, n_failed, chained=True))
        return answer.detail if isinstance(answer, BatchFailed) else "done"

    executor.answer(batch(1))
    assert chained(2) == "done"
    executor.begin()
    assert "no batch was done before" in chained(1)
    executor.answer(batch(2, n_failed=1))
    assert chained(3, n_failed=1) == "done"
    executor.answer(batch(4, n_failed=1))
    assert "no batch was done before" in chained(5, n_failed=2)
    executor.answer(batch(6, n_failed=3))
    executor.answer(BatchFailed(7, Errno.EBUSY, "too many"))
    assert "no batch was done before" in chained(8, n_failed=4)


def test_pages_are_fetched_as_the_batches_before_have_left_them() -> None:
    executor = Executor(Device())
    empty = executor.answer(Fetch(1, [1, 2]))
    executor.answer(batch(1))
    written = executor.answer(Fetch(2, [1, 2]))
    assert isinstance(empty, Fetched)
    assert isinstance(written, Fetched)
    assert (empty.head.number, written.head.number) == (1, 2)
    assert len(empty.contents) == len(written.contents) == 2 * NullBackend(page_size=4).info().page_bytes
    assert bytes(empty.contents) == bytes(len(empty.contents)) != bytes(written.contents)
    other = Executor(Device())
    assert other.answer(wire.Store(wire.StoreHead(3, [5, 6]), written.contents)) == Stored(3)
    copied = other.answer(Fetch(4, [5, 6]))
    assert isinstance(copied, Fetched)
    assert bytes(copied.contents) == bytes(written.contents)


def test_refused_pages_are_no_failed_batch() -> None:
    executor = Executor(Device())
    for work, number in ((Fetch(1, [16]), 1), (wire.Store(wire.StoreHead(2, [0]), b"short"), 2), (Fetch(3, [7]), 3)):
        answer = executor.answer(work)
        assert isinstance(answer, PagesFailed)
        assert answer.number == number
    refused = PagesFailed(4, Errno.EBUSY, "too many")
    assert executor.answer(refused) is refused
    assert executor.crash is None
    assert isinstance(executor.answer(batch(1)), BatchDone)


@pytest.mark.parametrize("work", [batch(1), Fetch(9, [7])], ids=["batch", "fetch"])
def test_a_bug_is_told_and_ends_the_worker(work: Batch | Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    executor = Executor(Device(1, error=ZeroDivisionError("oh")))
    answer = executor.answer(work)
    assert isinstance(answer, BatchFailed | PagesFailed)
    assert answer.errno == Errno.EIO
    assert "ZeroDivisionError: oh" in answer.detail
    assert executor.crash == answer.detail
    assert "Traceback" in capsys.readouterr().err
