"""What is used of a device, as somebody may see it.

Called by fs.py. Never add here: what users may have (`quota.py`).
"""

from collections.abc import Iterable

from kvfs.inode import Inode
from kvfs.pages import PagePool
from kvfs.table import is_host
from sdk.abi.values import DeviceSpace


def space(pool: PagePool, files: Iterable[Inode], tenant: str | None) -> DeviceSpace:
    """Of one device. With a tenant: as if nobody else had anything on it."""
    n_used, n_host_used, n_files = pool.n_pages - pool.n_free, pool.n_host_used, pool.n_files
    if tenant is not None:
        own = [inode for inode in files if inode.pool is pool and inode.tenant == tenant]
        entries = {entry for inode in own for entry in inode.table}
        n_host_used = sum(map(is_host, entries))
        n_used, n_files = len(entries) - n_host_used, len(own)
    return DeviceSpace(
        pool.name,
        page_size=pool.page_size,
        page_bytes=pool.page_bytes,
        n_pages=pool.n_pages,
        n_free=pool.n_pages - n_used,
        n_host_pages=pool.host.n_pages,
        n_host_free=pool.host.n_pages - n_host_used,
        n_files=n_files,
    )
