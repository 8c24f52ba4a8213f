"""The workloads ask for what they say, and for the same tokens every time."""

import random
from collections import Counter

import pytest

from perf.harness import Failed
from perf.openai import run
from perf.workloads import FIRST_ID, LAST_ID, QUICK, SEED, UNITS, WARM_UP, WORKLOADS, Agents, warm_up
from tests.perf.conftest import FIRST_WORD, complete

TREE = {304: 4, 332: 16, 360: 64}  # lengths of the prompts on each level
TURNS = {420 + 64 * turn: 8 for turn in range(6)}

EXPECTED = {  # output tokens of a run, and its prompts by their lengths
    "W1": (128, {128: 1}),
    "W2.c1": (2048, {128: 32}),
    "W2.c4": (2048, {128: 32}),
    "W2.c8": (2048, {128: 32}),
    "W2.c16": (2048, {128: 32}),
    "W3": (1, {1500: 1}),
    "W4": (960, {1030: 60}),
    "W5": (1152, TURNS),
    "W6": (2016, TREE),
    "W7": (512, {500: 1}),
}


def test_these_are_all():
    assert list(WORKLOADS) == list(EXPECTED)
    assert set(QUICK) <= set(WORKLOADS)


@pytest.mark.parametrize("name", EXPECTED)
async def test_each_computes_the_tokens_it_is_defined_by(api, server, name):
    n_out, prompts = EXPECTED[name]
    outcome = await run(api, name, WORKLOADS[name], SEED)
    assert outcome.n_out == WORKLOADS[name].n_out_total == n_out
    assert Counter(len(body["prompt"]) for body in server.asked) == prompts
    assert sum(body["max_tokens"] * body.get("n", 1) for body in server.asked) == n_out
    assert all(body["ignore_eos"] for body in server.asked)
    assert outcome.values.keys() <= UNITS.keys()
    assert all(value > 0 for value in outcome.values.values())


@pytest.mark.parametrize("name", QUICK)
async def test_a_quick_one_is_the_same_and_smaller(api, server, name):
    outcome = await run(api, name, QUICK[name], SEED)
    assert outcome.n_out == QUICK[name].n_out_total < 100
    assert type(QUICK[name]) is type(WORKLOADS[name])


@pytest.mark.parametrize("name", QUICK)
async def test_a_seed_decides_the_tokens(api, server, name):
    seen = []
    for seed in (SEED, SEED, SEED + 17):
        server.asked.clear()
        await run(api, name, QUICK[name], seed)
        seen.append(sorted(body["prompt"] for body in server.asked))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


async def test_the_streams_are_those_that_the_peers_were_given(api, server):
    """Spelled out once more: figures of other servers were taken with these very prompts."""
    for name, stream in (("W1", "w1/1234"), ("W2.c4", "w2/1234/4"), ("W3", "w3/1234"), ("W7", "w7/1234")):
        server.asked.clear()
        await run(api, name, QUICK[name], SEED)
        dice = random.Random(stream)
        first = server.asked[0]["prompt"]
        assert first == [dice.randrange(1000, 40000) for _ in first]


async def test_agents_share_a_system_prompt_and_extend_their_own_turns(api, server):
    agents = Agents(n_agents=2, n_turns=2, n_system=5, n_task=3, n_out=2, tool_s=0.0, n_observation=4)
    await run(api, "W5", agents, SEED)
    prompts = [body["prompt"] for body in server.asked]
    assert len({tuple(p[:5]) for p in prompts}) == 1
    for longer in (p for p in prompts if len(p) > 8):
        (first,) = [p for p in prompts if p == longer[:8]]
        assert longer[len(first) : len(first) + 2] == [FIRST_WORD, FIRST_WORD + 1]  # what the server generated


async def test_documents_are_asked_about_by_their_rank(api, server):
    outcome = await run(api, "W4", WORKLOADS["W4"], SEED)
    counts = Counter(tuple(body["prompt"][:1000]) for body in server.asked)
    assert 10 < len(counts) <= 20
    assert counts.most_common(1)[0][1] >= 10  # of 60: a sixth is the mean for the first of 20
    assert outcome.values["cached"] == 0.5  # as the server says of itself


@pytest.mark.parametrize(("name", "n"), [("W1", 1), ("W2.c1", 1), ("W2.c4", 4), ("W2.c16", 16), ("W4", 4), ("W5", 8)])
async def test_so_many_are_under_way_at_once(api, server, name, n):
    await run(api, name, WORKLOADS[name], SEED)
    assert server.most_under_way == n


@pytest.mark.parametrize("name", ["W1", "W5", "W6"])
async def test_a_server_that_stops_early_is_no_measurement(api, server, name):
    server.answer = lambda body: complete(body, n=1)
    with pytest.raises(Failed, match="it must know `ignore_eos`"):
        await run(api, name, QUICK[name], SEED)


async def test_a_server_that_gives_one_choice_of_many(api, server):
    server.answer = lambda body: complete(body | {"n": 1})
    with pytest.raises(Failed, match="1 choices of 4"):
        await run(api, "W7", QUICK["W7"], SEED)


async def test_warm_up_is_of_the_sizes_that_follow(api, server):
    await warm_up(api, WARM_UP)
    assert Counter((len(b["prompt"]), b["max_tokens"]) for b in server.asked) == {(128, 16): 4, (1024, 4): 4}
    assert all(FIRST_ID <= token < LAST_ID for body in server.asked for token in body["prompt"])
