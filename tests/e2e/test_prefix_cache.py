"""The prefix cache and the life of a kernel: with durable files it is there after a restart."""

import pytest

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog. " * 4


def ask(kernel):
    """What a kernel answers, and the tokens of the prompt that it had not to compute."""
    asked = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    response = kernel.http.post("/v1/completions", json=asked)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_it_outlives_the_kernel(start_kernel, tmp_path):
    options = ("--backend", "null", "--kv-dir", str(tmp_path / "kv"))
    kernel = start_kernel(*options)
    said, n_cached = ask(kernel)
    assert n_cached == 0
    again, n_cached = ask(kernel)
    assert again == said
    assert n_cached > 100
    kernel.end()
    again, n_after = ask(start_kernel(*options))
    assert again == said
    assert n_after >= n_cached - 1
