"""The whole of kvfs against a model, a dict of token lists, with simulated devices that execute leases and moves.

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

from kvfs.fs import Kvfs
from kvfs.fsck import check, counts
from tests.kvfs.model.moves import Moves
from tests.kvfs.model.state import ANN, PATHS, USERS

OPERATIONS = int(os.environ.get("KVFS_OPERATIONS", "9000"))
N_STEPS = 60


class KvfsMachine(Moves):
    @initialize(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3), path=st.sampled_from(PATHS))
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
        n = (len(self.files), 0, len(self.handles), len(self.claims), len(self.flights), n_transfers)
        assert counts(self.fs)[2:] == n

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        assert self.fs.files.keys() == self.files.keys()
        later = {name: device.ahead() for name, device in self.devices.items()}
        for ino, file in self.files.items():
            inode = self.fs.files[ino]
            assert list(zip(inode.tokens, inode.positions, strict=True)) == file.slots
            assert (inode.n_kv, inode.residency) == (len(file.origins), self.residency(file))
            assert (inode.pool.name if inode.pool else None) == file.device
            assert inode.tail_valid == self.has_tail(file)
            file.tail_gone = not inode.tail_valid
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

    @invariant()
    def names_are_as_the_model_says(self) -> None:
        found = {path: self.files[node.ino] for path, node in self.fs.names.walk(self.fs.names.root)}
        assert found == self.names

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

    def teardown(self) -> None:
        type(self).undo(self.fs)


@pytest.fixture
def machine(simulated: SimpleNamespace, undo: Callable[[Kvfs], None]) -> type[KvfsMachine]:
    KvfsMachine.simulated, KvfsMachine.undo = simulated, staticmethod(undo)
    return KvfsMachine


def test_every_file_is_what_was_written_to_it(machine: type[KvfsMachine]) -> None:
    n = OPERATIONS // N_STEPS
    run_state_machine_as_test(machine, settings=settings(max_examples=n, stateful_step_count=N_STEPS, deadline=None))
