"""`make crashes`: random workloads on a disk that loses and tears what was not synced, ended at each of their calls.

After each crash the store is opened on what is left: everything acknowledged reads back equal, nothing is seen by half.
Prints one line; the exit status is 1 when a state was found that must not be.
"""

import argparse
import random
import sys

from kvfs.store.format import Damaged
from kvfs.store.store import Store
from tests.kvfs.store.simdisk import Crash, SimDisk
from tests.kvfs.store.workload import Workload, found


def crash(seed: int, at: int, n_operations: int) -> bool:
    """One workload, ended at its call number `at`, then again at some call of the recovery and what follows it. Whether
    the workload was over before."""
    disk = SimDisk()
    disk.crash_at = at
    possible, whole = [{}], False
    try:
        workload = Workload(seed, Store(disk))
        possible = workload.possible
        try:
            workload.run(n_operations // 2)
            workload.store = Store(disk)  # another kernel, which begins another journal
            workload.run(n_operations - n_operations // 2)
            whole = True
        finally:
            possible = workload.possible
    except Crash:
        pass
    dice = random.Random(seed << 20 | at)
    disk.crash_at = None
    disk = disk.after_crash(dice)
    disk.crash_at = dice.randint(1, 30)  # recovering is not to be relied on either
    try:
        Store(disk)
        disk.crash_at = None
    except Crash:
        disk.crash_at = None
        disk = disk.after_crash(dice)
    store = Store(disk)
    try:
        state = found(store)
    except Damaged as e:
        raise AssertionError(f"seed {seed}, call {at}: {e}") from e
    assert state in possible, f"seed {seed}, call {at}: {state} is none of {possible}"
    assert store.recovered.n_damaged == 0, f"seed {seed}, call {at}: {store.recovered}"
    names = {f"{file.version}.kv" for file in store.tree.files.values()}
    left = {name for name in disk.listdir() if name != "journal" and not name.startswith("lost-")}
    assert left == names, f"seed {seed}, call {at}: files are left over"
    return whole


def all_points(seed: int, n_operations: int) -> int:
    """Every crash point of one workload; how many there are."""
    at = 1
    while not crash(seed, at, n_operations):
        at += 1
    return at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=200)
    parser.add_argument("--operations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    n_points = 0
    try:
        for seed in range(given.seed, given.seed + given.workloads):
            n_points += all_points(seed, given.operations)
    except AssertionError as e:
        print(e)
        return 1
    print(f"{given.workloads} workloads, {n_points} crash points: every acknowledged file reads back equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
