"""Programs that hold the kernel are ended, whatever they catch; those that do not are left alone.

The whole list of mischief (perf/hostile.py) runs against a real kernel in tests/chaos. Here are the rules one by one.
"""

import asyncio
import contextlib
import itertools
import linecache
import queue
import re
import signal
import sys
import threading
import time

import pytest

from kernel import stepper, storm
from kernel.guard import XCPU, guard
from kernel.process import KILLED
from sdk import kv, model, process
from sdk.abi.errors import Killed

SOFT_S, HARD_S = 0.005, 0.1


@pytest.fixture
async def guarded(house):
    """A house under guard. The budget is small, so that the tests are short."""
    began: list[float] = []
    loop = asyncio.get_running_loop()
    who = lambda: stepper.current.get(None)  # noqa: E731
    guard.start(loop, SOFT_S, HARD_S, who=who, on_turn=lambda: began.append(loop.time()))
    try:
        yield house
    finally:
        guard.stop()
    assert not guard.over
    assert guard.owner is None
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def spin():
    while True:
        pass


async def alive():
    async with await kv.prompt("hello") as f:
        return len(await f.text(max_tokens=4)) > 0


async def overran(house, main, line):
    """`main` is ended for holding the kernel, at the line that holds the words of `line`; and others are not."""
    status = await house.run(main)
    assert status.code == XCPU, status
    found = re.fullmatch(r"(\w+) held the kernel for \d+ ms at (.+):(\d+): await .+", status.error)
    assert found, status.error
    assert found[1] == main.__name__
    assert line in linecache.getline(found[2], int(found[3]))
    assert await house.value(alive) is True


# --- what is interrupted ------------------------------------------------------------------------------------------


async def test_a_loop(guarded):
    async def busy():
        while "busy":
            pass

    await overran(guarded, busy, 'while "busy"')


async def test_a_call_that_blocks(guarded):
    async def sleeps():
        time.sleep(3600)  # noqa: ASYNC251

    await overran(guarded, sleeps, "time.sleep")


async def test_a_library_that_blocks_is_blamed_on_its_caller(guarded):
    async def waits():
        queue.Queue().get()

    await overran(guarded, waits, "queue.Queue().get()")


async def test_a_library_that_is_busy(guarded, caplog):
    """It runs Python code of the standard library's, which no line of the program's interrupts."""

    async def compiles():
        re.compile("(a|b)" * 50_000)

    await overran(guarded, compiles, "re.compile")
    assert "inside a library" in caplog.text


async def test_a_thread_beside_the_main_one(guarded):
    async def two():
        asyncio.create_task(asyncio.to_thread(int))
        asyncio.create_task(other())
        await asyncio.sleep(3600)

    async def other():
        spin()

    await overran(guarded, two, "while True")


async def test_a_callback_of_the_event_loop(guarded, caplog):
    async def leaves():
        for _ in range(5):
            asyncio.get_running_loop().call_soon(spin)
        await asyncio.sleep(3600)

    await overran(guarded, leaves, "while True")
    assert "Traceback" not in caplog.text


async def test_many_threads_that_take_turns(guarded):
    """None of them is over its budget, but nobody else gets a turn before the last one has had its own."""

    async def crowd():
        await asyncio.gather(*(part() for _ in range(500)))

    async def part():
        until = time.perf_counter() + SOFT_S / 3
        while time.perf_counter() < until:
            pass

    await overran(guarded, crowd, "perf_counter() < until")


async def test_cleaning_up(guarded):
    """Somebody else ends it, and it holds the kernel then."""

    async def clings():
        try:
            await asyncio.sleep(3600)
        finally:
            spin()

    p = guarded.start(clings)
    await asyncio.sleep(0)
    guarded.kernel.kill(p.pid, "enough")
    status = await p.wait_exit()
    assert (status.code, status.error) == (KILLED, "enough")


# --- what catches the first exception -------------------------------------------------------------------------------


async def test_it_may_clean_up(guarded):
    """The first exception is an ordinary one: `finally` works, also with an `await` in it, which then is the last."""
    seen = []

    async def tidy():
        try:
            spin()
        except Killed as e:
            seen.append(type(e).__name__)
            raise
        finally:
            seen.append("finally")
            await asyncio.sleep(0)
            seen.append("never")

    await overran(guarded, tidy, "while True")
    assert seen == ["Overrun", "finally"]


async def nested():
    while True:
        try:
            while True:
                try:
                    spin()
                except BaseException:
                    pass
        except BaseException:
            pass


async def suppressed():
    while True:
        with contextlib.suppress(BaseException):
            spin()


async def finally_continued():
    while True:
        try:
            spin()
        finally:
            continue  # noqa: B012


async def recursive():
    def deeper():
        try:
            spin()
        except BaseException:
            deeper()

    deeper()


async def finalized():
    class Clingy:
        def __del__(self):
            spin()

    while True:
        try:
            Clingy()
        except BaseException:
            pass


async def awaits_again():
    while True:
        try:
            await asyncio.sleep(0)
            spin()
        except BaseException:
            pass


@pytest.mark.parametrize("main", [nested, suppressed, finally_continued, recursive, finalized, awaits_again])
async def test_swallowing(guarded, main):
    hook = sys.unraisablehook
    await overran(guarded, main, "while True")
    assert sys.unraisablehook is hook


async def test_swallowing_around_a_library(guarded):
    """The library puts down what it holds before the program meets the storm."""
    shared = queue.Queue()

    async def waits():
        while True:
            try:
                shared.get()
            except BaseException:
                pass

    await overran(guarded, waits, "shared.get()")
    assert shared.mutex.acquire(blocking=False)


async def test_a_storm_ends_with_its_step(guarded):
    """What runs next on this thread is not hit: neither in Python code nor between two calls of it."""
    for main in (nested, awaits_again) * 3:
        assert (await guarded.run(main)).code == XCPU
        for _ in range(1000):
            int("1")
        assert await guarded.value(alive) is True


# --- what is not ------------------------------------------------------------------------------------------------------


async def test_time_in_the_kernel_is_not_the_programs(guarded):
    """A call that keeps the kernel busy for longer than a program may be: a long text to tokenize."""

    async def asks():
        return [len(await model.tokenize("word " * 10_000)) for _ in range(3)]

    assert await guarded.value(asks) == [50_000] * 3


async def test_one_call_after_the_other(guarded):
    """Calls that are answered at once do not go through the loop; a program that makes many lets others go between."""
    turns = []

    async def asks():
        other = asyncio.create_task(counts())
        until = time.perf_counter() + 6 * SOFT_S
        while time.perf_counter() < until:
            await process.getpid()
        other.cancel()

    async def counts():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    assert await guarded.value(asks) is None
    assert len(turns) > 1


async def test_a_program_that_waits(guarded):
    async def waits():
        for _ in range(20):
            await process.sleep(0.001)
        return "done"

    assert await guarded.value(waits) == "done"


async def test_work_in_a_thread_of_its_own(guarded):
    async def works():
        return await asyncio.to_thread(time.sleep, 4 * SOFT_S)

    assert await guarded.value(works) is None


async def test_nothing_is_interrupted_while_a_debugger_traces(guarded):
    async def traced():
        sys.settrace(lambda *_: None)
        try:
            until = time.perf_counter() + 4 * SOFT_S
            while time.perf_counter() < until:
                pass
        finally:
            sys.settrace(None)
        return "went on"

    assert await guarded.value(traced) == "went on"


async def test_the_timer_rests_when_nobody_runs(guarded):
    while not guard.asleep:  # noqa: ASYNC110
        await asyncio.sleep(SOFT_S)
    assert await guarded.value(alive) is True


async def test_a_look_in_the_middle_of_stopping_sets_no_timer(guarded, monkeypatch):
    set_timer = signal.setitimer

    def set_it_late(*args):
        set_timer(*args)
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(signal, "setitimer", set_it_late)
    guard.stop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_stop_without_start():
    guard.stop()


# --- the storm by itself ----------------------------------------------------------------------------------------------


def test_the_end_of_a_storm_that_nobody_has_met():
    """As when a program is interrupted, and gives way at the first exception."""
    seen = []
    try:
        storm.end()
        seen.append("no Calm")
    except storm.Calm:
        seen.append("Calm")
    assert seen == (["no Calm"] if sys.version_info >= (3, 12) else ["Calm"])
    assert list(map(str, range(3))) == ["0", "1", "2"]


def test_other_threads_are_spared():
    """They run while a storm is on."""
    counts = []
    ended = threading.Event()
    hog = compile("import sys\nbegin(sys._getframe())\nwhile True: pass", "hog.py", "exec")

    def count():
        for i in itertools.count():
            counts[:] = [i]
            if ended.is_set():
                return

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(20):
            with contextlib.suppress(storm.Overrun, storm.Calm):
                try:
                    exec(hog, {"begin": lambda frame: storm.begin(frame, lambda name: name == "hog.py")})
                finally:
                    try:
                        storm.end()
                    except storm.Calm:
                        pass
        before = counts[0]
        while counts[0] == before:
            pass
    finally:
        ended.set()
        thread.join()
