"""The tiers of a real kernel and a real model: what went to main memory and came back is what it was."""

import json
import re

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model]

AWAY_AND_BACK = """
from sdk import kv, process, rusage


async def look(file):
    async with await file.fork() as fork:
        after = await fork.pred([42, 43], logits=True)
        return [(await file.next(logits=True)).raw_logits, after.raw_logits]


async def main(n: int = 200):
    tokens = [i * 7919 % 40000 + 100 for i in range(n)]
    async with await kv.create("/tmp/doc") as doc:
        await doc.append(tokens)
        before = await look(doc)
        async with await kv.create() as other:
            await other.append(tokens[::-1])
            away = await doc.stat()
        told = await doc.willneed()
        while (await doc.stat()).n_resident < n:
            await process.sleep(0.01)
        after = await look(doc)
        usage = await rusage()
        return {
            "away": [away.n_pages, away.n_host_pages, away.n_resident],
            "told": told.outcome,
            "is_equal": before == after,
            "n_logits": [len(raw) for raw in after],
            "swapped": usage.n_swapped_tokens,
            "recomputed": usage.n_recomputed_tokens,
        }
"""


def test_what_comes_back_from_main_memory_is_bitwise_what_left(start_kernel, tmp_path):
    """200 tokens have 13 pages, and the device 20: either of two files fits, and a fork with it."""
    kernel = start_kernel("--backend", "torch", "--dtype", "float32", "--num-pages", "20", "--preemption-mode", "swap")
    (tmp_path / "program.py").write_text(AWAY_AND_BACK)
    done = kernel.lip("run", str(tmp_path / "program.py"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["away"] == [0, 13, 0]
    assert (found["told"], found["is_equal"]) == ("deferred", True)
    assert found["n_logits"] == [4 * 49152] * 2
    assert (found["swapped"], found["recomputed"]) == (200, 0)
    metrics = dict(
        re.findall(r'^symphony_kv_pages_moved_total\{how="(\w+)"\} ([\d.]+)$', kernel.http.get("/metrics").text, re.M)
    )
    assert {how: metrics[how] for how in ("out", "in", "dropped")} == {"out": "13.0", "in": "13.0", "dropped": "0.0"}
