"""KV files on real engines, as a kernel would keep them."""

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
from torch import Tensor

from gpuworker.engine import Engine
from gpuworker.wire import Ask, Batch, BatchHead, Edit, Row
from kvfs.access import KERNEL
from kvfs.editing import EditLease
from kvfs.fs import Kvfs
from kvfs.inode import Residency
from kvfs.moves import Move
from kvfs.openfile import OpenFile
from sdk.abi.values import PositionMode
from sdk.abi.visible import Runs
from tests.gpuworker.world import matrix


class Files:
    """KV files on an engine `w`, and on a second one `there` if given; one call at a time, as a kernel does it."""

    def __init__(self, engine: Engine, there: Engine | None = None) -> None:
        self.engine = engine
        self.engines = {"w": engine} if there is None else {"w": engine, "there": there}
        self.fs = Kvfs()
        for name, e in self.engines.items():
            facts = e.info()
            self.fs.add_device(
                name, n_pages=facts.n_pages, page_size=facts.model.page_size, n_host_pages=facts.n_host_pages
            )

    def run(self, lease: Any, asks: Sequence[Ask] = (), visible: Runs = ()) -> Tensor:
        """Do what a lease says and commit it: the logits of the asks."""
        arrays = [array("I") for _ in range(4)]
        rows, edits = [], []
        if isinstance(lease, EditLease):
            edits = [Edit(*run) for run in lease.runs]
        else:
            asks = [msgspec.structs.replace(ask, logits=True) for ask in asks]
            rows = [Row(1, lease.n_before, lease.n_new, len(lease.pages), asks, visible=list(visible))]
            lease.masked = bool(visible)
            arrays[:3] = [lease.tokens, lease.positions, lease.pages]
        engine = self.engines[lease.device]
        done = engine.run(Batch(BatchHead(1, lease.copies, rows, edits=edits), *arrays))
        self.fs.commit(lease, 0.0)
        return matrix(done, engine)

    def made(self, tokens: Sequence[int], positions: Sequence[int] | None = None) -> OpenFile:
        f = self.fs.create(None, who=KERNEL, now=0.0, device="w")
        self.append(f, tokens, positions)
        return f

    def append(
        self, f: OpenFile, tokens: Sequence[int], positions: Sequence[int] | None = None, visible: Runs = ()
    ) -> Tensor:
        """Logits after each of the tokens."""
        claim = self.fs.claim(f)
        logits = self.run(self.fs.lease(claim, tokens, positions), [Ask(i) for i in range(len(tokens))], visible)
        self.fs.release(claim, 0.0)
        return logits

    def next(self, f: OpenFile) -> Tensor:
        """Logits of what comes next; the last token is computed again where the tail is gone."""
        if self.fs.tail_valid(f):
            return self.run(self.fs.lease_tail(f), [Ask(-1)])
        claim = self.fs.claim(f)
        token, position = self.fs.tokens(f, -1)[0], self.fs.positions(f, -1)[0]
        logits = self.run(self.fs.lease(claim, [token], [position], n_again=1), [Ask(0)])
        self.fs.release(claim, 0.0)
        return logits

    def extract(self, f: OpenFile, ranges: Sequence[tuple[int, int]], mode: str = "keep") -> OpenFile:
        return self.done(self.fs.extract(f, ranges, PositionMode(mode), who=KERNEL, now=0.0))

    def merge(self, *files: OpenFile, mode: str = "pack") -> OpenFile:
        return self.done(self.fs.merge(files, PositionMode(mode), who=KERNEL, now=0.0))

    def cut(self, f: OpenFile, start: int, stop: int) -> None:
        """Take a span out of the file itself; the others stay at their positions."""
        self.done(self.fs.splice(f, start, stop, None, PositionMode.KEEP, who=KERNEL, now=0.0))

    def done(self, edit: Any) -> OpenFile:
        if not self.fs.edit_at_once(edit, 0.0):
            self.run(self.fs.lease_edit(edit))
        self.fs.end_edit(edit, 0.0)
        return edit.file  # type: ignore[no-any-return]

    def kv(self, f: OpenFile) -> tuple[Tensor, Tensor]:
        """K and V of a file: [layers, tokens, heads, dim] each."""
        pages = self.engine._pool.kv[f.inode.table.tolist()]  # [pages, layers, 2, page, heads, dim]
        k, v = (pages[:, :, side].transpose(0, 1).flatten(1, 2)[:, : f.inode.n_kv].clone() for side in (0, 1))
        return k, v

    # --- what becomes of K/V while nobody looks ---

    def swap(self, f: OpenFile) -> None:
        """To main memory, and back when nothing is left of it on the device."""
        pages, engine = f.inode.table.tolist(), self.engine
        out = self.fs.swap_out([f.inode.ino], 0.0)
        assert out is not None
        self._move(out, moves_out=out.pairs)
        engine.store(pages, bytes(len(pages) * engine.info().page_bytes))
        back = self.fs.swap_in(f, 0.0)
        self._move(back, moves_in=back.pairs)

    def _move(self, move: Move, **moves: Any) -> None:
        self.engine.run(Batch(BatchHead(1, [], [], **moves), *(array("I") for _ in range(4))))
        self.fs.commit_move(move, 0.0)

    def migrate(self, f: OpenFile) -> None:
        """To the second engine, byte by byte."""
        m = self.fs.migrate([f.inode.ino], "there", 0.0)
        self.engines["there"].store(m.entries_to.tolist(), bytes(self.engine.fetch(m.entries_from.tolist())))
        self.fs.commit_migration(m, 0.0)

    def drop(self, f: OpenFile) -> None:
        """And compute it again, in pieces of another length than at first."""
        self.fs.drop([f.inode.ino], 0.0)
        self.fs.place(f, "w")
        while f.inode.residency is Residency.PARTIAL:
            self.run(self.fs.lease_rebuild(f, 20))
