"""Each invariant of pins and advice is broken by hand once."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from kvfs.access import OPERATOR
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.pins import Pin
from sdk.abi.values import Advice


class Scene:
    """A file of three pages, of which two are pinned."""

    def __init__(self) -> None:
        self.fs = Kvfs()
        self.fs.add_device("w0", n_pages=8, page_size=4)
        self.f = self.fs.create(None, who=OPERATOR, now=0.0, device="w0")
        claim = self.fs.claim(self.f)
        self.fs.commit(self.fs.lease(claim, range(12)), 0.0)
        self.fs.release(claim, 0.0)
        self.fs.pin(self.f, "t", 2, math.inf)
        self.fs.advise(self.f, Advice.WILLNEED, 0.0)
        (self.pin,) = self.fs.pins.pins


def test_a_sound_one() -> None:
    assert check(Scene().fs) == []


BREAKS: list[tuple[str, Callable[[Scene], Any]]] = [
    ("the file is gone", lambda s: s.fs.files.pop(s.f.inode.ino)),
    ("it keeps nothing", lambda s: setattr(s.pin, "n_pages", 0)),
    ("was to end with its handle", lambda s: setattr(s.pin, "handle", None)),
    ("its handle is closed", lambda s: setattr(s.f, "is_open", False)),
    ("its handle has another", lambda s: s.fs.pins.pins.setdefault(Pin(s.f.inode, "t", s.f, 1, 1.0))),
    ("which is gone", lambda s: s.fs.pins.advice.setdefault(99, (Advice.DONTNEED, 0.0))),
    ("which is gone", lambda s: s.fs.pins.awaited.add(99)),
]


@pytest.mark.parametrize(("told", "break_it"), BREAKS)
def test_what_is_broken_is_told(told: str, break_it: Callable[[Scene], Any]) -> None:
    scene = Scene()
    break_it(scene)
    assert any(told in line for line in check(scene.fs))


def test_more_than_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    monkeypatch.setattr(type(scene.fs.pins), "kept", lambda self, pool, now: {1: 5})
    assert any("5 pages are kept there, and 4 may be" in line for line in check(scene.fs))
