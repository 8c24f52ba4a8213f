"""What do durable files bring, and cost? A document that is read from disk after a restart, and the start itself.

    first token   of a program that opens a document, against one that has the model read it again; each in a kernel
                  that has just started, so that its first call is measured
    close         of that document: until all of it is on disk; and of many small files at once, against one of them
    start         of a kernel whose directory has 10,000 files, against an empty one; also after a crash in the middle
                  of a record

`--model`, `--dtype` and `--tokens` say what is read. Files are in the page cache by then, as after a restart of the
kernel and not of the machine.
"""

import json
import shutil
import subprocess
import tempfile
from array import array
from pathlib import Path
from typing import Any

from gpuworker.options import DEFAULT_MODEL
from kernel.disk import RealDisk
from kvfs.store.format import Geometry
from kvfs.store.store import Commit, Store
from kvfs.store.tree import ROOT, Attributes, SetFile, SetName
from perf.harness import Failed, Findings
from perf.machine import HOUSE
from perf.start import KERNEL, kernel
from sdk.launch import environment

LEAST_GAIN = 10.0  # times as fast to the first token, where the document is on disk
START_S = 2.0  # of a kernel with 10,000 files, from its first instruction to its banner

PROGRAM = """
import time
from sdk import kv

async def main(how: str, n: int = 1500, seed: int = 0):
    tokens = [(seed + 7919 * i) % 40000 + 100 for i in range(n)]
    async with await kv.create() as warm:
        await warm.append(tokens[:16])
        await warm.next(top_k=1)
    began = time.perf_counter()
    f = await (kv.open("/doc", mode="r") if how == "open" else kv.create("/doc" if how == "save" else None))
    if how != "open":
        await f.append(tokens)
    g = await f.fork()
    first = (await g.generate(max_tokens=1, ignore_eos=True)).tokens
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    await f.close()
    return {"seconds": seconds, "close": time.perf_counter() - began, "first": first}
"""

MANY = """
import asyncio
import time
from sdk import kv

async def main(n: int = 100):
    files = [await kv.create(f"/{i}") for i in range(n + 1)]
    for i, file in enumerate(files):
        await file.append([i] * 40)
    began = time.perf_counter()
    await files.pop().close()
    one = time.perf_counter() - began
    await asyncio.gather(*(file.close() for file in files))
    return {"one": one, "all": time.perf_counter() - began - one}
"""


def measure(
    quick: bool = False,
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    tokens: int = 1500,
    files: int = 10_000,
    repeats: int = 3,
) -> Findings:
    found = Findings()
    n, tokens, files = (1, 200, 200) if quick else (repeats, tokens, files)
    directory = Path(tempfile.mkdtemp(prefix="perf-"))
    try:
        _documents(found, directory, n, tokens, ["--model", model, "--dtype", dtype], quick)
        _closes(found, directory, n, 10 if quick else 100)
        _starts(found, directory, n, files, quick)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


def _documents(found: Findings, directory: Path, n: int, tokens: int, model: list[str], quick: bool) -> None:
    options = [*model, "--kv-dir", str(directory / "documents")]
    (directory / "document.py").write_text(PROGRAM)

    def run(how: str) -> dict[str, Any]:
        return _program(directory, options, ["--how", how, "--n", str(tokens)])

    saved = run("save")
    again = [run("compute") for _ in range(n)]
    opened = [run("open") for _ in range(n)]
    if {tuple(r["first"]) for r in (saved, *again, *opened)} != {tuple(saved["first"])}:
        found.note("the first tokens differ: K/V was computed in batches of other shapes, in less than fp32")
    computing = found.add(f"first token, {tokens} tokens computed", "s", [r["seconds"] for r in again])
    loading = found.add(
        f"first token, {tokens} tokens from disk",
        "s",
        [r["seconds"] for r in opened],
        against=f"first token, {tokens} tokens computed",
    )
    found.add("close, until it is on disk", "s", saved["close"])
    size = sum(path.stat().st_size for path in (directory / "documents").glob("*.kv"))
    found.add("size on disk", "MiB", size / 2**20)
    if not quick:
        found.expect(loading * LEAST_GAIN <= computing, f"from disk at least {LEAST_GAIN:g} times as fast as computed")


def _closes(found: Findings, directory: Path, n: int, files: int) -> None:
    (directory / "document.py").write_text(MANY)
    runs = []
    for i in range(n):
        options = ["--backend", "null", "--kv-dir", str(directory / f"many-{i}")]
        runs.append(_program(directory, options, ["--n", str(files)]))
    one = "close of one small file"
    found.add(one, "s", [run["one"] for run in runs])
    found.add(f"close of {files} at once", "s", [run["all"] for run in runs], against=one)


def _program(directory: Path, options: list[str], words: list[str]) -> dict[str, Any]:
    """What the program returns, in a kernel of its own."""
    command = [*KERNEL, *options, "--no-http", "--socket", str(directory / "k.sock")]
    command += ["run", str(directory / "document.py"), *words]
    done = subprocess.run(command, cwd=HOUSE, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the program failed: {done.stderr.splitlines()[-1] if done.stderr else 'no word'}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _starts(found: Findings, directory: Path, n: int, files: int, quick: bool) -> None:
    full, empty = directory / "full", directory / "empty"
    fill(full, files)
    base = found.add("start, no files", "s", [start(empty, directory) for _ in range(n)])
    full_s = found.add(
        f"start, {files} files", "s", [start(full, directory) for _ in range(n)], against="start, no files"
    )
    with (full / "journal").open("ab") as journal:
        journal.write(b"KVJ\x01 a torn record")
    (full / "999999.tmp").write_bytes(b"half of a file")
    found.add("start after a crash", "s", start(full, directory))
    found.note(f"{files} files add {(full_s - base) * 1000:.0f} ms to a start")
    if not quick:
        found.expect(full_s <= START_S, f"a start with {files} files takes at most {START_S:g} s")


class Careless(RealDisk):
    """A disk that is filled, and not waited for."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_dir(self) -> None:
        pass


def fill(directory: Path, n: int) -> None:
    """Make so many durable files, of some tokens each and no K/V."""
    disk = Careless(directory)
    store = Store(disk)
    geometry = Geometry("null", "0" * 32, "none", 16, 304)
    attributes = Attributes("local", "local", 0o644, 0.0, 0.0)
    tokens = array("I", range(100))
    for i in range(n):
        ino = ROOT + 1 + i
        writer = store.begin(ino, geometry, tokens, tokens, 0, False)
        writer.sync()
        writer.finish()
        file = SetFile(ino, attributes, writer.version, writer.n_bytes, len(tokens))
        store.commit([Commit([file, SetName(ROOT, f"document-{i}", ino)], writer)])
    store.close()
    disk.end()


def start(kv_dir: Path, directory: Path) -> float:
    """Seconds until `python -m kernel` without a worker listens."""
    return kernel(directory, "--no-local-worker", "--no-supervisor", "--kv-dir", str(kv_dir))
