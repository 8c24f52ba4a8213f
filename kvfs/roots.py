"""Where a path begins: the root that a caller sees, and the places in it that stand for something else.

There is one tree, and each tenant sees a part of it as the whole:

    a tenant's path     stands for
    /                   /tenants/TENANT     made with its first path; its members may add names
    /shared             /shared             one for all; the operator decides what is in it
    /tmp                /tenants/TENANT/tmp/PID     the caller's own, gone with its process
    ~                   /tenants/TENANT/home/USER   the caller's own

A path has no '..', so nothing else can be reached, and whatever is outside has no name there, not even in an error.
Directories are made when they are first needed; those of a tenant go again when one of its processes ends and they are
empty. The operator sees the tree itself; its programs have a /tmp and a ~ like all others.

Names of tenants and users are anybody's; what cannot be in a path is written as in a URL. Never add here: walking
beyond the beginning, rights.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote

from kvfs.access import OPERATOR, Who
from kvfs.directory import Directory
from sdk.abi.errors import NotADirectory

PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("/", "").replace("%", "")
STANDING = ("home", "shared", "tmp")  # names in every root that nobody removes or replaces
TENANTS = "tenants"


class Start(NamedTuple):
    """Where to begin to walk."""

    directory: Directory
    path: str  # its own, from the root that the limits are measured from: "", "/shared", "/tmp/7", "/home/ann"
    spelled: str  # as the caller spells it: "", "/shared", "/tmp", "~"
    names: list[str]  # what is left of the caller's path


class Roots:
    """The beginnings of all paths. Directories are made when they are first needed."""

    def __init__(self, root: Directory, make: Callable[[Directory, str, Who, int, float], Directory]) -> None:
        """`make` makes a directory of that name, owner and mode."""
        self._root = root
        self._make = make

    def start(self, names: list[str], who: Who, now: float) -> Start:
        """Where a caller's path begins. Raises QuotaExceeded (no more directories), NotADirectory."""
        top = self.top(who, now)
        first = names[0] if names else ""
        if first == "~":
            home = self._need(self._need(top, "home", OPERATOR, 0o755, now), file_name(who.user), who, 0o700, now)
            return Start(home, f"/home/{file_name(who.user)}", "~", names[1:])
        if first == "tmp" and who.pid:
            below = self._need(self._need(top, "tmp", OPERATOR, 0o755, now), str(who.pid), who, 0o700, now)
            return Start(below, f"/tmp/{who.pid}", "/tmp", names[1:])  # noqa: S108  (in our own tree)
        if first == "shared":
            shared = self._need(self._root, "shared", OPERATOR, 0o755, now)
            if top is not self._root:
                return Start(shared, "/shared", "/shared", names[1:])
        return Start(top, "", "", names)

    def top(self, who: Who, now: float) -> Directory:
        """What the caller sees as '/'."""
        if who.root or not who.tenant:
            return self._root
        tenants = self._need(self._root, TENANTS, OPERATOR, 0o755, now)
        theirs = OPERATOR._replace(groups=(who.tenant,))
        return self._need(tenants, file_name(who.tenant), theirs, 0o775, now)

    def private(self, who: Who, now: float) -> tuple[Directory, str] | None:
        """The directory in which a process has its own /tmp, and the name of that; None when it never had one."""
        top = self._root if who.root or not who.tenant else self._tenant(who.tenant)
        found = top.entries.get("tmp") if top is not None else None
        if not isinstance(found, Directory) or str(who.pid) not in found.entries:
            return None
        return found, str(who.pid)

    def standing(self, who: Who) -> Iterator[tuple[Directory, str, Directory]]:
        """The directories that were made for a tenant and its user, innermost first, with where they are and their
        names; those of which the mode was changed are somebody's own by now."""
        top = None if who.root or not who.tenant else self._tenant(who.tenant)
        if top is None:
            return
        home, tenants = top.entries.get("home"), self._root.entries[TENANTS]
        places = [(home, file_name(who.user), 0o700), (top, "home", 0o755), (top, "tmp", 0o755)]
        places.append((tenants, file_name(who.tenant), 0o775))
        for parent, name, mode in places:
            found = parent.entries.get(name) if isinstance(parent, Directory) else None
            if isinstance(parent, Directory) and isinstance(found, Directory) and found.mode == mode:
                yield parent, name, found

    def _tenant(self, tenant: str) -> Directory | None:
        tenants = self._root.entries.get(TENANTS)
        found = tenants.entries.get(file_name(tenant)) if isinstance(tenants, Directory) else None
        return found if isinstance(found, Directory) else None

    def _need(self, parent: Directory, name: str, who: Who, mode: int, now: float) -> Directory:
        """A directory of that name, made if it is missing."""
        found = parent.entries.get(name)
        if found is None:
            return self._make(parent, name, who, mode, now)
        if not isinstance(found, Directory):
            raise NotADirectory(f"{name!r} should be a directory and is a file: ask the operator to move it")
        return found


def below_tenant(path: str) -> str:
    """A path of the whole tree as its tenant has it, which is what limits of length and depth are about."""
    _, first, *rest = path.split("/", 3) if path else ("", "")
    return f"/{rest[1]}" if first == TENANTS and len(rest) == 2 else path


def file_name(name: str) -> str:
    """The name of a tenant's or user's directory."""
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe=PRINTABLE)
