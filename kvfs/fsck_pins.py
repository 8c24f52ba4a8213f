"""fsck of pins and advice: they are about files that are there, for whom and as long as was said. Part of fsck.py."""

import math
from collections.abc import Iterator

from kvfs.fs import Kvfs


def check_pins(fs: Kvfs) -> Iterator[str]:
    handles = set()
    for pin in fs.pins.pins:
        name = f"a pin of {pin.n_pages} pages of file #{pin.inode.ino}"
        if fs.files.get(pin.inode.ino) is not pin.inode:
            yield f"{name}: the file is gone"
        if pin.n_pages < 1:
            yield f"{name}: it keeps nothing"
        if pin.handle is None:
            if pin.until_s == math.inf:
                yield f"{name}: it was to end with its handle, which is closed"
            continue
        if not pin.handle.is_open or pin.handle.inode is not pin.inode:
            yield f"{name}: its handle is closed, or of another file"
        if pin.handle in handles:
            yield f"{name}: its handle has another"
        handles.add(pin.handle)
    for ino in (fs.pins.advice.keys() | fs.pins.awaited) - fs.files.keys():
        yield f"there is advice on file #{ino}, which is gone"
    for name, pool in fs.pools.items():
        n_kept = sum(fs.pins.kept(pool, -math.inf).values())
        if n_kept > fs.pins.limit(pool):
            yield f"{name}: {n_kept} pages are kept there, and {fs.pins.limit(pool)} may be"
