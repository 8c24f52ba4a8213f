"""The whole of kvfs against a model, dicts of paths and of token lists, with simulated devices that execute leases,
edits and moves: names, rights, tenants and quotas, processes that end, locks, pins, forks, edits, appends that fail at
any time, and pages that move, are dropped, lost and computed again.

After each step every file that is read through its page table equals the model: now, and again when the device
has worked off all it was sent, since a batch that was abandoned may still run. A second device beside each, its
*shadow*, runs everything the moment it is leased: what it has lost of a tail may be lost, and what it still has, no
batch in flight writes over. So it tells exactly which tails are valid.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    run_state_machine_as_test,
)

from kvfs import directory
from kvfs.fs import Kvfs
from kvfs.fsck import check, counts
from tests.kvfs.model.edits import Editing
from tests.kvfs.model.state import ANN, USERS, Directory, File

OPERATIONS = int(os.environ.get("KVFS_OPERATIONS", "9000"))
N_STEPS = 60
N_EXAMPLES = 500  # in a run


class KvfsMachine(Editing):
    @initialize(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3), path=st.sampled_from(["/a", "/b"]))
    def some_files(self, lengths: list[int], path: str) -> None:
        """To begin with something, or most runs would hardly come to a batch."""
        for i, n in enumerate(lengths):
            self.create(ANN, path if i == 0 else None, device="w0")
            self.claim(i)
            self.lease(i, n, None, False, False)
            self.commit(0, False, False)
            self.release(0)

    # --- what must hold ---

    @invariant()
    def nothing_is_broken(self) -> None:
        assert check(self.fs) == []
        n_transfers = len(self.shifts) + len(self.shipments)
        n_directories = sum(isinstance(node, Directory) for node in self.nodes.values()) - 1
        n = (len(self.files), n_directories, len(self.handles), len(self.claims), len(self.flights), n_transfers)
        assert counts(self.fs)[2:] == n

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        assert self.fs.files.keys() == self.files.keys()
        edits: dict[object, set[object]] = {}
        later = {name: device.ahead() for name, device in self.devices.items()}
        for ino, file in self.files.items():
            inode = self.fs.files[ino]
            assert list(zip(inode.tokens, inode.positions, strict=True)) == file.slots
            assert (inode.n_kv, inode.residency) == (len(file.origins), self.residency(file))
            assert (inode.pool.name if inode.pool else None) == file.device
            assert inode.tail_valid == self.has_tail(file)
            file.tail_gone = not inode.tail_valid
            edits.setdefault(inode.edited, set()).add(file.edited)
            assert (inode.edited is None) == (file.edited is None)
            assert inode.edited is None or inode.edited.at == file.edited.at
            if file.device is None:
                continue
            devices = [later[file.device], self.shadows[file.device]]
            if not any(origin & set(self.early) for origin in file.origins):
                devices.append(self.devices[file.device])
            for device in devices:
                table = inode.table.tolist()
                assert device.read(table, inode.n_kv) == file.slots[: inode.n_kv]
                if inode.tail_valid:
                    assert device.tail(table, len(file.slots)) == file.slots

        assert all(len(same) == 1 for same in edits.values())
        assert len({id(x) for same in edits.values() for x in same}) == len(edits)

    @invariant()
    def names_are_as_the_model_says(self) -> None:
        found = dict(self.fs.names.walk(self.fs.names.root))
        assert found.keys() | {""} == self.nodes.keys()
        for path, node in self.nodes.items():
            real = found[path] if path else self.fs.names.root
            assert (real.owner, real.group, real.mode) == (node.owner, node.group, node.mode)
            if isinstance(node, File):
                assert real.ino == node.ino
            else:
                assert isinstance(real, directory.Directory)

    @invariant()
    def rights_are_as_the_model_says(self) -> None:
        for ino, file in self.files.items():
            inode = self.fs.files[ino]
            assert (inode.owner, inode.group, inode.mode) == (file.owner, file.group, file.mode)
        for f, _ in self.handles:
            assert f.rights == self.rights[f]
        for name in USERS:
            bill = self.fs.quotas.user(name)
            assert (bill.n_files, bill.n_pages + bill.n_host_pages, bill.n_reserved) == self.used(name)

    @invariant()
    def locks_are_as_the_model_says(self) -> None:
        assert set(self.fs.locks.waiting.values()) == set(self.waiting)
        assert {f: t for locks in self.fs.locks.files.values() for f, t in locks.held.items()} == self.locked
        assert all(self.in_the_way(ticket) for ticket in self.waiting), "somebody waits who could go on"
        assert not any(self.is_locked(f) for f in self.locked), "who has a file exclusively is not alone"
        assert not any(any(self.circles([ticket])) for ticket in self.waiting), "somebody waits for ever"

    def teardown(self) -> None:
        type(self).undo(self.fs)


@pytest.fixture
def machine(simulated: SimpleNamespace, undo: Callable[[Kvfs], None]) -> type[KvfsMachine]:
    KvfsMachine.simulated, KvfsMachine.undo = simulated, staticmethod(undo)
    return KvfsMachine


def test_every_file_is_what_was_written_to_it(machine: type[KvfsMachine]) -> None:
    """In parts, since Hypothesis keeps what it has tried until the end of a run; each with a seed of its own."""
    left = OPERATIONS // N_STEPS
    while left > 0:
        some = settings(
            max_examples=min(left, N_EXAMPLES), stateful_step_count=N_STEPS, deadline=None, derandomize=False
        )
        run_state_machine_as_test(machine, settings=some)
        left -= N_EXAMPLES
