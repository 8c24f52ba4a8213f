"""The client of a kernel in another process; tests/kernel/frontdoor/test_admin.py has every endpoint."""

import asyncio
import socket
from pathlib import Path

import pytest

from sdk.client import Client, KernelError, NoKernel

TALKER = """
from sdk.channel import emit, input
async def main(n: int) -> list[str]:
    await emit("hello")
    return [await input(f"{i}? ") for i in range(n)]
"""
WAITER = "from sdk.channel import Channel\nasync def main(): await Channel('never').recv()\n"


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    (tmp_path / "talker.py").write_text(TALKER)
    return tmp_path / "talker.py"


async def test_running_a_program(kernel_socket: Path, talker: Path) -> None:
    seen = []
    async with Client(kernel_socket) as client:
        async for event in client.run(file=talker, args={"n": 2}, interactive=True):
            pid = event.pid or pid  # noqa: F821  (the first event has it)
            if event.prompt is not None:
                await client.input(pid, event.prompt)
            seen.append(event)
    assert seen[1].emit == "hello"
    assert [event.prompt for event in seen[2:4]] == ["0? ", "1? "]
    assert seen[-1].exit.result == ["0? ", "1? "]
    assert seen[-1].exit.pid == pid


async def test_a_detached_program_is_found_and_ended(kernel_socket: Path, tmp_path: Path) -> None:
    (tmp_path / "waiter.py").write_text(WAITER)
    async with Client(kernel_socket) as client:
        pid = await client.start(file=tmp_path / "waiter.py")
        assert pid in [process["pid"] for process in await client.ps()]
        await client.kill(pid)
        while pid in [process["pid"] for process in await client.ps()]:
            pass


async def test_what_the_kernel_has(kernel_socket: Path, talker: Path) -> None:
    async with Client(kernel_socket) as client:
        assert "completions" in [program["name"] for program in await client.programs()]
        assert (await client.describe(file=talker))["name"] == "talker"
        assert (await client.describe(program="completions"))["name"] == "completions"
        assert {entry["kind"] for entry in await client.ls()} <= {"directory"}
        assert (await client.stat("/"))["kind"] == "directory"
        assert [worker["state"] for worker in await client.workers()] == ["ready"]


async def test_refusals_are_one_line_with_a_status(kernel_socket: Path, talker: Path) -> None:
    async with Client(kernel_socket) as client:
        for call, message in [
            (client.kill(99_999), "no process 99999 is running"),
            (client.rm("/nix"), "/nix"),
            (client.stat("nix"), "nix"),
            (client.attach("tcp://nix"), "nix"),
            (client.detach("tcp://nix"), "no worker tcp://nix is attached"),
            (client.start(file=talker), "parameter n is missing"),
            (anext(client.run(file=talker, args=["--n", "x"])), "parameter n: expected int, got 'x'"),
            (anext(client.run(program="nix")), "no program 'nix' is installed"),
        ]:
            with pytest.raises(KernelError, match=message) as caught:
                await call
            assert caught.value.status == 400
            assert "\n" not in str(caught.value)


# --- kernels that are not there ---------------------------------------------------------------------------------


async def test_nothing_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for path in (tmp_path / "nix", tmp_path / "no" / "directory", tmp_path / "dead"):
        async with Client(path) as client:
            for call in (client.ps(), anext(client.run(program="x"))):
                with pytest.raises(NoKernel, match="no kernel is running; start one with `python -m kernel`"):
                    await call


async def test_a_socket_that_anybody_could_have_made_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    async with Client(tmp_path / "k.sock") as client:
        with pytest.raises(KernelError, match="others may write"):
            await client.ps()


async def test_the_usual_place_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMPHONY_SOCKET", "/some/where.sock")
    async with Client() as client:
        assert client.path == Path("/some/where.sock")


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n[", b"what?\r\n\r\n"])
async def test_a_kernel_that_dies_in_the_middle(tmp_path: Path, sent: bytes) -> None:
    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    server = await asyncio.start_unix_server(dying, tmp_path / "k.sock")
    async with Client(tmp_path / "k.sock") as client:
        for call in (client.ps(), anext(client.run(program="x"))):
            with pytest.raises(KernelError, match="the kernel went away in the middle of the request"):
                await call
    server.close()
    await server.wait_closed()


async def test_answers_that_are_no_error_objects(tmp_path: Path) -> None:
    async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 Bad\r\ncontent-length: 4\r\n\r\noops")
        writer.close()

    server = await asyncio.start_unix_server(strange, tmp_path / "k.sock")
    async with Client(tmp_path / "k.sock") as client:
        with pytest.raises(KernelError, match="the kernel answered 502"):
            await client.ps()
    server.close()
    await server.wait_closed()
