"""Edits of files beside all else that is done to files, through the null worker, against the plainest model there is: a
file is a list of tokens with their positions, and for each the *origin* of its K/V, that is the context in which it was
computed. The null worker keeps an origin with every slot, so a slot that was copied from the wrong place, turned by the
wrong distance, or computed again under somebody who shares it is seen at once."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gpuworker.noise import MASK64, splitmix64
from gpuworker.null import WEIGHT, NullBackend
from gpuworker.wire import Ask, Batch, BatchHead, Edit, Row
from kvfs.access import KERNEL
from kvfs.editing import EditLease
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.inode import Residency
from kvfs.moves import MoveKind
from kvfs.openfile import OpenFile
from sdk.abi.errors import Busy, InvalidArgument, NoSpace
from sdk.abi.values import PositionMode

N_FILES, N_PAGES, N_HOST_PAGES, N_TOKENS_MAX = 6, 60, 12, 40
Slot = tuple[int, int, int]  # a token, its position, its origin
PICK = st.integers(0, 1000)
SMALL = st.integers(0, 9)


def computed(slots: list[Slot], n: int) -> list[Slot]:
    """The file with its tokens from n on computed where they are: the null model's hidden states, once more."""
    found, digest, weight = slots[:n], 0, 1
    for i, (token, position, _) in enumerate(slots):
        digest += splitmix64(token << 32 | position) * weight
        weight = weight * WEIGHT & MASK64
        if i >= n:
            found.append((token, position, splitmix64((digest & MASK64) ^ (i + 1))))
    return found


@dataclass(eq=False)
class Asked:
    """An edit that is not done yet."""

    edit: Any
    target: OpenFile | None  # None: a new file
    parts: list[tuple[list[Slot], int, int]]  # of the sources as they were, each a list of its own
    pack: bool

    @property
    def result(self) -> list[Slot]:
        slots = [slot for source, start, stop in self.parts for slot in source[start:stop]]
        return [(t, k, o) for k, (t, _, o) in enumerate(slots)] if self.pack else slots

    @property
    def sources(self) -> list[list[Slot]]:
        """In the order of the snapshots."""
        return list({id(source): source for source, start, stop in self.parts if start < stop}.values())


class EditMachine(RuleBasedStateMachine):
    page_size = 4

    def __init__(self) -> None:
        super().__init__()
        size = self.page_size
        self.fs = Kvfs()
        self.fs.add_device("w", n_pages=N_PAGES, page_size=size, n_host_pages=N_HOST_PAGES)
        self.worker = NullBackend(n_pages=N_PAGES, n_host_pages=N_HOST_PAGES, page_size=size, verify=True)
        self.now, self.next_token = 0.0, 0
        self.files: list[tuple[OpenFile, list[Slot]]] = []
        self.lost: set[int] = set()  # files whose K/V is being, or has to be, computed again
        self.edits: list[Asked] = []
        self.leases: list[tuple[EditLease, Asked]] = []
        self.create()
        self.append(self.files[0][0], 9, 0)

    # --- what a worker does ---

    def run(self, lease: Any = None, moves: Any = (), asks: Sequence[Ask] = ()) -> Any:
        edits = [Edit(*run) for run in lease.runs] if isinstance(lease, EditLease) else []
        rows, arrays, copies = [], [array("I") for _ in range(4)], []
        if lease is not None and not isinstance(lease, EditLease):
            rows = [Row(1, lease.n_before, lease.n_new, len(lease.pages), list(asks))]
            arrays[:3] = [lease.tokens, lease.positions, lease.pages]
            copies = lease.copies
        out = [pair for move in moves if move.kind is MoveKind.OUT for pair in move.pairs]
        back = [pair for move in moves if move.kind is MoveKind.IN for pair in move.pairs]
        return self.worker.run(Batch(BatchHead(1, copies, rows, 0, out, back, edits), *arrays))

    def bring_back(self, f: Any) -> bool:
        """As the kernel does before it uses a file; whether there was room."""
        try:
            while (where := self.fs.residency(f)) is not Residency.RESIDENT:
                if where is Residency.SWAPPED:
                    move = self.fs.swap_in(f, self.now)
                    self.run(moves=[move])
                    self.fs.commit_move(move, self.now)
                    continue
                if self.fs.device_of(f) is None:
                    self.fs.place(f, "w")
                self.fs.adopt(f)
                lease = self.fs.lease_rebuild(f, 5)
                self.run(lease)
                self.fs.commit(lease, self.now)
        except (Busy, NoSpace):
            return False
        return True

    def slots(self, f: OpenFile) -> list[Slot]:
        """What the model has of a file: its K/V may have been lost since, and be computed again."""
        return next(slots for other, slots in self.files if other.inode is f.inode)

    # --- programs ---

    @precondition(lambda self: len(self.files) < N_FILES)
    @rule()
    def create(self) -> None:
        self.files.append((self.fs.create(None, who=KERNEL, now=self.now, device="w"), []))

    @precondition(lambda self: self.files)
    @rule(i=PICK, n=st.integers(1, 9), gap=SMALL)
    def append_some(self, i: int, n: int, gap: int) -> None:
        self.append(self.files[i % len(self.files)][0], n, gap)

    def append(self, f: OpenFile, n: int, gap: int) -> None:
        slots = self.slots(f)
        if f.inode.claimed or len(slots) + n > N_TOKENS_MAX or not self.bring_back(f):
            return
        if self.fs.device_of(f) is None:
            self.fs.place(f, "w")
        first = self.fs.next_position(f) + max(0, gap - 6)
        claim = self.fs.claim(f)
        try:
            tokens = [self.next_token % 256 + i for i in range(n)]
            lease = self.fs.lease(claim, tokens, range(first, first + n))
            self.run(lease)
            self.fs.commit(lease, self.now)
            n_before = len(slots)
            slots += [(token, first + i, 0) for i, token in enumerate(tokens)]
            slots[:] = computed(slots, n_before)
            self.next_token += n
        except NoSpace:
            pass
        self.fs.release(claim, self.now)

    @precondition(lambda self: self.files)
    @rule(i=PICK)
    def ask_what_comes_next(self, i: int) -> None:
        """From the tail where there is one, else the last token is computed again, in the context that it has now."""
        f, slots = self.files[i % len(self.files)]
        if f.inode.claimed or not slots or not self.bring_back(f):
            return
        if self.fs.tail_valid(f):
            lease = self.fs.lease_tail(f)
            self.run(lease, asks=[Ask(-1)])  # the worker checks that it is that of the tokens it sees
            self.fs.commit(lease, self.now)
            return
        claim = self.fs.claim(f)
        try:
            token, position, _ = slots[-1]
            lease = self.fs.lease(claim, [token], [position], n_again=1)
            self.run(lease, asks=[Ask(0)])
            self.fs.commit(lease, self.now)
            slots[:] = computed(slots, len(slots) - 1)
        except NoSpace:
            pass
        self.fs.release(claim, self.now)

    @precondition(lambda self: self.files and len(self.files) < N_FILES)
    @rule(i=PICK)
    def fork(self, i: int) -> None:
        f, slots = self.files[i % len(self.files)]
        fork = self.fs.fork(f, None, who=KERNEL, now=self.now)
        self.files.append((fork, list(slots)))
        if f.inode.ino in self.lost:
            self.lost.add(fork.inode.ino)

    @precondition(lambda self: self.files)
    @rule(i=PICK, n=PICK)
    def truncate(self, i: int, n: int) -> None:
        f, slots = self.files[i % len(self.files)]
        if not f.inode.claimed:
            n %= len(slots) + 1
            self.fs.truncate(f, n, self.now)
            del slots[n:]

    @precondition(lambda self: len(self.files) > 1)
    @rule(i=PICK)
    def close(self, i: int) -> None:
        f, _ = self.files.pop(i % len(self.files))
        self.fs.close(f, self.now)

    # --- the kernel ---

    def idle(self) -> list[int]:
        return [ino for ino, inode in self.fs.files.items() if inode.table and not inode.n_leases and not inode.moving]

    @rule(chosen=st.sets(SMALL, min_size=1, max_size=4))
    def swap_out(self, chosen: set[int]) -> None:
        inos = [ino for k, ino in enumerate(self.idle()) if k in chosen]
        try:
            move = self.fs.swap_out(inos, self.now) if inos else None
        except NoSpace:
            return
        if move is not None:
            self.run(moves=[move])
            self.fs.commit_move(move, self.now)

    @rule(chosen=st.sets(SMALL, min_size=1, max_size=2))
    def drop(self, chosen: set[int]) -> None:
        """Whoever loses K/V forgets its origins: it will be computed again, in the file's own context."""
        inos = [ino for k, ino in enumerate(self.idle()) if k in chosen]
        self.fs.drop(inos, self.now)
        self.lost.update(inos)

    # --- edits ---

    @precondition(lambda self: self.files and len(self.edits) + len(self.leases) < 4)
    @rule(
        i=PICK,
        j=PICK,
        cuts=st.lists(st.tuples(PICK, st.integers(1, 12)), min_size=1, max_size=3),
        call=st.sampled_from(["extract", "extract", "merge", "splice"]),
        mode=st.sampled_from(PositionMode),
        whole=st.booleans(),
    )
    def begin_edit(
        self, i: int, j: int, cuts: list[tuple[int, int]], call: str, mode: PositionMode, whole: bool
    ) -> None:
        (f, slots), (g, others) = self.files[i % len(self.files)], self.files[j % len(self.files)]
        size = self.page_size if whole else 1
        n = len(slots)
        ranges = [
            (start % (n + 1) // size * size, min(n, start % (n + 1) // size * size + k * size)) for start, k in cuts
        ]
        by = {"who": KERNEL, "now": self.now}
        a = list(slots)
        b = a if others is slots else list(others)
        parts = [(a, start, stop) for start, stop in ranges]
        (start, stop), puts = ranges[0], mode is PositionMode.PACK or whole
        if call == "merge":
            parts = [(a, 0, n), (b, 0, len(b))]
        elif call == "splice":
            parts = [(a, 0, start), (b, 0, len(b) if puts else 0), (a, stop, n)]
        asked = Asked(None, f if call == "splice" else None, parts, mode is PositionMode.PACK)
        positions = [p for _, p, _ in asked.result]
        wrong = any(x > y for x, y in pairwise(positions))
        wrong = wrong or (call == "extract" and any(start >= stop for start, stop in ranges))
        if len(positions) > N_TOKENS_MAX or (len(self.files) >= N_FILES and call != "splice"):
            return
        try:
            if call == "extract":
                asked.edit = self.fs.extract(f, ranges, mode, **by)  # type: ignore[arg-type]
            elif call == "merge":
                asked.edit = self.fs.merge([f, g], mode, **by)  # type: ignore[arg-type]
            else:
                asked.edit = self.fs.splice(f, start, stop, g if puts else None, mode, **by)  # type: ignore[arg-type]
        except InvalidArgument:
            assert wrong
        except Busy:
            assert call == "splice"
            assert f.inode.claimed
        else:
            assert not wrong
            self.look_at_snapshots(asked, {f.inode.ino: a, g.inode.ino: b})
            if self.fs.edit_at_once(asked.edit, self.now):
                self.ended(asked)
            else:
                self.edits.append(asked)

    def look_at_snapshots(self, asked: Asked, models: dict[int, list[Slot]]) -> None:
        """They are as the files were; what is lost of those is lost of them."""
        assert [len(s.inode.tokens) for s in asked.edit.snapshots] == [len(slots) for slots in asked.sources]
        for ino, slots in models.items():
            for snapshot, source in zip(asked.edit.snapshots, asked.sources, strict=True):
                if source is slots and ino in self.lost:
                    self.lost.add(snapshot.inode.ino)

    def ended(self, asked: Asked) -> None:
        """An edit is committed."""
        file = asked.edit.file
        self.fs.end_edit(asked.edit, self.now)
        if asked.target is None:
            self.files.append((file, asked.result))
        elif file.is_open:
            self.slots(file)[:] = asked.result
            self.lost.discard(file.inode.ino)

    @precondition(lambda self: self.edits)
    @rule(i=PICK)
    def lease_edit(self, i: int) -> None:
        """As soon as all is there. Its batch runs behind all that were sent before it, and before all that come."""
        i %= len(self.edits)
        asked = self.edits[i]
        if not all(self.bring_back(snapshot) for snapshot in asked.edit.snapshots):
            return
        try:
            lease = self.fs.lease_edit(asked.edit)
        except (Busy, NoSpace):
            return
        for snapshot, slots in zip(asked.edit.snapshots, asked.sources, strict=True):
            self.is_as(snapshot.inode, slots)
        del self.edits[i]
        self.run(lease)
        self.leases.append((lease, asked))

    @precondition(lambda self: self.leases)
    @rule(i=PICK, commits=st.booleans())
    def end_lease(self, i: int, commits: bool) -> None:
        lease, asked = self.leases.pop(i % len(self.leases))
        if commits:
            self.fs.commit(lease, self.now)
            self.ended(asked)
        else:
            self.fs.abandon(lease)
            self.edits.append(asked)  # it is tried again

    @precondition(lambda self: self.edits)
    @rule(i=PICK)
    def give_up(self, i: int) -> None:
        self.forget(self.edits.pop(i % len(self.edits)))

    def forget(self, asked: Asked) -> None:
        self.fs.end_edit(asked.edit, self.now)
        if asked.target is None:
            self.fs.close(asked.edit.file, self.now)

    # --- what must hold ---

    def read(self, inode: Any) -> list[Slot]:
        """A file's slots as they are in the pages of its table, in whichever tier."""
        size, found = self.page_size, []
        for k, entry in enumerate(inode.table):
            n_words = 3 * size + 2
            if entry >> 31:
                page = entry & ~(1 << 31)
                words = self.worker._host[page * n_words : (page + 1) * n_words]
            else:
                words = array("Q")
                words.frombytes(self.worker.fetch([entry]))
            for i in range(min(size, inode.n_kv - k * size)):
                found.append(((words[i] - 1) >> 32, (words[i] - 1) & 0xFFFFFFFF, words[2 * size + i]))
        return found

    @invariant()
    def nothing_is_broken(self) -> None:
        assert check(self.fs) == []

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        for f, slots in self.files:
            self.is_as(f.inode, slots)

    def is_as(self, inode: Any, slots: list[Slot]) -> None:
        """A file against its model, which learns of what was computed again."""
        assert list(zip(inode.tokens, inode.positions, strict=True)) == [(t, p) for t, p, _ in slots]
        found, own = self.read(inode), computed(slots, 0)
        if inode.edited is None:
            assert found == own[: inode.n_kv], "it does not say that it is edited"
        else:
            n_own = min(inode.edited.at, inode.n_kv)
            assert found[:n_own] == own[:n_own]
        if inode.n_kv < len(slots):
            assert inode.ino in self.lost
            return
        if inode.ino in self.lost:  # all was computed again, but what it adopted of others with the same edit
            self.lost.discard(inode.ino)
            n_adopted = next((k for k, (x, y) in enumerate(zip(found, slots, strict=True)) if x != y), len(slots))
            slots[:] = computed(slots, n_adopted)
        assert found == slots, "K/V of another context than that in which it was computed"

    def teardown(self) -> None:
        for lease, asked in self.leases:
            self.fs.abandon(lease)
            self.edits.append(asked)
        for asked in self.edits:
            self.forget(asked)
        for f, _ in self.files:
            self.fs.close(f, 0.0)
        assert self.fs.devices()["w"].n_free == N_PAGES
        assert not self.fs.files


class OddMachine(EditMachine):
    """Pages of a length by which tails of files change places."""

    page_size = 3


@pytest.mark.parametrize("machine", [EditMachine, OddMachine])
def test_every_slot_is_where_it_should_be(machine: type[EditMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
