"""Edits: files cut out of others, joined, and with parts replaced. Each is done or given up within one step here; what
may happen between its begin and its end is in tests/kernel/test_edit_model.py, with the K/V itself."""

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.access import RWX, W, Who, X
from kvfs.inode import Residency
from kvfs.openfile import OpenFile
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    CrossDevice,
    InvalidArgument,
    NoSpace,
)
from sdk.abi.values import PositionMode
from tests.kvfs.model.moves import Moves
from tests.kvfs.model.state import N_FILES, N_OPEN, PAGE_SIZE, PATHS, PICK, USERS, WHO, Edited, File, Refusal, Slot

Part = tuple[File, int, int]  # tokens of a file, start to stop
N_TOKENS_MAX = 3 * N_FILES


class Editing(Moves):
    @precondition(lambda self: self.handles and len(self.files) < N_FILES)
    @rule(
        who=WHO,
        call=st.sampled_from(["extract", "extract", "merge", "splice", "splice"]),
        i=PICK,
        j=PICK,
        cuts=st.lists(st.tuples(PICK, st.integers(0, 9)), min_size=1, max_size=3),
        mode=st.sampled_from(PositionMode),
        path=st.sampled_from([None, None, None, *PATHS]),
    )
    def edit(
        self, who: Who, call: str, i: int, j: int, cuts: list[tuple[int, int]], mode: PositionMode, path: str | None
    ) -> None:
        (f, file), (g, other) = self.handles[i % len(self.handles)], self.handles[j % len(self.handles)]
        n = len(file.slots)
        ranges = [(start % (n + 1), min(n, start % (n + 1) + k)) for start, k in cuts]
        (start, stop), whole = ranges[0], (other, 0, len(other.slots))
        by: Any = {"who": who, "now": self.now}
        if call == "extract":
            parts, sources = [(file, *x) for x in ranges], [file]
            error = self.no_source(f) or (InvalidArgument if any(x >= y for x, y in ranges) else None)
            error = error or self.no_new_file(who, path)
            self.begin(
                error, parts, mode, sources, who, path, lambda: self.fs.extract(f, ranges, mode, path=path, **by)
            )
        elif call == "merge":
            parts, sources = [(file, 0, n), whole], [file, other]
            error = self.no_source(f) or self.no_source(g) or self.no_new_file(who, path)
            self.begin(error, parts, mode, sources, who, path, lambda: self.fs.merge([f, g], mode, path=path, **by))
        else:
            has_source = bool(j % 3)
            parts = [(file, 0, start), *([whole] if has_source else []), (file, stop, n)]
            error = None if self.rights[f] & W else AccessDenied
            error = error or (self.no_source(g) if has_source else None)
            put_in = g if has_source else None
            self.begin(error, parts, mode, [], who, f, lambda: self.fs.splice(f, start, stop, put_in, mode, **by))

    def no_source(self, f: OpenFile) -> Refusal:
        return None if self.rights[f] & X else AccessDenied

    def no_new_file(self, who: Who, path: str | None) -> Refusal:
        return self.no_vacancy(path, who) or self.no_quota(who, 0, n_files=1) or self.no_handle(who)

    def begin(
        self,
        error: Refusal,
        parts: list[Part],
        mode: PositionMode,
        sources: list[File],
        who: Who,
        target: Any,  # a handle, or the path of a new file
        call: Any,
    ) -> None:
        parts = joined(parts)
        slots = [slot for file, start, stop in parts for slot in file.slots[start:stop]]
        if len(slots) > N_TOKENS_MAX:
            return
        ends = [(file.slots[start][1], file.slots[stop - 1][1]) for file, start, stop in parts]
        if mode is PositionMode.PACK:
            slots = [(token, position) for position, (token, _) in enumerate(slots)]
        elif any(y < x for (_, x), (y, _) in pairwise(ends)):
            error = error or InvalidArgument
        is_new = not isinstance(target, OpenFile)
        if not is_new:
            error = error or (Busy if self.is_locked(target) or target.inode.claimed else None)
        snapshots = {id(file) for file, _, _ in parts}
        if who.pid in N_OPEN and len(snapshots) + is_new > N_OPEN[who.pid] - self.n_open(who):
            return  # its snapshots would count as open files
        edits: list[Any] = []
        if not self.attempt(error, lambda: edits.append(call())):
            return
        (edit,) = edits
        if is_new:
            group, mode_bits = self.derived(who, sources)
            self.opened(edit.file, File(who.user, group, mode_bits, who.tenant), RWX)
        file = next(file for f, file in self.handles if f is edit.file)
        assert list(zip(edit.tokens, edit.positions, strict=True)) == slots
        is_done = self.is_done(edit, file, parts, slots)
        self.fs.end_edit(edit, self.now)
        if is_done and is_new and target is not None:
            self.fs.name(edit.file, target, who=who, now=self.now)
            self.named(target, edit.file, who)
        elif is_new and not is_done:
            self.close_one(self.handles[-1])

    def is_done(self, edit: Any, file: File, parts: list[Part], slots: list[Slot]) -> bool:
        """Do it, if it can be done now. Who has no part in it stays as he is."""
        if not slots:
            assert self.fs.edit_at_once(edit, self.now)
            file.lose(0)
            file.slots, file.edited = [], None
            return True
        error = self.no_edit(file, parts, slots)
        if error in (Busy, NoSpace):
            assert not self.fs.edit_at_once(edit, self.now)
        if error is not None:
            self.attempt(error, lambda: self.fs.lease_edit(edit))
            return False
        device = parts[0][0].device
        assert device is not None
        before = [set(self.table(source)) for source, _, _ in parts]
        had_tail = self.has_tail(parts[0][0])
        if not self.fs.edit_at_once(edit, self.now):
            try:
                lease = self.fs.lease_edit(edit)
            except NoSpace:
                return False
            cut = self.simulated.Cut(lease)
            self.shadows[device].run([cut])
            self.send()
            self.devices[device].batches.append([cut])
            while not cut.has_run:
                self.run_next(self.devices[device])
            self.fs.commit(lease, self.now)
        first, start, stop = parts[0]
        n_same = 0 if start else next((k for k in range(stop) if slots[k] != first.slots[k]), stop)
        is_whole = len(parts) == 1 and slots == first.slots
        edited = None if n_same == len(slots) else Edited(n_same)
        if first.edited is not None and first.edited.at < n_same:
            edited = first.edited if n_same == len(slots) else Edited(first.edited.at)
        file.origins = [origin for source, start, stop in parts for origin in source.origins[start:stop]]
        file.slots, file.device, file.edited, file.rebuild = slots, device, edited, None
        file.tail_gone = not (is_whole and had_tail)
        for (source, _, _), pages in zip(parts, before, strict=True):
            if not pages.isdisjoint(self.table(file)):
                for relative in [x for x in self.files.values() if x.family is source.family]:
                    relative.family = file.family
        return True

    def no_edit(self, target: File, parts: list[Part], slots: list[Slot]) -> Refusal:
        """Why it cannot be done now."""
        if target.transfer is not None or (target.rebuild is not None and target.rebuild.lease.inode.n_rebuilt):
            return Busy
        if len({source.device for source, _, _ in parts if self.table(source)}) > 1:
            return CrossDevice
        if any(self.residency(source) is not Residency.RESIDENT for source, _, _ in parts):
            return Busy
        n_pages = -(-len(slots) // PAGE_SIZE)
        return self.no_quota(USERS[target.owner], n_pages - len(self.table(target)))


def joined(parts: list[Part]) -> list[Part]:
    """The same in as few parts as can be."""
    found: list[Part] = []
    for file, start, stop in parts:
        if found and found[-1][0] is file and found[-1][2] == start:
            start = found.pop()[1]
        if start < stop:
            found.append((file, start, stop))
    return found
