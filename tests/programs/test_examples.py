"""parallel, complete, chat, best_of_n, beam_search: what they compute, over the fake kernel."""

from types import ModuleType

import pytest

from kernel.parameters import LoadError, Parameters
from programs import beam_search, best_of_n, chat, complete, parallel
from sdk import BrokenPipe, Errno, kv
from sdk.abi import calls
from sdk.testing import FakeKernel, run_lip


def n_leaked(kernel: FakeKernel) -> int:
    """Handles a program has opened and not closed. A stream read to its end has closed itself."""
    opened = sum(isinstance(call, calls.Create | calls.Open | calls.Fork) for call in kernel.calls)
    return opened - sum(isinstance(call, calls.Close) for call in kernel.calls)


# --- parallel ---


async def test_parallel_computes_its_prompt_once() -> None:
    async with FakeKernel() as kernel:
        result = await parallel.main(prompt="Name a colour", n=3, max_tokens=8)
    assert len(result["answers"]) == 3
    assert result["computed_tokens"] == result["prompt_tokens"] + result["generated_tokens"]
    assert result["generated_tokens"] == sum(len(answer) for answer in result["answers"])
    assert result["saved_tokens"] == 2 * result["prompt_tokens"]
    assert result["tokens_if_separate"] - result["saved_tokens"] == result["computed_tokens"]
    for i, answer in enumerate(result["answers"]):
        assert "".join(e.data for e in kernel.events if e.stream == f"branch {i}") == answer
    assert n_leaked(kernel) == 0


async def test_parallel_branches_differ_by_seed_alone() -> None:
    first = await run_lip(parallel.main, n=4, max_tokens=12)
    assert len(set(first["answers"])) > 1
    assert await run_lip(parallel.main, n=4, max_tokens=12) == first
    shifted = await run_lip(parallel.main, n=3, max_tokens=12, seed=1)
    assert shifted["answers"] == first["answers"][1:]


@pytest.mark.parametrize(
    ("program", "word"), [(parallel, "n=0"), (best_of_n, "n=0"), (beam_search, "width=0"), (beam_search, "width=1025")]
)
def test_how_many_is_checked_before_anything_runs(program: ModuleType, word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(LoadError, match=f"parameter {name}: expected int"):
        Parameters(program.main).bind({name: value}, text=True)


# --- complete ---


async def test_complete_streams_what_it_returns() -> None:
    async with FakeKernel(replies=["to be helpful."]) as kernel:
        assert await complete.main(prompt="A robot is") == "to be helpful."
    assert "".join(event.data for event in kernel.events) == "to be helpful."
    assert n_leaked(kernel) == 0


# --- chat ---


async def test_chat_computes_each_turn_alone() -> None:
    async with FakeKernel(replies=["I am well.", "Goodbye!"], inputs=["How are you?", "Bye.", "/bye"]) as kernel:
        result = await chat.main(system="Be brief.", verbose=True)
    assert result["turns"] == 2
    debug = [event.data for event in kernel.events if event.stream == "debug"]
    turn = "<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n"
    n_turn = len(turn) - 2 * len("<|im_end|>") - 2 * len("<|im_start|>") + 4  # those four are a token each
    assert debug[1].startswith(f"[{n_turn} of ")
    assert "".join(e.data for e in kernel.events if e.stream is None) == "I am well.\nGoodbye!\n"
    assert not any(isinstance(call, calls.Truncate) for call in kernel.calls)


@pytest.mark.parametrize("last", [[""], ["  "], ["/bye"], []])
async def test_chat_ends(last: list[str]) -> None:
    async with FakeKernel(inputs=[*last, "never read"][: len(last)]):
        assert await chat.main() == {"turns": 0, "tokens": 0}


async def test_chat_forgets_nothing() -> None:
    async with FakeKernel(replies=["A", "B"], inputs=["1", "2"]) as kernel:
        await chat.main()
    last = [call for call in kernel.calls if isinstance(call, calls.ApplyChatTemplate)][-1]
    assert [(m.role, m.content) for m in last.messages] == [("user", "1"), ("assistant", "A"), ("user", "2")]


async def test_a_client_that_leaves_ends_the_program() -> None:
    async with FakeKernel(replies=["A"], inputs=["1"]) as kernel:
        kernel.fail("emit", Errno.EPIPE)
        with pytest.raises(BrokenPipe):
            await chat.main()
    assert n_leaked(kernel) == 0


# --- best of n ---


async def test_best_of_n_is_the_surest() -> None:
    async with FakeKernel() as kernel:
        result = await best_of_n.main(n=5, max_tokens=10)
    scores = [answer["score"] for answer in result["answers"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert result["best"] == result["answers"][0]["text"]
    assert n_leaked(kernel) == 0


async def test_an_empty_answer_is_never_the_best() -> None:
    async with FakeKernel(replies=["", "words"]):
        result = await best_of_n.main(n=2)
    assert [answer["text"] for answer in result["answers"]] == ["words", ""]


# --- beam search ---


async def test_beam_of_one_is_greedy() -> None:
    result = await run_lip(beam_search.main, width=1, max_tokens=12)
    async with FakeKernel(), await kv.chat([("user", "What is the capital of France?")]) as file:
        assert result["best"] == await file.text(max_tokens=12)


async def test_a_wide_beam_finds_what_exhaustive_search_finds() -> None:
    """With a beam as wide as the toy model has likely tokens squared, nothing of length 3 is lost."""
    result = await run_lip(beam_search.main, width=81, max_tokens=3, length_penalty=0.0)
    narrow = await run_lip(beam_search.main, width=2, max_tokens=3, length_penalty=0.0)
    best: tuple[float, str] = (float("-inf"), "")
    async with FakeKernel():
        eos = 257
        async with await kv.chat([("user", "What is the capital of France?")]) as file:
            frontier = [(0.0, "", file)]
            for _ in range(3):
                grown = []
                for logprob, text, parent in frontier:
                    for token, lp in (await parent.next()).top(9):
                        if token == eos:
                            best = max(best, (logprob + lp, text))
                            continue
                        fork = await parent.fork()
                        await fork.append([token])
                        grown.append((logprob + lp, text + chr(token), fork))
                frontier = grown
            best = max(best, max(frontier, key=lambda f: f[0])[:2])
    assert result["best"] == best[1]
    assert result["candidates"][0]["logprob"] == round(best[0], 4)
    assert narrow["candidates"][0]["logprob"] <= result["candidates"][0]["logprob"]


async def test_beam_search_closes_its_beams() -> None:
    async with FakeKernel() as kernel:
        result = await beam_search.main(width=3, max_tokens=40)
    assert n_leaked(kernel) == 0
    assert 1 <= len(result["candidates"]) <= 3
    assert all("<|im_end|>" not in candidate["text"] for candidate in result["candidates"])
