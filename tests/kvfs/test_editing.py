"""Edits as page tables: what is shared and what is copied, how a lease of one ends, and what it means to be edited.
What comes out slot by slot is tests/kernel/test_edit_model.py's to say."""

from collections.abc import Callable, Sequence

import pytest

from kvfs.access import KERNEL, OPERATOR, Who
from kvfs.edit import Piece, Run, joined, lay_out, sequence
from kvfs.editing import Edit, EditLease
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.inode import Residency
from kvfs.lease import LeaseState
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, Busy, CrossDevice, FileExists, InvalidArgument, KernelPanic, NoSpace
from sdk.abi.values import OpenMode, PositionMode

KEEP, PACK = PositionMode
BY = {"who": KERNEL, "now": 5.0}
Make = Callable[[int], OpenFile]


def extract(fs: Kvfs, f: OpenFile, *ranges: tuple[int, int], mode: PositionMode = KEEP) -> Edit:
    return fs.extract(f, ranges, mode, **BY)  # type: ignore[arg-type]


def done(fs: Kvfs, edit: Edit) -> OpenFile:
    """The new file."""
    if not fs.edit_at_once(edit, 6.0):
        fs.commit(fs.lease_edit(edit), 6.0)
    fs.end_edit(edit, 6.0)
    assert check(fs) == []
    return edit.file


# --- the plan ---


def plan(f: OpenFile, ranges: Sequence[tuple[int, int]], mode: PositionMode = KEEP) -> tuple[dict[int, int], list[Run]]:
    """Shared pages by their place in the source's table, and runs, with such places too."""
    pieces = joined(Piece(f.inode, start, stop) for start, stop in ranges)
    _, positions = sequence(pieces, mode)
    layout = lay_out(pieces, positions, 4)
    at = f.inode.table.index
    return {i: at(p) for i, p in layout.shared.items()}, [r._replace(page=at(r.page)) for r in layout.runs]


def test_whole_pages_are_shared_wherever_they_come_to_lie(make: Make) -> None:
    assert plan(make(20), [(0, 8), (12, 18)]) == ({0: 0, 1: 1, 2: 3, 3: 4}, [])
    assert plan(make(20), [(8, 16)]) == ({0: 2, 1: 3}, [])
    assert plan(make(20), [(0, 5), (5, 6)]) == ({0: 0, 1: 1}, [])  # one piece


def test_the_rest_is_runs_within_one_page_at_each_end(make: Make) -> None:
    assert plan(make(20), [(0, 4), (6, 11), (19, 20)]) == (
        {0: 0},
        [Run(1, 2, 1, 0, 2, 0), Run(2, 0, 1, 2, 2, 0), Run(2, 2, 2, 0, 1, 0), Run(4, 3, 2, 1, 1, 0)],
    )


def test_packed_tokens_are_turned_by_how_far_they_move(fs: Kvfs, make: Make) -> None:
    assert plan(make(12), [(0, 4), (8, 12)], PACK) == ({0: 0}, [Run(2, 0, 1, 0, 4, -4)])
    f = make(0)
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, [1, 2, 3, 4], [0, 1, 5, 9]), 1.0)
    fs.release(claim, 1.0)
    assert plan(f, [(0, 4)], PACK) == ({}, [Run(0, 0, 0, 0, 2, 0), Run(0, 2, 0, 2, 1, -3), Run(0, 3, 0, 3, 1, -6)])


def test_a_page_that_is_taken_twice_is_copied_once(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, [1, 2, 3, 4], [7] * 4), 1.0)
    fs.release(claim, 1.0)
    assert plan(f, [(0, 4), (0, 4)]) == ({0: 0}, [Run(0, 0, 1, 0, 4, 0)])


@pytest.mark.parametrize("ranges", [[(0, 21)], [(5, 4)], [(4, 8), (0, 4)], []])
def test_what_cannot_be_planned(fs: Kvfs, make: Make, ranges: list[tuple[int, int]]) -> None:
    f = make(20)
    n_files = len(fs.files)
    if ranges:
        with pytest.raises(InvalidArgument):
            extract(fs, f, *ranges)
    with pytest.raises(InvalidArgument):
        fs.splice(f, 3, 21, None, KEEP, **BY)  # type: ignore[arg-type]
    assert len(fs.files) == n_files


# --- rights and names ---


def test_who_may_make_a_file_of_another(fs: Kvfs, make: Make) -> None:
    ann, bob = Who("ann", umask=0), Who("bob", umask=0)
    own = fs.create("~/own", who=ann, now=0.0)
    fs.chmod("~/own", 0o754, who=ann, now=0.0)
    fs.chmod("~", 0o755, who=ann, now=0.0)
    fs.place(own, "w0")
    reader = fs.open("/home/ann/own", OpenMode.READ, who=bob, now=0.0)
    for refused in (
        lambda: fs.extract(reader, [(0, 0)], KEEP, who=bob, now=0.0),
        lambda: fs.merge([own, reader], PACK, who=bob, now=0.0),
        lambda: fs.splice(reader, 0, 0, None, KEEP, who=bob, now=0.0),
        lambda: fs.splice(own, 0, 0, reader, KEEP, who=ann, now=0.0),
    ):
        with pytest.raises(AccessDenied):
            refused()
    edit = fs.merge([own, own], PACK, who=ann, now=0.0)
    assert edit.file.inode.mode == 0o754
    fs.end_edit(edit, 0.0)
    with pytest.raises(FileExists):
        fs.merge([own], PACK, path="~/own", who=ann, now=0.0)
    fs.name(edit.file, "~/new", who=ann, now=0.0)
    assert fs.stat("/home/ann/new", who=OPERATOR, now=0.0).n_links == 1


# --- leases ---


def test_an_edit_is_of_the_files_as_they_were(fs: Kvfs, make: Make, append: Callable[[OpenFile, int], None]) -> None:
    f, other = make(10), make(7)
    edit = fs.merge([f, other], PACK, **BY)  # type: ignore[arg-type]
    fs.truncate(f, 3, 1.0)
    append(f, 9)
    fs.close(other, 1.0)
    file = done(fs, edit)
    assert fs.tokens(file) == [*range(10), *range(7)]
    assert fs.positions(file) == list(range(17))


def test_what_copies_nothing_is_done_at_once(fs: Kvfs, make: Make) -> None:
    f = make(20)
    for begin, is_free in (
        (lambda: extract(fs, f, (4, 12)), True),
        (lambda: extract(fs, f, (4, 12), mode=PACK), False),
        (lambda: fs.splice(f, 4, 8, None, KEEP, **BY), True),  # type: ignore[arg-type]
        (lambda: fs.splice(f, 0, 16, None, PACK, **BY), True),  # type: ignore[arg-type]
    ):
        edit = begin()
        assert fs.edit_at_once(edit, 6.0) is is_free
        fs.end_edit(edit, 6.0)
        assert check(fs) == []
    assert fs.length(f) == 0


def test_only_an_unchanged_whole_has_a_tail(fs: Kvfs, make: Make) -> None:
    f = make(20)
    assert fs.tail_valid(done(fs, extract(fs, f, (0, 20))))
    assert not fs.tail_valid(done(fs, extract(fs, f, (0, 19))))
    assert not fs.tail_valid(done(fs, extract(fs, f, (4, 20))))
    assert not fs.tail_valid(done(fs, extract(fs, f, (4, 20), mode=PACK)))


def test_the_files_of_an_edit_stay_while_its_lease_is_out(fs: Kvfs, make: Make) -> None:
    f, other = make(10), make(7)
    edit = fs.splice(f, 2, 5, other, PACK, **BY)  # type: ignore[arg-type]
    lease = fs.lease_edit(edit)
    for inode in (f.inode, *edit.sources):
        with pytest.raises(KernelPanic):
            fs.swap_out([inode.ino], 1.0)
    with pytest.raises(Busy):
        fs.truncate(f, 1, 1.0)
    assert check(fs) == []
    fs.abandon(lease)
    assert fs.tokens(f) == list(range(10))
    fs.end_edit(edit, 1.0)


def test_no_room_and_no_pages_change_nothing(fs: Kvfs, make: Make) -> None:
    f = make(28)
    edit = extract(fs, f, (1, 28))
    filler = make(4 * 20)
    with pytest.raises(NoSpace):
        fs.lease_edit(edit)
    assert edit.n_fresh == 7
    fs.close(filler, 1.0)
    assert fs.swap_out([edit.sources[0].ino, f.inode.ino], 1.0) is not None
    with pytest.raises(Busy):
        fs.lease_edit(edit)
    assert not fs.edit_at_once(edit, 1.0)
    fs.end_edit(edit, 1.0)


def test_sources_on_two_devices(fs: Kvfs, make: Make) -> None:
    f, other = make(4), make(0)
    fs.add_device("w1", n_pages=4, page_size=4)
    fs.place(other, "w1")
    claim = fs.claim(other)
    fs.commit(fs.lease(claim, [1]), 1.0)
    fs.release(claim, 1.0)
    edit = fs.merge([f, other], PACK, **BY)  # type: ignore[arg-type]
    with pytest.raises(CrossDevice, match="w0 and w1"):
        fs.edit_at_once(edit, 1.0)
    fs.end_edit(edit, 1.0)


@pytest.mark.parametrize("early", [True, False])
def test_the_device_goes_under_an_edit(fs: Kvfs, make: Make, early: bool) -> None:
    f = make(20)
    edit = fs.splice(f, 1, 3, None, KEEP, **BY)  # type: ignore[arg-type]
    lease = fs.lease_edit(edit)
    fs.remove_device("w0", now=1.0)
    assert lease.state is LeaseState.LOST
    if early:
        fs.abandon(lease)
    fs.end_edit(edit, 1.0)
    assert fs.tokens(f) == list(range(20))
    if not early:
        fs.abandon(lease)


def test_a_batch_that_failed_takes_back_what_was_shared_and_what_stands_on_it(fs: Kvfs, make: Make) -> None:
    """Tokens 8 to 15 were committed before their batch had run; an extract has their pages, at another place."""
    f = make(8)
    claim = fs.claim(f)
    lease = fs.lease(claim, range(8, 16))
    fs.commit(lease, 1.0)
    fs.release(claim, 1.0)
    cut, whole = done(fs, extract(fs, f, (8, 16))), done(fs, extract(fs, f, (4, 8), (12, 16)))
    waiting = extract(fs, f, (1, 15))
    standing = fs.lease_edit(waiting)
    fs.disown(lease)
    assert (f.inode.n_kv, cut.inode.n_kv, whole.inode.n_kv) == (8, 0, 4)
    assert standing.state is LeaseState.LOST
    assert waiting.sources[0].residency is Residency.PARTIAL
    fs.end_edit(waiting, 1.0)


# --- being edited ---


def rebuilt(fs: Kvfs, f: OpenFile) -> None:
    while fs.residency(f) is Residency.PARTIAL:
        if fs.device_of(f) is None:
            fs.place(f, "w0")
        fs.adopt(f)
        fs.commit(fs.lease_rebuild(f, 5), 1.0)


def edited_at(f: OpenFile) -> int | None:
    return None if f.inode.edited is None else f.inode.edited.at


def test_from_where_on_a_file_is_edited(fs: Kvfs, make: Make, append: Callable[[OpenFile, int], None]) -> None:
    f = make(20)
    assert edited_at(done(fs, extract(fs, f, (0, 7)))) is None
    cut = done(fs, extract(fs, f, (0, 7), (9, 20)))
    assert edited_at(cut) == 7
    assert edited_at(done(fs, extract(fs, cut, (0, 10), (12, 18)))) == 7
    assert edited_at(done(fs, extract(fs, cut, (0, 5), (12, 18)))) == 5
    assert edited_at(done(fs, extract(fs, f, (1, 7), mode=PACK))) == 0
    beginning = done(fs, extract(fs, cut, (0, 9)))
    assert beginning.inode.edited is cut.inode.edited
    append(cut, 3)
    fork = fs.fork(cut, None, **BY)  # type: ignore[arg-type]
    assert edited_at(fork) == 7
    fs.truncate(fork, 8, 1.0)
    assert edited_at(fork) == 7
    fs.truncate(fork, 7, 1.0)
    assert edited_at(fork) is None


def test_it_is_no_more_when_that_part_was_computed_again(fs: Kvfs, make: Make) -> None:
    cut = done(fs, extract(fs, make(20), (0, 7), (9, 20)))
    before = cut.inode.edited
    cut.inode.cut_kv(12)
    rebuilt(fs, cut)
    assert edited_at(cut) == 7  # the rest was computed with a look at it
    assert cut.inode.edited is not before
    fs.drop([cut.inode.ino], 1.0)
    assert edited_at(cut) == 7
    rebuilt(fs, cut)
    assert edited_at(cut) is None


def test_edited_pages_are_adopted_by_those_of_the_same_edit_alone(fs: Kvfs, make: Make) -> None:
    f = make(20)
    cut = done(fs, extract(fs, f, (0, 6), (8, 20)))
    fork = fs.fork(cut, None, **BY)  # type: ignore[arg-type]
    fs.drop([fork.inode.ino], 1.0)
    fs.place(fork, "w0")
    assert fs.adopt(fork) == 16
    assert fork.inode.edited is cut.inode.edited
    rebuilt(fs, fork)
    assert edited_at(fork) == 6
    plain = fs.create(None, **BY)  # type: ignore[arg-type]
    fs.place(plain, "w0")
    claim = fs.claim(plain)
    fs.commit(fs.lease(claim, fs.tokens(cut), fs.positions(cut)), 1.0)
    fs.release(claim, 1.0)
    fs.families.unite(plain.inode, cut.inode)
    for other in (fork, plain):
        fs.drop([other.inode.ino], 1.0)
    fs.drop([f.inode.ino], 1.0)
    fs.place(plain, "w0")
    assert fs.adopt(plain) == 4  # up to where the others are edited
    rebuilt(fs, plain)
    fs.drop([cut.inode.ino], 1.0)
    fs.place(cut, "w0")
    assert fs.adopt(cut) == 4
    rebuilt(fs, cut)


def test_the_last_token_of_an_edited_file_is_computed_again_in_a_copy(fs: Kvfs, make: Make) -> None:
    """Though nobody shares the page: whoever forks the file before the batch has run keeps what was there."""
    cut = done(fs, extract(fs, make(20), (1, 7), (9, 20)))
    first = cut.inode.edited
    claim = fs.claim(cut)
    lease = fs.lease(claim, [19], [19], n_again=1)
    assert lease.copies
    fork = fs.fork(cut, None, **BY)  # type: ignore[arg-type]
    fs.commit(lease, 1.0)
    fs.release(claim, 1.0)
    assert check(fs) == []
    assert cut.inode.table[-1] != fork.inode.table[-1]
    assert fork.inode.edited is first is not cut.inode.edited
    assert edited_at(cut) == 0


# --- fsck ---


def spoil_run(lease: EditLease) -> None:
    lease.runs[0] = (*lease.runs[0][:4], lease.runs[0][4] - 1, 0)


def spoil_source(lease: EditLease) -> None:
    lease.runs[0] = (lease.fresh[0], *lease.runs[0][1:])


def spoil_target(lease: EditLease) -> None:
    lease.edit.claim.is_held = False


@pytest.mark.parametrize("spoil", [spoil_run, spoil_source, spoil_target])
def test_fsck_sees_a_lease_that_is_wrong(fs: Kvfs, make: Make, spoil: Callable[[EditLease], None]) -> None:
    edit = extract(fs, make(20), (1, 9))
    lease = fs.lease_edit(edit)
    runs = list(lease.runs)
    spoil(lease)
    assert [line for line in check(fs) if line.startswith("lease on file")]
    lease.runs, edit.claim.is_held = runs, True
    fs.abandon(lease)
    fs.end_edit(edit, 1.0)


def test_fsck_sees_a_page_in_two_files_that_differ(fs: Kvfs, make: Make) -> None:
    cut = done(fs, extract(fs, make(20), (8, 16)))
    cut.inode.positions[1] += 1
    assert [line for line in check(fs) if "differ in their tokens" in line]
    cut.inode.positions[1] -= 1
    kept, cut.inode.edited = cut.inode.edited, None
    assert [line for line in check(fs) if "not of a common beginning" in line]
    cut.inode.edited = kept
