"""A whole kernel in the test's event loop, with null workers that speak the real wire over a real socket.

After every test the file system passes fsck and nothing is leaked: no page, handle, claim, lease or process.
"""

import asyncio
import itertools
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuworker.null import NullBackend
from gpuworker.serve import Server
from kernel import dispatch, stepper
from kernel.boot import SYSTEM_CALLS  # noqa: F401  (imports the handlers)
from kernel.client import Client
from kernel.config import Config
from kernel.core import Kernel
from kernel.link import StreamTransport
from kernel.loader import Program, load_file
from kvfs import fsck
from kvfs.access import KERNEL
from kvfs.inode import Inode
from sdk.abi.values import ExitStatus


@contextmanager
def null_worker(address: str, backend: Any = None, **options: Any) -> Iterator[Server]:
    """A worker thread with the null backend (or another device of the caller's) behind the real socket."""
    server = Server(address, name=address)
    thread = threading.Thread(target=server.run, args=(backend or NullBackend(**options),), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop("the test is over")
        thread.join(10)
        server.close()


class House:
    """What a test holds: the kernel, and short ways to run programs in it."""

    def __init__(self, kernel: Kernel, directory: Path) -> None:
        self.kernel = kernel
        self.directory = directory
        self._n_files = 0

    def program(self, source: str | Callable[..., Coroutine[Any, Any, Any]]) -> Program:
        """A program from source text, or from a coroutine function of the test."""
        if callable(source):
            return Program(source.__name__, source, Path(__file__), source.__doc__ or "")
        self._n_files += 1
        path = self.directory / f"program_{self._n_files}.py"
        path.write_text(textwrap.dedent(source))
        return load_file(path)

    def start(self, source: Any, client: Client | None = None, **args: Any) -> Any:
        program = self.program(source)
        return self.kernel.spawn(program, args, owner="local", client=client)

    async def run(self, source: Any, client: Client | None = None, **args: Any) -> ExitStatus:
        status: ExitStatus = await self.start(source, client, **args).wait_exit()
        return status

    async def value(self, source: Any, **args: Any) -> Any:
        """The returned value of a program that must succeed."""
        status = await self.run(source, **args)
        assert status.code == 0, f"{status.error}\n{status.traceback}"
        return msgspec.json.decode(status.result)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let everybody else run until something is so."""
        while not condition():  # noqa: ASYNC110  (nobody would set an event)
            await asyncio.sleep(0)

    def lose(self, name: str) -> None:
        """Cut the link to a worker, as its death would."""
        self.kernel.fleet.lost(name, "the test cut it off")

    def clear_caches(self) -> None:
        """Remove what programs have left in the cache directories of their users."""
        fs = self.kernel.fs
        for path, node in list(fs.names.walk(fs.names.root)):
            if "/.cache/" in path and isinstance(node, Inode):
                fs.unlink(path, who=KERNEL, now=self.kernel.now())

    def n_pages_used(self) -> int:
        return sum(d.n_pages - d.n_free for d in self.kernel.fs.devices().values())


@asynccontextmanager
async def running_house(
    directory: Path, n_workers: int = 1, backends: Sequence[Any] = (), **options: Any
) -> AsyncIterator[House]:
    """A kernel with null workers, or devices of the caller's. `options` are Config's or NullBackend's. Checks for
    leaks."""
    loop = asyncio.get_running_loop()
    stepper.install(loop)
    configured = {
        name: options.pop(name)
        for name in list(options)
        if name in Config.__struct_fields__ and name not in ("num_pages", "max_model_len")
    }
    config = Config(
        **{"heartbeat_s": 0.2, "seed": 1, "attach_timeout_s": 5.0} | configured, http=False, socket=directory / "k.sock"
    )
    kernel = Kernel(config, dispatch.make_door, StreamTransport())
    with ExitStack() as stack:
        try:
            for i, backend in enumerate(backends or [None] * n_workers):
                address = f"ipc://{directory}/w{i}"
                stack.enter_context(null_worker(address, backend, verify=True, **options))
                await kernel.attach(address)
            house = House(kernel, directory)
            yield house
            await settled(house)
            assert not kernel.panicked.done(), repr(kernel.panicked.result())
            house.clear_caches()
            assert house.n_pages_used() == 0, "pages leaked"
            assert fsck.check(kernel.fs) == []
        finally:
            await kernel.stop(5.0)
            loop.set_task_factory(None)
    assert not kernel.panicked.done(), repr(kernel.panicked.result())
    assert fsck.check(kernel.fs) == []
    assert not kernel.processes


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A kernel with one null worker."""
    async with running_house(tmp_path) as house:
        yield house


@pytest.fixture
def make_house(tmp_path: Path) -> Callable[..., Any]:
    """Houses with other workers: `async with make_house(n_workers=2) as house`."""
    numbers = itertools.count()

    def make(**options: Any) -> Any:
        directory = tmp_path / f"house{next(numbers)}"
        directory.mkdir()
        return running_house(directory, **options)

    return make


@pytest.fixture
def null_at(tmp_path: Path) -> Callable[..., Any]:
    """A worker that no kernel has attached: `with null_at("name", backend) as address`."""

    @contextmanager
    def serve(name: str, backend: Any) -> Iterator[str]:
        address = f"ipc://{tmp_path}/{name}"
        with null_worker(address, backend):
            yield address

    return serve


@pytest.fixture
async def kernel(house: House) -> Kernel:
    return house.kernel


async def settled(house: House) -> None:
    """Wait until no batch is in flight: jobs whose caller went away end with theirs."""
    while busy := [a for a in house.kernel.fleet.all_attached() if a.batcher.busy]:
        await busy[0].changed()
