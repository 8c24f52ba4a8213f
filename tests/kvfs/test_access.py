"""Who may do what. The tables are the specification: what is in them holds, and nothing else is allowed."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.access import DEFAULT_UMASK, KERNEL, OPERATOR, RWX, R, W, Who, X, derived, fresh_mode, rights, spelled
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, InvalidArgument, SyscallError
from sdk.abi.table import TABLE as TABLE_OF_CALLS
from sdk.abi.values import Advice, LockMode, OpenMode, PositionMode

CALLERS = {
    "owner": Who("ann", ("acme", "team"), tenant="acme"),
    "group": Who("bob", ("acme", "team"), tenant="acme"),
    "other": Who("eve", ("acme",), tenant="acme"),
    "operator": OPERATOR,
    "stranger": Who("mallory", ("rival",), tenant="rival"),  # of another tenant
}
ANN = CALLERS["owner"]
NOW: dict[str, Any] = {"now": 1.0}
KEEP = PositionMode.KEEP

# /d belongs to ann, and so does /d/f; the group of both is `team`. `dir` and `file` are the bits that each of the
# three classes has on them. Of two names in one call, both are in /d, but for "out" and "in": there one is in /free,
# where everybody may do everything. "by r" is through a handle that was opened for reading.
TABLE = """
call          dir  file  owner   group   other   operator  stranger
stat          --x  ---   ok      ok      ok      ok        ENOENT
stat          rw-  rwx   EACCES  EACCES  EACCES  ok        ENOENT
readdir       r-x  ---   ok      ok      ok      ok        ENOENT
readdir       -wx  rwx   EACCES  EACCES  EACCES  ok        ENOENT
open r        --x  r--   ok      ok      ok      ok        ENOENT
open r        --x  -wx   EACCES  EACCES  EACCES  ok        ENOENT
open r        rw-  rwx   EACCES  EACCES  EACCES  ok        ENOENT
open w        --x  rw-   ok      ok      ok      ok        ENOENT
open w        rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
open w        rwx  -wx   EACCES  EACCES  EACCES  ok        ENOENT
fstat         --x  r--   ok      ok      ok      ok        ENOENT
tokens        --x  r--   ok      ok      ok      ok        ENOENT
positions     --x  r--   ok      ok      ok      ok        ENOENT
look          --x  r--   ok      ok      ok      ok        ENOENT
append        --x  rw-   ok      ok      ok      ok        ENOENT
append        rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
append by r   rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
truncate      --x  rw-   ok      ok      ok      ok        ENOENT
truncate      rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
truncate by r rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
lock shared   --x  r--   ok      ok      ok      ok        ENOENT
lock excl     --x  rw-   ok      ok      ok      ok        ENOENT
lock excl     rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
lock by r     rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
pin           --x  r--   ok      ok      ok      ok        ENOENT
advise        --x  r--   ok      ok      ok      ok        ENOENT
dup r         --x  r--   ok      ok      ok      ok        ENOENT
dup w         --x  rw-   ok      ok      ok      ok        ENOENT
dup w         rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
widen         rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
narrowed      rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
fork          --x  r-x   ok      ok      ok      ok        ENOENT
fork          rwx  rw-   EACCES  EACCES  EACCES  ok        ENOENT
fork to       -wx  r-x   ok      ok      ok      ok        ENOENT
fork to       r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
extract       --x  r-x   ok      ok      ok      ok        ENOENT
extract       rwx  rw-   EACCES  EACCES  EACCES  ok        ENOENT
extract to    -wx  r-x   ok      ok      ok      ok        ENOENT
extract to    r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
merge         --x  r-x   ok      ok      ok      ok        ENOENT
merge         rwx  rw-   EACCES  EACCES  EACCES  ok        ENOENT
merge to      r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
splice into   --x  rw-   ok      ok      ok      ok        ENOENT
splice into   rwx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
splice by r   rwx  rwx   EACCES  EACCES  EACCES  EACCES    ENOENT
splice from   --x  r-x   ok      ok      ok      ok        ENOENT
splice from   rwx  rw-   EACCES  EACCES  EACCES  ok        ENOENT
create        -wx  ---   ok      ok      ok      ok        ENOENT
create        r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
create        rw-  rwx   EACCES  EACCES  EACCES  ok        ENOENT
mkdir         -wx  ---   ok      ok      ok      ok        ENOENT
mkdir         r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
unlink        -wx  ---   ok      ok      ok      ok        ENOENT
unlink        r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
unlink        rw-  rwx   EACCES  EACCES  EACCES  ok        ENOENT
rename        -wx  ---   ok      ok      ok      ok        ENOENT
rename        r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
rename over   -wx  ---   ok      ok      ok      ok        ENOENT
rename over   r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
rename out    -wx  ---   ok      ok      ok      ok        ENOENT
rename out    r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
rename in     -wx  ---   ok      ok      ok      ok        ENOENT
rename in     r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
link          -wx  rw-   ok      ok      ok      ok        ENOENT
link          -wx  r-x   EACCES  EACCES  EACCES  ok        ENOENT
link          -wx  -wx   EACCES  EACCES  EACCES  ok        ENOENT
link          r-x  rwx   EACCES  EACCES  EACCES  ok        ENOENT
chmod         --x  ---   ok      EACCES  EACCES  ok        ENOENT
chmod         rwx  rwx   ok      EACCES  EACCES  ok        ENOENT
chmod         rw-  rwx   EACCES  EACCES  EACCES  ok        ENOENT
chmod dir     ---  ---   ok      EACCES  EACCES  ok        ENOENT
chgrp         --x  ---   ok      EACCES  EACCES  ok        ENOENT
chgrp         rwx  rwx   ok      EACCES  EACCES  ok        ENOENT
chgrp alien   rwx  rwx   EACCES  EACCES  EACCES  ok        ENOENT
chown         rwx  rwx   EACCES  EACCES  EACCES  ok        ENOENT
"""

# Of the three classes the first that a caller is in decides, though a later one may be allowed more.
CLASSES = """
call          dir  file       owner   group   other   operator  stranger
open r        --x  r--------  ok      EACCES  EACCES  ok        ENOENT
open r        --x  ---r-----  EACCES  ok      EACCES  ok        ENOENT
open r        --x  ------r--  EACCES  EACCES  ok      ok        ENOENT
open w        --x  r--rw----  EACCES  ok      EACCES  ok        ENOENT
fork          --x  rwxr--r-x  ok      EACCES  ok      ok        ENOENT
"""


def cases(table: str) -> list[Any]:
    header, *rows = table.strip().splitlines()
    found = []
    for row in rows:
        words = row.split()
        call, (mode_dir, mode_file, *outcomes) = " ".join(words[:-7]), words[-7:]
        for caller, outcome in zip(header.split()[3:], outcomes, strict=True):
            name = f"{call.replace(' ', '-')}-{mode_dir}-{mode_file}-{caller}"
            found.append(pytest.param(call, mode_dir, mode_file, caller, outcome, id=name))
    return found


def bits(text: str) -> int:
    """`r-x` for all three classes, or nine letters."""
    return int("".join("0" if letter == "-" else "1" for letter in (text * 3)[:9]), 2)


def use(fs: Kvfs, call: str, who: Who, top: str) -> None:
    """Make the call on the file /d/f, or in the directory /d."""
    d, f = f"{top}/d", f"{top}/d/f"
    by: Any = {"who": who, **NOW}

    def reader() -> OpenFile:
        return fs.open(f, OpenMode.READ, **by)

    def writer() -> OpenFile:
        return fs.open(f, OpenMode.WRITE, **by)

    uses: dict[str, Callable[[], object]] = {
        "stat": lambda: fs.stat(f, **by),
        "readdir": lambda: fs.readdir(d, **by),
        "open r": reader,
        "open w": writer,
        "fstat": lambda: fs.fstat(reader(), 1.0, who),
        "tokens": lambda: fs.tokens(reader()),
        "positions": lambda: fs.positions(reader()),
        "look": lambda: fs.next_position(reader()),
        "append": lambda: fs.claim(writer()),
        "append by r": lambda: fs.claim(reader()),
        "truncate": lambda: fs.truncate(writer(), 0, 1.0),
        "truncate by r": lambda: fs.truncate(reader(), 0, 1.0),
        "lock shared": lambda: fs.lock(reader(), LockMode.SHARED, thread=1),
        "lock excl": lambda: fs.lock(writer(), LockMode.EXCLUSIVE, thread=1),
        "lock by r": lambda: fs.lock(reader(), LockMode.EXCLUSIVE, thread=1),
        "pin": lambda: fs.unpin(reader(), who.tenant),  # which asks what pinning does
        "advise": lambda: fs.advise(reader(), Advice.WILLNEED, 1.0),
        "dup r": lambda: fs.dup(reader(), OpenMode.READ, **by),
        "dup w": lambda: fs.dup(writer(), OpenMode.WRITE, **by),
        "widen": lambda: fs.dup(reader(), OpenMode.WRITE, **by),
        "narrowed": lambda: fs.claim(fs.dup(writer(), OpenMode.READ, **by)),
        "fork": lambda: fs.fork(reader(), None, **by),
        "fork to": lambda: fs.fork(reader(), f"{d}/new", **by),
        "extract": lambda: fs.end_edit(fs.extract(reader(), [], KEEP, **by), 1.0),
        "extract to": lambda: fs.end_edit(fs.extract(reader(), [], KEEP, path=f"{d}/new", **by), 1.0),
        "merge": lambda: fs.end_edit(fs.merge([reader()], KEEP, **by), 1.0),
        "merge to": lambda: fs.end_edit(fs.merge([reader()], KEEP, path=f"{d}/new", **by), 1.0),
        "splice into": lambda: fs.end_edit(fs.splice(writer(), 0, 0, None, KEEP, **by), 1.0),
        "splice by r": lambda: fs.end_edit(fs.splice(reader(), 0, 0, None, KEEP, **by), 1.0),
        "splice from": lambda: fs.end_edit(fs.splice(fs.create(None, **by), 0, 0, reader(), KEEP, **by), 1.0),
        "create": lambda: fs.create(f"{d}/new", **by),
        "mkdir": lambda: fs.mkdir(f"{d}/new", **by),
        "unlink": lambda: fs.unlink(f, **by),
        "rename": lambda: fs.rename(f, f"{d}/new", **by),
        "rename over": lambda: fs.rename(f, f"{d}/g", **by),
        "rename out": lambda: fs.rename(f, f"{top}/free/new", **by),
        "rename in": lambda: fs.rename(f"{top}/free/f", f"{d}/new", **by),
        "link": lambda: fs.link(f, f"{d}/new", **by),
        "chmod": lambda: fs.chmod(f, 0o777, **by),
        "chmod dir": lambda: fs.chmod(d, 0o777, **by),
        "chgrp": lambda: fs.chown(f, None, "acme", **by),
        "chgrp alien": lambda: fs.chown(f, None, "rival", **by),
        "chown": lambda: fs.chown(f, "bob", None, **by),
    }
    uses[call]()


@pytest.mark.parametrize(("call", "mode_dir", "mode_file", "caller", "outcome"), [*cases(TABLE), *cases(CLASSES)])
def test_who_may_do_what(fs: Kvfs, call: str, mode_dir: str, mode_file: str, caller: str, outcome: str) -> None:
    for path in ("/d", "/free"):
        fs.mkdir(path, who=ANN, **NOW)
        fs.chmod(path, 0o777, who=ANN, **NOW)
    for path in ("/d/f", "/d/g", "/free/f"):
        fs.close(fs.create(path, who=ANN, **NOW), 1.0)
    fs.chown("/d/f", None, "team", who=ANN, **NOW)
    fs.chmod("/d/f", bits(mode_file), who=ANN, **NOW)
    fs.chown("/d", None, "team", who=ANN, **NOW)
    fs.chmod("/d", bits(mode_dir), who=ANN, **NOW)
    top = "/tenants/acme" if caller == "operator" else ""
    error: SyscallError | None = None
    try:
        use(fs, call, CALLERS[caller], top)
    except SyscallError as e:
        error = e
    assert (error.errno if error else "ok") == outcome
    if error and caller != "operator":
        assert "/tenants" not in error.detail, "an error spells paths as the caller sees them"


# Where the table has each system call that is about files, by the first word of its rows; None: whoever has the handle
# may, or it is not about a file.
ROWS_OF = {
    "open": "open", "create": "create", "close": None, "unlink": "unlink", "stat": "stat", "fstat": "fstat",
    "readdir": "readdir", "mkdir": "mkdir", "rename": "rename", "fork": "fork", "truncate": "truncate",
    "tokens": "tokens", "positions": "positions", "link": "link", "chmod": "chmod", "chown": "chown", "umask": None,
    "extract": "extract", "merge": "merge", "splice": "splice", "lock": "lock", "unlock": None, "pin": "pin",
    "advise": "advise", "sync": None, "quota": None, "df": None, "dup": "dup",
    "pred": "append", "generate": "append", "stream": "append", "read": None,
}  # fmt: skip


def test_every_call_is_in_the_table() -> None:
    about_files = {e.name for e in TABLE_OF_CALLS.values() if e.group == "file" or "fd" in e.call.__struct_fields__}
    assert set(ROWS_OF) == about_files
    assert {row for row in ROWS_OF.values() if row} <= {case.values[0].split()[0] for case in cases(TABLE)}


def test_every_method_that_asks_who_is_in_the_table() -> None:
    calls = {case.values[0] for case in cases(TABLE)}
    takes_who = {
        name
        for name, method in inspect.getmembers(Kvfs, inspect.isfunction)
        if "who" in inspect.signature(method).parameters and not name.startswith("_")
    }
    beside = {"df", "end_process", "name"}  # of no file; of a process; the end of a call that is in the table
    assert takes_who - beside <= {call.split()[0] for call in calls}


def test_the_first_directory_of_a_path_is_asked_too(fs: Kvfs) -> None:
    fs.create("/shared/f", who=OPERATOR, **NOW)
    fs.create("/f", who=ANN, **NOW)
    for path, who in (("/shared", CALLERS["stranger"]), ("/tenants/acme", CALLERS["other"])):
        fs.chmod(path, 0o766, who=OPERATOR, **NOW)
        with pytest.raises(AccessDenied, match="may not use it: ask for 'x' on it"):
            fs.stat("/shared/f" if path == "/shared" else "/f", who=who, **NOW)


# --- the pieces ---


def test_an_error_says_who_and_what_to_do(fs: Kvfs) -> None:
    fs.create("/f", who=ANN, **NOW)
    fs.chmod("/f", 0o750, who=ANN, **NOW)
    with pytest.raises(
        AccessDenied, match=r"'/f' belongs to 'ann' \(rwxr-x---, group 'acme'\) and 'eve' may not write"
    ):
        fs.open("/f", OpenMode.WRITE, who=CALLERS["other"], **NOW)
    with pytest.raises(AccessDenied, match="may not add or remove names .* use '~/' or '/tmp/'"):
        fs.create("/shared/f", who=ANN, **NOW)


def test_a_mode_is_nine_bits(fs: Kvfs) -> None:
    fs.create("/f", who=ANN, **NOW)
    for mode in (-1, 0o1000):
        with pytest.raises(InvalidArgument, match="nine bits"):
            fs.chmod("/f", mode, who=ANN, **NOW)


def test_new_files_begin_with_the_umask(fs: Kvfs) -> None:
    assert fresh_mode(ANN) == 0o777 & ~DEFAULT_UMASK
    careful = ANN._replace(umask=0o077)
    f = fs.create("/f", who=careful, **NOW)
    fs.mkdir("/d", who=careful, **NOW)
    assert (fs.fstat(f).mode, fs.stat("/d", who=ANN, **NOW).mode) == (0o700, 0o700)
    assert (fs.fstat(f).owner, fs.fstat(f).group) == ("ann", "acme")


def test_a_handle_keeps_its_rights_when_the_bits_change(fs: Kvfs) -> None:
    fs.create("/f", who=ANN, **NOW)
    reader = fs.open("/f", OpenMode.READ, who=CALLERS["other"], **NOW)
    fs.chmod("/f", 0o700, who=ANN, **NOW)
    assert fs.tokens(reader) == []
    fs.fork(reader, None, who=CALLERS["other"], **NOW)
    with pytest.raises(AccessDenied):
        fs.open("/f", OpenMode.READ, who=CALLERS["other"], **NOW)


def test_a_fork_is_no_more_open_than_its_original(fs: Kvfs) -> None:
    f = fs.create("/f", who=ANN, **NOW)
    fs.chown("/f", None, "team", who=ANN, **NOW)
    fs.chmod("/f", 0o750, who=ANN, **NOW)
    child = fs.fork(fs.open("/f", OpenMode.READ, who=CALLERS["group"], **NOW), "/child", who=CALLERS["group"], **NOW)
    stat = fs.fstat(child)
    assert (stat.owner, stat.group, stat.mode) == ("bob", "team", 0o750)
    with pytest.raises(AccessDenied):
        fs.open("/child", OpenMode.READ, who=CALLERS["other"], **NOW)
    careful = fs.fork(f, None, who=ANN._replace(umask=0o077), **NOW)
    assert fs.fstat(careful).mode == 0o700


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ([("team", 0o750)], ("team", 0o750)),
        ([("team", 0o754), ("team", 0o751)], ("team", 0o750)),
        ([("team", 0o750), ("acme", 0o755)], ("acme", 0o700)),
        ([("team", 0o755), ("crew", 0o774)], ("acme", 0o744)),
        ([("team", 0o070)], ("team", 0o750)),
    ],
)
def test_what_is_made_of_several(sources: list[tuple[str, int]], found: tuple[str, int]) -> None:
    files = []
    for group, mode in sources:
        files.append(Inode(2, ANN, 0.0))
        files[-1].group, files[-1].mode = group, mode
    assert derived(ANN, files) == found


def test_modes_are_spelled_as_by_ls() -> None:
    assert [spelled(m) for m in (0, 0o754, 0o777)] == ["---------", "rwxr-xr--", "rwxrwxrwx"]


def test_the_kernel_and_the_operator_are_not_asked(fs: Kvfs) -> None:
    f = fs.create(None, who=ANN, **NOW)
    f.inode.mode = 0
    assert rights(KERNEL, f.inode) == rights(OPERATOR, f.inode) == RWX
    assert rights(ANN, f.inode) == 0


# --- rights only narrow ---

MODES = st.integers(0, 0o777)
GROUPS = st.sampled_from(["acme", "team", "crew"])
STEP = st.tuples(st.sampled_from(["dup", "dup r", "dup w", "open r", "open w", "fork"]), st.integers(0, 3), MODES)


@settings(max_examples=300, deadline=None)
@given(mode=MODES, group=GROUPS, steps=st.lists(STEP, max_size=10))
def test_rights_only_narrow(mode: int, group: str, steps: list[tuple[str, int, int]]) -> None:
    """Along any chain of open, dup and fork, by whomever: a handle has no right that the file's bits did not give to
    who opened it, or that the handle it is made of lacks; and nobody may do more with a fork than with its original,
    but for those to whom a file of the chain belongs."""
    users = [Who(name, groups) for name, groups in [("ann", ("team",)), ("bob", ("acme", "crew")), ("eve", ("crew",))]]
    users.append(Who("joe", ()))
    fs = Kvfs()
    f = fs.create("/0", who=Who("zoe", (group,), root=True, umask=0o777 & ~mode), **NOW)
    path, owners = "/0", {"zoe"}
    for i, (step, user, umask) in enumerate(steps):
        who = users[user]._replace(umask=umask)
        before = f
        try:
            if step.startswith("open"):
                f = fs.open(path, OpenMode(step[-1]), who=who, **NOW)
                assert f.rights & ~rights(who, f.inode) == 0
                assert f.rights & (R | (W if step[-1] == "w" else 0)) == f.rights & ~X
            elif step.startswith("dup"):
                f = fs.dup(f, None if step == "dup" else OpenMode(step[-1]), who=who, **NOW)
                assert f.rights & ~before.rights == 0
            else:
                path = f"/{i + 1}"
                f = fs.fork(f, None, who=who, **NOW)
                assert before.rights & X
                fs.names.vacant(path, OPERATOR, 1.0).put(f.inode, 1.0)
                owners.add(who.user)
                for other in users:
                    if other.user not in owners:
                        assert rights(other, f.inode) & ~rights(other, before.inode) == 0
        except AccessDenied:
            f = before
            path = path if step != "fork" else next(n for n, node in fs.names.walk(fs.names.root) if node is f.inode)
