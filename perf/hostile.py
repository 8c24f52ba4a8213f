"""Programs that hold the kernel, or refuse to end: what `python -m perf guard` and tests/chaos let loose on it.

It is itself a program, so that each kind can be run by hand: `lip run perf/hostile.py --kind swallows`. Every kind goes
on for ever if nothing ends it.
"""

# ruff: noqa: ASYNC221, ASYNC251, B012, RUF006, SIM105  (they are what they should not be)

import asyncio
import contextlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sdk import kv
from sdk.abi.errors import QuotaExceeded

Kind = Callable[[], Awaitable[Any]]


async def main(kind: str) -> Any:
    """Misbehave in the way called `kind`."""
    return await KINDS[kind]()


# --- one step that does not end ---------------------------------------------------------------------------------


def spin() -> None:
    while True:
        pass


async def busy() -> None:
    spin()


async def sleeps() -> None:
    time.sleep(3600)


async def receives() -> None:
    a, b = socket.socketpair()
    with a, b:
        a.recv(1)


async def regex() -> None:
    re.match(r"(a|a)*b", "a" * 60)


async def big_power() -> None:
    while True:
        _ = 7 ** (10**6)


async def long_text() -> None:
    sys.set_int_max_str_digits(0)
    while True:
        str(3 ** (10**5))


async def locks() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


async def dequeues() -> None:
    queue.Queue[int]().get()


async def subprocess_run() -> None:
    subprocess.run(["sleep", "3600"], check=True)


# --- and that catches what would end it -------------------------------------------------------------------------


async def swallows() -> None:
    while True:
        try:
            spin()
        except BaseException:
            pass


async def swallows_deep() -> None:
    while True:
        try:
            while True:
                try:
                    while True:
                        try:
                            spin()
                        except BaseException:
                            pass
                except BaseException:
                    pass
        except BaseException:
            pass


async def suppresses() -> None:
    while True:
        with contextlib.suppress(BaseException):
            spin()


async def finally_continues() -> None:
    while True:
        try:
            spin()
        finally:
            continue


async def recurses() -> None:
    def deeper(n: int) -> None:
        try:
            spin()
        except BaseException:
            deeper(n + 1)

    deeper(0)


async def retries() -> None:
    errors: list[BaseException] = []
    for _ in range(10**9):
        try:
            re.match(r"(a|a)*b", "a" * 60)
        except BaseException as e:
            errors[:] = [e]


async def generates() -> None:
    def stubborn() -> Iterator[int]:
        while True:
            try:
                yield 1
            except BaseException:
                pass

    while True:
        try:
            for _ in stubborn():
                pass
        except BaseException:
            pass


class Clingy:
    def __del__(self) -> None:
        spin()


async def finalizes() -> None:
    while True:
        try:
            Clingy()
        except BaseException:
            pass


# --- and that will not be cancelled -----------------------------------------------------------------------------


async def uncancellable() -> None:
    """Swallows what it is told while it waits, and then holds the kernel."""
    while True:
        try:
            await asyncio.sleep(0)
            spin()
        except BaseException:
            pass


async def spins_at_close() -> None:
    """Is ended while it waits, and holds the kernel in its own cleaning up."""
    asyncio.get_running_loop().call_later(0.01, spin)
    try:
        await asyncio.Event().wait()
    finally:
        while True:
            try:
                spin()
            except BaseException:
                pass


async def exits() -> None:
    """Leaves in every way there is, from many threads at once."""

    async def leave(error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    errors = (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RecursionError())
    await asyncio.gather(*(leave(e) for e in errors), return_exceptions=True)
    await asyncio.Event().wait()


# --- by numbers -------------------------------------------------------------------------------------------------


async def gathers() -> None:
    async def part() -> None:
        spin()

    await asyncio.gather(*(part() for _ in range(50)))


async def breeds() -> None:
    """Makes threads that make threads; those that are refused try again for ever."""

    async def breeder() -> None:
        while True:
            try:
                asyncio.create_task(breeder())
            except QuotaExceeded:
                pass
            await asyncio.sleep(0.001)

    asyncio.create_task(breeder())
    await asyncio.sleep(0.2)
    raise RuntimeError("it could breed for as long as it liked")


async def deep_awaits() -> None:
    async def deeper(n: int) -> None:
        if n:
            await deeper(n - 1)
        else:
            spin()

    await deeper(200)


async def calls_back() -> None:
    """Leaves the work to the event loop, where it is no step of anybody's."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        loop.call_soon(spin)
    await asyncio.Event().wait()


async def schedules() -> None:
    loop = asyncio.get_running_loop()
    while True:
        loop.call_soon(len, ())


async def asks() -> None:
    """Catches everything while it computes, with files open and a generation under way."""
    file = await kv.prompt("some text that takes a few pages of its own")
    forks = [await file.fork() for _ in range(3)]
    work = [asyncio.create_task(f.text(max_tokens=1000)) for f in forks]
    while True:
        try:
            await asyncio.wait(work, timeout=0.001)
            spin()
        except BaseException:
            pass


KINDS: dict[str, Kind] = {
    k.__name__: k
    for k in (
        busy, sleeps, receives, regex, big_power, long_text, locks, dequeues, subprocess_run, swallows, swallows_deep,
        suppresses, finally_continues, recurses, retries, generates, finalizes, uncancellable, spins_at_close, exits,
        gathers, breeds, deep_awaits, calls_back, schedules, asks,
    )
}  # fmt: skip
