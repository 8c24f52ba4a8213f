"""Durable files in real processes: a kernel that is killed, and the next one."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

SAVE = """
from sdk import kv, model

async def main(text: str):
    async with await kv.create("/doc") as f:
        await f.append(await model.tokenize(text))
        return await look(f)

async def look(f):
    d = await f.next(top_k=20, logits=True)
    return [d.top_tokens, d.top_logprobs, d.logits.hex() if isinstance(d.logits, bytes) else list(d.logits)]
"""
READ = (
    SAVE.replace("async def main(text: str)", "async def ignored(text: str)")
    + """
async def main(more: list[int] = []):
    async with await kv.open("/doc", mode="r") as f:
        g = await f.fork()
        found = await look(g)
        await g.append([3, 4, 5])
        return [found, await look(g)]
"""
)
TEXT = "The quick brown fox jumps over the lazy dog. " * 9


def run(kernel, tmp_path, source, *words):
    (tmp_path / "program.py").write_text(source)
    done = kernel.lip("run", str(tmp_path / "program.py"), *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.model
def test_what_is_restored_is_bitwise_what_was_saved(start_kernel, tmp_path):
    """On the real model, in fp32; the restored file computes nothing for it."""
    options = ("--backend", "torch", "--dtype", "float32", "--max-model-len", "1024", "--kv-dir", str(tmp_path / "kv"))
    kernel = start_kernel(*options)
    saved = run(kernel, tmp_path, SAVE, "--text", TEXT)
    first = run(kernel, tmp_path, READ)
    assert first[0] == saved
    kernel.end(9)
    kernel = start_kernel(*options)
    assert run(kernel, tmp_path, READ) == first
    metrics = kernel.http.get("/metrics").text
    assert "symphony_recomputed_tokens_total 0.0" in metrics


def test_a_killed_kernel_and_the_next(start_kernel, tmp_path):
    """With the supervisor, which starts the next kernel itself."""
    options = ("--backend", "null", "--kv-dir", str(tmp_path / "kv"))
    kernel = start_kernel(*options)
    saved = run(kernel, tmp_path, SAVE, "--text", TEXT)
    second = start_kernel_refused(tmp_path, options, kernel)
    assert f"in use by another kernel (pid {kernel.process.pid}): stop it" in second  # the supervisor's
    kernel.end()
    kernel = start_kernel(*options)
    assert run(kernel, tmp_path, READ)[0] == saved


def test_a_file_is_carried_to_another_kernel(start_kernel, tmp_path):
    one, other = (start_kernel("--backend", "null", "--kv-dir", str(tmp_path / name)) for name in ("a", "b"))
    saved = run(one, tmp_path, SAVE, "--text", TEXT)
    local = str(tmp_path / "doc.kv")
    assert "written" in one.lip("cp", "kv:/doc", local).stderr
    done = other.lip("cp", local, "kv:/doc")
    assert "of them with their KV" in done.stderr
    assert run(other, tmp_path, READ)[0] == saved
    assert "exists" in other.lip("cp", local, "kv:/doc").stderr
    assert "no file" in one.lip("cp", "kv:/nothing", str(tmp_path / "nothing")).stderr
    assert "begins with kv:" in one.lip("cp", "a", "b").stderr
    assert not (tmp_path / "nothing").exists()


def start_kernel_refused(tmp_path, options, kernel):
    """What a kernel says that must not start."""
    command = [sys.executable, "-m", "kernel", "--port", "0", "--socket", str(tmp_path / "other.sock"), *options]
    done = subprocess.run(command, env=kernel.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stderr
