"""Edits as jobs of a batcher with a null worker behind it: what happens to them when batches fail, memory is short or
the worker goes; and that an edited file is the last to be given up."""

import pytest

from kernel.edits import EditJob
from kvfs.access import KERNEL, Who
from kvfs.inode import Residency
from sdk.abi.errors import Errno, NoSpace, QuotaExceeded, SyscallError
from sdk.abi.values import Limits, PositionMode
from tests.kernel.rig import Rig, shapes

KEEP, PACK = PositionMode


def written(rig, n_tokens, pid=0):
    """A file with so many tokens."""
    file = rig.pred(n_tokens, pid=pid).file
    rig.finish()
    return file


def begin(rig, edit, pid=0):
    """Submit an edit; `rig.results` gets it when it is done."""
    job = EditJob(edit, **rig.keys())
    rig.submit(job, pid, claim=False)
    return job


def end(rig, edit, *, keep=True):
    rig.fs.end_edit(edit, rig.now)
    if keep:
        rig.files.append(edit.file)
    else:
        rig.fs.close(edit.file, rig.now)
    rig.check()


def extract(rig, file, *ranges, mode=KEEP):
    return rig.fs.extract(file, ranges, mode, who=KERNEL, now=rig.now)


def test_an_edit_is_an_empty_row_with_runs_beside_it():
    rig = Rig()
    file = written(rig, 20)
    edit = extract(rig, file, (1, 9), mode=PACK)
    job = begin(rig, edit)
    batch = rig.plan()
    assert shapes(batch) == [(job.number, 0, 0)]
    assert sum(e.n for e in batch.head.edits) == 8
    assert {e.delta for e in batch.head.edits} == {-1}
    rig.finish()
    assert list(rig.results.values())[-1] is edit
    assert rig.counters.n_edits == 1
    end(rig, edit)
    rig.close()


def test_it_goes_with_the_rows_of_others():
    rig = Rig()
    file = written(rig, 20)
    edit = extract(rig, file, (1, 9))
    begin(rig, edit)
    rig.pred(5)
    assert sorted(n for _, _, n in shapes(rig.plan())) == [0, 5]
    rig.finish()
    end(rig, edit)
    rig.close()


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_cancelled_edit_has_done_nothing(is_sent):
    rig = Rig()
    file = written(rig, 20)
    edit = rig.fs.splice(file, 1, 3, None, KEEP, who=KERNEL, now=rig.now)
    job = begin(rig, edit)
    if is_sent:
        rig.plan()
    rig.batcher.cancel(job, rig.now)
    rig.fs.end_edit(edit, rig.now)
    rig.check()
    assert rig.fs.length(file) == 20
    rig.close()


def test_a_batch_that_fails_is_tried_again_and_fails_the_edit_alone():
    rig = Rig()
    file = written(rig, 20)
    edit, n = extract(rig, file, (1, 9)), 0

    def refuse(batch):
        nonlocal n
        n += 1
        return Errno.EIO if n == 1 else None

    rig.backend.refuse = refuse
    begin(rig, edit)
    rig.pred(5)
    rig.finish()
    assert list(rig.results.values())[1] is edit
    end(rig, edit)
    edit = extract(rig, file, (1, 9))
    begin(rig, edit)
    rig.backend.refuse = lambda batch: Errno.EIO if batch.head.edits else None
    rig.pred(5)
    rig.finish()
    error = list(rig.results.values())[3]
    assert isinstance(error, SyscallError)
    assert error.errno is Errno.EIO
    rig.backend.refuse = lambda batch: None
    end(rig, edit, keep=False)
    rig.close()


@pytest.mark.parametrize("is_sent", [False, True])
def test_the_worker_goes_and_another_does_it(is_sent):
    """After it has computed the sources again."""
    rig = Rig()
    a, b = written(rig, 20), written(rig, 7)
    edit = rig.fs.merge([a, b], PACK, who=KERNEL, now=rig.now)
    begin(rig, edit)
    if is_sent:
        rig.plan()
    rig.sent.clear()
    rig.lose_worker()
    rig.finish()
    assert list(rig.results.values())[-1] is edit
    assert rig.counters.n_recomputed_tokens == 27
    end(rig, edit)
    assert rig.fs.length(edit.file) == 27
    again = rig.fs.merge([a, b], PACK, who=KERNEL, now=rig.now)
    begin(rig, again)
    rig.finish()
    end(rig, again)
    assert rig.counters.n_recomputed_tokens == 27 + 4 + 3, "the sources have kept what their snapshots had"
    rig.close()


def test_sources_come_back_from_main_memory_first():
    rig = Rig()
    a, b = written(rig, 20), written(rig, 7)
    for file in (a, b):
        move = rig.fs.swap_out([file.inode.ino], rig.now)
        rig.memory.settle([move], rig.now, 0.0)
    edit = rig.fs.merge([a, b], PACK, who=KERNEL, now=rig.now)
    assert not rig.fs.edit_at_once(edit, rig.now)
    begin(rig, edit)
    batches = []
    while rig.batcher.n_jobs:
        batches.append(rig.plan())
        if rig.sent:
            rig.run()
    assert [len(batch.head.moves_in) for batch in batches if batch is not None] == [5, 2, 0]
    end(rig, edit)
    rig.close()


def test_an_older_edit_takes_the_pages_of_a_younger_program_and_none_of_its_own():
    rig = Rig(n_pages=16, n_host_pages=32)
    young = written(rig, 24, pid=9)
    old = written(rig, 28, pid=1)
    edit = extract(rig, old, (1, 27))
    begin(rig, edit, pid=1)
    rig.generate("", 3, file=young, pid=9)
    rig.finish()
    assert list(rig.results.values())[2] is edit
    assert rig.counters.n_preempted == 1
    end(rig, edit)
    rig.close()


def test_the_limit_of_pages_counts_those_that_an_edit_fills():
    rig = Rig()
    file = written(rig, 20, pid=1)
    account = rig.accounts[1]
    account.is_limited, account.n_pages = True, 5
    account.limits = Limits(pages=9)
    account.afford = lambda n_tokens: None
    for ranges, error in (([(1, 20)], QuotaExceeded), ([(0, 16), (17, 19)], None)):
        edit = rig.fs.extract(file, ranges, KEEP, who=Who("ann", root=True, pid=1), now=rig.now)
        begin(rig, edit, pid=1)
        rig.finish()
        assert isinstance(list(rig.results.values())[-1], error or type(edit))
        end(rig, edit, keep=error is None)
    rig.close()


def test_an_edit_that_could_never_have_its_pages_fails():
    rig = Rig(n_pages=16)
    file = written(rig, 40)
    edit = extract(rig, file, (1, 39))
    begin(rig, edit)
    rig.finish()
    assert isinstance(list(rig.results.values())[-1], NoSpace)
    end(rig, edit, keep=False)
    rig.close()


def edited(rig, n_tokens):
    """An edited file of so many tokens, and no other."""
    file = written(rig, n_tokens + 1)
    edit = extract(rig, file, (1, n_tokens + 1))
    begin(rig, edit)
    rig.finish()
    end(rig, edit)
    rig.files.remove(file)
    rig.fs.close(file, rig.now)
    assert edit.file.inode.edited is not None
    return edit.file


@pytest.mark.parametrize("mode", ["auto", "recompute", "swap"])
def test_an_edited_file_is_moved_where_others_are_dropped(mode):
    rig = Rig(n_pages=16, n_host_pages=16 if mode == "swap" else 8, mode=mode)
    rig.batcher.costs.token_s, rig.batcher.costs.page_s = 1e-9, 1.0  # to compute again costs nothing
    plain, cut = written(rig, 20), edited(rig, 20)
    rig.pred(60, pid=1)
    rig.finish()
    assert rig.fs.residency(cut) is Residency.SWAPPED
    assert rig.fs.residency(plain) is (Residency.SWAPPED if mode == "swap" else Residency.PARTIAL)
    rig.pred(3, file=cut)
    rig.finish()
    assert cut.inode.edited is not None
    assert rig.counters.n_edits_recomputed == 0
    rig.close()


def test_where_main_memory_is_too_small_it_is_dropped_at_last_and_that_is_counted():
    rig = Rig(n_pages=16, n_host_pages=2)
    cut = edited(rig, 20)
    rig.pred(60, pid=1)
    rig.finish()
    assert rig.fs.residency(cut) is Residency.PARTIAL
    assert cut.inode.edited is not None
    rig.pred(1, file=cut, pid=2)
    rig.finish()
    assert cut.inode.edited is None
    assert rig.counters.n_edits_recomputed == 1
    rig.close()
