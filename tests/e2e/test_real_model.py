"""The real model in a real worker process: what the README promises, counted by the worker itself."""

import json

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model]

FORKS = """
import asyncio
from sdk import Sampling, kv, model, syscalls

TEXT = "The quick brown fox jumps over the lazy dog. " * 4


async def branch(file, seed, n_tokens):
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
    return (await file.generate(sampling=sampling, max_tokens=n_tokens, ignore_eos=True)).tokens


async def main(n: int = 4, n_tokens: int = 24):
    prompt = await model.tokenize(TEXT)
    async with await kv.create() as base:
        await base.append(prompt)
        forks = [await base.fork() for _ in range(n)]
        together = await asyncio.gather(*(branch(f, i, n_tokens) for i, f in enumerate(forks)))
    used = await syscalls.rusage()
    alone = []
    for i in range(n):
        async with await kv.create() as fresh:
            await fresh.append(prompt)
            alone.append(await branch(fresh, i, n_tokens))
    return {
        "equal": together == alone,
        "distinct": len({tuple(t) for t in together}),
        "prompt": len(prompt),
        "computed": used.n_prompt_tokens + used.n_generated_tokens,
    }
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory, kernel_class):
    kernel = kernel_class(tmp_path_factory.mktemp("real"), "--dtype", "float32", "--max-model-len", "2048")
    yield kernel
    kernel.end()


def worker_tokens(kernel):
    (line,) = (x for x in kernel.http.get("/metrics").text.splitlines() if x.startswith("symphony_worker_tokens_total"))
    return float(line.split()[-1])


def test_branches_together_equal_branches_alone(kernel, tmp_path):
    (tmp_path / "forks.py").write_text(FORKS)
    before = worker_tokens(kernel)
    done = kernel.lip("run", str(tmp_path / "forks.py"), "--json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["equal"]
    assert got["distinct"] == 4
    assert got["computed"] == got["prompt"] + 4 * 24
    assert worker_tokens(kernel) - before == got["computed"] + 4 * (got["prompt"] + 24), "as the worker counts"


def test_an_agent_computes_each_token_once(kernel):
    before = worker_tokens(kernel)
    done = kernel.lip("run", "react", "--json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["tool_calls"] == 5
    assert got["computed_tokens"] == got["file_tokens"] == worker_tokens(kernel) - before


def test_a_chat_over_http(kernel):
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    answer = kernel.http.post("/v1/chat/completions", json=body).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_each_turn_of_a_chat_computes_what_is_new(kernel):
    """By the worker's own count; and the answers are those of a server that computes everything."""
    messages = [{"role": "system", "content": "You are a patient teacher. Answer in short sentences."}]
    for question in ("Name a planet.", "Is it far away?", "How long is its year?"):
        messages.append({"role": "user", "content": question})
        body = {
            "model": "smollm2-135m-instruct", "messages": messages, "temperature": 0, "max_tokens": 12,
            "ignore_eos": True, "cache_salt": "turns",
        }  # fmt: skip
        fresh = kernel.http.post("/v1/chat/completions", json=body | {"cache_prompt": False}).json()
        before = worker_tokens(kernel)
        usage = (answer := kernel.http.post("/v1/chat/completions", json=body).json())["usage"]
        n_cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert worker_tokens(kernel) - before == usage["prompt_tokens"] - n_cached + 12
        if len(messages) > 2:
            assert usage["prompt_tokens"] - n_cached < 24, "a question, and what the template puts around it"
        else:
            assert n_cached == 0
        assert fresh["choices"] == answer["choices"]
        messages.append(answer["choices"][0]["message"])


def test_a_prompt_that_is_too_long(kernel):
    body = {"model": "smollm2-135m-instruct", "prompt": [1000] * 3000, "max_tokens": 1}
    answer = kernel.http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "maximum context length is 2048" in answer.json()["error"]["message"]
