"""Each invariant is broken by hand once, and fsck must see it; nothing here gives anything back."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from kvfs.access import Who
from kvfs.directory import Directory
from kvfs.fs import Kvfs
from kvfs.fsck import Counts, check, counts
from kvfs.lease import Claim, LeaseState
from kvfs.moves import MoveKind, TransferState
from kvfs.openfile import OpenFile
from kvfs.table import HOST, NO_PAGES


class Scene:
    """Of everything one: files of 5 tokens in 2 pages of 4, on two devices."""

    def __init__(self) -> None:
        self.fs = fs = Kvfs()
        fs.add_device("w0", n_pages=64, page_size=4, n_host_pages=8)
        fs.add_device("w1", n_pages=8, page_size=4)
        fs.mkdir("/d", who=Who("ann", root=True), now=0.0)
        self.f, self.claim = self.make("/d/f", 5)
        self.child = fs.fork(self.f, None, who=Who("ann", root=True), now=0.0)
        self.lease = fs.lease(self.claim, range(5))  # copies, and one page more
        self.g, self.g_claim = self.make("/g", 5)
        self.writing = fs.lease(self.g_claim, [1])  # in place
        self.ahead = fs.lease(self.g_claim, [0], chained=True)  # in place behind it
        self.h, _ = self.make(None, 5)
        self.reading = fs.lease_tail(self.h)
        self.swapped, _ = self.make(None, 5)
        move = fs.swap_out([self.swapped.inode.ino], 0.0)
        assert move is not None
        fs.commit_move(move, 0.0)
        self.leaving, _ = self.make(None, 5)
        out = fs.swap_out([self.leaving.inode.ino], 0.0)
        assert out is not None
        self.out = out
        self.migrating, _ = self.make(None, 5)
        self.migration = fs.migrate([self.migrating.inode.ino], "w1", 0.0)
        self.broken, _ = self.make(None, 5)
        fs.drop([self.broken.inode.ino], 0.0)
        fs.place(self.broken, "w0")
        fs.commit(fs.lease_rebuild(self.broken, 2), 0.0)
        self.rebuilding = fs.lease_rebuild(self.broken, 2)  # in place

    def make(self, path: str | None, n: int) -> tuple[OpenFile, Claim]:
        f = self.fs.create(path, who=Who("ann", root=True), now=0.0, device="w0")
        claim = self.fs.claim(f)
        self.fs.commit(self.fs.lease(claim, range(n)), 0.0)
        return f, claim

    def new(self) -> OpenFile:
        return self.fs.create(None, who=Who("ann", root=True), now=0.0)


def refs(s: Scene, step: int) -> None:
    s.fs.pools["w0"].refs[s.f.inode.table[0]] += step


def host_refs(s: Scene) -> None:
    s.fs.pools["w0"].host.refs[7] += 1


def fork(s: Scene, f: OpenFile, **damage: object) -> OpenFile:
    child = s.fs.fork(f, None, who=Who("ann", root=True), now=0.0)
    for name, value in damage.items():
        setattr(child.inode, name, value)
    return child


def share_what_is_written(s: Scene) -> None:
    child = fork(s, s.g, n_kv=6)
    child.inode.tokens.append(1)
    child.inode.positions.append(5)


def write_what_is_written(s: Scene) -> None:
    lease = s.fs.lease(s.fs.claim(fork(s, s.g)), [2])
    lease.pages, lease.fresh, lease.copies = s.g.inode.table, NO_PAGES, []


def read_what_is_written(s: Scene) -> None:
    s.reading.pages = s.g.inode.table


def shorten(s: Scene) -> None:
    del s.f.inode.tokens[3:]


def give(what: str, **values: Any) -> Callable[[Scene], None]:
    """Give fields of something in the scene other values, or make them from what is there."""

    def damage(s: Scene) -> None:
        thing: Any = s
        for name in what.split("."):
            thing = getattr(thing, name)
        for name, value in values.items():
            setattr(thing, name, value(getattr(thing, name)) if callable(value) else value)

    return damage


Breaks = dict[str, tuple[Callable[[Scene], object], str]]

PAGES: Breaks = {
    "a reference too many": (lambda s: refs(s, 1), "counts 3 references and has 2 holders"),
    "a reference too few": (lambda s: refs(s, -1), "counts 1 references and has 2 holders"),
    "a page that is not there": (give("h.inode", table=lambda t: t[:1] * 0), "references and has"),
    "a page number out of range": (give("h.inode", table=array("I", [1, 99])), "page 99 does not exist"),
    "free pages miscounted": (lambda s: setattr(s.fs.pools["w0"], "n_free", 3), "3 pages are counted free"),
    "an extent lost": (lambda s: s.fs.pools["w0"]._pop_largest(), "the free extents are"),
    "a host reference too many": (host_refs, "host page 7 counts 1 references and has 0 holders"),
    "a host page out of range": (give("swapped.inode", table=array("I", [HOST + 8])), "host entry 0x80000008 does"),
    "a host page lost": (lambda s: s.fs.pools["w0"].host.free.pop(), "the free host pages are"),
    "a host page free twice": (lambda s: s.fs.pools["w0"].host.free.append(7), "the free host pages are"),
}

FILES: Breaks = {
    "positions missing": (lambda s: s.h.inode.positions.pop(), "5 tokens with 4 positions"),
    "a page twice": (give("h.inode", table=lambda t: t[:1] * 2), "a page twice in the table"),
    "KV without tokens": (give("h.inode", n_kv=6), "KV of 6 tokens, and there are 5"),
    "a page without KV": (give("h.inode", n_kv=4), "2 pages of 4 for the KV of 4 tokens"),
    "pages without a device": (give("h.inode", pool=None), "KV of 5 tokens in 2 pages on no device"),
    "host pages miscounted": (give("swapped.inode", n_host=1), "1 of its pages are counted in host memory and 2 are"),
    "a tail of half a file": (give("broken.inode", tail_valid=True), "a valid tail of 5 tokens with the KV of 2"),
    "a tail of nothing": (lambda s: setattr(s.new().inode, "tail_valid", True), "a valid tail of 0 tokens"),
    "an inode that nobody holds": (give("child.inode", pids=[]), "nobody holds it"),
    "handles miscounted": (give("f.inode", pids=[0, 0]), "says open by [0, 0]"),
    "a handle of another": (give("f.inode", pids=[7]), "says open by [7]"),
    "leases miscounted": (give("f.inode", n_leases=2), "leases 2, claimed True; there are"),
    "a claim unknown": (give("child.inode", claimed=True), "claimed True; there are"),
    "a file gone under its handle": (lambda s: s.fs.files.pop(s.child.inode.ino), "is gone and somebody holds it"),
    "a device that is gone": (lambda s: s.fs.pools.clear(), "is on device w0, which is gone"),
    "files miscounted": (lambda s: setattr(s.fs.pools["w0"], "n_files", 99), "99 files are counted and 8 are placed"),
}

SHARING: Breaks = {
    "shared in another place": (give("child.inode", table=lambda t: t[::-1]), "is not of a common beginning"),
    "shared with other tokens": (lambda s: s.child.inode.tokens.__setitem__(4, 99), "which differ in their tokens"),
    "shared at other positions": (lambda s: s.child.inode.positions.__setitem__(0, 9), "differ in their tokens"),
    "shared with a stranger": (give("child.inode", family=99), "which are no relatives"),
    "a relative unknown": (lambda s: s.fs.families.members.clear(), "and is on record as []"),
    "a relative too many": (lambda s: s.fs.families.members.update({9: {9: s.f.inode}}), "and is on record as [9]"),
    "written under a sharer": (share_what_is_written, "needs what is there"),
    "written by two": (write_what_is_written, "and for somebody else"),
    "computed again under a sharer": (lambda s: fork(s, s.broken, n_kv=3), "needs what is there"),
    "written over a tail": (lambda s: fork(s, s.g, tail_valid=True), "over that of file #"),
    "written over a tail that is read": (read_what_is_written, "and a lease reads another there"),
}

LEASES: Breaks = {
    "an ended lease": (give("lease", state=LeaseState.COMMITTED), "is committed and counted as out"),
    "a lease on no file": (lambda s: s.fs.files.pop(s.h.inode.ino), "the file is gone"),
    "a lease on no device": (lambda s: s.fs.pools.clear(), "its device w0 is gone"),
    "a lease with too few pages": (give("lease", pages=lambda p: p[:2]), "for 5 and 5 tokens"),
    "a lease on a host page": (give("reading", pages=array("I", [0, HOST])), "for 5 and 0 tokens"),
    "a lease with tokens missing": (lambda s: s.lease.tokens.pop(), "5 new tokens, 4 given with 5 positions"),
    "a reader that writes": (give("reading", copies=[(1, 2)]), "reads the tail and would write"),
    "a lease of no tokens": (give("writing", n_new=0), "appends 0 tokens"),
    "a lease that waits for many tokens": (give("lease", chained=True), "appends 5 tokens, chained True"),
    "a lease unknown to its claim": (give("claim", leases=[]), "its claim does not know it"),
    "a lease on a file that moves": (give("f.inode", moving=True), "the file is moving under it"),
    "a second one that computes again": (give("ahead", n_again=1), "computes again what is not committed yet"),
    "a second one elsewhere": (give("ahead", n_before=5), "the file has moved on under it"),
    "a file that moved on": (shorten, "the file has moved on under it"),
    "a lease with another table": (give("lease", pages=lambda p: p[::-1]), "its table is not what it stands on"),
    "a second one with another table": (give("ahead", pages=array("I", [0, 1])), "its table is not what it stands on"),
    "a copy of another page": (give("lease", copies=[(31, 0)]), "copies [(31, 0)]"),
    "a rebuild beside others": (give("broken.inode", n_leases=2), "beside others"),
    "a rebuild of something else": (give("rebuilding", n_before=1), "other than it should"),
    "a rebuild of other tokens": (lambda s: s.rebuilding.tokens.__setitem__(0, 9), "other tokens again than the file"),
    "a released claim": (give("claim", is_held=False), "is released, or its file is gone"),
    "a claim with a lost lease": (lambda s: s.fs.leases.remove(s.lease), "of its 1 leases one is not out"),
    "a claim with three leases": (give("g_claim", leases=lambda x: [*x, x[1]]), "or it is one too many"),
}

MOVES: Breaks = {
    "an ended move": (give("out", state=TransferState.COMMITTED), "is committed and counted as out"),
    "a move to nowhere": (lambda s: s.fs.pools.pop("w1"), "device w1 is gone"),
    "a move of less than there is": (give("out", entries_to=lambda e: e[:1]), "2 pages, and 1 different ones"),
    "a page moved twice": (give("migration", entries_from=lambda e: e[:1] * 2), "2 pages, and 1 different ones"),
    "a move between the wrong tiers": (give("out", kind=MoveKind.IN), "0 of 2 pages at one end are in host memory"),
    "a page that stays behind": (give("migration", entries_from=lambda e: e[:1]), "migrates with pages that do not"),
    "a file that does not know": (give("out", members={}), "has pages of it and is not a member"),
    "a file that thinks it moves": (give("h.inode", moving=True), "says moving True, and is in 0 moves"),
    "a batch on what moves": (give("leaving.inode", n_leases=1), "is moving and has 1 leases out"),
    "a file gone while it moves": (lambda s: s.fs.files.pop(s.leaving.inode.ino), "is in a move, and gone"),
}

NAMES: Breaks = {
    "a name out of limits": (lambda s: s.fs.names.root.entries.update({"..": s.h.inode}), "cannot be reached"),
    "a name that resolves elsewhere": (lambda s: s.fs.names.root.entries.update({"": s.h.inode}), "something else"),
    "a directory in itself": (
        lambda s: s.fs.names.root.entries.update({"loop": s.fs.names.root}),
        "is in the tree twice",
    ),
    "a name of nothing": (lambda s: s.fs.files.pop(s.g.inode.ino), "which is gone"),
    "directories miscounted": (lambda s: setattr(s.fs.names, "n_directories", 5), "5 directories are counted"),
    "a number used twice": (
        lambda s: s.fs.names.root.entries.update({"x": Directory(s.f.inode.ino, "ann", "ann", 0o755, 0.0)}),
        "stand for a directory and a file",
    ),
    "links miscounted": (give("g.inode", n_links=2), "2 links, it has 1 names"),
}

BREAKS = PAGES | FILES | SHARING | LEASES | MOVES | NAMES


@pytest.mark.parametrize("name", BREAKS)
def test_fsck_sees(name: str) -> None:
    scene = Scene()
    assert check(scene.fs) == []
    damage, message = BREAKS[name]
    damage(scene)
    assert any(message in line for line in check(scene.fs)), check(scene.fs)


def test_counts() -> None:
    found = counts(Scene().fs)
    assert found == Counts(
        pages=15, host_pages=4, inodes=8, directories=1, open_files=8, claims=7, leases=5, transfers=2
    )
    assert counts(Kvfs()) == Counts(0, 0, 0, 0, 0, 0, 0, 0)


def test_what_a_lost_device_leaves_is_whole() -> None:
    for name in ("w0", "w1"):
        scene = Scene()
        scene.fs.remove_device(name, now=1.0)
        assert check(scene.fs) == []
    assert (scene.migrating.inode.moving, counts(scene.fs).transfers) == (False, 1)
