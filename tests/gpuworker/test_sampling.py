"""Sampling against a slow, obvious reference in pure Python, and against the distributions it must draw from."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker import noise, sampling
from gpuworker.wire import Ask, Draw
from sdk.abi.values import Sampling

VOCAB = 40
WIDE = 3000  # more than the widest prefix


def reference(logits: Sequence[float], s: Sampling, history: Sequence[int], n_generated: int) -> dict[int, float]:
    """The tokens that may be drawn, with their probabilities: the docstring of Sampling, step by step."""
    x = list(logits)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token in set(history):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token, count in Counter(history[len(history) - n_generated :]).items():
        x[token] -= s.frequency_penalty * count + s.presence_penalty
    if s.temperature == 0:
        return {x.index(max(x)): 1.0}
    p = softmax({t: v / s.temperature for t, v in enumerate(x)})
    floor = s.min_p * max(p.values()) * (1 - 1e-6)  # of which equals are not decided by rounding
    p = {t: q for t, q in p.items() if q >= floor}
    if s.top_k > 0:
        worst = sorted(p.values(), reverse=True)[: s.top_k][-1]
        p = {t: q for t, q in p.items() if q >= worst}
    p = normalized(p)
    mass, worst = 0.0, 0.0
    for q in sorted(p.values(), reverse=True):
        if mass < s.top_p:
            mass, worst = mass + q, q
    return normalized({t: q for t, q in p.items() if q >= worst})


def softmax(x: dict[int, float]) -> dict[int, float]:
    top = max(x.values())
    return normalized({t: math.exp(v - top) for t, v in x.items()})


def normalized(p: dict[int, float]) -> dict[int, float]:
    total = sum(p.values())
    return {t: q / total for t, q in p.items()}


def drawn(logits: torch.Tensor, draws: Sequence[Draw], histories: Sequence[Sequence[int]] = ()) -> list[int]:
    before = logits.clone()
    tokens = sampling.sample(logits, draws, histories or [[]] * len(draws)).tolist()
    assert torch.equal(logits, before)
    return tokens


def many(row: torch.Tensor, s: Sampling, n: int, history: Sequence[int] = (), n_generated: int = 0) -> Counter[int]:
    """How often each token comes in n draws of one row, over seeds and positions."""
    draws = [Draw(s, 1 + i // 50, i % 50, len(history), n_generated) for i in range(n)]
    return Counter(drawn(row.expand(n, -1), draws, [history] * n))


def rows(seed: int, n: int, vocab: int = VOCAB, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def test_integer_definition() -> None:
    """Values of the two papers' reference code, and the vectorised noise against the scalar one."""
    assert noise.splitmix64(0) == 0xE220A8397B1DCDAF
    assert noise.splitmix64(1234567) == 6457827717110365317
    draws = [Draw(Sampling(), seed, position) for seed in (0, 7, 2**63, 2**64 - 1) for position in (0, 1, 2**20)]
    tokens = torch.tensor([[0, 1, 2, 49151, 2**31 - 1]], dtype=torch.int32)
    got = sampling.noise(sampling.keys(draws, torch.device("cpu")), tokens)
    for row, d in zip(got.tolist(), draws, strict=True):
        k0, k1 = noise.key(d.seed, d.position)
        assert row == pytest.approx([noise.gumbel(k0, k1, t) for t in tokens[0].tolist()], rel=1e-5, abs=1e-6)


def test_noise_is_gumbel() -> None:
    """Mean, variance and a Kolmogorov-Smirnov distance over a million values; no neighbours hang together."""
    keys = sampling.keys([Draw(Sampling(), 3, p) for p in range(20)], torch.device("cpu"))
    g = sampling.noise(keys, torch.arange(50_000, dtype=torch.int32).unsqueeze(0)).double()
    assert g.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert g.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    u = torch.exp(-torch.exp(-g)).flatten().sort().values
    distance = (u - torch.linspace(0, 1, len(u), dtype=torch.double)).abs().max().item()
    assert distance < 1.95 / math.sqrt(len(u))  # p = 0.001
    for a, b in ((g[:, 1:], g[:, :-1]), (g[1:], g[:-1])):  # neighbouring tokens, neighbouring positions
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 0.005
    assert g.min() > -2.9
    assert g.max() - g.min() < noise.SPREAD


@pytest.mark.parametrize(
    "s",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=0.9, top_k=12, top_p=0.9, min_p=0.02, logit_bias={3: 2.0}),
        Sampling(temperature=1.0, repetition_penalty=1.8, frequency_penalty=0.5, presence_penalty=-0.4),
    ],
)
def test_draws_follow_the_distribution(s: Sampling) -> None:
    """Chi-square over 6000 (seed, position) pairs, at p = 0.001."""
    row, history, n = rows(5, 1)[0], [*range(20), 1, 2, 2, 3], 6000
    want = reference(row.tolist(), s, history, 3)
    got = many(row, s, n, history, 3)
    assert set(got) <= set(want)
    common = {t: p for t, p in want.items() if p * n >= 5}
    chi2 = sum((got[t] - n * p) ** 2 / (n * p) for t, p in common.items())
    rest = 1 - sum(common.values())
    if rest * n >= 5:
        chi2 += (n - sum(got[t] for t in common) - n * rest) ** 2 / (n * rest)
    freedom = max(len(common), 1)
    assert chi2 < freedom + 3.1 * math.sqrt(2 * freedom) + 6


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-40, 0.2, 0.8, 1.0, 5.0, 100.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 7, VOCAB - 1, VOCAB, 1000]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    frequency_penalty=st.sampled_from([0.0, -0.7, 1.1]),
    presence_penalty=st.sampled_from([0.0, -0.3, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-1e9, -3.0, 4.0, 100.0]), max_size=3),
)
histories = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def best(row: Sequence[float], d: Draw, history: Sequence[int]) -> int:
    """The token that the definition draws."""
    allowed = reference(row, d.sampling, history, d.n_generated)
    k0, k1 = noise.key(d.seed, d.position)
    return max(allowed, key=lambda t: math.log(allowed[t]) + noise.gumbel(k0, k1, t))


@pytest.mark.parametrize(
    "s",
    [
        Sampling(temperature=1.0, repetition_penalty=1.5),
        Sampling(temperature=1.0, repetition_penalty=0.5),
        Sampling(temperature=1.0, frequency_penalty=0.8),
        Sampling(temperature=1.0, presence_penalty=-1.5),
        Sampling(temperature=2.0, logit_bias={1: 5.0}, repetition_penalty=2.0, frequency_penalty=-0.5),
        Sampling(temperature=0.5, frequency_penalty=1.0, min_p=0.1),
        Sampling(temperature=1.5, top_k=4, top_p=0.7),
        Sampling(temperature=3.0, min_p=0.2, top_k=10, top_p=0.8),
        Sampling(repetition_penalty=1.5, frequency_penalty=0.8),
    ],
    ids=str,
)
def test_each_step_of_the_order(s: Sampling) -> None:
    """300 rows with histories in which tokens come again and again: each draws what the definition does."""
    logits = rows(6, 300)
    histories = [torch.randint(0, 12, (20,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(300)]
    draws = [Draw(s, 5, i, 20, 13) for i in range(300)]
    assert drawn(logits, draws, histories) == [
        best(row, d, h) for row, d, h in zip(logits.tolist(), draws, histories, strict=True)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)  # a cut may fall between fp32 and fp64
@given(st.integers(0, 1000), st.lists(st.tuples(samplings, histories), min_size=1, max_size=6))
def test_every_draw_is_one_the_reference_allows_and_the_likeliest_noise(
    seed: int, calls: list[tuple[Sampling, list[int]]]
) -> None:
    """Each row of a mixed batch draws argmax(logit / temperature + noise) over the tokens that the reference keeps."""
    logits = rows(seed, len(calls))
    draws = [Draw(s, seed, i, len(h), len(h) // 2) for i, (s, h) in enumerate(calls)]
    got = drawn(logits, draws, [h for _, h in calls])
    for row, d, (s, h), token in zip(logits.tolist(), draws, calls, got, strict=True):
        allowed = reference(row, s, h, d.n_generated)
        k0, k1 = noise.key(d.seed, d.position)
        score = {t: (math.log(p) if p else -math.inf) + noise.gumbel(k0, k1, t) for t, p in allowed.items()}
        assert token in score
        assert score[token] == pytest.approx(max(score.values()), abs=1e-3)


@pytest.mark.parametrize("s", [Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9), Sampling()])
def test_a_draw_is_the_same_alone_and_in_any_batch(s: Sampling) -> None:
    logits = rows(2, 12)
    other = [Sampling(), Sampling(temperature=2.0, top_k=3), Sampling(temperature=0.5, min_p=0.2)]
    draws = [Draw(s if i % 2 else other[i % 3], i * 7, i) for i in range(12)]
    together = drawn(logits, draws)
    assert [drawn(logits[i : i + 1], [draws[i]])[0] for i in range(12)] == together
    order = [5, 3, 11, 0, 8]
    assert drawn(logits[order], [draws[i] for i in order]) == [together[i] for i in order]


def test_seed_and_position_both_count() -> None:
    flat = torch.zeros(1, 1000)
    s = Sampling(temperature=1.0)
    assert len({drawn(flat, [Draw(s, 1, p)])[0] for p in range(50)}) > 40
    assert len({drawn(flat, [Draw(s, seed, 1)])[0] for seed in range(50)}) > 40
    high = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    assert len({drawn(flat, [Draw(s, seed, 1)])[0] for seed in high}) == len(high)


def test_seed_of_the_sampling_is_not_looked_at() -> None:
    """The kernel has put it into the draw."""
    flat = torch.zeros(1, 1000)
    got = {drawn(flat, [Draw(Sampling(temperature=1.0, seed=n), 4, 4)])[0] for n in (None, 1, 2)}
    assert len(got) == 1


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_prefix_and_whole_vocabulary_agree(spread: float) -> None:
    """Filters over a vocabulary wider than the prefixes, peaked (one prefix) and flat (all of it sorted)."""
    samplings = [
        Sampling(temperature=1.0, top_p=0.95),
        Sampling(temperature=1.0, top_p=0.05),
        Sampling(temperature=0.8, top_k=300, top_p=0.9),
        Sampling(temperature=1.0, top_k=100, top_p=0.3),
        Sampling(temperature=1.0, top_k=2500),
        Sampling(temperature=1.0, min_p=0.2),
        Sampling(temperature=1.0, min_p=0.001, top_p=0.5),
    ]
    draws = [Draw(s, 3, i) for i, s in enumerate(samplings * 8)]
    logits = rows(9, len(draws), WIDE, spread)
    want = [best(row, d, []) for row, d in zip(logits.tolist(), draws, strict=True)]
    assert drawn(logits, draws) == want
    for i in range(len(samplings)):  # where no row is the reason for another to look further
        assert drawn(logits[i :: len(samplings)], draws[i :: len(samplings)]) == want[i :: len(samplings)]


def test_ties_at_a_cut_all_stay() -> None:
    row = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert set(many(row, Sampling(temperature=1.0, top_k=2), 300)) == {0, 1, 2, 3}
    assert set(many(torch.zeros(5), Sampling(temperature=1.0, top_p=0.3), 300)) == set(range(5))
    assert len(many(torch.zeros(WIDE), Sampling(temperature=1.0, top_k=5), 400)) > 300  # beyond the first prefix


def test_greedy_takes_the_first_of_equals() -> None:
    row = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert drawn(row, [Draw(Sampling(), 0, 0)]) == [1]
    assert drawn(row, [Draw(Sampling(presence_penalty=1.0), 0, 0, 1, 1)], [[3]]) == [1]
    (answer,) = sampling.answers(row, [Ask(0, top_k=1)], [[]])
    assert answer.top_tokens == [1]


def test_answers_agree_with_log_softmax() -> None:
    logits = rows(1, 5)
    want = logits.double().log_softmax(-1)
    asks = [
        Ask(0),
        Ask(0, Draw(Sampling(temperature=3.0), 1, 1), top_k=4, logprobs_of=[7, 7, 0], target=9, entropy=True),
        Ask(0, top_k=1000),
        Ask(0, Draw(Sampling(logit_bias={5: 100.0}), 1, 1), target=3),
        Ask(0, logprobs_of=[], entropy=True, logits=True),
    ]
    got = sampling.answers(logits, asks, [[]] * 5)
    nothing, rich, wide, biased, last = got
    assert nothing == type(nothing)()
    assert rich.sample is not None
    assert rich.sample_logprob == pytest.approx(want[1, rich.sample].item(), abs=1e-5)
    best = want[1].topk(4)
    assert rich.top_tokens == best.indices.tolist()
    assert rich.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-5)
    assert rich.logprobs_of == pytest.approx(want[1, [7, 7, 0]].tolist(), abs=1e-5)
    assert rich.target_logprob == pytest.approx(want[1, 9].item(), abs=1e-5)
    assert rich.entropy == pytest.approx(-(want[1].exp() * want[1]).sum().item(), abs=1e-5)
    assert sorted(wide.top_tokens) == list(range(VOCAB))
    assert (biased.sample, biased.entropy) == (5, None)
    assert biased.sample_logprob == pytest.approx(want[3, 5].item(), abs=1e-5)  # raw: the bias is not in it
    assert (last.has_logits, last.sample) == (True, None)
    assert last.entropy == pytest.approx(-(want[4].exp() * want[4]).sum().item(), abs=1e-5)


def test_entropy_of_a_certain_row_is_zero() -> None:
    (answer,) = sampling.answers(torch.tensor([[0.0, -math.inf, -math.inf]]), [Ask(0, entropy=True)], [[]])
    assert answer.entropy == 0.0


def test_a_large_penalty_or_bias_stays_finite() -> None:
    s = Sampling(temperature=1e-40, logit_bias={0: -1e9}, repetition_penalty=100.0)
    assert drawn(torch.tensor([[5.0, 4.0, 3.0]]), [Draw(s, 1, 1, 1, 0)], [[1]]) == [2]
