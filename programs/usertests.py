"""Test the kernel from outside, as xv6's usertests do: every system call, and every error a program can provoke.

What is computed, and when: a few tokens in each test. Nothing is assumed of what the model says, so this runs on any
model and on the null worker. The program puts a door of its own before the kernel's to see which calls were made: a
call or an errno of the table that no test has met is a failure as well.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import sdk
from programs import (  # noqa: F401  (register their tests)
    _usertests_edits,
    _usertests_files,
    _usertests_locks,
    _usertests_pages,
)
from programs._usertests import TESTS, TEXT, Tally, run, sample_file, sweep, test
from sdk import BrokenPipe, Errno, KVFile, Sampling, kv, model, process, syscalls
from sdk.abi import calls
from sdk.abi.values import Decoding, Fd, Message, Pid, Want

NO_FD, NO_PID = Fd(2**31), Pid(2**31)
LONG = Decoding(max_tokens=64, ignore_eos=True)


async def main(role: str = "") -> dict[str, Any]:
    """Run all tests; exit with 1 when one fails. `role` is for the children that the tests start."""
    if role:
        return await play(role)
    tally = Tally(f"/usertests-{await process.getpid()}")
    tally.watch()
    await kv.mkdir(tally.home)
    failed = [name for function in TESTS if (name := await run(function, tally))]
    await sweep(tally.home)
    for name in tally.unmet() if not failed else ():
        failed.append(name)
        await sdk.emit(f"FAILED: no test meets {name}\n")
    await sdk.emit(f"{len(TESTS)} tests, {len(failed)} failures\n")
    if failed:
        raise SystemExit(1)
    return {"passed": len(TESTS), "failed": failed}


async def play(role: str) -> dict[str, Any]:
    """What a child does."""
    match role:
        case "exit":
            await process.exit(7)
        case "fail":
            raise ValueError("as told")
        case "sleep":
            await process.sleep(3600)
        case "input":
            with suppress(BrokenPipe):
                await sdk.input("nobody is there> ")
                return {"refused": False}
        case "limit":
            await process.limits(tokens=3)
            async with await kv.create() as file:
                await file.append([1, 2])
                with suppress(sdk.QuotaExceeded):
                    await file.append([1, 2])
                    return {"refused": False}
    return {"refused": True}


@asynccontextmanager
async def busy(file: KVFile) -> AsyncIterator[None]:
    """While this lasts a generation is appending to the file."""
    stream = await syscalls.stream(file.fd, decoding=LONG)
    yield
    await syscalls.close(stream)


async def cancel(task: asyncio.Task[Any]) -> None:
    """Give up on a call that has begun."""
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


# --- model ------------------------------------------------------------------------------------------------------


@test
async def facts_of_the_model(t: Tally) -> None:
    info = await model.info()
    assert info.vocab_size > 0
    assert info.max_model_len > 0
    assert all(0 <= token < info.vocab_size for token in info.eos_tokens)


@test
async def text_to_tokens_and_back(t: Tally) -> None:
    tokens = await model.tokenize(TEXT)
    assert await model.detokenize(tokens) == TEXT
    assert (await model.tokenize(TEXT, add_special=True))[-len(tokens) :] == tokens
    await t.refuses(Errno.EINVAL, calls.Tokenize(text="\ud800"), calls.Detokenize(tokens=[2**32]))


@test
async def chat_template(t: Tally) -> None:
    chat = [Message("user", "Hello!")]
    if not (await model.info()).has_chat_template:
        await t.refuses(Errno.ENOSYS, calls.ApplyChatTemplate(messages=chat))
        return
    closed = await model.chat_tokens(chat, add_generation_prompt=False)
    assert "Hello!" in await model.detokenize(closed)
    assert (await model.chat_tokens(chat))[: len(closed)] == closed


@test
async def pred_computes_and_answers(t: Tally) -> None:
    async with await kv.create() as file:
        tokens = await model.tokenize(TEXT)
        dists = await file.pred_all(tokens, logits=True, entropy=True, sample=Sampling())
        assert [d.position for d in dists] == list(range(len(tokens)))
        assert await file.tokens() == tokens
        last = dists[-1]
        assert len(last.logits) == (await model.info()).vocab_size
        assert last.top_logprobs == sorted(last.top_logprobs, reverse=True)
        assert last.sample == last.argmax()
        assert (last.entropy or 0.0) >= 0.0
        assert (await file.next()).top_tokens == last.top_tokens
        scores = await file.score(tokens[:3])
        assert len(scores) == 3
        assert all(score <= 0.0 for score in scores)
        assert await file.tokens() == tokens


@test
async def generate_appends_what_it_returns(t: Tally) -> None:
    async with await sample_file() as file, await file.fork() as twin:
        n = len(await file.tokens())
        sampling = Sampling(temperature=1.0, seed=7)
        first = await file.generate(sampling=sampling, max_tokens=6, logprobs=2)
        assert await file.tokens(n) == first.tokens
        assert [p.token for p in first.logprobs] == first.tokens
        assert (await twin.generate(sampling=sampling, max_tokens=6)).tokens == first.tokens, "a seed is a seed"


@test
async def stream_says_the_same_in_pieces(t: Tally) -> None:
    async with await sample_file() as file, await file.fork() as twin:
        whole = await file.generate(max_tokens=6, ignore_eos=True)
        pieces = [chunk async for chunk in twin.stream(max_tokens=6, ignore_eos=True)]
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish == whole.finish
        await t.refuses(Errno.EBADF, calls.Read(fd=NO_FD), calls.Read(fd=file.fd))


@test
async def a_closed_stream_leaves_its_file_free(t: Tally) -> None:
    async with await sample_file() as file:
        n, read = len(await file.tokens()), []
        async for chunk in file.stream(max_tokens=64, ignore_eos=True):
            read += chunk.tokens
            if len(read) > 3:
                break
        n_added = await file.append(TEXT)
        kept = await file.tokens(n, -n_added)
        assert len(kept) >= len(read) - 1, "what was read is in the file, but perhaps for the last token"
        assert all(a == b for a, b in zip(kept, read, strict=False))


@test
async def a_cancelled_call_leaves_its_file_free(t: Tally) -> None:
    async with await sample_file() as file:
        tokens = await file.tokens()
        await cancel(asyncio.create_task(file.append(tokens)))
        n_added = await file.append(TEXT)
        assert await file.tokens() == tokens + tokens, "pred is all or nothing"
        await cancel(asyncio.create_task(file.generate(max_tokens=64, ignore_eos=True)))
        await file.append(TEXT)
        assert (await file.tokens())[-n_added:] == tokens


@test
async def a_stream_has_one_reader(t: Tally) -> None:
    async with await sample_file() as file:
        stream = await syscalls.stream(file.fd, decoding=LONG)
        reader = asyncio.create_task(syscalls.read(stream))
        await asyncio.sleep(0)
        await t.refuses(Errno.EBUSY, calls.Read(fd=stream))
        await reader
        await syscalls.close(stream)


@test
async def a_file_has_one_writer(t: Tally) -> None:
    async with await sample_file() as file:
        async with busy(file):
            await t.refuses(
                Errno.EBUSY,
                calls.Pred(fd=file.fd, tokens=[1]),
                calls.Generate(fd=file.fd, prompt=[1]),
                calls.Stream(fd=file.fd, prompt=[1]),
                calls.Truncate(fd=file.fd, n_tokens=0),
            )
        async with await file.fork() as fork:
            await asyncio.gather(*(one.append(TEXT) for one in [fork, await fork.fork()]))


@test
async def model_calls_check_their_arguments(t: Tally) -> None:
    info = await model.info()
    too_long = [1] * (info.max_model_len + 1)
    async with await kv.create() as file:
        await t.refuses(Errno.EBADF, calls.Pred(fd=NO_FD, tokens=[1]), calls.Generate(fd=NO_FD), calls.Stream(fd=NO_FD))
        await t.refuses(
            Errno.EINVAL,
            calls.Pred(fd=file.fd),
            calls.Pred(fd=file.fd, tokens=[info.vocab_size]),
            calls.Pred(fd=file.fd, tokens=[1, 1], positions=[1, 0]),
            calls.Pred(fd=file.fd, tokens=[1, 1], positions=[0]),
            calls.Pred(fd=file.fd, tokens=[1], want=Want(at=[1])),
            calls.Pred(fd=file.fd, tokens=[1], want=Want(targets=[1, 1])),
            calls.Generate(fd=file.fd),
            calls.Generate(fd=file.fd, prompt=[1], decoding=Decoding(sampling=Sampling(temperature=-1.0))),
            calls.Stream(fd=file.fd),
        )
        await t.refuses(
            Errno.E2BIG,
            calls.Pred(fd=file.fd, tokens=too_long),
            calls.Generate(fd=file.fd, prompt=too_long),
            calls.Stream(fd=file.fd, prompt=too_long),
        )
        assert await file.tokens() == [], "a refused call leaves the file as it was"


# --- process ----------------------------------------------------------------------------------------------------


@test
async def children_end_as_they_say(t: Tally) -> None:
    children = {role: await sdk.spawn(".", role=role) for role in ("return", "exit", "fail", "input")}
    statuses = {role: await child.wait() for role, child in children.items()}
    assert {role: status.code for role, status in statuses.items()} == {"return": 0, "exit": 7, "fail": 1, "input": 0}
    assert "as told" in statuses["fail"].error
    t.called |= {"exit", "input"}  # by children, which have doors of their own
    assert json.loads(statuses["input"].result) == {"refused": True}, "a child has no client to ask"
    t.refused.add(("input", Errno.EPIPE))
    await t.refuses(Errno.ECHILD, calls.Wait(), calls.Wait(pid=children["exit"].pid))
    await t.refuses(Errno.ENOENT, calls.Spawn(program="no-such-program"))
    await t.refuses(Errno.EINVAL, calls.Spawn(program=".", args={"no_such_parameter": 1}))


@test
async def kill_ends_a_child(t: Tally) -> None:
    child = await sdk.spawn(".", role="sleep")
    await process.rusage(child.pid)
    await child.kill()
    assert (await syscalls.wait()).code == 137
    await t.refuses(Errno.ESRCH, calls.Kill(pid=NO_PID), calls.Kill(pid=child.pid), calls.RUsage(pid=child.pid))


@test
async def time_and_chance(t: Tally) -> None:
    began = await process.now()
    await process.sleep(0.01)
    assert await process.now() >= began + 0.009
    assert 0.0 <= await process.random() < 1.0
    await t.refuses(Errno.EINVAL, calls.Sleep(seconds=-1.0))


@test
async def rusage_counts_tokens(t: Tally) -> None:
    before = await process.rusage()
    async with await kv.create() as file:
        n_prompt = await file.append(TEXT)
        n_generated = len((await file.generate(max_tokens=4, ignore_eos=True)).tokens)
    after = await process.rusage(await process.getpid())
    assert after.n_prompt_tokens - before.n_prompt_tokens == n_prompt
    assert after.n_generated_tokens - before.n_generated_tokens == n_generated == 4
    assert after.n_syscalls > before.n_syscalls


@test
async def priorities_go_back_to_where_they_began(t: Tally) -> None:
    began = await process.priority()
    assert await process.priority(began + 5) == began + 5
    child = await sdk.spawn(".", role="sleep")
    assert await process.priority(pid=child.pid) == began + 5
    assert await process.priority(began) == await process.priority() == began
    await t.refuses(Errno.EACCES, calls.Priority(value=began - 1), calls.Priority(pid=child.pid, value=began))
    await t.refuses(Errno.ESRCH, calls.Priority(pid=NO_PID))
    await t.refuses(Errno.EINVAL, calls.Priority(value=2**31))
    await child.kill()
    await child.wait()


@test
async def limits_only_go_down(t: Tally) -> None:
    limits = await process.limits(wall_s=86_400.0, horizon_tokens=1000)
    assert (limits.wall_s, limits.horizon_tokens) == (86_400.0, 1000)
    assert (await process.limits()) == limits
    await t.refuses(Errno.EACCES, calls.SetLimits(wall_s=86_401.0))
    await t.refuses(Errno.EINVAL, calls.SetLimits(tokens=0), calls.SetLimits(cpu_s=0.0))
    child = await sdk.spawn(".", role="limit")
    assert json.loads((await child.wait()).result) == {"refused": True}, "over a limit of tokens calls fail"


# --- ipc --------------------------------------------------------------------------------------------------------


@test
async def channels_keep_order(t: Tally) -> None:
    channel = sdk.Channel(t.home)
    reader = asyncio.create_task(channel.recv(timeout=10))
    await asyncio.sleep(0)
    for message in ("first", {"second": [2, 2.5, None]}, 3):
        await channel.send(message)
    received = [await reader, await channel.recv(), await channel.recv(timeout=0)]
    assert received == ["first", {"second": [2, 2.5, None]}, 3]
    await t.refuses(Errno.ETIMEDOUT, calls.Recv(channel=t.home, timeout=0.01), calls.Recv(channel=t.home, timeout=0))
    await t.refuses(Errno.EINVAL, calls.Recv(channel=""), calls.Send(channel=t.home, message=object()))


@test
async def channels_are_bounded(t: Tally) -> None:
    channel, n_sent = sdk.Channel(t.home), 0
    with suppress(sdk.QuotaExceeded):
        while n_sent < 100_000:
            await channel.send(n_sent)
            n_sent += 1
    await t.refuses(Errno.EDQUOT, calls.Send(channel=t.home, message=None))
    assert [await channel.recv() for _ in range(n_sent)] == list(range(n_sent))


@test
async def emit_takes_json_alone(t: Tally) -> None:
    await sdk.emit({"an": ["event", 1]}, stream="usertests")
    await t.refuses(Errno.EINVAL, calls.Emit(event=object()))
