"""Each invariant is broken by hand once, and fsck must see it; nothing here gives anything back."""

from collections.abc import Callable

import pytest

from kvfs.fs import Kvfs
from kvfs.fsck import Counts, check, counts
from kvfs.lease import Claim, LeaseState
from kvfs.namespace import Directory
from kvfs.openfile import OpenFile
from kvfs.pages import NO_PAGES


class Scene:
    """A file of 5 tokens in 2 pages of 4, its fork, a file that is written in place and one whose tail is read."""

    def __init__(self) -> None:
        self.fs = fs = Kvfs()
        fs.add_device("w0", n_pages=32, page_size=4)
        fs.mkdir("/d", owner="ann", now=0.0)
        self.f, self.claim = self.make("/d/f", 5)
        self.child = fs.fork(self.f, None, owner="ann", now=0.0)
        self.lease = fs.lease(self.claim, range(5))  # copies, and one page more
        self.g, g_claim = self.make("/g", 5)
        self.writing = fs.lease(g_claim, [1])  # in place
        self.h, _ = self.make(None, 5)
        self.reading = fs.lease_tail(self.h)

    def make(self, path: str | None, n: int) -> tuple[OpenFile, Claim]:
        f = self.fs.create(path, owner="ann", now=0.0, device="w0")
        claim = self.fs.claim(f)
        self.fs.commit(self.fs.lease(claim, range(n)), 0.0)
        return f, claim

    def shrink(self, f: OpenFile) -> None:
        del f.inode.tokens[3:]


def refs(s: Scene, step: int) -> None:
    s.fs.pools["w0"].refs[s.f.inode.table[0]] += step


def share_g(s: Scene) -> None:
    child = s.fs.fork(s.g, None, owner="ann", now=0.0)
    child.inode.tail_valid = True


BREAKS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "a reference too many": (lambda s: refs(s, 1), "counts 3 references and 2 tables hold it"),
    "a reference too few": (lambda s: refs(s, -1), "counts 1 references and 2 tables hold it"),
    "a page that is not there": (lambda s: setattr(s.h.inode, "table", s.h.inode.table[:1] * 0), "tables hold it"),
    "a page number out of range": (
        lambda s: setattr(s.h.inode, "table", type(s.h.inode.table)("I", [1, 99])),
        "page 99 does not exist",
    ),
    "free pages miscounted": (lambda s: setattr(s.fs.pools["w0"], "n_free", 3), "3 pages are counted free"),
    "an extent lost": (lambda s: s.fs.pools["w0"]._pop_largest(), "the free extents are"),
    "positions missing": (lambda s: s.h.inode.positions.pop(), "5 tokens with 4 positions"),
    "a page twice": (
        lambda s: setattr(s.h.inode, "table", s.h.inode.table[:1] * 2),
        "a page twice in the table",
    ),
    "tokens without a page": (lambda s: s.h.inode.tokens.extend(range(9)), "2 pages of 4 for 14 tokens"),
    "pages without a device": (lambda s: setattr(s.h.inode, "pool", None), "5 tokens in 2 pages on no device"),
    "lost without tokens": (
        lambda s: setattr(s.fs.create(None, owner="ann", now=0.0).inode, "lost", True),
        "lost without a token",
    ),
    "a tail of a lost file": (lambda s: setattr(s.h.inode, "lost", True), "a valid tail of 5 tokens, lost True"),
    "a tail of nothing": (
        lambda s: setattr(s.fs.create(None, owner="ann", now=0.0).inode, "tail_valid", True),
        "a valid tail of 0 tokens",
    ),
    "an inode that nobody holds": (lambda s: setattr(s.child.inode, "n_open", 0), "nobody holds it"),
    "handles miscounted": (lambda s: setattr(s.f.inode, "n_open", 2), "says open 2"),
    "leases miscounted": (lambda s: setattr(s.f.inode, "n_leases", 2), "leases 2, claimed True; there are"),
    "a claim unknown": (lambda s: setattr(s.child.inode, "claimed", True), "claimed True; there are"),
    "a file gone under its handle": (lambda s: s.fs.files.pop(s.child.inode.ino), "is gone and somebody holds it"),
    "shared in another place": (
        lambda s: setattr(s.child.inode, "table", s.child.inode.table[::-1]),
        "is not of a common beginning",
    ),
    "shared with other tokens": (lambda s: s.child.inode.tokens.__setitem__(4, 99), "which differ in their tokens"),
    "shared at other positions": (lambda s: s.child.inode.positions.__setitem__(0, 9), "differ in their tokens"),
    "written under a tail": (share_g, "is written in place for file #5 and file #7 needs what is there"),
    "written under a reader": (
        lambda s: setattr(s.reading, "pages", s.g.inode.table),
        "is written in place for file #5 and a lease reads its tail",
    ),
    "an ended lease": (lambda s: setattr(s.lease, "state", LeaseState.COMMITTED), "is committed and counted as out"),
    "a lease on no file": (lambda s: s.fs.files.pop(s.h.inode.ino), "the file is gone"),
    "a lease on no device": (lambda s: s.fs.pools.clear(), "its device w0 is gone"),
    "a lease with too few pages": (lambda s: setattr(s.lease, "pages", s.lease.pages[:2]), "2 pages for 5 and 5"),
    "a lease with tokens missing": (lambda s: s.lease.tokens.pop(), "5 new tokens, 4 given with 5 positions"),
    "a reader that writes": (lambda s: setattr(s.reading, "copies", [(1, 2)]), "reads the tail and would write"),
    "a lease of no tokens": (lambda s: setattr(s.writing, "n_new", 0), "appends nothing"),
    "a lease unknown to its claim": (lambda s: setattr(s.claim, "lease", None), "its claim does not know it"),
    "a file that moved on": (lambda s: s.shrink(s.f), "the file has moved on under it"),
    "a lease with another table": (
        lambda s: setattr(s.lease, "pages", s.lease.pages[::-1]),
        "its table is not the file's with the fresh pages",
    ),
    "a copy of another page": (lambda s: setattr(s.lease, "copies", [(31, 0)]), "copies [(31, 0)]"),
    "a released claim": (lambda s: setattr(s.claim, "is_held", False), "is released, or its file is gone"),
    "a claim with a lost lease": (lambda s: s.fs.leases.remove(s.lease), "its lease is not out"),
    "a name out of limits": (lambda s: s.fs.names.root.entries.update({"..": s.h.inode}), "cannot be reached"),
    "a name that resolves elsewhere": (lambda s: s.fs.names.root.entries.update({"": s.h.inode}), "something else"),
    "a directory in itself": (
        lambda s: s.fs.names.root.entries.update({"loop": s.fs.names.root}),
        "is in the tree twice",
    ),
    "a name of nothing": (lambda s: s.fs.files.pop(s.g.inode.ino), "which is gone"),
    "directories miscounted": (lambda s: setattr(s.fs.names, "n_directories", 5), "5 directories are counted"),
    "a number used twice": (
        lambda s: s.fs.names.root.entries.update({"x": Directory(s.f.inode.ino, "ann", 0.0)}),
        "stand for a directory and a file",
    ),
    "links miscounted": (lambda s: setattr(s.g.inode, "n_links", 2), "2 links, it has 1 names"),
    "a device that is gone": (lambda s: s.fs.pools.clear(), "is on device w0, which is gone"),
    "files miscounted": (lambda s: setattr(s.fs.pools["w0"], "n_files", 9), "9 files are counted and 4 are placed"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_fsck_sees(name: str) -> None:
    scene = Scene()
    assert check(scene.fs) == []
    damage, message = BREAKS[name]
    damage(scene)
    assert any(message in line for line in check(scene.fs)), check(scene.fs)


def test_counts() -> None:
    assert counts(Scene().fs) == Counts(pages=8, inodes=4, directories=1, open_files=4, claims=3, leases=3)
    assert counts(Kvfs()) == Counts(0, 0, 0, 0, 0, 0)


def test_a_lost_file_is_whole() -> None:
    scene = Scene()
    scene.fs.remove_device("w0", now=1.0)
    assert (check(scene.fs), scene.f.inode.table) == ([], NO_PAGES)
