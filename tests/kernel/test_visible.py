"""Visible runs through a whole kernel, on the null worker, whose text depends on what is visible."""

import asyncio

import pytest

from sdk import kv, syscalls
from sdk.abi.errors import InvalidArgument
from sdk.abi.values import NOTHING, Decoding, Sampling, Want

TEXT = list(range(40, 90))
OTHER = [*TEXT[:4], *range(150, 170), *TEXT[24:]]  # another middle
SINKS = [(0, 4), (-20, None)]
WARM = Sampling(temperature=1.0, seed=5)


async def fresh(tokens=TEXT):
    fd = await syscalls.create()
    await syscalls.pred(fd=fd, tokens=list(tokens), want=NOTHING)
    return fd


async def drawn(fd, n=24, visible=None, prompt=(), **options):
    decoding = Decoding(sampling=WARM, max_tokens=n, ignore_eos=True, **options)
    return await syscalls.generate(fd=fd, prompt=list(prompt), decoding=decoding, visible=visible)


async def edited(fd):
    return (await syscalls.fstat(fd=fd)).edited


async def test_what_a_call_hides_does_not_matter_and_all_else_does(house):
    async def main():
        fds = [await fresh(TEXT), await fresh(OTHER)]
        masked = [await syscalls.pred(fd=fd, tokens=[7], visible=SINKS) for fd in fds]
        later = [await syscalls.pred(fd=fd, tokens=[8]) for fd in fds]
        (plain,) = await syscalls.pred(fd=await fresh(TEXT), tokens=[7])
        return [masked[0] == masked[1], masked[0] != [plain], later[0] != later[1]]

    assert await house.value(main) == [True, True, True]


async def test_generate_under_a_mask_is_a_loop_of_preds_under_it(house):
    async def main():
        one, other = await fresh(TEXT), await fresh(OTHER)
        tokens = (await drawn(one, visible=SINKS, prompt=[7])).tokens
        (last,) = await syscalls.pred(fd=other, tokens=[7], want=Want(sample=WARM), visible=SINKS)
        by_hand = [last.sample]
        while len(by_hand) < 24:
            (last,) = await syscalls.pred(fd=other, tokens=by_hand[-1:], want=Want(sample=WARM), visible=SINKS)
            by_hand.append(last.sample)
        plain = (await drawn(await fresh(TEXT), prompt=[7])).tokens
        return [tokens == by_hand, tokens != plain]

    assert await house.value(main) == [True, True]


async def test_rows_of_one_batch_have_their_own_masks(house):
    async def main():
        masks = [None, SINKS, [(-3, None)], [], [(0, 8)]]
        base = await fresh()
        forks = [await syscalls.fork(fd=base) for _ in masks]
        together = await asyncio.gather(*(drawn(fd, visible=m, prompt=[7]) for fd, m in zip(forks, masks, strict=True)))
        alone = [await drawn(await fresh(), visible=m, prompt=[7]) for m in masks]
        return [together == alone, len({g.text for g in together})]

    assert await house.value(main) == [True, 5]


async def test_a_long_prompt_in_chunks_sees_what_it_sees_at_once(make_house):
    async def main():
        (whole,) = await syscalls.pred(fd=await syscalls.create(), tokens=TEXT * 4, visible=SINKS)
        fd = await syscalls.create()
        for i in range(0, 200, 33):
            (last,) = await syscalls.pred(fd=fd, tokens=(TEXT * 4)[i : i + 33], visible=SINKS)
        return [whole.top_tokens, last.top_tokens]

    async with make_house(max_batch_tokens=48) as house:
        one, other = await house.value(main)
        assert one == other


async def test_a_file_under_a_mask_is_edited_from_there_on(house):
    async def main():
        fd = await fresh()
        found = [await edited(fd)]
        await syscalls.pred(fd=fd, tokens=[1], visible=[(0, 4), (-60, None)])  # hides nothing
        found.append(await edited(fd))
        await syscalls.pred(fd=fd, tokens=[1, 2, 3], visible=SINKS)
        fork = await syscalls.fork(fd=fd)
        found += [await edited(fd), await edited(fork)]
        await syscalls.truncate(fd=fork, n_tokens=52)
        found.append(await edited(fork))
        await syscalls.truncate(fd=fork, n_tokens=51)
        found.append(await edited(fork))
        return found

    assert await house.value(main) == [False, False, True, True, True, False]


async def test_a_token_that_is_computed_again_for_its_tail_sees_all(house):
    async def main():
        fds = [await fresh([*TEXT, 1]), await fresh(TEXT)]
        await syscalls.truncate(fd=fds[0], n_tokens=50)
        generated = [(await drawn(fd, visible=SINKS)).tokens for fd in fds]
        asked = []
        for text in ([*TEXT, 1], TEXT):
            fd = await fresh(text)
            if len(text) > 50:
                await syscalls.truncate(fd=fd, n_tokens=50)
            asked.append(await syscalls.pred(fd=fd, tokens=[7, 8], want=Want(at=[-1, 0, 1]), visible=SINKS))
        return [generated[0] == generated[1], asked[0] == asked[1]]

    assert await house.value(main) == [True, True]


async def test_a_stop_string_in_the_middle_of_a_masked_generation(house):
    """What is cut off and fed anew is masked as well: the rest goes on as if nothing had been cut."""

    async def main():
        whole = await drawn(await fresh(), visible=SINKS, prompt=[7], n=40)
        stop = whole.text[10:13]
        fd = await fresh()
        until = await drawn(fd, visible=SINKS, prompt=[7], n=40, stop=[stop], include_stop=True)
        rest = await drawn(fd, visible=SINKS, n=40 - len(until.tokens))
        return [whole.text.startswith(until.text), until.text.endswith(stop), until.text + rest.text == whole.text]

    assert await house.value(main) == [True, True, True]


async def test_after_the_loss_of_a_worker_what_is_computed_again_sees_all(make_house):
    async def main():
        fd = await fresh()
        await syscalls.pred(fd=fd, tokens=[1, 2, 3], visible=SINKS)
        await syscalls.send(channel="ready", message=1)
        await syscalls.recv(channel="lost")
        (after,) = await syscalls.pred(fd=fd, tokens=[4], visible=SINKS)
        (expected,) = await syscalls.pred(fd=await fresh([*TEXT, 1, 2, 3]), tokens=[4], visible=SINKS)
        await syscalls.truncate(fd=fd, n_tokens=53)
        return [after == expected, await edited(fd)]

    async def loser():
        await syscalls.recv(channel="ready")
        return (await syscalls.model_info()).name

    async with make_house(n_workers=2) as house:
        running = house.start(main)
        await house.value(loser)
        (name,) = {inode.pool.name for inode in house.kernel.fs.files.values() if inode.pool is not None}
        house.lose(name)

        async def go_on():
            await syscalls.send(channel="lost", message=1)

        await house.value(go_on)
        status = await running.wait_exit()
        assert (status.code, status.result) == (0, b"[true,false]"), status.error


async def test_a_masked_generation_outlives_its_worker(make_house):
    async def main():
        fd = await fresh()
        return len((await drawn(fd, n=400, visible=SINKS)).tokens)

    async with make_house(n_workers=2) as house:
        running = house.start(main)
        await house.until(lambda: any(len(i.tokens) > 80 for i in house.kernel.fs.files.values()))
        (name,) = {i.pool.name for i in house.kernel.fs.files.values() if i.pool is not None}
        house.lose(name)
        status = await running.wait_exit()
        assert (status.code, status.result) == (0, b"400"), status.error


async def test_in_the_words_of_the_sdk(house):
    async def main():
        async def three(visible):
            async with await kv.create() as file:
                await file.append(TEXT, visible=visible)
                text = await file.text(sampling=WARM, prompt=[7], max_tokens=9, ignore_eos=True, visible=visible)
                chunks = [c.text async for c in file.stream([8], WARM, max_tokens=9, ignore_eos=True, visible=visible)]
                scored = await file.pred_all([1, 2], at=[1], visible=visible)
                return [text, "".join(chunks), (await file.pred([3], visible=visible)).top(3), scored[0].top(3)]

        return [await three(SINKS), await three([(0, None)]), await three(None)]

    masked, everything, plain = await house.value(main)
    assert everything == plain
    assert all(one != other for one, other in zip(masked, plain, strict=True))


@pytest.mark.parametrize(
    ("visible", "says"),
    [([(0, 4), (9, 9)], "empty"), ([(0, 1)] * 65, "64"), ([(0,)], "visible"), ([(0, 2**40)], "visible")],
)
async def test_wrong_runs_are_refused_in_one_line(house, visible, says):
    async def main():
        found = []
        fd = await fresh()
        for call in (
            syscalls.pred(fd=fd, tokens=[1], visible=visible),
            syscalls.generate(fd=fd, prompt=[1], visible=visible),
            syscalls.stream(fd=fd, prompt=[1], visible=visible),
        ):
            try:
                await call
            except InvalidArgument as e:
                found.append(str(e))
        return [found, len(await syscalls.tokens(fd=fd))]

    errors, n_tokens = await house.value(main)
    assert (len(errors), n_tokens) == (3, 50)
    assert all(says in error and "\n" not in error for error in errors), errors
