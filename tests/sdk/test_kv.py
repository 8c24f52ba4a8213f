"""`sdk.kv` over the fake kernel: what is computed, what is closed, what is left as it was."""

import asyncio
import contextlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import (
    BadFile,
    Busy,
    Decoding,
    DeviceLost,
    Errno,
    FileExists,
    FileNotFound,
    InvalidArgument,
    Message,
    Sampling,
    kv,
    rusage,
)
from sdk.abi import calls
from sdk.abi.errors import AccessDenied, NotSupported
from sdk.abi.values import FinishReason
from sdk.kv import DecodingFields
from sdk.testing import FakeKernel

TOKENS = st.lists(st.integers(0, 255), max_size=12)


async def n_computed() -> int:
    return (await rusage()).n_prompt_tokens


# --- computing ---


async def test_append_takes_text_lists_and_arrays() -> None:
    async with FakeKernel(), await kv.create() as file:
        assert await file.append("ab") == 2
        assert await file.append([99, 100]) == 2
        assert await file.append(array("I", [101])) == 1
        assert await file.read_text() == "abcde"
        assert await n_computed() == 5


async def test_pred_answers_for_the_last_token() -> None:
    async with FakeKernel(), await kv.create() as file:
        dist = await file.pred("abc", top_k=4, entropy=True, logprobs_of=[97])
        assert dist.position == 2
        assert len(dist.top_tokens) == 4
        assert dist.entropy is not None
        assert dist.logprobs_of.keys() == {97}


async def test_pred_all_answers_where_asked() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        assert [d.position for d in await file.pred_all("abc")] == [1, 2, 3]
        dists = await file.pred_all("de", at=[-1, 1], targets=[100, 101])
        assert [d.position for d in dists] == [3, 5]
        assert all(d.target_logprob is not None for d in dists)


async def test_pred_takes_positions() -> None:
    async with FakeKernel(), await kv.create() as file:
        await file.pred("ab", positions=[3, 7])
        await file.append("c")
        assert await file.positions() == [3, 7, 8]


async def test_next_computes_nothing_and_knows_the_same() -> None:
    async with FakeKernel(), await kv.create() as file:
        last = await file.pred("hello")
        before = await n_computed()
        assert await file.next() == last
        assert await n_computed() == before


async def test_next_on_an_empty_file_is_refused() -> None:
    async with FakeKernel(), await kv.create() as file:
        with pytest.raises(InvalidArgument):
            await file.next()


async def test_score_is_what_pred_says_and_leaves_the_file() -> None:
    async with FakeKernel(), await kv.prompt("Once ") as file:
        scores = await file.score("upon")
        assert await file.read_text() == "Once "
        expected = []
        for letter in b"upon":
            expected.append((await file.next(logprobs_of=[letter])).logprobs_of[letter])
            await file.append([letter])
        assert scores == expected
        assert await file.score("") == []


async def test_score_closes_its_fork_when_it_fails() -> None:
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        kernel.fail("pred", Errno.EIO)
        with pytest.raises(DeviceLost):
            await file.score("abc")
        assert isinstance(kernel.calls[-1], calls.Close)


@given(TOKENS, TOKENS)
def test_keep_computes_what_is_not_there_yet(held: list[int], wanted: list[int]) -> None:
    async def main() -> None:
        async with FakeKernel(), await kv.create() as file:
            await file.append(held)
            before = await n_computed()
            n = await file.keep(wanted)
            assert await file.tokens() == wanted
            assert n == await n_computed() - before
            n_same = len(wanted) - n
            assert held[:n_same] == wanted[:n_same]
            assert n == 0 or held[n_same : n_same + 1] != wanted[n_same : n_same + 1]

    asyncio.run(main())


# --- editing ---


async def test_rights_and_names() -> None:
    async with FakeKernel():
        before = await kv.umask(mode=0o077)
        async with await kv.create("~/f") as f, await f.dup("r") as reader:
            assert (before, (await f.stat()).mode) == (0o022, 0o700)
            await f.append([1, 2])
            assert await reader.tokens() == [1, 2]
            with pytest.raises(AccessDenied):
                await reader.append([3])
            with pytest.raises(AccessDenied):
                await reader.dup("w")
            async with await reader.dup() as same, await f.dup("w") as writer:
                assert (await same.tokens(), await writer.append([3])) == ([1, 2], 1)
        await kv.link("~/f", "/tmp/g")
        await kv.chmod("~/f", 0o644)
        assert ((await kv.stat("/tmp/g")).mode, (await kv.stat("/tmp/g")).n_links) == (0o644, 2)
        with pytest.raises(AccessDenied):
            await kv.chown("~/f", owner="somebody")
        quota, (space,) = await kv.quota(), await kv.df()
        assert (quota.n_files, quota.n_pages, space.n_pages - space.n_free) == (1, 1, 1)


async def test_extract_and_merge_make_files_without_computing() -> None:
    async with FakeKernel() as kernel, await kv.create() as file:
        await file.append("abcdef")
        async with await file.extract((0, 1), (3, 5)) as kept, await file.extract((1, 4), positions="pack") as packed:
            assert (await kept.read_text(), await kept.positions()) == ("ade", [0, 3, 4])
            assert (await packed.read_text(), await packed.positions()) == ("bcd", [0, 1, 2])
            async with await kv.merge(packed, kept, path="/both") as both:
                assert (await both.read_text(), await both.positions()) == ("bcdade", list(range(6)))
            with pytest.raises(InvalidArgument):
                await kv.merge(kept, packed, positions="keep")
        assert [(await f.stat()).edited for f in (file, await kv.open("/both"))] == [False, True]
        assert await n_computed() == 6
        with pytest.raises(FileExists):
            await file.extract((0, 1), path="/both")
        kernel.fail("merge", Errno.EIO)
        with pytest.raises(DeviceLost):
            await kv.merge(file)


async def test_splice_cuts_a_span_out_or_puts_a_file_in() -> None:
    async with FakeKernel(), await kv.create() as file, await kv.create() as other:
        await file.append("abcdef")
        await other.append("XY")
        await file.splice(1, 3)
        assert (await file.read_text(), await file.positions()) == ("adef", [0, 3, 4, 5])
        await file.splice(1, 1, other)
        assert (await file.read_text(), await file.positions()) == ("aXYdef", list(range(6)))
        with pytest.raises(InvalidArgument):
            await file.splice(0, 0, other, positions="keep")
        stream = file.stream(max_tokens=9)
        await anext(stream)
        with pytest.raises(Busy):
            await file.splice(0, 1)
        await stream.aclose()


# --- generating ---


async def test_generate_gives_what_the_file_gains() -> None:
    async with FakeKernel(), await kv.create() as file:
        got = await file.generate("Tell me", Sampling(temperature=1.0, seed=3), max_tokens=8, logprobs=0)
        assert await file.read_text() == "Tell me" + got.text
        assert [p.token for p in got.logprobs] == got.tokens


async def test_text_takes_one_stop_or_many() -> None:
    async with FakeKernel(replies=["one. two.", "one. two.", "three"]), await kv.create() as file:
        assert await file.text(prompt="x", stop=".") == "one"
        assert await file.text(stop=["!", " t"], include_stop=True) == "one. t"
        assert await file.text(max_tokens=3) == "thr"
        assert await file.read_text() == "xoneone. tthr"


async def test_a_misspelt_decoding_field_is_an_error() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        with pytest.raises(TypeError, match="max_token"):
            await file.text(max_token=3)  # type: ignore[call-arg]


def test_decoding_fields_are_those_of_decoding() -> None:
    assert DecodingFields.__annotations__.keys() == set(Decoding.__struct_fields__) - {"sampling"}


async def test_stream_says_what_generate_says() -> None:
    async with FakeKernel(), await kv.prompt("x") as file, await file.fork() as twin:
        chunks = [chunk async for chunk in file.stream(max_tokens=9, ignore_eos=True)]
        got = await twin.generate(max_tokens=9, ignore_eos=True)
        assert "".join(c.text for c in chunks) == got.text
        assert [c.finish for c in chunks] == [None] * 8 + [FinishReason.LENGTH]
        assert await file.tokens() == await twin.tokens()


async def test_an_exhausted_stream_is_over() -> None:
    async with FakeKernel(replies=["ab"]) as kernel, await kv.prompt("x") as file:
        stream = file.stream()
        assert [c.text async for c in stream] == ["a", "b"]
        assert [c.text async for c in stream] == []
        await stream.aclose()
        assert not any(isinstance(call, calls.Close) for call in kernel.calls)


async def test_a_stream_begins_when_it_is_asked_for_a_chunk() -> None:
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        stream = file.stream()
        assert not any(isinstance(call, calls.Stream) for call in kernel.calls)
        await stream.aclose()
        assert [c async for c in stream] == []
        await file.append("y")


async def test_after_a_break_the_file_can_be_used_at_once() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        async for _ in file.stream(ignore_eos=True):
            break
        await file.append("y")
        assert len(await file.tokens()) == 3


@pytest.mark.parametrize("method", ["truncate", "next", "generate", "stream", "close"])
async def test_each_use_ends_a_stream_left_behind(method: str) -> None:
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        async for _ in file.stream(ignore_eos=True):
            break
        match method:
            case "truncate":
                await file.truncate(1)
            case "next":
                await file.next()
            case "generate":
                await file.generate(max_tokens=1)
            case "stream":
                assert [c async for c in file.stream(max_tokens=1)]
            case "close":
                await file.close()
        assert any(isinstance(call, calls.Close) for call in kernel.calls)


async def test_a_stream_left_behind_ends_by_itself() -> None:
    """The program goes on to other things: the generation must not run to its end meanwhile."""
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        async for _ in file.stream(ignore_eos=True):
            break
        for _ in range(3):
            await asyncio.sleep(0)
        assert any(isinstance(call, calls.Close) for call in kernel.calls)
        n = len(await file.tokens())
        await file.append("y")
        assert len(await file.tokens()) == n + 1


async def test_an_exception_in_the_loop_ends_the_stream() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:

        async def stumble() -> None:
            async for _ in file.stream(ignore_eos=True):
                raise KeyError

        with pytest.raises(KeyError):
            await stumble()
        await file.append("y")


async def test_a_cancelled_reader_ends_the_stream() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:

        async def read() -> None:
            async for _ in file.stream(ignore_eos=True):
                pass

        task = asyncio.create_task(read())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await file.append("y")


async def test_a_stream_is_closed_by_aclosing() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        async with contextlib.aclosing(file.stream(ignore_eos=True)) as stream:
            await anext(stream)
        assert [c async for c in stream] == []
        await file.append("y")


async def test_an_error_of_the_generation_ends_the_stream() -> None:
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        stream = file.stream(ignore_eos=True)
        await anext(stream)
        kernel.fail("read", Errno.EIO)
        with pytest.raises(DeviceLost):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await file.append("y")


async def test_two_readers_of_one_stream_do_not_end_it() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        stream = file.stream(ignore_eos=True)
        await anext(stream)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await anext(stream)
        assert (await first).tokens
        assert (await anext(stream)).tokens


async def test_a_running_stream_keeps_its_file_busy() -> None:
    async with FakeKernel(), await kv.prompt("x") as file:
        stream = file.stream(ignore_eos=True)
        await anext(stream)
        with pytest.raises(Busy):
            await file.append("y")
        await stream.aclose()


# --- closing ---


async def test_close_twice_and_leave() -> None:
    async with FakeKernel():
        async with await kv.prompt("x") as file:
            await file.close()
            await file.close()
        with pytest.raises(BadFile):
            await file.tokens()


async def test_leaving_does_not_mind_a_handle_closed_below() -> None:
    async with FakeKernel() as kernel, await kv.prompt("x"):
        kernel.fail("close", Errno.EBADF)


async def test_a_cancelled_program_closes_its_files() -> None:
    async with FakeKernel() as kernel:

        async def hold() -> None:
            async with await kv.prompt("x"):
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(kernel.calls[-1], calls.Close)


# --- files by name ---


async def test_names_outlive_handles() -> None:
    async with FakeKernel():
        await kv.mkdir("/docs")
        async with await kv.prompt("text", "/docs/a"):
            pass
        async with await kv.open("/docs/a", "r") as file:
            assert await file.read_text() == "text"
            with pytest.raises(AccessDenied):
                await file.append("more")
            async with await file.fork("/docs/b") as fork:
                await fork.append("ual")
        assert [entry.name for entry in await kv.readdir("/docs")] == ["a", "b"]
        await kv.rename("/docs/b", "/docs/c")
        assert (await kv.stat("/docs/c")).n_tokens == 7
        await kv.unlink("/docs/a")
        with pytest.raises(FileNotFound):
            await kv.open("/docs/a")


async def test_a_named_file_appears_when_it_is_complete() -> None:
    """Whoever opens a file by name must never find half of it."""
    async with FakeKernel() as kernel:
        kernel.fail("pred", Errno.EIO)
        with pytest.raises(DeviceLost):
            await kv.prompt("text", "/a")
        assert await kv.readdir() == []
        async with await kv.prompt("text", "/a"):
            with pytest.raises(FileExists):
                await kv.prompt("other", "/a")


async def test_failed_and_named_files_leave_no_handle_behind() -> None:
    async with FakeKernel() as kernel:
        async with await kv.prompt("text", "/a"):
            pass
        with pytest.raises(FileExists):
            await kv.prompt("other", "/a")
        opened = sum(isinstance(call, calls.Create | calls.Fork) for call in kernel.calls)
        closed = sum(isinstance(call, calls.Close) for call in kernel.calls)
        assert opened == closed + 1  # the fork that was refused gave no handle


async def test_chat_takes_messages_and_tuples() -> None:
    async with FakeKernel(), await kv.chat([("system", "S"), Message("user", "U")]) as file:
        text = await file.read_text()
        assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
        assert "im_start" not in await file.read_text(skip_special=True)


async def test_slices_are_pythons() -> None:
    async with FakeKernel(), await kv.prompt("abcdef") as file:
        assert await file.tokens(-2) == [101, 102]
        assert await file.positions(1, 3) == [1, 2]
        assert await file.read_text(1, -1) == "bcde"
        assert (await file.stat()).n_tokens == 6
        assert "fd=" in repr(file)


async def test_outside_of_a_program_the_error_says_what_to_do() -> None:
    with pytest.raises(NotSupported, match="lip run"):
        await kv.create()
