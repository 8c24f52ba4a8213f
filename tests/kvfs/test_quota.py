from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.openfile import OpenFile
from kvfs.quota import NOTHING, UNLIMITED, Allowed, Bill, Clock, Held, Quotas, allowed
from sdk.abi.errors import Busy, QuotaExceeded
from sdk.abi.values import DeviceSpace, OpenMode, PositionMode, Quota

ANN = Who("ann", ("acme",), tenant="acme", pid=7)
BOB = Who("bob", ("acme",), tenant="acme", pid=8)
EVE = Who("eve", ("rival",), tenant="rival", pid=9)
NOW: dict[str, Any] = {"now": 1.0}
BY_ANN: dict[str, Any] = {"who": ANN, "now": 1.0}


@pytest.fixture
def fs(undo: Callable[[Kvfs], None]) -> Iterator[Kvfs]:
    """One device `w0`, 32 pages of 4 tokens and 100 bytes. Ann may have 5 files and 6 pages."""
    fs = Kvfs(quotas={"ann": Allowed(files=5, pages=6), "bob": Allowed(kv_byte_s=1000.0)})
    fs.add_device("w0", n_pages=32, page_size=4, n_host_pages=8, page_bytes=100)
    yield fs
    assert check(fs) == []
    undo(fs)
    for bill in (*fs.quotas.users.values(), *fs.quotas.processes.values()):
        assert (bill.n_pages, bill.n_host_pages, bill.n_bytes, bill.n_reserved) == (0, 0, 0, 0)


def make(fs: Kvfs, who: Who, n: int, path: str | None = None, now: float = 1.0) -> OpenFile:
    f = fs.create(path, who=who, now=now, device="w0")
    if n:
        append(fs, f, n, now)
    return f


def append(fs: Kvfs, f: OpenFile, n: int, now: float = 1.0) -> None:
    claim = fs.claim(f)
    try:
        fs.commit(fs.lease(claim, range(n)), now)
    finally:
        fs.release(claim, now)


def used(fs: Kvfs, user: str, now: float = 1.0) -> tuple[int, int, int]:
    q = fs.quota(user, now)
    return q.n_files, q.n_pages, q.n_host_pages


# --- bills ---


def test_byte_seconds_are_the_area_under_the_curve() -> None:
    clock = Clock()
    bill = Bill("x", UNLIMITED, clock)
    bill.change(NOTHING, Held(2, 1, 300))
    clock.now = 2.0
    assert bill.kv_byte_s == 600.0
    bill.change(Held(2, 1, 300), Held(1, 0, 100))
    assert (bill.kv_byte_s, bill.n_pages, bill.n_host_pages) == (600.0, 1, 0)
    clock.now = 5.0
    assert bill.kv_byte_s == 900.0


def test_time_does_not_go_back() -> None:
    quotas = Quotas({})
    quotas.tell(5.0)
    quotas.tell(3.0)
    assert quotas.clock.now == 5.0


def test_no_limit_is_quick_to_tell() -> None:
    assert allowed(None, None, None) is UNLIMITED
    assert allowed(1, None, None) == Allowed(files=1)
    bill = Quotas({}).user("ann")
    bill.reserve(10**9)
    assert bill.n_reserved == 10**9


# --- files ---


def test_files_and_directories_are_counted(fs: Kvfs) -> None:
    f = make(fs, ANN, 0, "/f")
    fs.link("/f", "/g", **BY_ANN)
    fs.mkdir("/d", **BY_ANN)
    assert used(fs, "ann")[0] == 2
    fs.create(None, **BY_ANN)
    fs.create("~/f", **BY_ANN)
    assert used(fs, "ann")[0] == 5, "with the home"
    for refused in (
        lambda: fs.create(None, **BY_ANN),
        lambda: fs.mkdir("/e", **BY_ANN),
        lambda: fs.fork(f, None, **BY_ANN),
        lambda: fs.readdir("/tmp", **BY_ANN),
    ):
        with pytest.raises(QuotaExceeded, match="'ann' has 5 files and may have 5: unlink or close some"):
            refused()
    make(fs, BOB, 0)
    fs.unlink("/d", **BY_ANN)
    fs.close(fs.create(None, **BY_ANN), 1.0)
    assert used(fs, "ann")[0] == 4


def test_the_tmp_of_a_process_is_given_back(fs: Kvfs) -> None:
    fs.mkdir("/tmp/d", **BY_ANN)
    fs.close(fs.create("/tmp/d/f", **BY_ANN), 1.0)
    assert used(fs, "ann")[0] == 3
    fs.end_process(ANN, 2.0)
    assert used(fs, "ann")[0] == 0


# --- pages ---


def test_pages_are_counted_as_if_they_were_not_shared(fs: Kvfs) -> None:
    f = make(fs, ANN, 9)
    assert used(fs, "ann") == (1, 3, 0)
    fs.fork(f, None, **BY_ANN)
    assert used(fs, "ann") == (2, 6, 0)
    with pytest.raises(QuotaExceeded, match="has 6 pages of KV, may have 6 and needs 3 more"):
        fs.fork(f, None, **BY_ANN)
    assert used(fs, "ann") == (2, 6, 0)
    fs.truncate(f, 4, 1.0)
    assert used(fs, "ann") == (2, 4, 0)


def test_a_batch_in_flight_counts(fs: Kvfs) -> None:
    f, g = make(fs, ANN, 8), make(fs, ANN, 8)
    one, two = fs.claim(f), fs.claim(g)
    lease = fs.lease(one, range(8))
    with pytest.raises(QuotaExceeded, match="has 6 pages of KV, may have 6 and needs 1 more"):
        fs.lease(two, [1])
    assert fs.devices()["w0"].n_free == 32 - 6, "what was allocated in vain is back"
    fs.abandon(lease)
    fs.commit(fs.lease(two, [1]), 1.0)
    assert used(fs, "ann")[1] == 5


def test_writing_beside_a_shared_page_is_no_growth(fs: Kvfs) -> None:
    f = make(fs, ANN, 10)
    fs.fork(f, None, **BY_ANN)
    append(fs, f, 2)
    assert used(fs, "ann")[1] == 6
    with pytest.raises(QuotaExceeded):
        append(fs, f, 1)


def test_where_pages_are_is_not_limited_but_told(fs: Kvfs) -> None:
    f = make(fs, ANN, 24)
    move = fs.swap_out([f.inode.ino], 1.0)
    assert move is not None
    fs.commit_move(move, 1.0)
    assert used(fs, "ann") == (1, 0, 6)
    with pytest.raises(QuotaExceeded):
        append(fs, make(fs, ANN, 0), 1)
    fs.drop([f.inode.ino], 1.0)
    assert used(fs, "ann") == (2, 0, 0)


def test_computing_again_counts_too(fs: Kvfs) -> None:
    f = make(fs, ANN, 24)
    fs.drop([f.inode.ino], 1.0)
    make(fs, ANN, 4)
    fs.place(f, "w0")
    with pytest.raises(QuotaExceeded):
        fs.lease_rebuild(f, 24)
    fs.commit(fs.lease_rebuild(f, 20), 1.0)
    assert used(fs, "ann")[1] == 6


def test_relatives_share_no_more_than_is_allowed(fs: Kvfs) -> None:
    f = make(fs, BOB, 17, "/f")
    child = fs.fork(fs.open("/f", OpenMode.READ, **BY_ANN), None, **BY_ANN)
    fs.drop([child.inode.ino], 1.0)
    make(fs, ANN, 16)
    fs.place(child, "w0")
    assert fs.adopt(child) == 0
    assert fs.length(f) == 17
    assert used(fs, "ann")[1] == 4


def test_an_edit_is_refused_before_it_begins(fs: Kvfs) -> None:
    f = make(fs, ANN, 16)
    edit = fs.extract(f, [(0, 12)], PositionMode.KEEP, **BY_ANN)
    with pytest.raises(QuotaExceeded):
        fs.lease_edit(edit)
    fs.end_edit(edit, 1.0)
    assert used(fs, "ann")[1] == 4


def test_removing_a_device_takes_its_pages_off_the_bills(fs: Kvfs) -> None:
    f = make(fs, ANN, 8)
    lease = fs.lease(fs.claim(f), range(5))
    fs.remove_device("w0", now=2.0)
    assert used(fs, "ann") == (1, 0, 0)
    fs.abandon(lease)


# --- byte-seconds ---


def test_byte_seconds_of_users_and_processes(fs: Kvfs) -> None:
    f = make(fs, BOB, 8, "/f", now=1.0)
    assert fs.quota("bob", 2.0).kv_byte_s == 200.0
    reader = fs.open("/f", OpenMode.READ, who=EVE._replace(tenant="acme"), now=2.0)
    fs.dup(reader, None, who=EVE, now=2.0)
    fs.close(f, 3.0)
    assert fs.quota("bob", 4.0).kv_byte_s == 600.0, "a file with a name is its owner's, open or not"
    assert fs.quotas.process(8).kv_byte_s == 400.0
    assert fs.quotas.process(9).kv_byte_s == 400.0, "once, by however many handles"


def test_who_has_used_his_byte_seconds_keeps_what_he_has(fs: Kvfs) -> None:
    f = make(fs, BOB, 8)
    with pytest.raises(QuotaExceeded, match="used 1200 byte-seconds of KV and may use 1000"):
        fs.create(None, who=BOB, now=7.0)
    with pytest.raises(QuotaExceeded):
        append(fs, f, 1, now=7.0)
    assert fs.length(f) == 8
    fs.mkdir("/d", who=BOB, now=7.0)  # directories have no KV
    assert fs.readdir("~", who=BOB, now=7.0) == fs.readdir("/tmp", who=BOB, now=7.0) == []


def test_the_limits_of_a_process(fs: Kvfs) -> None:
    fs.quotas.process(8).allowed = Allowed(files=1)
    f = make(fs, BOB, 0, "/f")
    fs.open("/f", OpenMode.READ, who=BOB, **NOW)
    for refused in (lambda: fs.create(None, who=BOB, **NOW), lambda: fs.fork(f, None, who=BOB, **NOW)):
        with pytest.raises(QuotaExceeded, match="process 8 has 1 files and may have 1"):
            refused()
    make(fs, BOB._replace(pid=10), 0, "/g")
    with pytest.raises(QuotaExceeded):
        fs.open("/g", OpenMode.READ, who=BOB, **NOW)


# --- another owner ---


def test_who_gets_a_file_pays_for_it(fs: Kvfs) -> None:
    f = make(fs, BOB, 24, "/f")
    fs.chown("/tenants/acme/f", "ann", None, who=OPERATOR, **NOW)
    assert (used(fs, "ann"), used(fs, "bob")) == ((1, 6, 0), (0, 0, 0))
    g = make(fs, BOB, 1, "/g")
    with pytest.raises(QuotaExceeded):
        fs.chown("/tenants/acme/g", "ann", None, who=OPERATOR, **NOW)
    claim = fs.claim(g)
    with pytest.raises(Busy, match="wait for it, or give away a fork"):
        fs.chown("/tenants/acme/g", "eve", None, who=OPERATOR, **NOW)
    fs.release(claim, 1.0)
    fs.mkdir("/d", who=BOB, **NOW)
    fs.chown("/tenants/acme/d", "eve", None, who=OPERATOR, **NOW)
    assert used(fs, "eve") == (1, 0, 0)
    assert fs.fstat(f).owner == "ann"


# --- what is told ---


def test_quota_and_df(fs: Kvfs) -> None:
    f = make(fs, ANN, 8)
    fs.fork(f, None, **BY_ANN)
    make(fs, EVE, 12)
    assert fs.quota("ann", 2.0) == Quota("ann", 2, 5, 4, 0, 6, 400.0, None)
    space = DeviceSpace(
        "w0", page_size=4, page_bytes=100, n_pages=32, n_free=27, n_host_pages=8, n_host_free=8, n_files=3
    )
    assert fs.df(OPERATOR) == [space]
    (own,) = fs.df(BOB)
    assert (own.n_pages, own.n_free, own.n_files) == (32, 30, 2), "what another tenant has is not to be seen"


# --- what copies cost ---


def test_a_fork_of_a_long_file_takes_no_page() -> None:
    fs = Kvfs()
    fs.add_device("w0", n_pages=5000, page_size=16)
    f = make(fs, ANN, 64 * 1024)
    fs.fork(f, None, **BY_ANN)
    assert fs.devices()["w0"].n_free == 5000 - 4096
    assert used(fs, "ann")[1] == 2 * 4096


def test_a_thousand_forks_share_what_they_have_in_common() -> None:
    fs = Kvfs()
    fs.add_device("w0", n_pages=2000, page_size=16)
    f = make(fs, ANN, 1000)
    forks = [fs.fork(f, None, **BY_ANN) for _ in range(1000)]
    assert fs.devices()["w0"].n_free == 2000 - 63
    for i, fork in enumerate(forks):
        append(fs, fork, 1)
        assert 2000 - fs.devices()["w0"].n_free <= 63 + i + 1
