"""Edits as jobs: an extract, a merge or a splice on its way through the batches. Pure.

An edit computes nothing. Its one step is a row without tokens, beside which the worker copies slots of pages, once all
sources have their K/V on that worker; until then its rows bring back one source after another, as those of any job
that finds its file elsewhere. The system calls are `kernel/sys_edit.py`'s. Never add here how pages are laid out.
"""

from collections.abc import Callable, Collection
from typing import Any

from gpuworker.wire import Answer
from kernel.jobs import Job, Step
from kvfs.editing import Edit
from kvfs.inode import Residency
from sdk.abi.errors import SyscallError

STEP = Step([], None, [])


class EditJob(Job):
    """One edit. `file` is the source that it waits for, or the last that it did; never the target."""

    host_decides = True
    undoes_steps = True

    def __init__(self, edit: Edit, on_done: Callable[[Any], None], on_fail: Callable[[SyscallError], None]) -> None:
        placed = [snapshot for snapshot in edit.snapshots if snapshot.inode.table]
        super().__init__((placed or edit.snapshots)[0], on_done, on_fail)
        self.edit = edit
        self.is_done = False

    def waits_for_source(self) -> bool:
        """Whether a source is not there; then it is `file` from now on."""
        away = [s for s in self.edit.snapshots if s.inode.residency is not Residency.RESIDENT]
        if away:
            self.file = away[0]
        return bool(away)

    def look(self) -> None:
        self.waits_for_source()

    @property
    def inos(self) -> Collection[int]:
        return [source.ino for source in self.edit.sources]

    def n_pages_wanted(self, n_tokens: int, page_size: int) -> int:
        if self.file.inode.residency is not Residency.RESIDENT:
            return super().n_pages_wanted(n_tokens, page_size)
        return self.edit.n_fresh

    def again(self) -> None:
        """It asks for no distribution."""

    @property
    def ready(self) -> bool:
        return not self.sent and not self.is_done

    @property
    def n_wanted(self) -> int:
        """Tokens of its source that are to be computed again first."""
        inode = self.file.inode
        return max(1, len(inode.tokens) - inode.n_kv)

    def next_step(self, n_tokens_max: int) -> Step:
        return STEP

    def retract(self, step: Step) -> None:
        """Nothing was counted."""

    def computed(self, step: Step) -> None:
        """It computes no token."""

    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> None:
        self.is_done = True

    @property
    def over(self) -> bool:
        return self.is_done

    def result(self) -> Edit:
        return self.edit
