"""What a call is told that finds no room on a device. Pure.

The operator gets all figures. A tenant gets those of its own, and what the device has: how much of that is free, or
whose the rest is, would tell it what others do. Called by `kernel/memory.py`. Never add here: what is done about it.
"""

from collections.abc import Sequence

from kernel.eviction import Scene
from kvfs.access import OPERATOR_NAME
from kvfs.pages import PagePool
from kvfs.tiers import FileFacts
from sdk.abi.errors import NoSpace

TO_DO = "close, truncate or unlink files"
TOO_LONG = "make the file shorter, or have a worker with more pages (--num-pages, --kv-cache-memory)"


def no_room(pool: PagePool, files: Sequence[FileFacts], scene: Scene, *, n_asked: int, n_needed: int) -> NoSpace:
    """The error of a call of the scene's tenant ("": the kernel's own) that would take `n_asked` pages. `n_needed` have
    to be free for it: more where a shared one is to be copied. `files` are those on the device."""
    if n_asked > pool.n_pages:
        return NoSpace(f"{n_asked} pages are needed, and {pool.name} has {pool.n_pages} in all: {TOO_LONG}")
    if scene.tenant not in ("", OPERATOR_NAME):
        return NoSpace(_of_tenant(pool, files, scene, n_asked))
    n_pinned = sum(scene.pinned.values())
    n_others = sum(f.n_pages for f in files if not f.pids and f.tenant != scene.tenant)
    text = f"{n_needed} pages are needed, and {pool.n_free} of the {pool.n_pages} pages of {pool.name} are free"
    host = pool.host
    text += "; nothing is left that could be moved away"
    if host.n_free < n_needed and host.n_pages:
        text += f"; main memory has {host.n_free} of its {host.n_pages} pages free"
    text += f"; {n_pinned} pages are pinned" * (n_pinned > 0) + f"; {n_others} are other tenants'" * (n_others > 0)
    return NoSpace(f"{text}: {TO_DO}")


def _of_tenant(pool: PagePool, files: Sequence[FileFacts], scene: Scene, n_asked: int) -> str:
    own = [f.ino for f in files if f.tenant == scene.tenant]
    n_own, n_pinned = scene.n_distinct(own), sum(scene.pinned.get(ino, 0) for ino in own)
    text = f"{max(n_asked, 1)} pages more cannot be had: "
    text += f"{scene.tenant!r} has {n_own} of the {pool.n_pages} pages of {pool.name}"
    text += f", {n_pinned} of them pinned" * (n_pinned > 0)
    return f"{text}: {TO_DO}" + ", or try again later" * (n_asked <= pool.n_pages)
