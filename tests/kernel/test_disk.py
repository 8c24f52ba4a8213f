import os
import subprocess

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


def test_a_write_that_is_done_in_part_goes_on(disk, tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    fd = disk.create("a")
    disk.append(fd, b"12345678")
    disk.close(fd)
    assert (tmp_path / "kv" / "a").read_bytes() == b"12345678"


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


def test_a_kernel_that_is_ending_is_waited_for(tmp_path, monkeypatch):
    """One whose supervisor, which is the pid that its user knows, was killed."""
    process = subprocess.Popen(["true"])
    process.wait()
    first = RealDisk(tmp_path / "kv", process.pid)
    monkeypatch.setattr("kernel.disk.ENDING_S", 0.0)
    with pytest.raises(DirectoryInUse, match=f"pid {process.pid}"):
        RealDisk(tmp_path / "kv")
    monkeypatch.setattr("kernel.disk.ENDING_S", 10.0)
    looks = []

    def end_at_the_third(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            first.end()

    monkeypatch.setattr("kernel.disk.time.sleep", end_at_the_third)
    RealDisk(tmp_path / "kv").end()
    assert len(looks) == 3


def test_what_is_no_file_is_an_error_and_never_a_wait(disk, tmp_path):
    os.mkfifo(tmp_path / "kv" / "pipe")
    (tmp_path / "kv" / "directory").mkdir()
    (tmp_path / "kv" / "link").symlink_to("/dev/zero")
    for name in ("pipe", "directory", "link"):
        with pytest.raises(OSError):
            disk.read(disk.open(name), 0, 10)


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="Not a directory"):
            RealDisk(path)
