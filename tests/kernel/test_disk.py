import os

import pytest

from kernel.disk import DirectoryInUse, RealDisk


@pytest.fixture
def disk(tmp_path):
    disk = RealDisk(tmp_path / "kv")
    yield disk
    disk.end()


def test_files(disk, tmp_path):
    fd = disk.create("a")
    disk.append(fd, b"12345")
    disk.append(fd, memoryview(b"678"))
    disk.fsync(fd)
    assert (disk.size(fd), disk.read(fd, 2, 100), disk.read(fd, 99, 1)) == (8, b"345678", b"")
    disk.close(fd)
    disk.rename("a", "b")
    disk.fsync_dir()
    assert disk.listdir() == ["b"]
    fd = disk.open("b")
    assert disk.read(fd, 0, 3) == b"123"
    disk.close(fd)
    disk.close(disk.create("b"))
    assert (tmp_path / "kv" / "b").read_bytes() == b""
    disk.unlink("b")
    assert disk.listdir() == []
    with pytest.raises(FileNotFoundError):
        disk.open("b")


def test_only_this_user_may_look(disk, tmp_path):
    disk.close(disk.create("a"))
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kv" / "a").stat().st_mode & 0o777 == 0o600


def test_one_at_a_time(disk, tmp_path):
    with pytest.raises(DirectoryInUse, match=f"pid {os.getpid()}"):
        RealDisk(tmp_path / "kv")
    disk.end()
    again = RealDisk(tmp_path / "kv")
    again.end()
    disk._lock = disk._directory = -1


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        RealDisk(tmp_path / "file")
