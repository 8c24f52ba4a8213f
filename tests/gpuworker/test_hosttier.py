"""Pages that move between the tiers arrive whole, tails and all, and nothing else is touched."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.hosttier import HostTier
from gpuworker.pagepool import PagePool

N_PAGES, N_HOST_PAGES = 8, 6
SHAPE = {"n_layers": 3, "page_size": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_size": 5}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def tiers(device: str = "cpu") -> tuple[PagePool, HostTier]:
    """The device's pages hold random bytes, those in main memory zeros."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pool = PagePool(N_PAGES, **SHAPE, dtype=torch.bfloat16, device=device)
    for part in pool.as_bytes():
        part.copy_(torch.randint(256, part.shape, generator=torch.Generator().manual_seed(1)))
    return pool, HostTier(pool, N_HOST_PAGES)


def contents(pool: PagePool) -> list[bytes]:
    """By definition: a page's K and V, then its two tails."""
    kv, tails = (part.cpu().numpy() for part in pool.as_bytes())
    return [k.tobytes() + t.tobytes() for k, t in zip(kv, tails, strict=True)]


def host_contents(tier: HostTier) -> list[bytes]:
    return [row.numpy().tobytes() for row in tier.pages]


@pytest.mark.parametrize("device", DEVICES)
def test_out_and_in_again(device: str) -> None:
    pool, tier = tiers(device)
    before = contents(pool)
    assert tier.start([(1, 5), (7, 0)], [])() > 0
    assert [host_contents(tier)[i] for i in (5, 0)] == [before[1], before[7]]
    assert contents(pool) == before
    tier.start([], [(5, 2), (0, 3)])()
    assert contents(pool) == [before[0], before[1], before[1], before[7], *before[4:]]


@pytest.mark.parametrize("device", DEVICES)
def test_contents_are_read_and_written_elsewhere(device: str) -> None:
    pool, tier = tiers(device)
    before = contents(pool)
    read = tier.read([6, 1])
    assert bytes(read) == before[6] + before[1]
    tier.write([0, 7], read)
    tier.write([2], bytes(reversed(before[2])))
    assert contents(pool) == [before[6], before[1], before[2][::-1], *before[3:7], before[1]]
    assert host_contents(tier) == [bytes(len(before[0]))] * N_HOST_PAGES
    tier.write([], tier.read([]))


def test_contents_are_as_long_as_the_pool_says() -> None:
    _, tier = tiers()
    n_bytes = PagePool.bytes_per_page(**SHAPE, dtype=torch.bfloat16)
    assert tier.pages.shape == (N_HOST_PAGES, n_bytes)
    assert len(tier.read([1, 2])) == 2 * n_bytes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.permutations(range(N_PAGES)), st.permutations(range(N_HOST_PAGES)))))
def test_any_moves_are_what_the_model_says(steps: list[tuple[bool, list[int], list[int]]]) -> None:
    """Each step moves some pages out and others in at once."""
    pool, tier = tiers()
    device, host = contents(pool), host_contents(tier)
    for first_out, pages, host_pages in steps:
        pairs = list(zip(pages, host_pages, strict=False))
        out, back = (pairs[:3], pairs[3:5]) if first_out else (pairs[3:5], pairs[:3])
        tier.start(out, [(h, p) for p, h in back])()
        new_host = {h: device[p] for p, h in out}
        for p, h in back:
            device[p] = host[h]
        host = [new_host.get(h, old) for h, old in enumerate(host)]
    assert contents(pool) == device
    assert host_contents(tier) == host


def test_no_moves_need_no_thread() -> None:
    _, tier = tiers()
    before = threading.active_count()
    assert tier.start([], [])() == 0.0
    assert threading.active_count() == before


def test_moves_are_made_in_one_thread_of_their_own() -> None:
    _, tier = tiers()
    before = set(threading.enumerate())
    for _ in range(3):
        tier.start([(1, 1)], [])()
    (helper,) = set(threading.enumerate()) - before
    assert helper.name.startswith("moves")


def test_no_host_pages_at_all() -> None:
    pool, _ = tiers()
    assert len(HostTier(pool, 0).pages) == 0
