"""`make fuzz-store`: random changes to what is on disk. No crash, and never a wrong read.

A store is filled, its disk is changed at random (bits, bytes, lengths, whole files exchanged, pages exchanged), and all
that the next kernel finds is read. Whatever is not reported as damaged must be what was saved as that version.
"""

import argparse
import random
import sys
from collections import Counter

from kvfs.store import format as layout
from kvfs.store.format import Contents, Damaged
from kvfs.store.store import Store
from tests.kvfs.store.simdisk import SimDisk
from tests.kvfs.store.workload import GEOMETRY, Workload

PER_IMAGE = 500  # mutations of one filled disk
Truth = dict[int, tuple[Contents, bytes]]


def filled(seed: int) -> tuple[SimDisk, Truth]:
    """A disk with some files, and what is in them, by version."""
    disk = SimDisk()
    store = Store(disk)
    Workload(seed, store).run(25)
    truth = {}
    for file in store.tree.files.values():
        contents = store.read_start(file.version)
        truth[file.version] = contents, store.read_pages(contents, 0, contents.head.n_pages)
    return disk, truth


def mutate(files: dict[str, bytes], dice: random.Random) -> str:
    """Change one thing; which kind of thing."""
    name = dice.choice(sorted(files))
    data = bytearray(files[name])
    kind = dice.choice(["bit", "byte", "cut", "grow", "zeros", "swap files", "swap ranges", "repeat", "remove"])
    a, b = sorted((dice.randint(0, len(data)), dice.randint(0, len(data))))
    match kind:
        case "bit" if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        case "byte" if data:
            data[dice.randrange(len(data))] = dice.randrange(256)
        case "cut":
            del data[a:b]
        case "grow":
            data[a:a] = dice.randbytes(dice.randint(1, 100))
        case "zeros":
            data[a:b] = bytes(b - a)
        case "swap files":
            other = dice.choice(sorted(files))
            files[other], data = bytes(data), bytearray(files[other])
        case "swap ranges":
            step = dice.choice([layout.stride(GEOMETRY), GEOMETRY.page_bytes, 4, 1])
            if a + 2 * step <= len(data):
                data[a : a + step], data[a + step : a + 2 * step] = data[a + step : a + 2 * step], data[a : a + step]
        case "repeat":
            data[b:b] = data[a:b]
    if kind == "remove":
        del files[name]
    else:
        files[name] = bytes(data)
    return kind


def check(files: dict[str, bytes], truth: Truth) -> str:
    """Read everything; what was found. Raises AssertionError on a wrong read, and whatever else goes wrong."""
    disk = SimDisk(files)
    store = Store(disk)
    if store.recovered.n_torn or store.recovered.n_damaged or not files.get("journal"):
        kept = {name.removeprefix("lost-") for name in disk.names}
        assert kept >= {name for name in files if name.endswith(".kv")}, "a file was removed by a journal with damage"
    outcome = "journal" if store.recovered.n_torn or store.recovered.n_damaged else "intact"
    for file in store.tree.files.values():
        try:
            contents = store.read_start(file.version)
        except Damaged:
            outcome = "head"
            continue
        saved, pages = truth[file.version]
        assert contents == saved, f"version {file.version}: another head, or other tokens"
        read = store.read_pages(contents, 0, contents.head.n_pages)
        assert read == pages[: len(read)], f"version {file.version}: wrong pages"
        if len(read) < len(pages):
            outcome = "page"
    return outcome


def fuzz(n: int, seed: int) -> Counter[str]:
    """So many mutations; how many had which outcome."""
    outcomes: Counter[str] = Counter()
    for i in range(n):
        if i % PER_IMAGE == 0:
            disk, truth = filled(seed + i)
            original = disk.files()
        dice = random.Random((seed + 1) << 32 | i)
        files = dict(original)
        kinds = [mutate(files, dice) for _ in range(dice.choice([1, 1, 2, 4])) if files]
        try:
            outcomes[check(files, truth)] += 1
        except Exception as e:
            raise AssertionError(f"seed {seed}, mutation {i} ({', '.join(kinds)}): {e!r}") from e
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        outcomes = fuzz(given.mutations, given.seed)
    except AssertionError as e:
        print(e)
        return 1
    print(f"{given.mutations} mutations, no crash and no wrong read; damage seen in: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
