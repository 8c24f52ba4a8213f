"""From raw logits to answers: logprobs, and the draw of the next token. Rows of a batch at once, on any device.

The order of a draw is that of `sdk.abi.values.Sampling`: logit_bias, penalties, temperature, min_p, top_k, top_p.
A filter keeps the tokens whose value is not below its cut: tokens that tie at a cut all stay, so that a draw never
depends on the order in which a sort happens to leave equals. The draw itself is the Gumbel-max trick (Maddison,
Tarlow and Minka, "A* sampling", 2014): argmax of logit / temperature + noise, with the noise of gpuworker/noise.py.

Every row is worked on its own, so a row's token is the same whatever else shares the batch. All logprobs are of the
raw softmax. Never keep state between calls here, and never draw from a generator.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpuworker.noise import MUL_A, MUL_B, V_MAX, key
from gpuworker.wire import Answer, Ask, Draw
from sdk.abi.values import Sampling

Histories = Sequence[Sequence[int]]

PREFIXES = (128, 2048)  # how many of the likeliest tokens a filtered draw looks at before it sorts the vocabulary

LOWEST_TEMPERATURE = 1e-30  # a normal number in fp32


def answers(logits: Tensor, asks: Sequence[Ask], histories: Histories) -> list[Answer]:
    """What each ask wants to know of its row. `logits`: [len(asks), vocab], fp32, left as it is."""
    drawing = [i for i, a in enumerate(asks) if a.draw is not None]
    drawn = _sampled(logits, drawing, asks, histories)
    wanted = [_wanted(a, drawn.get(i)) for i, a in enumerate(asks)]
    logprobs = _logprobs(logits, wanted)
    tops = _tops(logits, [a.top_k for a in asks])
    entropies = _entropies(logits, [i for i, a in enumerate(asks) if a.entropy])
    out = []
    for i, a in enumerate(asks):
        values = iter(logprobs[i])
        out.append(
            Answer(
                sample=drawn.get(i),
                sample_logprob=next(values) if i in drawn else None,
                target_logprob=next(values) if a.target is not None else None,
                logprobs_of=list(values),
                top_tokens=[t for t, _ in tops[i]],
                top_logprobs=[lp for _, lp in tops[i]],
                entropy=entropies.get(i),
                has_logits=a.logits,
            )
        )
    return out


def sample(logits: Tensor, draws: Sequence[Draw], histories: Histories) -> Tensor:
    """One token a row. `logits`: [len(draws), vocab], fp32, left as it is. Returns int64 [len(draws)]."""
    busy = [i for i, d in enumerate(draws) if d.sampling.temperature > 0 or _is_biased(d.sampling)]
    if not busy:
        return logits.argmax(-1)
    tokens = logits.argmax(-1) if len(busy) < len(draws) else logits.new_empty(len(draws), dtype=torch.long)
    x = logits[busy]  # a copy: worked on in place from here
    some = [draws[i] for i in busy]
    if any(_is_biased(d.sampling) for d in some):
        _bias(x, some)
        _penalize(x, some, [histories[i] for i in busy])
    tokens[busy] = _choose(x, some)
    return tokens


def noise(keys: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise, float32. `keys`: int32 [B, 2]; `tokens`: int32 [1, P] or [B, P]. Returns [B, P].

    The 32-bit integers are those of gpuworker/noise.py on every device; the logarithms may differ in the last bit.
    Multiplications wrap, and a right shift is made logical by a mask.
    """
    x = tokens + keys[:, :1]
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _signed(MUL_A)
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x += keys[:, 1:]
    x *= _signed(MUL_B)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    v = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=V_MAX)
    return v.neg_().log1p_().neg_().log_().neg_()


def keys(draws: Sequence[Draw], device: torch.device) -> Tensor:
    """int32 [len(draws), 2], for `noise`."""
    words = [[_signed(k) for k in key(d.seed, d.position)] for d in draws]
    return torch.tensor(words, dtype=torch.int32, device=device)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _is_biased(s: Sampling) -> bool:
    """Whether the logits are changed before the temperature, so that even a greedy row is not a plain argmax."""
    return bool(s.logit_bias) or (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) != (1.0, 0.0, 0.0)


def _is_filtered(s: Sampling) -> bool:
    return s.min_p > 0 or s.top_k > 0 or s.top_p < 1


def _bias(x: Tensor, draws: Sequence[Draw]) -> None:
    vocab_size = x.shape[1]
    bias = {i * vocab_size + t: b for i, d in enumerate(draws) for t, b in d.sampling.logit_bias.items()}
    if bias:
        at = torch.tensor(list(bias), device=x.device)
        x.view(-1)[at] += torch.tensor(list(bias.values()), dtype=x.dtype, device=x.device)


def _penalize(x: Tensor, draws: Sequence[Draw], histories: Histories) -> None:
    """Repetition (Keskar et al., "CTRL", 2019, equation 3, with the sign taken care of), frequency, presence."""
    flat = x.view(-1)
    at, _ = _counted(histories, x)
    of_row = _column(x, [d.sampling.repetition_penalty for d in draws]).view(-1)[at // x.shape[1]]
    old = flat[at]
    flat[at] = torch.where(old > 0, old / of_row, old * of_row)
    generated = [h[len(h) - d.n_generated :] for h, d in zip(histories, draws, strict=True)]
    at, counts = _counted(generated, x)
    frequency = _column(x, [d.sampling.frequency_penalty for d in draws]).view(-1)[at // x.shape[1]]
    presence = _column(x, [d.sampling.presence_penalty for d in draws]).view(-1)[at // x.shape[1]]
    flat[at] -= frequency * counts + presence


def _counted(histories: Histories, x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct tokens of each row as indices into `x.view(-1)`, and how often each occurs."""
    flat = [np.array(h, dtype=np.int64) + i * x.shape[1] for i, h in enumerate(histories)]
    at, counts = np.unique(np.concatenate(flat), return_counts=True)
    return torch.from_numpy(at).to(x.device), torch.from_numpy(counts).to(x.device)


def _choose(x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Greedy, free and filtered rows, each kind together. `x` is changed."""
    chosen = torch.empty(len(draws), dtype=torch.long, device=x.device)
    greedy = [i for i, d in enumerate(draws) if d.sampling.temperature == 0]
    filtered = [i for i, d in enumerate(draws) if d.sampling.temperature > 0 and _is_filtered(d.sampling)]
    free = [i for i, d in enumerate(draws) if d.sampling.temperature > 0 and not _is_filtered(d.sampling)]
    if greedy:
        chosen[greedy] = _rows(x, greedy).argmax(-1)
    # The best logit becomes 0 before the division: no temperature, however low, can overflow.
    x -= x.amax(-1, keepdim=True)
    x /= _column(x, [max(d.sampling.temperature, LOWEST_TEMPERATURE) for d in draws])
    if free:
        every = torch.arange(x.shape[1], dtype=torch.int32, device=x.device).unsqueeze(0)
        race = noise(keys([draws[i] for i in free], x.device), every)
        chosen[free] = race.add_(_rows(x, free)).argmax(-1)
    for width in (*(w for w in PREFIXES if w < x.shape[1]), x.shape[1]):
        ready = [i for i in filtered if draws[i].sampling.top_k < width or width == x.shape[1]]
        if ready:
            tokens, settled = _race_in_prefix(_rows(x, ready), [draws[i] for i in ready], width)
            chosen[ready] = tokens
            filtered = sorted({*filtered} - {i for i, ok in zip(ready, settled.tolist(), strict=True) if ok})
    return chosen


def _race_in_prefix(x: Tensor, draws: Sequence[Draw], width: int) -> tuple[Tensor, Tensor]:
    """Draws among the `width` likeliest tokens of rows whose best value is 0.

    Returns the tokens, and which of them hold: a cut inside the prefix settles a row, so a wider prefix would give
    the same; a row whose cut is not in sight must be drawn again from more."""
    values, tokens = x.topk(width) if width < x.shape[1] else x.sort(descending=True)
    cut = _cut(values, x, draws)
    race = noise(keys(draws, x.device), tokens.int()).add_(values).masked_fill_(values < cut, -math.inf)
    drawn = tokens.gather(1, race.argmax(-1, keepdim=True)).squeeze(1)
    settled = values[:, -1] < cut.squeeze(1) if width < x.shape[1] else torch.ones_like(drawn, dtype=torch.bool)
    return drawn, settled


def _cut(values: Tensor, x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """[B, 1]: the lowest value that min_p, top_k and top_p leave. `values`: the likeliest of `x`, best first, more than
    any top_k. Right when it lies above the last of them, or when they are all."""
    width, vocab_size = values.shape[1], x.shape[1]
    samplings = [d.sampling for d in draws]
    cut = _column(x, [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings])
    # The k-th likeliest of all: where min_p has left fewer than k, it lies below the cut already.
    k = torch.tensor([[s.top_k if 0 < s.top_k < vocab_size else 0] for s in samplings], device=x.device)
    cut = torch.where(k > 0, torch.maximum(cut, values.gather(1, (k - 1).clamp_(min=0))), cut)
    if all(s.top_p == 1 for s in samplings):
        return cut
    mass = values.exp().masked_fill_(values < cut, 0.0)
    whole = mass if width == vocab_size else x.exp().masked_fill_(x < cut, 0.0)
    top_p = _column(x, [s.top_p for s in samplings])
    reached = (mass.cumsum(-1) >= top_p * whole.sum(-1, keepdim=True)).int()
    edge = values.gather(1, reached.argmax(-1, keepdim=True))
    # Rounding may keep even all of it from reaching a top_p just below 1; then nothing is cut.
    return torch.where((top_p < 1) & reached.any(-1, keepdim=True), torch.maximum(cut, edge), cut)


def _sampled(logits: Tensor, drawing: list[int], asks: Sequence[Ask], histories: Histories) -> dict[int, int]:
    if not drawing:
        return {}
    draws = [d for a in asks if (d := a.draw) is not None]
    tokens = sample(_rows(logits, drawing), draws, [histories[i] for i in drawing])
    return dict(zip(drawing, tokens.tolist(), strict=True))


def _wanted(ask: Ask, drawn: int | None) -> list[int]:
    """The tokens whose logprobs the answer needs, in the order in which `answers` takes them."""
    return [t for t in (drawn, ask.target) if t is not None] + ask.logprobs_of


def _logprobs(logits: Tensor, wanted: Sequence[Sequence[int]]) -> list[list[float]]:
    which = [i for i, tokens in enumerate(wanted) for _ in tokens]
    rows = sorted(set(which))
    if not rows:
        return [[] for _ in wanted]
    z = torch.empty(len(wanted), device=logits.device)
    z[rows] = _rows(logits, rows).logsumexp(-1)
    of = torch.tensor([which, [t for tokens in wanted for t in tokens]], device=logits.device)
    flat = iter((logits[of[0], of[1]] - z[of[0]]).tolist())
    return [[next(flat) for _ in tokens] for tokens in wanted]


def _tops(logits: Tensor, counts: Sequence[int]) -> list[list[tuple[int, float]]]:
    """The k likeliest tokens with their logprobs, best first; of equals, the smaller token first."""
    out: list[list[tuple[int, float]]] = [[] for _ in counts]
    rows = [i for i, k in enumerate(counts) if k]
    if not rows:
        return out
    x = _rows(logits, rows)
    k = min(max(counts), x.shape[1])
    values, tokens = x.max(-1, keepdim=True) if k == 1 else x.topk(k)  # the first of equals, as argmax has it
    values = values - x.logsumexp(-1, keepdim=True)
    for i, v, t in zip(rows, values.tolist(), tokens.tolist(), strict=True):
        pairs = sorted(zip(t, v, strict=True), key=lambda pair: (-pair[1], pair[0]))
        out[i] = pairs[: counts[i]]
    return out


def _entropies(logits: Tensor, rows: list[int]) -> dict[int, float]:
    """In nats."""
    if not rows:
        return {}
    p = _rows(logits, rows).softmax(-1)
    return dict(zip(rows, torch.special.entr(p).sum(-1).tolist(), strict=True))


def _rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Those rows of `x`, which is not copied when it is all of them."""
    return x if len(rows) == len(x) else x[list(rows)]


def _column(x: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).unsqueeze(1)
