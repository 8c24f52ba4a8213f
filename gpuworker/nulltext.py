"""THE NULL MODEL: what the null worker believes comes next, and its language. Pure Python, no state.

A distribution is a pure function of a 64-bit hidden state. Eight printable characters are likely, all other tokens
share `REST`, so far below that nothing but a filter, a bias or a high temperature ever brings them up: text looks
like text, and an end of sequence is rare unless it is asked for.

The sampler follows `gpuworker/sampling.py` step by step on a dict of candidates. Callers: gpuworker/null.py.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from gpuworker.noise import SPREAD, gumbel, key, splitmix64
from gpuworker.wire import Answer, Ask, Assets, Draw
from sdk.abi.values import Sampling

REST = -40.0  # the logit of every token that is not likely
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<eos>")
IM_END, EOS = 257, 258
MIN_VOCAB = 256 + len(SPECIAL_TOKENS)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Logits = dict[int, float]  # of the likely tokens; all others have REST


def likely(hidden: int) -> Logits:
    """The logits after a hidden state: up to eight printable ASCII bytes between 0 and 4, exact in fp32."""
    a, b = splitmix64(hidden ^ 1), splitmix64(hidden ^ 2)
    return {32 + ((a >> i & 255) * 95 >> 8): (b >> i & 255) / 64 for i in range(0, 64, 8)}


def ranked(logits: Logits) -> list[int]:
    """Best first; of equals, the smaller token."""
    return sorted(logits, key=lambda t: (-logits[t], t))


def normalizer(logits: Logits, vocab_size: int) -> float:
    """log of the sum of exp of all logits: what to subtract to get a logprob."""
    m = max(logits.values(), default=REST)
    mass = sum(math.exp(x - m) for x in logits.values()) + (vocab_size - len(logits)) * math.exp(REST - m)
    return m + math.log(mass)


def answer(hidden: int, ask: Ask, history: Sequence[int], vocab_size: int) -> Answer:
    """All that `ask` wants to know after `hidden`, but for the raw logits, which `row` makes."""
    logits = likely(hidden)
    z = normalizer(logits, vocab_size)
    sample = None if ask.draw is None else _draw(logits, ask.draw, history, vocab_size)
    top = ranked(logits)[: ask.top_k]
    if len(top) < ask.top_k:
        others = (t for t in range(vocab_size) if t not in logits)
        top += [t for t, _ in zip(others, range(ask.top_k - len(top)), strict=False)]
    return Answer(
        sample=sample,
        sample_logprob=None if sample is None else logits.get(sample, REST) - z,
        top_tokens=top,
        top_logprobs=[logits.get(t, REST) - z for t in top],
        logprobs_of=[logits.get(t, REST) - z for t in ask.logprobs_of],
        target_logprob=None if ask.target is None else logits.get(ask.target, REST) - z,
        entropy=_entropy(logits, z, vocab_size) if ask.entropy else None,
        has_logits=ask.logits,
    )


def row(hidden: int, vocab_size: int) -> list[float]:
    """The whole row of raw logits."""
    logits = likely(hidden)
    return [logits.get(t, REST) for t in range(vocab_size)]


def _entropy(logits: Logits, z: float, vocab_size: int) -> float:
    of_likely = -sum(math.exp(x - z) * (x - z) for x in logits.values())
    return of_likely - (vocab_size - len(logits)) * math.exp(REST - z) * (REST - z)


def _draw(logits: Logits, draw: Draw, history: Sequence[int], vocab_size: int) -> int:
    s = draw.sampling
    x = _penalized(dict(logits), s, history, draw.n_generated)
    # Tokens further behind than the noise can reach need not be looked at one by one: see noise.SPREAD.
    if (max(x.values()) - REST) <= SPREAD * max(s.temperature, 1.0):
        x = dict.fromkeys(range(vocab_size), REST) | x
    if s.temperature == 0.0:
        return ranked(x)[0]
    top = max(x.values())
    kept = _filtered({t: (v - top) / s.temperature for t, v in x.items()}, s)
    k0, k1 = key(draw.seed, draw.position)
    return max(kept, key=lambda t: kept[t] + gumbel(k0, k1, t))


def _penalized(x: Logits, s: Sampling, history: Sequence[int], n_generated: int) -> Logits:
    for token, bias in s.logit_bias.items():
        x[token] = x.get(token, REST) + bias
    for token in set(history):
        v = x.get(token, REST)
        x[token] = v / s.repetition_penalty if v > 0 else v * s.repetition_penalty
    for token in history[len(history) - n_generated :]:
        x[token] -= s.frequency_penalty
    for token in set(history[len(history) - n_generated :]):
        x[token] -= s.presence_penalty
    return x


def _filtered(x: Logits, s: Sampling) -> Logits:
    """min_p, top_k, top_p, each on what the one before has left; ties at a cut stay. The best logit of `x` is 0."""
    if s.min_p > 0:
        x = {t: v for t, v in x.items() if v >= math.log(s.min_p)}
    if 0 < s.top_k < len(x):
        cut = sorted(x.values(), reverse=True)[s.top_k - 1]
        x = {t: v for t, v in x.items() if v >= cut}
    if s.top_p < 1:
        values = sorted(x.values(), reverse=True)
        masses = list(accumulate(math.exp(v) for v in values))
        cut = next(v for v, mass in zip(values, masses, strict=True) if mass >= s.top_p * masses[-1])
        x = {t: v for t, v in x.items() if v >= cut}
    return x


@cache
def assets(vocab_size: int) -> Assets:
    """A byte-level tokenizer without merges: token i is byte i, then the special tokens, then unused ones."""
    vocab = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    unused = (f"<|unused_{t}|>" for t in range(MIN_VOCAB, vocab_size))
    special = [
        {"id": 256 + i, "content": content, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, content in enumerate((*SPECIAL_TOKENS, *unused))
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return Assets(json.dumps(tokenizer), CHATML, {"eos_token": "<eos>"}, add_bos=False)


def _byte_symbols() -> list[str]:
    """One printable character for each byte (Radford et al., GPT-2, 2019): its own where it is printable in
    Latin-1, else the next free one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]
