"""Numbers of files, as those see them who are not the operator."""

from typing import Any

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs

ANN = Who("ann", ("acme",), tenant="acme", pid=7)
EVE = Who("eve", ("rival",), tenant="rival", pid=9)
NOW: dict[str, Any] = {"now": 1.0}


def numbers(fs: Kvfs, n_others: int) -> list[int]:
    """Of two files of a tenant, between which others make some."""
    found = []
    for name in "ab":
        found.append(fs.fstat(fs.create(f"/{name}", who=ANN, **NOW), 1.0, ANN).ino)
        for i in range(n_others):
            fs.create(f"/{name}{i}", who=EVE, **NOW)
    return found


def test_a_number_is_a_files_whatever_it_is_called() -> None:
    fs = Kvfs(secret=b"1")
    f = fs.create("/f", who=ANN, **NOW)
    fs.link("/f", "/g", who=ANN, **NOW)
    fs.mkdir("/d", who=ANN, **NOW)
    ino = fs.fstat(f, 1.0, ANN).ino
    assert fs.stat("/f", who=ANN, **NOW).ino == fs.stat("/g", who=ANN, **NOW).ino == ino
    others = [fs.stat(path, who=ANN, **NOW).ino for path in ("/", "/d", "/tmp", "~", "/shared")]
    assert len({ino, *others}) == 6
    assert fs.stat("/tenants/acme/f", who=OPERATOR, **NOW).ino == f.inode.ino, "the operator sees its own"


def test_numbers_do_not_tell_how_many_files_others_make() -> None:
    """Nothing follows from them without the secret: another one makes others of the same files."""
    a, b = numbers(Kvfs(secret=b"1"), 0)
    assert abs(b - a) > 1000
    assert numbers(Kvfs(secret=b"1"), 5)[0] == a
    assert numbers(Kvfs(secret=b"2"), 0)[0] != a
    assert max(a, b) < 2**53
