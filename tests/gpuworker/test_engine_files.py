"""The real model in fp32: whatever is done to a file or to its K/V, the logits that follow are those of a file to which
nothing was done; bit for bit where nothing is computed again. Edits are in test_edits.py, a file that was saved and
restored in tests/e2e/test_durable.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from gpuworker.engine import Engine
from gpuworker.load import load
from gpuworker.options import Options
from gpuworker.pagepool import PagePool
from kvfs.access import KERNEL
from kvfs.openfile import OpenFile
from tests.gpuworker.files import Files

pytestmark = pytest.mark.model

N, MORE = 61, 6  # tokens of the file, whose last page is not full; tokens that follow


@pytest.fixture(scope="module")
def files() -> Files:
    """Two engines with pages of their own."""
    options = Options(model="smollm2-135m-instruct", dtype="float32", num_pages=40, num_host_pages=8, threads=2)
    here = load(options, lambda line: None)
    n_pages, n_layers, _, page_size, n_heads, dim = here._pool.kv.shape
    pool = PagePool(n_pages, n_layers, page_size, n_heads, dim, here._pool.tails.shape[-1], torch.float32, "cpu")
    return Files(here, Engine(here._model, pool, here._attention, here.info(), here.assets()))


@pytest.fixture(scope="module")
def tokens(files: Files) -> list[int]:
    prose = Path(torch.__file__).with_name("functional.py").read_text()
    return Tokenizer.from_str(files.engine.assets().tokenizer_json).encode(prose).ids[: N + MORE]


@pytest.fixture(scope="module")
def wanted(files: Files, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of what comes next in a file that nothing was done to, and after each of MORE tokens."""
    plain = files.made(tokens[:N])
    return files.next(plain), files.append(plain, tokens[N:])


def fork(files: Files, f: OpenFile) -> OpenFile:
    """The fork, after its parent has gone on with something else, and ended."""
    forked = files.fs.fork(f, None, who=KERNEL, now=0.0)
    files.append(f, [1, 2, 3])
    return forked


def there_and_back(files: Files, f: OpenFile) -> OpenFile:
    files.swap(f)
    files.migrate(f)
    return f


def in_place(change: Callable[[Files, OpenFile], None]) -> Callable[[Files, OpenFile], OpenFile]:
    def changed(files: Files, f: OpenFile) -> OpenFile:
        change(files, f)
        return f

    return changed


@pytest.mark.parametrize(
    "act",
    [fork, in_place(Files.swap), in_place(Files.migrate), there_and_back],
    ids=["fork", "swap", "migrate", "swap and migrate"],
)
def test_what_is_not_computed_again_is_bit_for_bit_the_same(
    files: Files,
    tokens: list[int],
    wanted: tuple[torch.Tensor, torch.Tensor],
    act: Callable[[Files, OpenFile], OpenFile],
) -> None:
    original = files.made(tokens[:N])
    f = act(files, original)
    want_next, want_more = wanted
    assert torch.equal(files.next(f), want_next)
    assert torch.equal(files.append(f, tokens[N:]), want_more)
    for held in {original, f}:
        files.fs.close(held, 0.0)


def test_truncated_and_continued(files: Files, tokens: list[int], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The K/V that stays is as it was; the tail, which is asked for in the end, is computed once more."""
    f = files.made(tokens[:N])
    want_next, want_more = wanted
    files.append(f, [5, 6, 7, 8] * 6)
    files.fs.truncate(f, N, 0.0)
    assert torch.equal(files.append(f, tokens[N:]), want_more)
    files.fs.truncate(f, N, 0.0)
    assert (files.next(f) - want_next).abs().max() < 1e-3
    files.fs.close(f, 0.0)


def test_dropped_and_computed_again(files: Files, tokens: list[int], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    f = files.made(tokens[:N])
    files.drop(f)
    want_next, want_more = wanted
    assert (files.next(f) - want_next).abs().max() < 1e-3
    assert (files.append(f, tokens[N:]) - want_more).abs().max() < 1e-3
    files.fs.close(f, 0.0)
