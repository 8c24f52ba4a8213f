"""The heartbeat, as the other end of its pipe sees it."""

import asyncio
import os

import pytest

from kernel.heart import ENDING, LOADING, UP, Heart


@pytest.fixture
def pipe():
    r, w = os.pipe()
    os.set_blocking(r, False)
    yield r, w
    os.close(r)
    os.close(w)


def heard(fd):
    try:
        return os.read(fd, 1000)
    except BlockingIOError:
        return b""


def test_without_a_supervisor_there_is_none():
    heart = Heart()
    heart.beat()
    heart.end()
    with heart.loading():
        pass


async def test_it_beats_with_the_loop(pipe):
    r, w = pipe
    heart = Heart()
    heart.start(w, asyncio.get_running_loop())
    beats = b""
    while len(beats) < 3:
        beats += heard(r)
        await asyncio.sleep(0)
    assert set(beats) == set(UP)
    heart.stop()


async def test_it_says_what_the_kernel_does(pipe):
    r, w = pipe
    heart = Heart()
    heart.start(w, asyncio.get_running_loop())
    assert heard(r) == UP
    with heart.loading():
        assert heard(r) == LOADING
        with heart.loading():
            pass
        assert heard(r)[-1:] == LOADING
    assert heard(r) == UP  # what runs next is not given the patience that a load is
    heart.end()
    assert heard(r) == ENDING
    heart.stop()


async def test_a_beat_beside_the_loop_is_no_more_often(pipe):
    r, w = pipe
    heart = Heart()
    heart.start(w, asyncio.get_running_loop())
    for _ in range(100):
        heart.beat()
    assert len(heard(r)) <= 2
    heart.stop()


async def test_a_supervisor_that_is_gone():
    gone, mine = os.pipe()
    os.close(gone)
    heart = Heart()
    heart.start(mine, asyncio.get_running_loop())
    heart.end()
    heart.stop()
    os.close(mine)


async def test_a_supervisor_that_does_not_listen(pipe):
    _, w = pipe
    heart = Heart()
    heart.start(w, asyncio.get_running_loop())
    for _ in range(70_000):  # more than a pipe holds
        heart.end()
    heart.stop()
