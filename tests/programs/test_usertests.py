"""usertests over the fake kernel: it passes on a sound one, and notices an unsound one."""

from typing import Any

import pytest

from programs import _usertests, usertests
from sdk import Errno
from sdk.abi import calls
from sdk.abi.table import TABLE
from sdk.abi.trap import trap
from sdk.testing import FakeKernel
from sdk.testing.process import Process


def left_behind(kernel: FakeKernel) -> list[str]:
    """Names that are in no kernel from the beginning."""
    standing = ("/home", "/home/test", "/shared", "/tmp")
    found = [(path, e.name) for path in ("/", *standing) for e in kernel.names.readdir(path)]
    return [name for path, name in found if f"{path.rstrip('/')}/{name}" not in standing]


async def test_a_sound_kernel_passes() -> None:
    async with FakeKernel(main=usertests.main) as kernel:
        result = await usertests.main()
        assert left_behind(kernel) == []
    assert result == {"passed": len(usertests.TESTS), "failed": []}
    lines = [event.data for event in kernel.events if event.stream is None]
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * len(usertests.TESTS)
    assert lines[-1].endswith("0 failures\n")


def alias(self: Process, c: calls.Fork) -> Any:
    return self.install(self.handles[c.fd])


def nothing(self: Process, c: Any) -> None:
    return None


def empty(self: Process, c: Any) -> list[int]:
    return []


@pytest.mark.parametrize(
    ("method", "broken", "notices"),
    [
        ("sys_fork", alias, "forks_part_ways"),
        ("sys_truncate", nothing, "truncate_keeps_a_prefix"),
        ("sys_positions", empty, "positions_may_leave_gaps"),
        ("sys_rename", nothing, "directories_hold_names"),
    ],
)
async def test_an_unsound_kernel_fails(method: str, broken: Any, notices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Process, method, broken)
    async with FakeKernel(main=usertests.main) as kernel:
        with pytest.raises(SystemExit) as ended:
            await usertests.main()
        assert ended.value.code == 1
        assert left_behind(kernel) == []
    said = "".join(str(event.data) for event in kernel.events)
    assert f"FAILED {notices}: " in said


async def test_what_no_test_meets_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usertests, "TESTS", [usertests.facts_of_the_model])
    async with FakeKernel(main=usertests.main) as kernel:
        with pytest.raises(SystemExit):
            await usertests.main()
    said = "".join(str(event.data) for event in kernel.events)
    assert "no test meets fork" in said
    assert "no test meets EBADF of pred" in said


async def test_refuses_is_strict() -> None:
    tally = _usertests.Tally("/x")
    async with FakeKernel():
        with pytest.raises(AssertionError, match="EBADF"):
            await tally.refuses(Errno.EINVAL, calls.Close(fd=usertests.NO_FD))
        with pytest.raises(AssertionError, match="did not fail"):
            await tally.refuses(Errno.EINVAL, calls.GetPid())
        await tally.refuses(Errno.EBADF, calls.Close(fd=usertests.NO_FD))
    assert tally.refused == {("close", Errno.EBADF)}


async def test_watch_sees_every_call() -> None:
    async with FakeKernel():
        tally = _usertests.Tally("/x")
        tally.watch()
        await trap(calls.GetPid())
    assert tally.called == {"getpid"}
    assert len(tally.unmet()) > len(TABLE)
