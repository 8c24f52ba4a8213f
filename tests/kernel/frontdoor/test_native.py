"""Installed programs over HTTP: by name, with arguments, and never with code."""

import asyncio
import json

PROGRAM = '''
from sdk import process
from sdk.channel import emit, input
async def main(n: int, ask: bool = False) -> list[int]:
    """Counts."""
    for i in range(n):
        await emit({"i": i}, stream="counting")
    if ask:
        await input("name? ")
    return list(range(n))
'''


async def test_installed_programs_are_listed_and_described(public, install) -> None:
    name = install("counter", PROGRAM)
    listed = (await public.get("/v1/programs")).json()["programs"]
    assert {"name": name, "doc": f"from {name}:main"} in listed
    found = (await public.get(f"/v1/programs/{name}")).json()
    assert found["doc"] == "Counts."
    assert [p["name"] for p in found["parameters"]] == ["n", "ask"]


async def test_a_result(public, install) -> None:
    name = install("counter", PROGRAM)
    response = await public.post(f"/v1/programs/{name}", json={"args": {"n": 3}})
    assert (response.status_code, response.json()) == (200, {"result": [0, 1, 2]})


async def test_events_come_as_lines(public, install) -> None:
    name = install("counter", PROGRAM)
    response = await public.post(f"/v1/programs/{name}", json={"args": {"n": 2}, "stream": True})
    assert response.headers["content-type"] == "application/x-ndjson"
    started, *emitted, ended = [json.loads(line) for line in response.text.splitlines()]
    assert emitted == [{"emit": {"i": i}, "stream": "counting"} for i in range(2)]
    assert ended == {"exit": {"pid": started["pid"], "code": 0, "result": [0, 1]}}


async def test_nobody_answers_questions_over_http(public, install) -> None:
    name = install("counter", PROGRAM)
    response = await public.post(f"/v1/programs/{name}", json={"args": {"n": 0, "ask": True}})
    assert response.json()["error"]["code"] == "EPIPE"


async def test_a_program_that_leaves_by_exit_has_no_result(public, install) -> None:
    name = install("leaver", "from sdk import process\nasync def main(): await process.exit(0)\n")
    assert (await public.post(f"/v1/programs/{name}", json={})).json() == {"result": None}
    response = await public.post(f"/v1/programs/{name}", json={"stream": True})
    assert json.loads(response.text.splitlines()[-1])["exit"]["result"] is None


async def test_priority_and_user(public, install) -> None:
    name = install("urgent", "from sdk import process\nasync def main(): return await process.priority()\n")
    assert (await public.post(f"/v1/programs/{name}", json={"priority": -2, "user": "Ada"})).json() == {"result": -2}
    response = await public.post(f"/v1/programs/{name}", json={"priority": "high"})
    assert response.status_code == 400


async def test_wrong_requests(public, install) -> None:
    name = install("counter", PROGRAM)
    for body, message in [
        ({}, "parameter n is missing"),
        ({"args": {"n": "3"}}, "parameter n: expected int, got str"),
        ({"args": [1]}, "the request is not as it should be"),
        ({"n": 3}, "the request is not as it should be"),
    ]:
        response = await public.post(f"/v1/programs/{name}", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(message)


async def test_only_installed_programs_run(public, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("async def main(): ...\n")
    for name in ("nix", "_openai", "os", str(tmp_path / "mine.py"), "..%2f..%2fmine"):
        response = await public.post(f"/v1/programs/{name}", json={})
        assert response.status_code == 404, name


async def test_a_client_that_leaves_ends_its_program(house, remote, install) -> None:
    name = install("waiter", "from sdk.channel import Channel\nasync def main(): await Channel('never').recv()\n")
    request = {"stream": True}
    async with remote.stream("POST", f"/v1/programs/{name}", json=request) as response:
        async for line in response.aiter_lines():
            process = house.kernel.processes[json.loads(line)["pid"]]
            break
    status = await asyncio.wait_for(process.wait_exit(), 10)
    assert (status.code, status.error) == (137, "its client left")
