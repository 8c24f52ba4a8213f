"""The engine over pages against one plain pass over contiguous keys: whole, in chunks, token by token, forked."""

import itertools
import json
import statistics
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from gpuworker.attention.backend import RowSpec
from gpuworker.attention.sdpa import SdpaBackend
from gpuworker.backend import StepError
from gpuworker.engine import SLICE_LOGITS, Engine, independent
from gpuworker.load import largest_batch, load
from gpuworker.options import Options
from gpuworker.pagepool import PagePool
from gpuworker.wire import Answer, Ask, Batch, BatchHead, Draw
from sdk.abi.errors import Errno
from sdk.abi.values import Sampling
from tests.gpuworker.world import (
    N_PAGES,
    File,
    Job,
    Kernel,
    assert_close,
    contiguous,
    engine,
    every,
    failing,
    matrix,
    words,
)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_whole(tiny: Engine, n: int) -> None:
    tokens = words(n, n)
    (got,) = Kernel(tiny).logits(Job(File(), tokens, every(tokens)))
    assert_close(got, contiguous(tiny, tokens))


@pytest.mark.parametrize("step", [1, 7, 16, 33])
def test_in_chunks(tiny: Engine, step: int) -> None:
    tokens, file, kernel = words(3, 70), File(), Kernel(tiny)
    chunks = [tokens[i : i + step] for i in range(0, 70, step)]
    got = [kernel.logits(Job(file, chunk, every(chunk)))[0] for chunk in chunks]
    assert_close(torch.cat(got), contiguous(tiny, tokens))


def test_rows_of_one_batch_do_not_meet(tiny: Engine) -> None:
    kernel = Kernel(tiny)
    texts = [words(seed, n) for seed, n in ((1, 40), (2, 1), (3, 17), (4, 90), (5, 30))]
    files = [File() for _ in texts]
    cuts = [25, 0, 16, 90, 29]
    kernel.run(*(Job(f, t[:c]) for f, t, c in zip(files, texts, cuts, strict=True) if c))
    jobs = [Job(f, t[c:], every(t[c:])) for f, t, c in zip(files, texts, cuts, strict=True)]
    for got, text, cut in zip(kernel.logits(*jobs), texts, cuts, strict=True):
        assert_close(got, contiguous(tiny, text)[cut:])


def test_explicit_positions(tiny: Engine) -> None:
    tokens, positions = words(8, 20), [3 * i + 5 for i in range(20)]
    file, kernel = File(), Kernel(tiny)
    kernel.run(Job(file, tokens[:11], (), positions[:11]))
    (got,) = kernel.logits(Job(file, tokens[11:], every(tokens[11:]), positions[11:]))
    assert_close(got, contiguous(tiny, tokens, positions)[11:])


@pytest.mark.parametrize("n", [16, 21])
def test_forks_share_pages_and_go_their_own_ways(tiny: Engine, n: int) -> None:
    """Forked at a page's end and inside a page; a fork of a fork; all of them in one step."""
    kernel, base, prompt = Kernel(tiny), File(), words(6, n)
    kernel.run(Job(base, prompt))
    first = kernel.fork(base)
    second = kernel.fork(base)
    nested = kernel.fork(second)
    files = [base, first, second, nested]
    tails = [words(20 + i, 5 + 9 * i) for i in range(4)]
    for got, tail in zip(
        kernel.logits(*(Job(f, t, every(t)) for f, t in zip(files, tails, strict=True))), tails, strict=True
    ):
        assert_close(got, contiguous(tiny, prompt + tail)[n:])
    assert len({f.pages[0] for f in files}) == 1


def test_a_tail_answers_as_the_token_did(tiny: Engine) -> None:
    """At once, later, beside other rows, in a fork, with and without new tokens in the same step."""
    kernel, file, tokens = Kernel(tiny), File(), words(9, 21)
    (fresh,) = kernel.logits(Job(file, tokens, [Ask(20)]))
    (again,) = kernel.logits(Job(file, (), [Ask(-1)]))
    assert_close(again, fresh)
    other = words(10, 30)
    forked, both = kernel.logits(
        Job(kernel.fork(file), (), [Ask(-1), Ask(-1)]), Job(File(), other, [Ask(29), Ask(0), Ask(29)])
    )
    assert_close(forked, fresh.expand(2, -1))
    assert_close(both, contiguous(tiny, other)[[29, 0, 29]])
    reader, stranger = File(file.n, list(file.pages)), File()
    kernel.run(Job(stranger, [4, 5, 6]))
    before, writer, after_writer = kernel.logits(
        Job(reader, (), [Ask(-1)]),
        Job(file, [7, 8], [Ask(1), Ask(-1), Ask(0)]),
        Job(stranger, [9], [Ask(-1), Ask(0)]),
    )
    want = contiguous(tiny, [*tokens, 7, 8])
    assert_close(before, want[20:21])
    assert_close(writer, want[[22, 20, 21]])
    assert_close(after_writer, contiguous(tiny, [4, 5, 6, 9])[2:])
    (after,) = kernel.logits(Job(file, (), [Ask(-1)]))
    assert_close(after, want[22:])


def test_a_tail_in_bfloat16_loses_nothing(tiny_llama_dir: Path) -> None:
    kernel, file = Kernel(engine(tiny_llama_dir, dtype="bfloat16")), File()
    (fresh,) = kernel.logits(Job(file, words(9, 21), [Ask(20)]))
    (again,) = kernel.logits(Job(file, (), [Ask(-1)]))
    torch.testing.assert_close(again, fresh, atol=1e-2, rtol=1e-2)
    (mixed,) = kernel.logits(Job(file, [3], [Ask(-1), Ask(0)]))
    torch.testing.assert_close(mixed[:1], fresh, atol=1e-2, rtol=1e-2)


def test_tails_of_each_length(tiny: Engine) -> None:
    kernel, file, tokens = Kernel(tiny), File(), words(12, 36)
    want = contiguous(tiny, tokens)
    for i, token in enumerate(tokens):
        kernel.run(Job(file, [token]))
        (got,) = kernel.logits(Job(file, (), [Ask(-1)]))
        assert_close(got, want[i : i + 1])


def test_generation_equals_recomputation(tiny: Engine) -> None:
    kernel, file, tokens = Kernel(tiny), File(), words(11, 10)
    (answers,) = kernel.run(Job(file, tokens, [Ask(9, Draw(Sampling(), 0, 10))]))
    for _ in range(30):
        assert answers[0].sample is not None
        tokens.append(answers[0].sample)
        (answers,) = kernel.run(Job(file, tokens[-1:], [Ask(0, Draw(Sampling(), 0, len(tokens)))]))
    assert tokens[10:] == contiguous(tiny, tokens)[9:-1].argmax(-1).tolist()


def test_answers_go_to_their_asks(tiny: Engine) -> None:
    """Samples, histories and logprobs of several rows, asked out of order."""
    kernel = Kernel(tiny)
    texts, penal = [words(1, 9), words(2, 5)], Sampling(repetition_penalty=100.0, logit_bias={3: 50.0})
    asks = [
        [Ask(8, target=4), Ask(2, Draw(penal, 1, 3, n_history=1)), Ask(5)],
        [Ask(4, Draw(penal, 1, 5, n_history=2)), Ask(0, top_k=2, entropy=True)],
    ]
    batch = kernel.batch([Job(File(), t, a) for t, a in zip(texts, asks, strict=True)])
    batch.history = array("I", [4, 3, 3])
    first, second = (row.answers for row in tiny.run(batch).head.rows)
    want = [contiguous(tiny, t).log_softmax(-1) for t in texts]
    assert first[0].target_logprob == pytest.approx(want[0][8, 4].item(), abs=1e-4)
    assert first[1].sample == 3
    assert first[2] == Answer()
    assert second[0].sample == contiguous(tiny, texts[1])[4].index_fill(0, torch.tensor(3), -torch.inf).argmax()
    assert second[1].top_tokens == want[1][0].topk(2).indices.tolist()


def test_no_rows_and_rows_without_work(tiny: Engine) -> None:
    kernel = Kernel(tiny)
    assert kernel.run() == []
    file = File()
    kernel.run(Job(file, [1, 2]))
    assert kernel.run(Job(file), Job(File())) == [[], []]
    done = tiny.run(kernel.batch([Job(file, [3])]))
    assert (done.head.n_tokens, done.logits, done.head.seq) == (1, b"", 1)
    assert done.head.step_s > 0


def test_bad_batches_are_refused_before_anything_is_touched(tiny: Engine) -> None:
    kernel, file = Kernel(tiny), File()
    (before,) = kernel.logits(Job(file, [5, 6], [Ask(1)]))
    good = kernel.batch([Job(file, [7])])
    for bad in (
        Batch(good.head, array("I", [300]), good.positions, good.pages, good.history),
        Batch(BatchHead(1, [(0, N_PAGES)], good.head.rows), good.tokens, good.positions, good.pages, good.history),
    ):
        with pytest.raises(StepError, match="outside") as e:
            tiny.run(bad)
        assert e.value.errno == Errno.EINVAL
    file.n = 2
    (after,) = kernel.logits(Job(file, (), [Ask(-1)]))
    assert_close(after, before)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        MemoryError("12 bytes"),
    ],
)
def test_out_of_memory_fails_the_step_and_leaves_the_tails(tiny: Engine, error: Exception) -> None:
    kernel, model = failing(tiny, error)
    file = File()
    kernel.run(Job(file, [5, 6]))
    model.n_failures = 1
    batch = kernel.batch([Job(file, [7], [Ask(-1, logits=True), Ask(0, logits=True)])])
    with pytest.raises(StepError, match="the worker is out of memory") as e:
        kernel.engine.run(batch)
    assert e.value.errno == Errno.ENOSPC
    assert "\n" not in e.value.detail
    again = matrix(kernel.engine.run(batch), tiny)  # the kernel's second try
    assert_close(again, contiguous(tiny, [5, 6, 7])[1:])


def test_a_bug_is_not_taken_for_a_lack_of_memory(tiny: Engine) -> None:
    kernel, model = failing(tiny, RuntimeError("index out of range in self"))
    model.n_failures = 1
    with pytest.raises(RuntimeError, match="index out of range"):
        kernel.run(Job(File(), [1], [Ask(0)]))


def test_logits_of_many_asks_are_made_in_slices(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """A vocabulary so wide that 40 asks take three slices; raw logits of some, in the order of the asks."""
    vocab_size = SLICE_LOGITS // 16
    config = json.loads((tiny_llama_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size, "hidden_size": 8}))
    wide = engine(tmp_path)
    kernel, tokens, rows = Kernel(wide), words(4, 40), [0, 15, 16, 31, 39]
    asks = [Ask(i, target=i, logits=i in rows) for i in range(40)]
    batch = kernel.batch([Job(File(), tokens, asks)])
    done = wide.run(batch)
    want = contiguous(wide, tokens)
    assert_close(matrix(done, wide), want[rows])
    got = [a.target_logprob for a in done.head.rows[0].answers]
    assert got == pytest.approx(want.log_softmax(-1).diagonal().tolist(), abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_copies_mean_one_after_another(copies: list[tuple[int, int]]) -> None:
    """Whatever reads what another has written, the pages end as if each copy had been done on its own."""
    pool = PagePool(6, 1, 2, 1, 2, 3, torch.float32, "cpu")
    pool.kv.copy_(torch.arange(6.0).view(6, 1, 1, 1, 1, 1).expand_as(pool.kv))
    pool.tails.copy_(torch.arange(6.0).view(6, 1, 1).expand_as(pool.tails))
    want = list(range(6))
    for source, destination in copies:
        want[destination] = want[source]
    runs = list(independent(copies))
    for run in runs:
        pool.copy(run)
    assert pool.kv[:, 0, 1, 1, 0, 1].tolist() == want
    assert pool.tails[:, 1, 2].tolist() == want
    assert list(itertools.chain.from_iterable(runs)) == copies


def test_the_largest_step_is_a_legal_one(tiny_llama_dir: Path) -> None:
    small = engine(tiny_llama_dir, max_num_seqs=12, max_num_batched_tokens=700, max_model_len=256)
    largest = largest_batch(small.info())
    assert [r.n_new for r in largest.head.rows] == [256, 256, 188]
    assert len(small.run(largest).head.rows[0].answers) == 12


class CountingAttention(SdpaBackend):
    """Writes down what it is asked to read."""

    def __init__(self) -> None:
        self.rows: list[RowSpec] = []

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> Any:
        self.rows += rows
        return super().plan(rows, pool)


def test_a_tail_costs_no_forward(tiny: Engine) -> None:
    attention = CountingAttention()
    kernel = Kernel(Engine(tiny._model, tiny._pool, attention, tiny.info(), tiny.assets()))
    file = File()
    kernel.run(Job(file, [1, 2, 3]))
    attention.rows.clear()
    kernel.run(Job(file, (), [Ask(-1, top_k=3)]))
    assert attention.rows == []


# --- the real model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> str:
    """English and code, long enough: a module of the standard library."""
    return Path(statistics.__file__).read_text()


@pytest.fixture(scope="module")
def real() -> Engine:
    return load(Options(dtype="float32", num_pages=512, threads=2), lambda line: None)


def tokenize(engine: Engine, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(engine.assets().tokenizer_json).encode(text, add_special_tokens=False).ids
    return ids


@torch.inference_mode()
def oracle(hf_model: Any, tokens: Sequence[int]) -> Tensor:
    logits: Tensor = hf_model(torch.tensor([tokens])).logits[0]
    return logits.clone()


def asked(kernel: Kernel, file: File, tokens: Sequence[int], step: int, keep: set[int]) -> dict[int, Tensor]:
    """Computes `tokens` in chunks; raw logits at the positions in `keep`."""
    got: dict[int, Tensor] = {}
    for i in range(0, len(tokens), step):
        chunk = tokens[i : i + step]
        offsets = [o for o in range(len(chunk)) if file.n + o in keep]
        first = file.n
        (logits,) = kernel.logits(Job(file, chunk, [Ask(o) for o in offsets]))
        got |= {first + o: row for o, row in zip(offsets, logits, strict=True)}
    return got


@pytest.fixture(scope="module")
def want(real: Engine, hf_model: Any, text: str) -> tuple[list[int], Tensor]:
    """1500 tokens and transformers' logits after each."""
    tokens = tokenize(real, text)[:1500]
    return tokens, oracle(hf_model, tokens)


@pytest.mark.model
@pytest.mark.parametrize(
    ("n", "step", "n_single"), [(5, 5, 4), (64, 64, 64), (500, 37, 20), (1500, 1500, 0), (1500, 256, 20)]
)
def test_real_model_agrees_with_transformers(
    real: Engine, want: tuple[list[int], Tensor], n: int, step: int, n_single: int
) -> None:
    """Whole, in chunks, and the last tokens one by one."""
    tokens, logits = want
    kernel, file = Kernel(real), File()
    keep = {*range(0, n, 11), n - 1, *range(n - n_single, n)}
    got = asked(kernel, file, tokens[: n - n_single], step, keep)
    got |= asked(kernel, file, tokens[n - n_single : n], 1, keep)
    assert len(got) == len(keep)
    assert max((got[i] - logits[i]).abs().max().item() for i in keep) < 2e-3


@pytest.mark.model
def test_real_model_generates_what_transformers_does(real: Engine, hf_model: Any) -> None:
    prompt = tokenize(real, "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n")
    want = hf_model.generate(torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False)
    kernel, file, out = Kernel(real), File(), list(prompt)
    bias = Sampling(logit_bias=dict.fromkeys(real.info().model.eos_tokens, -1000000000.0))
    new = prompt
    while len(out) < len(prompt) + 64:
        (answers,) = kernel.run(Job(file, new, [Ask(len(new) - 1, Draw(bias, 0, len(out)))]))
        assert answers[0].sample is not None
        out.append(answers[0].sample)
        new = out[-1:]
    assert out == want[0].tolist()


@pytest.mark.model
def test_bfloat16_keeps_the_first_choice(hf_model: Any, text: str) -> None:
    """Teacher-forced over 512 positions in chunks, against fp32."""
    half = load(Options(dtype="bfloat16", num_pages=64, threads=2), lambda line: None)
    tokens = tokenize(half, text)[:512]
    want = oracle(hf_model, tokens).argmax(-1).tolist()
    kernel, file = Kernel(half), File()
    got: list[int] = []
    for i in range(0, 512, 100):
        chunk = tokens[i : i + 100]
        (answers,) = kernel.run(Job(file, chunk, [Ask(o, top_k=1) for o in range(len(chunk))]))
        got += [a.top_tokens[0] for a in answers]
    agreed = sum(a == b for a, b in zip(got, want, strict=True)) / len(want)
    assert agreed >= 0.98
