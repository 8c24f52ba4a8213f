"""The toy model: determinism, sampling filters, stops."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import Decoding, InvalidArgument, Sampling, Want
from sdk.abi.values import FinishReason
from sdk.testing import model

TOKENS = st.lists(st.integers(0, model.VOCAB_SIZE - 1), min_size=1, max_size=8)


@given(st.text())
def test_text_survives(text: str) -> None:
    assert model.render(model.encode(text), skip_special=False).decode() == text


def test_special_tokens_are_one_token_or_letters() -> None:
    assert model.encode("a<|im_end|>b") == [97, model.IM_END, 98]
    assert model.encode("<|im_end|>", parse_special=False) == list(b"<|im_end|>")
    with pytest.raises(InvalidArgument):
        model.encode("\ud800")


@given(TOKENS)
def test_logprobs_are_a_distribution(tokens: list[int]) -> None:
    logprobs = model.log_softmax(model.logits_after(tokens))
    assert math.isclose(sum(math.exp(lp) for lp in logprobs), 1.0)
    assert model.logits_after(tokens) == model.logits_after(list(tokens))
    dist = model.distribution(tokens, 0, Want(top_k=3, entropy=True, logits=True, sample=Sampling()), 5, seed=0)
    assert dist.top_logprobs == sorted(logprobs, reverse=True)[:3]
    assert dist.target_logprob == logprobs[5]
    assert dist.sample == dist.argmax()
    assert len(dist.logits) == model.VOCAB_SIZE
    assert dist.entropy is not None
    assert 0 <= dist.entropy <= math.log(model.VOCAB_SIZE)


@given(TOKENS, st.integers(0, 2**63), st.integers(0, 100))
def test_draws_keep_to_their_filters(tokens: list[int], seed: int, position: int) -> None:
    logits = model.logits_after(tokens)
    best = model.ranked(logits)
    hot = Sampling(temperature=2.0)
    assert model.draw(logits, hot, seed, position) == model.draw(logits, hot, seed, position)
    assert model.draw(logits, Sampling(temperature=2.0, top_k=2), seed, position) in best[:2]
    assert model.draw(logits, Sampling(temperature=2.0, top_p=1e-9), seed, position) == best[0]
    assert model.draw(logits, Sampling(logit_bias={7: 100.0}), seed, position) == 7


def test_seeds_matter() -> None:
    logits = model.logits_after([1])
    assert len({model.draw(logits, Sampling(temperature=1.0), seed, 0) for seed in range(50)}) > 1


def generation(reply: str | None, n_max: int = 40, **fields: object) -> tuple[str, FinishReason, int | str | None]:
    got = model.generation([1], Decoding(**fields), n_max, 0, reply)  # type: ignore[arg-type]
    assert model.render(got.tokens).decode() == got.text
    return got.text, got.finish, got.stop_reason


def test_stops() -> None:
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    assert generation("abc") == ("abc", stop, None)
    assert generation("abc", n_max=2) == ("ab", length, None)
    assert generation("abc", n_max=0) == ("", length, None)
    assert generation("abcabc", stop=["ca", "bc"]) == ("a", stop, "bc")
    assert generation("abcabc", stop=["bc"], include_stop=True) == ("abc", stop, "bc")
    assert generation("abcabc", stop=["bc"], min_tokens=4) == ("abca", stop, "bc")
    assert generation("abc", stop_tokens=[98]) == ("a", stop, 98)
    assert generation("abc", stop_tokens=[98], include_stop=True) == ("ab", stop, 98)
    assert generation("abc", ignore_eos=True) == ("abc", stop, None), "a script ends where it ends"


def test_the_model_ends_by_itself_unless_told_not_to() -> None:
    free = model.generation([1], Decoding(), 1000, 0, None)
    assert free.finish is FinishReason.STOP
    assert model.IM_END not in free.tokens
    assert free.n_sampled == len(free.tokens) + 1
    held = model.generation([1], Decoding(include_stop=True), 1000, 0, None)
    assert held.tokens == [*free.tokens, model.IM_END]
    on = model.generation([1], Decoding(ignore_eos=True, logprobs=2), 100, 0, None)
    assert len(on.tokens) == len(on.logprobs) == 100
    assert all(len(p.top) == 2 for p in on.logprobs)
