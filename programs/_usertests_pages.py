"""The tests of `programs/usertests.py` on where a file's pages should be. What is granted depends on what is there."""

from programs._usertests import Tally, sample_file, test
from sdk import Errno, KVFile, kv, process
from sdk.abi import calls
from sdk.abi.values import Advice, Advised, Fd, Outcome

NO_FD = Fd(2**31)


async def n_pinned(file: KVFile, done: Advised) -> int:
    """Pinned pages of a file, which must be at least those that `done` tells of."""
    n = (await file.stat()).n_pinned_pages
    assert (n >= done.n_pages > 0) if done.outcome is not Outcome.REFUSED else bool(done.detail), done
    return n


@test
async def pins_last_as_long_as_was_said(t: Tally) -> None:
    path = f"{t.home}/pinned"
    async with await sample_file(path) as file, await kv.open(path, "r") as other:
        n_before = await n_pinned(file, await file.pin())
        await file.unpin()
        assert (await other.stat()).n_pinned_pages == 0
        await other.pin(3600.0)
    async with await kv.open(path) as file:
        stat = await file.stat()
        assert stat.n_pinned_pages == n_before
        assert stat.pinned_until_s is None or await process.now() + 3599 < stat.pinned_until_s
        async with await file.fork() as fork:
            assert (await fork.stat()).n_pinned_pages == 0
        await kv.unlink(path)
        assert (await file.stat()).n_pinned_pages == 0
        await t.refuses(Errno.EBADF, calls.Pin(fd=NO_FD), calls.Advise(fd=NO_FD, advice=Advice.WILLNEED))
    async with await kv.create() as empty:
        assert (await empty.pin()).outcome is Outcome.REFUSED


@test
async def advice_changes_nothing_but_time(t: Tally) -> None:
    async with await sample_file() as file:
        before = (await file.next()).top_tokens
        assert (await file.dontneed()).outcome is Outcome.ACCEPTED
        assert (await file.willneed()).outcome in (Outcome.ACCEPTED, Outcome.DEFERRED)
        assert (await file.next()).top_tokens == before
