"""The unix socket's endpoints: programs from files, processes, files, workers."""

import asyncio
import json

import pytest

from kernel.frontdoor.server import serve_socket
from sdk.client import Client

TALKER = '''
from sdk.channel import emit, input
from sdk.abi.errors import BrokenPipe
async def main(greeting: str = "Hello") -> dict:
    """Talks."""
    names = []
    try:
        while True:
            name = await input("name? ")
            names.append(name)
            await emit(f"{greeting} {name}\\n")
    except BrokenPipe as e:
        await emit({"over": str(e)}, stream="log")
    return {"names": names}
'''

WAITER = "from sdk.channel import Channel\nasync def main(): await Channel('never').recv()\n"


@pytest.fixture
def talker(tmp_path):
    path = tmp_path / "talker.py"
    path.write_text(TALKER)
    return path


@pytest.fixture
def waiter(tmp_path):
    path = tmp_path / "waiter.py"
    path.write_text(WAITER)
    return path


@pytest.fixture
async def local(kernel):
    """The sdk's own client, over the real socket."""
    server = await serve_socket(kernel, kernel.config.socket)
    async with Client(kernel.config.socket) as client:
        yield client
    await server.stop()


def lines(response) -> list:
    return [json.loads(line) for line in response.text.splitlines()]


# --- running ----------------------------------------------------------------------------------------------------


async def test_a_file_runs_and_its_events_come_as_lines(admin, talker) -> None:
    response = await admin.post("/run", json={"file": str(talker)})
    started, emitted, ended = lines(response)
    assert emitted == {"emit": {"over": "EPIPE: there is no client to answer"}, "stream": "log"}
    assert ended == {"exit": {"pid": started["pid"], "code": 0, "result": {"names": []}}}


async def test_a_conversation(local, talker) -> None:
    answers = iter(["Ada", "Bob", None])
    seen = []
    async for event in local.run(file=talker, args={"greeting": "Hi"}, interactive=True):
        if event.pid is not None:
            pid = event.pid
        elif event.prompt is not None:
            assert event.prompt == "name? "
            await local.input(pid, next(answers))
        elif event.exit is not None:
            assert event.exit.result == {"names": ["Ada", "Bob"]}
        else:
            seen.append((event.emit, event.stream))
    assert seen == [("Hi Ada\n", None), ("Hi Bob\n", None), ({"over": "EPIPE: the client has no more input"}, "log")]


async def test_arguments_as_words_and_as_values(admin, tmp_path) -> None:
    path = tmp_path / "args.py"
    path.write_text("async def main(n: int, tags: list[str] = [], dry_run: bool = False): return [n, tags, dry_run]\n")
    for args in (["--n", "3", "--tags", "a", "--dry-run"], {"n": 3, "tags": ["a"], "dry_run": True}):
        response = await admin.post("/run", json={"file": str(path), "args": args})
        assert lines(response)[-1]["exit"]["result"] == [3, ["a"], True]


async def test_a_failure_has_the_programs_own_frames(admin, tmp_path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    raise ValueError('bad')\nasync def main():\n    f()\n")
    ended = lines(await admin.post("/run", json={"file": str(path)}))[-1]["exit"]
    assert (ended["code"], ended["error"]) == (1, "ValueError: bad")
    assert "raise ValueError('bad')" in ended["traceback"]
    assert "kernel" not in ended["traceback"]


async def test_a_detached_program_outlives_its_request(admin, house, waiter) -> None:
    pid = (await admin.post("/run", json={"file": str(waiter), "detach": True})).json()["pid"]
    assert [p["pid"] for p in (await admin.get("/ps")).json()] == [pid]
    process = house.kernel.processes[pid]
    assert (await admin.post(f"/kill/{pid}")).status_code == 200
    status = await process.wait_exit()
    assert (status.code, status.error) == (137, "killed by the operator")
    assert (await admin.get("/ps")).json() == []


async def test_an_attached_program_does_not(house, local, waiter) -> None:
    async for event in local.run(file=waiter):
        process = house.kernel.processes[event.pid]
        break
    assert (await asyncio.wait_for(process.wait_exit(), 10)).error == "its client left"


async def test_ps_tells_what_a_program_waits_for(admin, house, waiter) -> None:
    process = house.start(WAITER)
    await house.run("async def main(): pass")  # started after it, and over: so it waits by now
    (shown,) = (await admin.get("/ps")).json()
    assert (shown["name"], shown["state"], shown["wait"]) == ("program_1", "blocked", "recv never")
    house.kernel.kill(process.pid, "the test is over")
    await process.wait_exit()


async def test_priority_and_tenant_of_a_run(admin, house, waiter) -> None:
    request = {"file": str(waiter), "detach": True, "priority": 4, "tenant": "acme"}
    pid = (await admin.post("/run", json=request)).json()["pid"]
    (shown,) = (await admin.get("/ps")).json()
    assert (shown["priority"], shown["tenant"]) == (4, "acme")
    house.kernel.kill(pid, "the test is over")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "name either a file or a program"),
        ({"file": "/x.py", "program": "x"}, "name either a file or a program"),
        ({"file": "x.py"}, "x.py is no absolute path"),
        ({"file": "/nowhere/x.py"}, "there is no file /nowhere/x.py"),
        ({"program": "nix"}, "no program 'nix' is installed"),
        ({"program": "completions"}, "parameter request is missing"),
        ({"program": "completions", "args": ["request"]}, "'request' was not expected"),
        ({"program": "completions", "args": {"n": 1}}, "there is no parameter n"),
        ({"file": 3}, "the request is not as it should be"),
        ({"fil": "x"}, "the request is not as it should be"),
    ],
)
async def test_what_cannot_run(admin, request_, message) -> None:
    response = await admin.post("/run", json=request_)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


async def test_programs_are_listed_and_described(admin, talker) -> None:
    assert "completions" in [p["name"] for p in (await admin.get("/programs")).json()]
    found = (await admin.get("/describe", params={"file": str(talker)})).json()
    assert found["name"] == "talker"
    assert found["doc"] == "Talks."
    assert found["parameters"] == [{"name": "greeting", "type": "str", "required": False, "default": '"Hello"'}]
    assert (await admin.get("/describe", params={"program": "completions"})).json()["name"] == "completions"
    assert (await admin.get("/describe")).status_code == 400


# --- processes --------------------------------------------------------------------------------------------------


async def test_processes_that_are_not_there(admin) -> None:
    response = await admin.post("/kill/77")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "ESRCH")
    response = await admin.post("/ps/77/input", json={"line": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "ESRCH")


async def test_a_line_that_nobody_waits_for(house, local, waiter) -> None:
    async for event in local.run(file=waiter, interactive=True):
        with pytest.raises(Exception, match="does not wait for input now"):
            await local.input(event.pid, "x")
        break


# --- workers ----------------------------------------------------------------------------------------------------


async def test_workers(admin, house) -> None:
    (shown,) = (await admin.get("/workers")).json()
    assert (shown["state"], shown["device"], shown["model"]) == ("ready", "none", "null")
    assert (shown["n_pages"], shown["n_free"], shown["page_size"]) == (4096, 4096, 16)
    again = await admin.post("/workers/attach", json={"address": shown["name"]})
    assert again.status_code == 400
    assert "is attached already" in again.json()["error"]["message"]
    assert (await admin.post("/workers/detach", json={"address": shown["name"]})).status_code == 200
    assert (await admin.get("/workers")).json() == []
    back = await admin.post("/workers/attach", json={"address": shown["name"]})
    assert (back.status_code, back.json()["state"]) == (200, "ready")
    response = await admin.post("/workers/detach", json={"address": "tcp://nix"})
    assert response.status_code == 400
    assert "no worker tcp://nix is attached" in response.json()["error"]["message"]
