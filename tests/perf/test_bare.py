"""The engine by hand computes what it computes in one go."""

import json
from pathlib import Path

import pytest

from gpuworker.engine import Engine
from gpuworker.load import load
from gpuworker.options import Options
from perf.bare import TOKEN, Bare, start
from perf.harness import Failed

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A tiny model with random weights."""
    path = tmp_path_factory.mktemp("tiny")
    (path / "config.json").write_text(json.dumps(CONFIG))
    options = Options(model=str(path), load_format="dummy", dtype="float32", num_pages=64, threads=1)
    return load(options, lambda line: None)


def test_steps_agree_with_one_pass(engine):
    bare = Bare(engine, 2, 60)
    bare.prefill(2, 20)
    sampled: list[list[int]] = [[], []]
    last = bare.run(20, [[], []])  # from the stored tails
    for i in range(5):
        for own, sample in zip(sampled, last, strict=True):
            own.append(sample)
        last = bare.run(20 + i, [[sample] for sample in last])
    whole = Bare(engine, 1, 60)
    for i, own in enumerate(sampled):
        assert whole.run(0, [[TOKEN + i] * 20 + own]) == [last[i]]


def test_a_generation_takes_a_step_for_each_token_and_one(engine, monkeypatch):
    bare = Bare(engine, 3, 60)
    bare.prefill(3, 10)
    batches = []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda batch: batches.append(batch.head) or run(batch))
    bare.generate(3, 10, 4)
    assert [[row.n_new for row in head.rows] for head in batches] == [[0] * 3] + [[1] * 3] * 4
    assert [bool(head.rows[0].asks) for head in batches] == [True, True, True, True, False]


def test_more_than_there_are_pages(engine):
    with pytest.raises(ValueError, match="do not fit"):
        Bare(engine, 65, 16)


def test_a_model_that_is_not_there():
    with pytest.raises(Failed, match="no such file"):
        start("nowhere/at/all", "auto", 8)


def test_no_config(tmp_path: Path):
    with pytest.raises(Failed, match="neither"):
        start(str(tmp_path), "auto", 8)
