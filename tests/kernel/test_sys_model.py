"""pred, generate and stream through a whole kernel, on the null worker that checks every page it reads."""

import asyncio

import pytest

from sdk import syscalls
from sdk.abi.errors import AccessDenied, Busy, InvalidArgument, SyscallError, TooLong
from sdk.abi.values import NOTHING, Decoding, OpenMode, Sampling, Want

TEXT = list(range(40, 90))  # fifty tokens: three pages and a bit


async def fresh(tokens=(), **args):
    fd = await syscalls.create(**args)
    if tokens:
        await syscalls.pred(fd=fd, tokens=list(tokens), want=NOTHING)
    return fd


async def test_pred_in_one_in_chunks_and_token_by_token(house):
    async def main():
        want = Want(top_k=5, entropy=True)
        whole = await syscalls.pred(fd=await fresh(), tokens=TEXT, want=want)
        fd = await fresh(TEXT[:20])
        chunks = await syscalls.pred(fd=fd, tokens=TEXT[20:], want=want)
        single = await fresh()
        for token in TEXT:
            last = await syscalls.pred(fd=single, tokens=[token], want=want)
        return [whole == chunks, whole == last, whole[0].position, await syscalls.tokens(fd=single) == TEXT]

    assert await house.value(main) == [True, True, 49, True]


async def test_asked_offsets_come_in_the_order_asked(house):
    async def main():
        fd = await fresh(TEXT[:10])
        got = await syscalls.pred(fd=fd, tokens=TEXT[10:20], want=Want(at=[9, -1, 3], targets=[7, TEXT[10], TEXT[14]]))
        alone = []
        for n in (20, 10, 14):
            (dist,) = await syscalls.pred(fd=await fresh(TEXT[: n - 1]), tokens=[TEXT[n - 1]])
            alone.append(dist)
        return [
            [d.position for d in got],
            [a.top() == g.top() for a, g in zip(alone, got, strict=True)],
            all(d.target_logprob < 0 for d in got),
        ]

    assert await house.value(main) == [[19, 9, 13], [True, True, True], True]


async def test_the_file_knows_what_comes_next(house):
    async def main():
        fd = await syscalls.create()
        (after,) = await syscalls.pred(fd=fd, tokens=TEXT)
        before = (await syscalls.rusage()).n_prompt_tokens
        (next_,) = await syscalls.pred(fd=fd)
        fork = await syscalls.fork(fd=fd)
        (forked,) = await syscalls.pred(fd=fork)
        computed = (await syscalls.rusage()).n_prompt_tokens - before
        await syscalls.truncate(fd=fork, n_tokens=30)
        (cut,) = await syscalls.pred(fd=fork)
        again = (await syscalls.rusage()).n_prompt_tokens - before
        (expected,) = await syscalls.pred(fd=await fresh(TEXT[:29]), tokens=[TEXT[29]])
        return [after == next_ == forked, computed, cut == expected, again, await syscalls.tokens(fd=fork) == TEXT[:30]]

    assert await house.value(main) == [True, 0, True, 1, True]


async def test_all_that_a_distribution_can_hold(house):
    async def main():
        fd = await fresh(TEXT)
        (d,) = await syscalls.pred(
            fd=fd,
            want=Want(
                top_k=3, logits=True, sample=Sampling(temperature=1.0, seed=3), logprobs_of=[65, 66], entropy=True
            ),
        )
        best = max(range(len(d.logits)), key=lambda i: d.logits[i])
        return [
            len(d.top()),
            len(d.logits),
            best == d.argmax(),
            d.sample is not None,
            sorted(d.logprobs_of),
            d.entropy > 0,
        ]

    got = await house.value(main)
    assert got == [3, 512, True, True, [65, 66], True]


async def test_explicit_positions(house):
    async def main():
        fd = await syscalls.create()
        await syscalls.pred(fd=fd, tokens=[65, 66, 67], positions=[0, 5, 9])
        await syscalls.pred(fd=fd, tokens=[68])
        return await syscalls.positions(fd=fd)

    assert await house.value(main) == [0, 5, 9, 10]


async def test_positions_go_on_from_those_of_the_file(house):
    async def main():
        fd = await syscalls.create()
        await syscalls.pred(fd=fd, tokens=[65, 66], positions=[3, 9])
        await syscalls.pred(fd=fd, tokens=[67], positions=[9])
        try:
            await syscalls.pred(fd=fd, tokens=[68], positions=[8])
        except InvalidArgument as e:
            return [e.detail, await syscalls.positions(fd=fd)]

    assert await house.value(main) == ["positions must not decrease: the file's next one is 10", [3, 9, 9]]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"tokens": [600]}, InvalidArgument),
        ({"tokens": [-1]}, InvalidArgument),
        ({"tokens": ["x"]}, InvalidArgument),
        ({"tokens": [1], "positions": [1, 2]}, InvalidArgument),
        ({"tokens": [1, 2], "positions": [5, 4]}, InvalidArgument),
        ({"tokens": [1], "positions": [8192]}, TooLong),
        ({"tokens": [1] * 8193}, TooLong),
        ({"tokens": [1], "want": Want(at=[1])}, InvalidArgument),
        ({"tokens": [1], "want": Want(at=[0, 0])}, InvalidArgument),
        ({"tokens": [1], "want": Want(targets=[1, 2])}, InvalidArgument),
        ({"tokens": [1], "want": Want(logprobs_of=[512])}, InvalidArgument),
        ({"tokens": [1], "want": Want(top_k=5000)}, InvalidArgument),
        ({"tokens": []}, InvalidArgument),
    ],
)
async def test_wrong_arguments_of_pred(house, call, error):
    async def main():
        fd = await syscalls.create()
        try:
            await syscalls.pred(fd=fd, **call)
        except SyscallError as e:
            return [type(e).__name__, str(e), await syscalls.tokens(fd=fd)]

    name, text, tokens = await house.value(main)
    assert name == error.__name__, text
    assert tokens == []


async def test_one_writer_at_a_time(house):
    async def main():
        fd = await fresh(TEXT)
        both = await asyncio.gather(
            syscalls.pred(fd=fd, tokens=[1]), syscalls.pred(fd=fd, tokens=[2]), return_exceptions=True
        )
        return [type(r).__name__ for r in both] + [len(await syscalls.tokens(fd=fd))]

    assert await house.value(main) == ["list", Busy.__name__, 51]


async def test_a_reader_may_fork_but_not_append(house):
    async def main():
        await syscalls.mkdir(path="/docs")
        fd = await fresh(TEXT, path="/docs/a")
        reader = await syscalls.open(path="/docs/a", mode=OpenMode.READ)
        refused = ""
        try:
            await syscalls.pred(fd=reader, tokens=[1])
        except AccessDenied as e:
            refused = e.errno
        fork = await syscalls.fork(fd=reader)
        await syscalls.pred(fd=fork, tokens=[1])
        lengths = [len(await syscalls.tokens(fd=f)) for f in (fd, reader, fork)]
        await syscalls.unlink(path="/docs/a")
        await syscalls.unlink(path="/docs")
        return [refused, lengths]

    assert await house.value(main) == ["EACCES", [50, 50, 51]]


async def test_generate_together_equals_generate_alone(house):
    async def main():
        async def answer(seed: int, fd: int) -> list[int]:
            decoding = Decoding(sampling=Sampling(temperature=1.0, seed=seed), max_tokens=20, ignore_eos=True)
            return (await syscalls.generate(fd=fd, decoding=decoding)).tokens

        base = await fresh(TEXT)
        start = (await syscalls.rusage()).n_prompt_tokens
        forks = [await syscalls.fork(fd=base) for _ in range(6)]
        together = await asyncio.gather(*(answer(i, f) for i, f in enumerate(forks)))
        used = await syscalls.rusage()
        alone = [await answer(i, await fresh(TEXT)) for i in range(6)]
        return [
            together == alone,
            len({tuple(t) for t in together}),
            used.n_prompt_tokens - start,
            used.n_generated_tokens,
        ]

    assert await house.value(main) == [True, 6, 0, 120]


async def test_stream_equals_generate(house):
    async def main():
        decoding = Decoding(sampling=Sampling(temperature=1.0, seed=1), max_tokens=30, logprobs=2, stop=["zz"])
        whole = await syscalls.generate(fd=await fresh(), prompt=TEXT, decoding=decoding)
        stream = await syscalls.stream(fd=await fresh(), prompt=TEXT, decoding=decoding)
        text, tokens, logprobs, finish = "", [], [], None
        while finish is None:
            chunk = await syscalls.read(fd=stream)
            text, tokens, logprobs, finish = (
                text + chunk.text,
                tokens + chunk.tokens,
                logprobs + chunk.logprobs,
                chunk.finish,
            )
        closed = ""
        try:
            await syscalls.read(fd=stream)
        except SyscallError as e:
            closed = e.errno
        return [text == whole.text, tokens == whole.tokens, logprobs == whole.logprobs, finish == whole.finish, closed]

    assert await house.value(main) == [True, True, True, True, "EBADF"]


async def test_closing_a_stream_ends_it(house):
    async def main():
        fd = await fresh()
        stream = await syscalls.stream(fd=fd, prompt=TEXT, decoding=Decoding(ignore_eos=True))
        await syscalls.read(fd=stream)
        await syscalls.close(fd=stream)
        while True:
            try:
                await syscalls.pred(fd=fd, tokens=[1])
                break
            except Busy:
                await asyncio.sleep(0)
        tokens = await syscalls.tokens(fd=fd)
        return [tokens[:50] == TEXT, len(tokens) < 8000]

    assert await house.value(main) == [True, True]


async def test_penalties_see_the_file(house):
    async def main():
        async def draw(sampling: Sampling) -> list[int]:
            decoding = Decoding(sampling=sampling, max_tokens=30, ignore_eos=True)
            return (await syscalls.generate(fd=await fresh(TEXT), decoding=decoding)).tokens

        free = await draw(Sampling())
        never_again = await draw(Sampling(presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=100.0))
        return [len(set(never_again)) >= len(set(free)), free != never_again]

    assert await house.value(main) == [True, True]


async def test_what_a_language_can(house):
    async def main():
        tokens = await syscalls.tokenize(text="hi <|im_end|>")
        plain = await syscalls.tokenize(text="<|im_end|>", parse_special=False)
        text = await syscalls.detokenize(tokens=tokens)
        info = await syscalls.model_info()
        return [text, len(plain) > 1, info.vocab_size, info.has_chat_template]

    assert await house.value(main) == ["hi <|im_end|>", True, 512, True]
