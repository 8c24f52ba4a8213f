"""Where a figure was taken: the machine, the commit, and how much CPU others used meanwhile.

Asks the operating system and git; imports no torch, so that a measurement without a model stays light.
"""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import psutil
from msgspec import Struct

HOUSE = Path(__file__).resolve().parents[1]
GIB = 1 << 30
FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_int8"),
    *("bf16", "i8mm", "sve", "sve2"),  # of ARM
)
NOTICEABLE_CORES = 0.05  # taken by others; from there on a figure is doubtful


class Machine(Struct, frozen=True):
    """What decides how fast things are. Equal `cpu` and `n_cores` make figures comparable."""

    cpu: str
    n_cores: int
    memory_gib: float
    flags: list[str]  # those of FLAGS that it has
    system: str = ""
    python: str = ""
    torch: str = ""

    def like(self, other: "Machine") -> bool:
        """Whether figures of the two may be compared."""
        return (self.cpu, self.n_cores) == (other.cpu, other.n_cores)

    def __str__(self) -> str:
        fast = [flag for flag in self.flags if flag != "avx2"]
        return f"{self.n_cores} x {self.cpu}, {self.memory_gib:.0f} GiB, {' '.join(fast) or 'no wide vectors'}"


def this_machine() -> Machine:
    facts = _cpuinfo()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:  # virtual machines all have the same name
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return Machine(
        cpu=name,
        n_cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
        flags=[flag for flag in FLAGS if flag in flags],
        system=platform.platform(terse=True),
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def commit() -> str:
    """The commit that was measured, with a `+` when files differ from it."""
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain")
    return "unknown" if head is None else head + ("+" if changes else "")


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], cwd=HOUSE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class Others:
    """How much CPU others take: the machine's busy time less that of this process and all it started."""

    def __init__(self) -> None:
        self._began, self._foreign = time.perf_counter(), _busy_s() - _ours_s()

    def cores(self) -> float:
        """Since this object was made, in cores."""
        elapsed = max(1e-9, time.perf_counter() - self._began)
        return max(0.0, _busy_s() - _ours_s() - self._foreign) / elapsed


def _busy_s() -> float:
    spent = psutil.cpu_times()
    return float(sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0))


def _ours_s() -> float:
    """CPU of this process, its living descendants, and all of their dead children that were waited for."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system + spent.children_user + spent.children_system
    return total
