"""The toy model: pure functions from tokens to what comes next, called by `sdk.testing.kernel`.

A token is a byte of UTF-8 or one of two special tokens. Logits are drawn from a hash of all tokens before, so the
same text always continues in the same way. Sampling follows `Sampling` without penalties and `min_p`.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Iterable

from sdk.abi.errors import InvalidArgument
from sdk.abi.values import Decoding, Distribution, FinishReason, Generation, Sampling, TokenLogprob, Want

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
IM_END = SPECIAL["<|im_end|>"]
VOCAB_SIZE = 258


def encode(text: str, parse_special: bool = True) -> list[int]:
    """The tokens of `text`. Raises InvalidArgument for text that is no Unicode (lone surrogates)."""
    for name, token in SPECIAL.items() if parse_special else ():
        if name in text:
            before, _, after = text.partition(name)
            return [*encode(before), token, *encode(after)]
    try:
        return list(text.encode())
    except UnicodeEncodeError as e:
        raise InvalidArgument(f"the text is not valid Unicode: {e.reason} at {e.start}") from None


def render(tokens: Iterable[int], skip_special: bool = True) -> bytes:
    """The bytes of some tokens."""
    special = {} if skip_special else {token: name.encode() for name, token in SPECIAL.items()}
    return b"".join(bytes([t]) if t < 256 else special.get(t, b"") for t in tokens)


def logits_after(tokens: list[int]) -> list[float]:
    """Eight letters are likely after any text, and one time in 32 the end of sequence is likelier than they are."""
    dice = random.Random(hashlib.blake2b(array("I", tokens).tobytes(), digest_size=8).digest())
    logits = [-20.0] * VOCAB_SIZE
    for letter in dice.sample(b"abcdefghijklmnopqrstuvwxyz ", 8):
        logits[letter] = dice.uniform(0.0, 4.0)
    if dice.random() < 1 / 32:
        logits[IM_END] = 5.0
    return logits


def log_softmax(logits: list[float]) -> list[float]:
    m = max(logits)
    z = m + math.log(sum(math.exp(x - m) for x in logits))
    return [x - z for x in logits]


def ranked(scores: list[float], n: int = VOCAB_SIZE) -> list[int]:
    """The n best tokens, best first; of equals the smaller."""
    return sorted(range(VOCAB_SIZE), key=lambda t: (-scores[t], t))[:n]


def draw(logits: list[float], sampling: Sampling, seed: int, position: int) -> int:
    """One token: bias, temperature, top_k and top_p, in this order; keyed by (seed, position)."""
    x = [logit + sampling.logit_bias.get(t, 0.0) for t, logit in enumerate(logits)]
    tokens = ranked(x, sampling.top_k if sampling.top_k > 0 else VOCAB_SIZE)
    if sampling.temperature == 0.0:
        return tokens[0]
    weights = [math.exp((x[t] - x[tokens[0]]) / sampling.temperature) for t in tokens]
    total, mass, n = sum(weights), 0.0, 0
    while n < len(weights) and mass < sampling.top_p * total:
        mass += weights[n]
        n += 1
    return random.Random(f"{seed} {position}").choices(tokens[:n], weights[:n])[0]


def distribution(before: list[int], position: int, want: Want, target: int | None, seed: int) -> Distribution:
    """The belief after the tokens `before`, the last of which is at `position`."""
    logits = logits_after(before)
    logprobs = log_softmax(logits)
    top = ranked(logprobs, want.top_k)
    sample = None if want.sample is None else draw(logits, want.sample, seed, position + 1)
    return Distribution(
        position,
        top_tokens=top,
        top_logprobs=[logprobs[t] for t in top],
        raw_logits=array("f", logits).tobytes() if want.logits else b"",
        sample=sample,
        sample_logprob=None if sample is None else logprobs[sample],
        logprobs_of={t: logprobs[t] for t in want.logprobs_of},
        target_logprob=None if target is None else logprobs[target],
        entropy=-sum(math.exp(lp) * lp for lp in logprobs) if want.entropy else None,
    )


def generation(before: list[int], decoding: Decoding, n_max: int, seed: int, reply: str | None) -> Generation:
    """All that a generation after `before` yields. With a `reply` its words are taken for the sampled tokens, and
    its end for the end of sequence."""
    script = None if reply is None else iter([*encode(reply), IM_END])
    context, tokens, text = list(before), list[int](), b""
    logprobs: list[TokenLogprob] = []
    finish: FinishReason | None = FinishReason.LENGTH if n_max == 0 else None
    stop_reason: int | str | None = None
    n_sampled = 0
    while finish is None:
        logits = logits_after(context)
        token = draw(logits, decoding.sampling, seed, len(context)) if script is None else next(script)
        n_sampled += 1
        eos = token == IM_END and (script is not None or not decoding.ignore_eos)
        if (eos or token in decoding.stop_tokens) and (n_sampled > decoding.min_tokens or script is not None):
            finish, stop_reason = FinishReason.STOP, token if token in decoding.stop_tokens else None
            if not decoding.include_stop:
                break
        tokens.append(token)
        context.append(token)
        text += render([token])
        if decoding.logprobs is not None:
            belief = log_softmax(logits)
            top = [(t, belief[t]) for t in ranked(belief, decoding.logprobs)]
            logprobs.append(TokenLogprob(token, belief[token], top))
        found = next((stop for stop in decoding.stop if text.endswith(stop.encode())), None)
        if found is not None and len(tokens) >= decoding.min_tokens:
            finish, stop_reason = FinishReason.STOP, found
            if not decoding.include_stop:
                text = text.removesuffix(found.encode())
                while len(render(tokens)) > len(text):
                    tokens.pop()
        elif finish is None and len(tokens) >= n_max:
            finish = FinishReason.LENGTH
    return Generation(text.decode(errors="replace"), tokens, finish, stop_reason, logprobs[: len(tokens)], n_sampled)
