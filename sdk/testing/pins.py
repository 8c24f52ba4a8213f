"""Pins in the fake kernel. There is room for everything, so all that is asked is granted, and nothing ever moves."""

from typing import NamedTuple

from sdk.abi.values import Fd, Pid

Holder = tuple[Pid, Fd]


class Pin(NamedTuple):
    """One handle's word that pages stay."""

    n_pages: int
    until_s: float | None  # None: while the handle is open
    is_named: bool  # then it ends with the name


class FilePins:
    """The pins of one file."""

    def __init__(self) -> None:
        self.held: dict[Holder, Pin] = {}
        self.left: Pin | None = None  # by the last closed handle that had one with a time

    def end(self, who: Holder) -> None:
        """Unpin what this handle has, and what closed ones have left."""
        self.held.pop(who, None)
        self.left = None

    def closed(self, who: Holder) -> None:
        pin = self.held.pop(who, None)
        if pin is None or pin.until_s is None or not pin.is_named:
            return
        if self.left is None or self.left.until_s is None or self.left.until_s < pin.until_s:
            self.left = pin

    def at(self, now: float, *, has_name: bool) -> tuple[int, float | None]:
        """How many pages are pinned, and until when."""
        pins = [*self.held.values(), *([self.left] if self.left is not None else [])]
        pins = [p for p in pins if (p.until_s is None or p.until_s > now) and (has_name or not p.is_named)]
        ends = [p.until_s for p in pins if p.until_s is not None]
        return max((p.n_pages for p in pins), default=0), max(ends) if ends and len(ends) == len(pins) else None
