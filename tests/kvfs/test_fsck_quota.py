import re
from collections.abc import Callable
from typing import Any

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.quota import NOTHING, Allowed, Held

ANN = Who("ann", ("acme",), root=True, pid=7)
BY_ANN: dict[str, Any] = {"who": ANN, "now": 1.0}


class State:
    """A directory, a file of two pages of a user with limits, and a lease that brings one more."""

    def __init__(self) -> None:
        self.fs = Kvfs(quotas={"ann": Allowed(files=2, pages=3)})
        self.fs.add_device("w0", n_pages=32, page_size=4, page_bytes=100)
        self.fs.mkdir("/d", **BY_ANN)
        self.f = self.fs.create("/d/f", device="w0", **BY_ANN)
        claim = self.fs.claim(self.f)
        self.fs.commit(self.fs.lease(claim, range(8)), 1.0)
        self.lease = self.fs.lease(claim, [1])
        self.bill = self.fs.quotas.user("ann")


BROKEN: dict[str, tuple[Callable[[State], object], str]] = {
    "a bill that is behind": (lambda s: setattr(s.f.inode, "billed", NOTHING), r"it has Held\(n_pages=2"),
    "a file on another's bill": (lambda s: setattr(s.f.inode, "bill", s.fs.quotas.user("bob")), "on the bill of 'bob'"),
    "another owner": (lambda s: setattr(s.f.inode, "owner", "bob"), "belongs to 'bob' and is on the bill of 'ann'"),
    "a process forgotten": (lambda s: s.f.inode.holders.clear(), r"open by \[7\], and on the bills of \[\]"),
    "a process without a bill": (
        lambda s: s.fs.quotas.processes.clear(),
        r"processes \[7\] have files open and no bill",
    ),
    "a sum that is wrong": (lambda s: s.bill.change(NOTHING, Held(0, 1, 0)), "sums up to"),
    "a file too many": (lambda s: setattr(s.bill, "n_files", 3), "3 files, and 2 are allowed"),
    "a directory not counted": (lambda s: setattr(s.bill, "n_files", 1), "sums up to"),
    "a lease forgotten": (lambda s: setattr(s.lease, "n_reserved", 0), "sums up to"),
    "more than is allowed": (lambda s: setattr(s.bill, "allowed", Allowed(pages=2)), "2 are allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_fsck_sees(name: str) -> None:
    state = State()
    assert check(state.fs) == []
    damage, said = BROKEN[name]
    damage(state)
    lines = check(state.fs)
    assert any(re.search(said, line) for line in lines), lines
