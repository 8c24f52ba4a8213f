"""What is known of a file or directory, as somebody may see it.

Inode numbers are counted over all tenants, so their distances would tell one how many files others make. Whoever is not
the operator gets another number in the place of each: the same for all names of a file, and no other's. Called by
fs.py. Never add here: whether somebody may ask at all.
"""

from hashlib import blake2b

from msgspec.structs import replace

from kvfs.access import OPERATOR_NAME, Who
from kvfs.directory import Node
from kvfs.inode import Inode
from sdk.abi.values import Stat

N_BYTES = 6  # of a number that is shown: JSON's are exact up to 2^53


def knows_use(who: Who, inode: Inode) -> bool:
    """Whether somebody may see who uses a file: the operator, and the tenant that it is of."""
    return who.root or inode.tenant == (who.tenant or OPERATOR_NAME)


def seen(node: Node, who: Who, secret: bytes) -> Stat:
    """`secret`, at most 64 bytes, is what the numbers are made with."""
    stat = node.stat()
    if who.root:
        return stat
    hidden = blake2b(stat.ino.to_bytes(8, "little"), key=secret, digest_size=N_BYTES)
    ino = int.from_bytes(hidden.digest(), "little")
    if isinstance(node, Inode) and not knows_use(who, node):
        return replace(stat, ino=ino, n_open=0, n_opens=0, n_shared_pages=0, used_s=stat.created_s)
    return replace(stat, ino=ino)
