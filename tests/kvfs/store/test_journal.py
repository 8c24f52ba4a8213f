import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.store.journal import Journal, decode, encode
from kvfs.store.tree import ClearName, SetName
from tests.kvfs.store.simdisk import Crash, SimDisk

RECORDS = [[SetName(1, "a", 2)], [ClearName(1, "a"), SetName(1, "b", 2)], []]
DATA = b"".join(encode(i, record) for i, record in enumerate(RECORDS))


def test_there_and_back():
    assert decode(DATA) == (RECORDS, 0, 0)
    assert decode(b"") == ([], 0, 0)


@given(st.integers(0, len(DATA) - 1))
def test_a_torn_end_is_dropped(n):
    read = decode(DATA[:n])
    assert read.records == RECORDS[: len(read.records)]
    assert read.n_damaged == 0
    assert len(b"".join(encode(i, r) for i, r in enumerate(read.records))) + read.n_torn == n


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_costs_its_record_alone(at, change):
    changed = bytearray(DATA)
    changed[at] ^= change
    read = decode(bytes(changed))
    assert len(read.records) == 2
    assert all(record in RECORDS for record in read.records)
    assert read.n_torn or read.n_damaged


@given(st.binary(max_size=200))
def test_rubbish_is_no_record(data):
    assert decode(data).records == []


def test_a_missing_record_is_damage():
    assert decode(encode(0, RECORDS[0]) + encode(2, RECORDS[2])).n_damaged == 1


def test_append_goes_on_where_begin_ended():
    disk = SimDisk()
    journal = Journal(disk)
    assert journal.read().records == []
    journal.begin(RECORDS[:2])
    journal.append(RECORDS[2])
    journal.append(RECORDS[0])
    assert journal.read() == ([*RECORDS, RECORDS[0]], 0, 0)
    journal.close()
    assert not journal.is_open
    assert disk.fds == {}


@pytest.mark.parametrize("seed", range(40))
def test_a_new_journal_takes_the_place_of_the_old_one_when_it_is_on_disk(seed):
    """Whatever a crash leaves, it is one of the two, whole."""
    dice = random.Random(seed)
    disk = SimDisk()
    Journal(disk).begin(RECORDS)
    disk.crash_at = disk.n_calls + dice.randint(1, 5)
    with pytest.raises(Crash):
        Journal(disk).begin([*RECORDS, *RECORDS])
        disk.fsync_dir()  # in case that it came so far
    assert Journal(disk.after_crash(dice)).read() in [(RECORDS, 0, 0), ([*RECORDS, *RECORDS], 0, 0)]
