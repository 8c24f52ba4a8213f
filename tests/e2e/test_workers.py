"""Two workers on two ports, and what becomes of programs when one of them dies."""

import concurrent.futures
import signal

import psutil
import pytest

pytestmark = pytest.mark.e2e


def complete(kernel, prompt, n=40):
    body = {"model": "null", "prompt": prompt, "max_tokens": n, "ignore_eos": True, "temperature": 0}
    return kernel.http.post("/v1/completions", json=body)


def tokens_of(kernel):
    lines = kernel.http.get("/metrics").text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("symphony_worker_tokens_total")]


def together(kernel, prompts):
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda p: complete(kernel, p), prompts))


def test_two_workers_share_sixteen_programs(start_kernel, start_worker):
    prompts = [f"this is prompt {i}" for i in range(16)]
    alone = start_kernel("--backend", "null", "--served-model-name", "null")
    expected = [complete(alone, p).json()["choices"][0]["text"] for p in prompts]
    (_, first), (_, second) = (start_worker("--backend", "null") for _ in range(2))
    kernel = start_kernel("--no-local-worker", "--worker", first, "--served-model-name", "null")
    attached = kernel.lip("worker", "attach", second)
    assert attached.returncode == 0, attached.stderr
    answers = together(kernel, prompts)
    assert [a.json()["choices"][0]["text"] for a in answers] == expected
    used = tokens_of(kernel)
    assert min(used) > 0.25 * sum(used), used


def test_a_killed_worker_costs_time_and_no_answers(start_kernel, start_worker, tmp_path):
    slow = ("--backend", "null", "--step-time-us", "20000")
    (one, first), (_, second) = (start_worker(*slow) for _ in range(2))
    config = tmp_path / "config.yaml"
    config.write_text("no_worker_s: 1.0")
    attach = ("--worker", first, "--worker", second, "--served-model-name", "null", "--config", str(config))
    kernel = start_kernel("--no-local-worker", *attach)
    assert kernel.http.get("/healthz").status_code == 200
    calm = [complete(kernel, f"prompt {i}", 60).json()["choices"] for i in (3, 11)]
    before = sum(tokens_of(kernel))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(complete, kernel, f"prompt {i}", 60) for i in range(16)]
        while sum(tokens_of(kernel)) < before + 200:  # all are under way: sixteen prompts are about 150 tokens
            pass
        one.process.send_signal(signal.SIGKILL)
        answers = [a.result() for a in answers]
    assert [a.status_code for a in answers] == [200] * 16
    assert [answers[i].json()["choices"] for i in (3, 11)] == calm
    kernel.wait_for(f"worker {first} was lost: ")
    assert kernel.http.get("/healthz").status_code == 200
    ready = [line for line in kernel.lip("worker", "list").stdout.splitlines() if " ready " in line]
    assert [second in line for line in ready] == [True], "the other one is looked for"
    kernel.lip("worker", "detach", second)
    assert kernel.http.get("/healthz").status_code == 503
    assert complete(kernel, "nobody there").status_code == 503


def test_a_kernel_leaves_nothing_behind(start_kernel):
    kernel = start_kernel("--backend", "null")
    family = psutil.Process(kernel.process.pid).children(recursive=True)
    assert family
    assert kernel.end(signal.SIGINT) == 0
    assert not kernel.socket.exists()
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_killed_kernel_leaves_no_worker(start_kernel):
    kernel = start_kernel("--backend", "null")
    (worker,) = psutil.Process(kernel.process.pid).children()
    kernel.process.kill()
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running()
