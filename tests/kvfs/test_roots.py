from typing import Any

import pytest

from kvfs.access import KERNEL, OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.roots import below_tenant, file_name
from sdk.abi.errors import AccessDenied, FileNotFound, InvalidArgument, NotADirectory
from sdk.abi.values import OpenMode

ANN = Who("ann", ("acme",), tenant="acme", pid=7)
BOB = Who("bob", ("acme",), tenant="acme", pid=8)
EVE = Who("eve", ("rival",), tenant="rival", pid=9)
LIP = OPERATOR._replace(pid=10)  # a program of the operator's
NOW: dict[str, Any] = {"now": 1.0}


def touch(fs: Kvfs, path: str, who: Who) -> int:
    f = fs.create(path, who=who, **NOW)
    fs.close(f, 1.0)
    return f.inode.ino


def paths(fs: Kvfs) -> list[str]:
    return [path for path, _ in fs.names.walk(fs.names.root)]


@pytest.mark.parametrize(
    ("who", "path", "real"),
    [
        (ANN, "/a", "/tenants/acme/a"),
        (ANN, "~/a", "/tenants/acme/home/ann/a"),
        (ANN, "~//./a", "/tenants/acme/home/ann/a"),
        (ANN, "/tmp/a", "/tenants/acme/tmp/7/a"),
        (BOB, "/tmp/a", "/tenants/acme/tmp/8/a"),
        (EVE, "/a", "/tenants/rival/a"),
        (Who("x", ("a/../b",), tenant="a/../b"), "/a", "/tenants/a%2F..%2Fb/a"),
        (Who("../x", ("x",), tenant=".."), "~/a", "/tenants/%2E%2E/home/..%2Fx/a"),
        (LIP, "/a", "/a"),
        (LIP, "~/a", "/home/local/a"),
        (LIP, "/tmp/a", "/tmp/10/a"),
        (LIP, "/shared/a", "/shared/a"),
    ],
)
def test_where_a_path_leads(fs: Kvfs, who: Who, path: str, real: str) -> None:
    ino = touch(fs, path, who)
    assert fs.stat(real, who=OPERATOR, **NOW).ino == ino


def test_the_operator_sees_the_tree_itself(fs: Kvfs) -> None:
    touch(fs, "/tmp/a", ANN)
    assert [e.name for e in fs.readdir("/tenants/acme/tmp", who=OPERATOR, **NOW)] == ["7"]
    fs.mkdir("/tmp", who=OPERATOR, **NOW)
    touch(fs, "/tmp/mine", OPERATOR)
    fs.rename("/tenants/acme/tmp/7/a", "/taken", who=LIP, **NOW)
    assert fs.readdir("/tmp", who=ANN, **NOW) == []


def test_a_tenant_sees_nothing_of_another(fs: Kvfs) -> None:
    touch(fs, "/a", ANN)
    touch(fs, "~/b", ANN)
    touch(fs, "/top", OPERATOR)
    assert [e.name for e in fs.readdir("/", who=EVE, **NOW)] == ["shared"]
    for path in ("/a", "/tenants/acme/a", "/top", "/home/ann/b", "/shared/../a"):
        with pytest.raises((FileNotFound, InvalidArgument)):
            fs.stat(path, who=EVE, **NOW)


def test_users_of_a_tenant_share_its_root_and_not_their_homes(fs: Kvfs) -> None:
    touch(fs, "/a", ANN)
    assert fs.stat("/a", who=BOB, **NOW).owner == "ann"
    touch(fs, "~/a", ANN)
    touch(fs, "/tmp/a", ANN)
    for use, path in ((fs.readdir, "/home/ann"), (fs.stat, "/home/ann/a")):
        with pytest.raises(AccessDenied, match="'/home/ann' belongs to 'ann'"):
            use(path, who=BOB, **NOW)
    assert fs.readdir("/tmp", who=BOB, **NOW) == fs.readdir("~", who=BOB, **NOW) == []


def test_what_is_shared_is_the_operators_to_write(fs: Kvfs) -> None:
    ino = touch(fs, "/shared/prompt", LIP)
    for who in (ANN, EVE):
        f = fs.open("/shared/prompt", OpenMode.READ, who=who, **NOW)
        assert f.inode.ino == ino
        fork = fs.fork(f, "~/mine", who=who, **NOW)
        assert (fs.fstat(fork).owner, fs.fstat(fork).group) == (who.user, "local")
        for refused in (
            lambda who=who: fs.open("/shared/prompt", OpenMode.WRITE, who=who, **NOW),
            lambda who=who: fs.unlink("/shared/prompt", who=who, **NOW),
            lambda who=who: fs.rename("/shared/prompt", "/a", who=who, **NOW),
            lambda who=who: fs.create("/shared/x", who=who, **NOW),
            lambda who=who: fs.link("/shared/prompt", "~/x", who=who, **NOW),
        ):
            with pytest.raises(AccessDenied):
                refused()
    assert "shared" in [e.name for e in fs.readdir("/", who=ANN, **NOW)]


def test_who_uses_what_is_shared_is_not_told(fs: Kvfs) -> None:
    fs.create("/shared/prompt", who=LIP, **NOW)
    before = fs.stat("/shared/prompt", who=EVE, **NOW)
    f = fs.open("/shared/prompt", OpenMode.READ, who=ANN, now=5.0)
    fs.fork(f, None, who=ANN, now=6.0)
    assert fs.stat("/shared/prompt", who=EVE, now=7.0) == fs.fstat(f, 7.0, ANN) == before
    stat = fs.stat("/shared/prompt", who=LIP, now=7.0)
    assert (stat.n_open, stat.used_s) == (2, 6.0)


@pytest.mark.parametrize("path", ["/", "/shared", "/tmp", "/home", "~"])
def test_what_stands_in_a_root_stays(fs: Kvfs, path: str) -> None:
    touch(fs, "/a", ANN)
    for use in (
        lambda: fs.unlink(path, who=ANN, **NOW),
        lambda: fs.rename(path, "/x", who=ANN, **NOW),
        lambda: fs.rename("/a", path, who=ANN, **NOW),
        lambda: fs.create(path, who=ANN, **NOW),
    ):
        with pytest.raises(InvalidArgument, match="stays: name something in it"):
            use()


def test_errors_spell_paths_as_the_caller_does(fs: Kvfs) -> None:
    touch(fs, "~/f", ANN)
    for path, spelled in (
        ("~/x/y", "'~/x'"),
        ("/tmp/x/y", "'/tmp/x'"),
        ("/shared/x/y", "'/shared/x'"),
        ("/x/y", "'/x'"),
    ):
        with pytest.raises(FileNotFound, match=f"no directory {spelled}: mkdir it first"):
            fs.stat(path, who=ANN, **NOW)
    with pytest.raises(NotADirectory, match="'~/f' is a file"):
        fs.stat("~/f/g", who=ANN, **NOW)


@pytest.mark.parametrize(("path", "hint"), [("~x/a", "start it with"), ("x~", "start it with"), ("/~/a", "your home")])
def test_a_tilde_is_the_beginning_of_a_path_or_a_letter(fs: Kvfs, path: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        fs.stat(path, who=ANN, **NOW)
    touch(fs, "/a~", ANN)


def test_the_tmp_of_a_process_goes_with_it(fs: Kvfs) -> None:
    fs.mkdir("/tmp/d", who=ANN, **NOW)
    touch(fs, "/tmp/d/a", ANN)
    fs.link("/tmp/d/a", "/tmp/b", who=ANN, **NOW)
    kept = touch(fs, "/tmp/c", ANN)
    fs.link("/tmp/c", "/c", who=ANN, **NOW)
    touch(fs, "/tmp/held", ANN)
    held = fs.open("/tenants/acme/tmp/7/held", OpenMode.READ, who=OPERATOR, **NOW)
    touch(fs, "/tmp/a", BOB)
    fs.end_process(ANN, 2.0)
    assert sorted(paths(fs)) == [
        "/tenants",
        "/tenants/acme",
        "/tenants/acme/c",
        "/tenants/acme/tmp",
        "/tenants/acme/tmp/8",
        "/tenants/acme/tmp/8/a",
    ]
    assert (fs.stat("/tenants/acme/c", who=OPERATOR, **NOW).ino, fs.fstat(held).n_links) == (kept, 0)
    assert check(fs) == []


def test_a_tenant_that_leaves_nothing_was_never_there(fs: Kvfs) -> None:
    for path in ("~/f", "/tmp/f", "/f"):
        touch(fs, path, ANN)
    fs.end_process(ANN, 2.0)
    assert sorted(paths(fs)) == [
        "/tenants",
        *(f"/tenants/acme{p}" for p in ("", "/f", "/home", "/home/ann", "/home/ann/f")),
    ]
    fs.unlink("~/f", who=ANN, **NOW)
    fs.unlink("/f", who=ANN, **NOW)
    fs.end_process(BOB, 3.0)
    assert sorted(paths(fs)) == ["/tenants", "/tenants/acme", "/tenants/acme/home", "/tenants/acme/home/ann"]
    fs.chmod("~", 0o755, who=ANN, **NOW)
    fs.end_process(ANN, 4.0)
    assert "/tenants/acme/home/ann" in paths(fs), "its mode is the user's word"
    fs.chmod("~", 0o700, who=ANN, **NOW)
    fs.end_process(ANN, 5.0)
    assert paths(fs) == ["/tenants"]
    assert (check(fs), fs.quotas.user("ann").n_files) == ([], 0)


def test_a_process_that_never_had_a_tmp_leaves_nothing(fs: Kvfs) -> None:
    for who in (ANN, LIP, KERNEL):
        fs.end_process(who, 1.0)
    assert paths(fs) == []


def test_limits_are_those_of_the_path_in_its_tenant(fs: Kvfs) -> None:
    touch(fs, "/" + 254 * "a", ANN)
    for depth in range(1, 16):
        fs.mkdir("/d" * depth, who=ANN, **NOW)
    touch(fs, "/d" * 16, ANN)
    with pytest.raises(InvalidArgument, match="shorten it"):
        touch(fs, "/" + 255 * "a", ANN)
    with pytest.raises(InvalidArgument, match="make it flatter"):
        touch(fs, "~" + "/d" * 15, ANN)
    assert check(fs) == []


def test_a_file_in_the_place_of_a_directory_is_named(fs: Kvfs) -> None:
    touch(fs, "/tenants", OPERATOR)
    with pytest.raises(NotADirectory, match="'tenants' should be a directory"):
        fs.stat("/", who=ANN, **NOW)


def test_names_of_tenants_and_users_are_anybodys() -> None:
    assert [file_name(n) for n in ("ann", ".", "..", "a/b", "50%", "é", "a b")] == [
        "ann",
        "%2E",
        "%2E%2E",
        "a%2Fb",
        "50%25",
        "%C3%A9",
        "a b",
    ]
    assert [below_tenant(p) for p in ("", "/a", "/tenants", "/tenants/x", "/tenants/x/a/b")] == [
        "",
        "/a",
        "/tenants",
        "/tenants/x",
        "/a/b",
    ]
