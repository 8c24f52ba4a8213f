"""Who may do what: callers, mode bits, and the rights that follow from the two.

Every file and directory has an owner, a group, and nine mode bits, three for each of owner, group and all others:

             file                        directory
    r   4    attend to it, read tokens   list it
    w   2    append and truncate         add, move and remove names
    x   1    fork, extract, merge        pass through it

Of the three classes the first that a caller is in decides, as in Unix. The operator is not asked. Rights on a file
are looked up once, when it is opened; from then on the handle has them, whatever becomes of the bits, and a handle
that is made of another has the same or fewer.

What is derived from files (a fork, an extract, a merge) is the caller's own, and for all others no more open than its
sources: else a fork would be a way to publish what one may only use. Called by `namespace.py`, fs.py and whoever
makes files. Never add here: paths, handles, quotas.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from sdk.abi.errors import AccessDenied

R, W, X = 4, 2, 1
RWX = R | W | X

OPERATOR_NAME = "local"  # user and group; whoever may use the kernel's own socket
DEFAULT_UMASK = 0o022


class Who(NamedTuple):
    """On whose behalf something is done. Frozen: a process that changes its umask gets a new one."""

    user: str
    groups: tuple[str, ...] = ()  # the first is that of new files; without one, they have one of the user's name
    root: bool = False  # nothing is refused
    tenant: str = ""  # under whose root its paths begin; "": the real one
    pid: int = 0  # the process that does it, whose /tmp it sees; 0: none
    umask: int = DEFAULT_UMASK  # bits that new files and directories do not get

    @property
    def group(self) -> str:
        return self.groups[0] if self.groups else self.user


OPERATOR = Who(OPERATOR_NAME, (OPERATOR_NAME,), root=True)
KERNEL = Who("kernel", root=True)


class Owned(Protocol):
    """A file or a directory, as far as rights go."""

    owner: str
    group: str
    mode: int


def rights(who: Who, node: Owned) -> int:
    """What the caller may do with it: a sum of R, W and X."""
    if who.root:
        return RWX
    if who.user == node.owner:
        return node.mode >> 6 & RWX
    if node.group in who.groups:
        return node.mode >> 3 & RWX
    return node.mode & RWX


def need(who: Who, node: Owned, wanted: int, path: str, hint: str) -> None:
    """Raises AccessDenied, which ends with `hint`, when the caller lacks one of the rights `wanted` on `path`."""
    missing = wanted & ~rights(who, node)
    if missing:
        verb = " and ".join(verb for bit, verb in ((R, "read"), (W, "write"), (X, "use")) if missing & bit)
        raise AccessDenied(
            f"{path!r} belongs to {node.owner!r} ({spelled(node.mode)}, group {node.group!r}) and {who.user!r} may not "
            f"{verb} it: {hint}"
        )


def need_owner(who: Who, node: Owned, path: str) -> None:
    """Raises AccessDenied when the caller is neither its owner nor the operator."""
    if not who.root and who.user != node.owner:
        raise AccessDenied(f"{path!r} belongs to {node.owner!r}: only the owner or the operator may change that")


def fresh_mode(who: Who) -> int:
    """The bits of a new file or directory."""
    return 0o777 & ~who.umask


def derived(who: Who, sources: Iterable[Owned]) -> tuple[str, int]:
    """Group and mode of a file made from others. It keeps their group if they have one in common; then each class
    gets what it has on all of them. Otherwise the classes of the new file are not those of the sources, so group and
    others get what both have everywhere."""
    sources = list(sources)
    groups = {node.group for node in sources}
    mode = fresh_mode(who)
    if len(groups) == 1:
        for node in sources:
            mode &= node.mode | 0o700
        return groups.pop(), mode
    for node in sources:
        common = node.mode >> 3 & node.mode & RWX
        mode &= 0o700 | common << 3 | common
    return who.group, mode


def spelled(mode: int) -> str:
    """As `ls -l` has it: rwxr-x---."""
    return "".join(letter if mode >> 8 - i & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))
