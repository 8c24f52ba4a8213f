"""What is said when there is no room: to the operator everything, to a tenant nothing of others."""

from typing import Any

import pytest

from kernel.costs import StepCosts
from kernel.eviction import Scene
from kernel.shortage import no_room
from kvfs.pages import PagePool
from kvfs.tiers import FileFacts


def file(ino: int, tenant: str, n_pages: int, *pids: int) -> FileFacts:
    return FileFacts(
        ino,
        pids=pids,
        n_tokens=0,
        n_kv=0,
        n_pages=n_pages,
        n_host_pages=0,
        claimed=False,
        n_leases=0,
        moving=False,
        used_s=0.0,
        tenant=tenant,
    )


def said(tenant: str, others: list[FileFacts], n_asked: int = 7, n_host_pages: int = 0, **pinned: int) -> str:
    pool = PagePool("w", 100, 16, n_host_pages)
    pool.alloc(15 + sum(f.n_pages for f in others))
    files = [file(1, "ann", 10, 1), file(2, "ann", 5), *others]
    pages = {f.ino: f.n_pages for f in files}
    facts: dict[str, Any] = {
        "now": 0.0, "n_pages": 100, "tenant": tenant, "shares": {}, "hold_s": 1.0, "busy": (), "unneeded": set(),
        "pinned": {int(ino): n for ino, n in pinned.items()}, "returns_at": lambda f: None, "costs": StepCosts(),
        "n_distinct": lambda inos: sum(pages[ino] for ino in inos),
    }  # fmt: skip
    return str(no_room(pool, files, Scene(**facts), n_asked=n_asked, n_needed=pool.n_free + 1))


def test_a_tenant_gets_its_own_figures() -> None:
    assert said("ann", [], **{"1": 4}) == (
        "ENOSPC: 7 pages more cannot be had: 'ann' has 15 of the 100 pages of w, 4 of them pinned: close, truncate or "
        "unlink files, or try again later"
    )


@pytest.mark.parametrize("pinned", [{}, {"9": 20}])
def test_a_tenant_is_told_the_same_whatever_others_have(pinned: dict[str, int]) -> None:
    assert said("ann", [file(9, "bob", 40)], **pinned) == said("ann", [file(9, "bob", 80, 7)]) == said("ann", [])


@pytest.mark.parametrize("tenant", ["local", ""])
def test_the_operator_gets_all_of_it(tenant: str) -> None:
    assert said(tenant, [file(9, "bob", 40)], **{"9": 20, "1": 1}) == (
        "ENOSPC: 46 pages are needed, and 45 of the 100 pages of w are free; nothing is left that could be moved away; "
        "21 pages are pinned; 45 are other tenants': close, truncate or unlink files"
    )


def test_main_memory_that_is_too_small_is_named() -> None:
    assert "; main memory has 40 of its 40 pages free;" in said("local", [], n_host_pages=40)
    assert "main memory" not in said("local", [], n_host_pages=99)
    assert "main memory" not in said("ann", [], n_host_pages=40), "it is full of what others have, perhaps"


@pytest.mark.parametrize("tenant", ["local", "ann"])
def test_a_file_that_is_longer_than_the_device_is_told_so(tenant: str) -> None:
    assert said(tenant, [], n_asked=101) == (
        "ENOSPC: 101 pages are needed, and w has 100 in all: make the file shorter, or have a worker with more pages "
        "(--num-pages, --kv-cache-memory)"
    )
    assert "in all" not in said(tenant, [], n_asked=100)
