"""Files that are carried from one kernel to another, through the endpoints' own mechanism."""

import pytest

from gpuworker.null import NullBackend
from kernel.porting import Porting
from kvfs.access import OPERATOR
from sdk.abi.errors import FileExists, InvalidArgument, Stale, SyscallError
from sdk.abi.values import OpenMode
from tests.kernel.conftest import running_house
from tests.kernel.test_durable import durable_house, n_computed, read, unlinked, write


async def export(house, path="/doc"):
    kernel = house.kernel
    file = kernel.fs.open(path, OpenMode.READ, who=OPERATOR, now=0.0)
    if kernel.durable is not None:
        for task in kernel.durable.read(file.inode):
            await task
    pieces = [piece async for piece in porting(house).export(file.inode)]
    kernel.fs.close(file, 0.0)
    return pieces


def porting(house):
    kernel = house.kernel
    return Porting(kernel.fleet, lambda: kernel.durable, lambda file: kernel.fs.close(file, 0.0))


async def take(house, pieces, path="/copy"):
    async def body():
        for piece in pieces:
            yield piece

    file = await porting(house).take(path, body())
    house.kernel.fs.close(file, 0.0)


@pytest.fixture(params=[700, 4 << 20])
def chunk(request, monkeypatch):
    monkeypatch.setattr("kernel.porting.CHUNK_BYTES", request.param)


async def test_there_and_back(house, chunk):
    expected = await house.value(write)
    data = b"".join(await export(house))
    await take(house, [data[i : i + 999] for i in range(0, len(data), 999)])
    assert (await house.value(read, path="/copy"))[2] == expected
    assert n_computed(house) == (0, 0)
    with pytest.raises(FileExists):
        await take(house, [data])
    for path in ("/doc", "/copy"):
        await house.value(unlinked, path=path)


async def test_what_is_on_disk_alone_comes_along(tmp_path, chunk):
    async with durable_house(tmp_path) as house:
        expected = await house.value(write)
        data = b"".join(await export(house))
    async with durable_house(tmp_path) as house:
        assert b"".join(await export(house)) == data
    (tmp_path / "other").mkdir()
    async with durable_house(tmp_path / "other") as house:
        await take(house, [data])
        assert (await house.value(read, path="/copy"))[2] == expected
        assert n_computed(house) == (0, 0)


async def test_what_is_missing_at_the_end_is_computed(house):
    expected = await house.value(write)
    data = b"".join(await export(house))
    await take(house, [data[: len(data) * 2 // 3]])
    assert (await house.value(read, path="/copy"))[2] == expected
    assert n_computed(house)[0] > 0
    for path in ("/doc", "/copy"):
        await house.value(unlinked, path=path)


async def test_what_is_refused(house, tmp_path):
    await house.value(write)
    data = b"".join(await export(house))
    await house.value(unlinked)
    with pytest.raises(InvalidArgument, match="not a KV file"):
        await take(house, [b"hello, this is a text and not a file of ours"])
    damaged = bytearray(data)
    damaged[-50] ^= 1
    with pytest.raises(SyscallError, match="damaged"):
        await take(house, [bytes(damaged)])
    assert [e.name for e in house.kernel.fs.readdir("/", who=OPERATOR, now=0.0)] in ([], ["home", "shared"])
    (tmp_path / "other").mkdir()
    backend = NullBackend(name="bigger", vocab_size=600, verify=True)
    async with running_house(tmp_path / "other", backends=[backend]) as other:
        with pytest.raises(Stale, match="bigger"):
            await take(other, [data])
