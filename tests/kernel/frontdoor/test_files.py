"""The unix socket's endpoints on files, as the operator's tools ask for them."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from kernel.boot import keep_files
from kernel.frontdoor.admin import admin_app
from kernel.heart import LOADING, Heart
from kvfs.access import OPERATOR
from sdk import kv, process
from sdk.abi.errors import FileNotFound
from tests.kernel.frontdoor.conftest import in_memory

A, NIX = {"path": "/docs/a"}, {"path": "/nix"}


async def make() -> None:
    """/docs/a of 20 tokens and /docs/old/b, a fork of it."""
    await kv.mkdir("/docs")
    await kv.mkdir("/docs/old")
    async with await kv.create() as f:
        await f.append([65] * 20)
        await (await f.fork("/docs/a")).close()
        await (await f.fork("/docs/old/b")).close()


@pytest.fixture
async def files(house, admin):
    await house.value(make)
    yield
    if (await admin.get("/fs/stat", params={"path": "/docs"})).status_code == 200:
        assert (await admin.post("/fs/rm", json={"path": "/docs", "recursive": True})).status_code == 200


def code(response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- looking ----------------------------------------------------------------------------------------------------


async def test_ls_and_stat(admin, files) -> None:
    (docs,) = [f for f in (await admin.get("/fs/ls")).json() if f["name"] == "docs"]
    assert docs["kind"] == "directory"
    a, old = (await admin.get("/fs/ls", params={"path": "/docs"})).json()
    assert (a["name"], a["n_tokens"], a["n_pages"], a["n_shared_pages"], a["owner"]) == ("a", 20, 2, 2, "local")
    assert old["name"] == "old"
    (itself,) = (await admin.get("/fs/ls", params=A)).json()
    assert itself["name"] == "/docs/a"
    stat = (await admin.get("/fs/stat", params=A)).json()
    assert stat["ino"] == a["ino"]
    assert stat["n_bytes"] > 0
    assert stat["path"] == a["path"] == "/docs/a"
    assert 0.0 <= stat["modified_s_ago"] < 60.0
    assert not {"created_s", "modified_s", "used_s", "pinned_until_s"} & set(stat), "of a clock that nobody else has"
    root = (await admin.get("/fs/stat", params={"path": "/"})).json()
    assert 0.0 <= root["used_s_ago"] <= root["created_s_ago"] < 60.0, "it is as old as the kernel"
    for endpoint in ("/fs/ls", "/fs/stat", "/fs/tree", "/fs/cat"):
        assert code(await admin.get(endpoint, params=NIX)) == (400, "ENOENT")


async def test_tree_goes_from_the_top_down(admin, files) -> None:
    found = (await admin.get("/fs/tree", params={"path": "/docs/"})).json()
    assert [f["name"] for f in found] == ["a", "old", "old/b"]
    assert code(await admin.get("/fs/tree", params=A)) == (400, "ENOTDIR")


async def test_cat(admin, house, files) -> None:
    assert (await admin.get("/fs/cat", params=A)).json() == {"tokens": [65] * 20, "text": None}
    assert (await admin.get("/fs/cat", params=A | {"text": "1"})).json()["text"] == "A" * 20
    assert code(await admin.get("/fs/cat", params={"path": "/docs"})) == (400, "EISDIR")
    assert house.kernel.fs.open_files == set(), "nothing stays open"


# --- changing ---------------------------------------------------------------------------------------------------


async def test_rm(admin, house, files) -> None:
    assert code(await admin.post("/fs/rm", json={"path": "/docs"})) == (400, "ENOTEMPTY")
    assert (await admin.post("/fs/rm", json=A)).json() == {}
    assert code(await admin.post("/fs/rm", json=A)) == (400, "ENOENT")
    assert (await admin.post("/fs/rm", json={"path": "/docs/", "recursive": True})).json() == {}
    with pytest.raises(FileNotFound):
        house.kernel.fs.stat("/docs", who=OPERATOR, now=0.0)
    assert house.n_pages_used() == 0


async def test_rm_of_what_is_not_there_says_so_with_recursive_too(admin) -> None:
    assert code(await admin.post("/fs/rm", json=NIX | {"recursive": True})) == (400, "ENOENT")


async def test_rm_leaves_the_root_alone(admin, files) -> None:
    assert (await admin.post("/fs/mkdir", json={"path": "~/kept"})).status_code == 200
    for root in ("/", "//", "/./", "~", "~/"):
        assert code(await admin.post("/fs/rm", json={"path": root, "recursive": True})) == (400, "EINVAL")
    assert (await admin.post("/fs/rm", json={"path": "~/kept"})).status_code == 200, "it is still there"
    assert (await admin.get("/fs/stat", params=A)).status_code == 200


async def test_programs_have_their_turns_while_many_files_are_listed_and_removed(admin, files, monkeypatch) -> None:
    monkeypatch.setattr("kernel.frontdoor.files.PIECE", 1)
    for i in range(50):
        await admin.post("/fs/mkdir", json={"path": f"/docs/old/{i}"})
    for request in (
        admin.get("/fs/ls", params={"path": "/docs/old"}),
        admin.get("/fs/tree", params={"path": "/docs"}),
        admin.post("/fs/rm", json={"path": "/docs", "recursive": True}),
    ):
        turns = await turns_until(request)
        assert turns > 50


async def turns_until(awaitable) -> int:
    """How often the event loop comes round until then."""
    task, n = asyncio.ensure_future(awaitable), 0
    while not task.done():
        await asyncio.sleep(0)
        n += 1
    assert (await task).status_code == 200
    return n


async def test_what_goes_away_during_a_listing_is_left_out(admin, house, files, monkeypatch) -> None:
    monkeypatch.setattr("kernel.frontdoor.files.PIECE", 1)
    fs, stat = house.kernel.fs, house.kernel.fs.stat

    def remove(path, **by):
        """Of what is looked at, all but the first goes."""
        if path == "/docs/a":
            fs.unlink("/docs/old/b", **by)
            fs.unlink("/docs/old", **by)
        return stat(path, **by)

    monkeypatch.setattr(fs, "stat", remove)
    assert [f["name"] for f in (await admin.get("/fs/tree", params={"path": "/docs"})).json()] == ["a"]


async def test_an_empty_directory(admin, files) -> None:
    assert (await admin.post("/fs/mkdir", json={"path": "/docs/new"})).json() == {}
    for endpoint in ("/fs/ls", "/fs/tree"):
        assert (await admin.get(endpoint, params={"path": "/docs/new"})).json() == []
    assert code(await admin.post("/fs/mkdir", json={"path": "/docs/new"})) == (400, "EEXIST")


async def test_mv_to_a_name_and_into_a_directory(admin, files) -> None:
    assert (await admin.post("/fs/mv", json={"old": "/docs/a", "new": "/docs/c"})).json() == {}
    assert (await admin.post("/fs/mv", json={"old": "/docs/c", "new": "/docs/old"})).json() == {}
    assert [f["name"] for f in (await admin.get("/fs/ls", params={"path": "/docs/old"})).json()] == ["b", "c"]
    assert code(await admin.post("/fs/mv", json={"old": "/docs", "new": "/docs/old"})) == (400, "EINVAL")
    assert code(await admin.post("/fs/mv", json={"old": "/nix", "new": "/docs"})) == (400, "ENOENT")
    assert code(await admin.post("/fs/mv", json={"old": "/docs/old/b", "new": "/nix/b"})) == (400, "ENOENT")
    for new in ("/docs/new/", "/docs/old/c/"):
        assert code(await admin.post("/fs/mv", json={"old": "/docs/old/b", "new": new})) == (400, "ENOTDIR")
    assert (await admin.post("/fs/mv", json={"old": "/docs/old", "new": "/docs/new/"})).json() == {}, "a directory may"


async def test_chmod(admin, files) -> None:
    assert (await admin.post("/fs/chmod", json=A | {"mode": 0o640})).json() == {}
    assert (await admin.get("/fs/stat", params=A)).json()["mode"] == 0o640
    assert code(await admin.post("/fs/chmod", json=A | {"mode": 0o1777})) == (400, "EINVAL")
    assert (await admin.post("/fs/chmod", json=A | {"mode": "x"})).status_code == 400


# --- the whole of it --------------------------------------------------------------------------------------------


async def test_df(admin, files) -> None:
    found = (await admin.get("/fs/df")).json()
    (device,), disk = found["devices"], found["disk"]
    assert disk is None
    assert device["n_pages"] - device["n_free"] == 2, "forks share"
    assert (device["n_files"], device["page_size"]) == (2, 16)


async def test_fsck_says_what_is_wrong(admin, house, files) -> None:
    found = (await admin.get("/fs/fsck")).json()
    assert found["problems"] == []
    assert (found["checked"]["pages"], found["checked"]["directories"] >= 2) == (2, True)
    (inode,) = [i for i in house.kernel.fs.files.values() if i.n_links == 1 and i.ino == max(house.kernel.fs.files)]
    inode.n_links = 2
    (problem,) = (await admin.get("/fs/fsck")).json()["problems"]
    assert problem == f"file #{inode.ino}: says number {inode.ino} and 2 links, it has 1 names"
    inode.n_links = 1


async def test_fsck_may_take_its_time(admin, monkeypatch) -> None:
    r, w = os.pipe()
    heart = Heart()
    heart.start(w, asyncio.get_running_loop())
    monkeypatch.setattr("kernel.frontdoor.files.heart", heart)
    assert (await admin.get("/fs/fsck")).json()["problems"] == []
    heart.stop()
    assert LOADING in os.read(r, 1000), "the supervisor is told not to wait for a beat"
    os.close(r)
    os.close(w)


async def test_fsck_sees_what_a_process_left_open(admin, house, files) -> None:
    left = house.kernel.fs.open("/docs/a", "r", who=OPERATOR._replace(pid=99), now=0.0)
    (problem,) = (await admin.get("/fs/fsck")).json()["problems"]
    assert problem.endswith("is open in process 99, which has ended")
    house.kernel.fs.close(left, 0.0)


async def test_lsof(admin, house, files) -> None:
    async def hold(lock: str) -> None:
        async with await kv.open("/docs/a", "w" if lock == "exclusive" else "r") as a, a.lock(lock):
            async with await kv.create() as b:
                await b.append([1])
                await process.sleep(3600)

    reader = house.start(hold, lock="shared")
    await house.until(lambda: "sleep" in str(list(reader.waiting.values())[:1] and reader.waits_for()))
    writer = house.start(hold, lock="exclusive")
    await house.until(lambda: writer.waiting and "lock" in writer.waits_for())
    read, made, written = (await admin.get("/fs/lsof")).json()
    assert read == read | {"pid": reader.pid, "name": "hold", "fd": 3, "paths": ["/docs/a"], "mode": "r"}
    assert (read["lock"], read["waits_for"], read["n_tokens"]) == ("shared", None, 20)
    assert (made["pid"], made["fd"], made["paths"], made["lock"]) == (reader.pid, 4, [], None)
    assert (written["pid"], written["mode"], written["lock"]) == (writer.pid, "w", None)
    assert written["waits_for"] == "exclusive"
    for one in (reader, writer):
        house.kernel.kill(one.pid, "enough")
        await asyncio.wait_for(one.wait_exit(), 10)
    assert (await admin.get("/fs/lsof")).json() == []


# --- with a directory for durable files -------------------------------------------------------------------------


@pytest.fixture
def durable(make_house, tmp_path):
    """`async with durable() as (house, admin)`: the next kernel on one directory."""

    @asynccontextmanager
    async def next_house():
        async with make_house(kv_dir=tmp_path / "kv") as house, in_memory(admin_app(house.kernel)) as admin:
            keep_files(house.kernel)
            yield house, admin
            await house.until(lambda: not house.kernel.durable._tasks)
            house.kernel.fs.drop(list(house.kernel.fs.files), house.kernel.now())

    return next_house


async def test_what_the_operator_changes_is_on_disk_when_it_is_answered(durable) -> None:
    for was, becomes in (("a", "b"), ("b", "c")):
        async with durable() as (house, admin):
            if was == "a":
                await house.value(make)
            found = (await admin.get("/fs/stat", params={"path": f"/docs/{was}"})).json()
            disk = (await admin.get("/fs/df")).json()["disk"]
            assert (disk["n_files"], disk["n_bytes"] > 0, disk["n_bytes_max"]) == (2, True, None)
            assert (found["is_saved"], found["n_tokens"], found["n_resident"]) == (True, 20, 20 if was == "a" else 0)
            assert (await admin.get("/fs/cat", params={"path": f"/docs/{was}"})).json()["tokens"] == [65] * 20
            moved = {"old": f"/docs/{was}", "new": f"/docs/{becomes}"}
            assert (await admin.post("/fs/mv", json=moved)).status_code == 200
            assert (await admin.get("/fs/fsck")).json()["problems"] == []
    async with durable() as (_, admin):
        assert [f["name"] for f in (await admin.get("/fs/ls", params={"path": "/docs"})).json()] == ["c", "old"]
        assert (await admin.post("/fs/rm", json={"path": "/docs", "recursive": True})).status_code == 200
    async with durable() as (_, admin):
        assert code(await admin.get("/fs/stat", params={"path": "/docs"})) == (400, "ENOENT")
