"""Names, rights, handles, forks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.access import OPERATOR, RWX, R, W, Who, X
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
)
from sdk.abi.values import DirEntry, FileKind, OpenMode
from tests.kvfs.model.state import (
    ANN,
    DIRECTORIES,
    GROUPS,
    MODES,
    N_FILES,
    PATHS,
    PICK,
    USERS,
    WHO,
    Directory,
    File,
    Node,
    Refusal,
    State,
    top_of,
)

ANY_PATH = st.sampled_from([*PATHS, *DIRECTORIES])
PROGRAMS = [who for who in USERS.values() if who.pid]


class Names(State):
    # --- names ---

    @precondition(lambda self: len(self.files) < N_FILES)
    @rule(who=WHO, path=st.sampled_from([None] * 5 + PATHS), device=st.sampled_from(["w0", "w0", "w1", None]))
    def create(self, who: Who, path: str | None, device: str | None) -> None:
        device = device if device in self.devices else None

        def create() -> None:
            f = self.fs.create(path, who=who, now=self.now, device=device)
            self.opened(f, File(who.user, who.group, 0o777 & ~who.umask, who.tenant, device=device), RWX)
            self.named(path, f, who)

        error = self.no_vacancy(path, who) or self.no_quota(who, 0, n_files=1) or self.no_handle(who)
        self.attempt(error, create)

    def named(self, path: str | None, f: OpenFile, who: Who) -> None:
        if path is not None:
            file = self.files[f.inode.ino]
            self.nodes[self.real(path, who)] = file
            file.n_links += 1

    def open(self, path: str, mode: OpenMode, who: Who) -> None:
        wanted = R | W if mode is OpenMode.WRITE else R
        file, error = self.node(path, who), self.no_file(path, who)
        if error is None:
            assert isinstance(file, File)
            error = AccessDenied if wanted & ~self.allowed(who, file) else self.no_handle(who, file)

        def open_() -> None:
            f = self.fs.open(path, mode, who=who, now=self.now)
            assert isinstance(file, File)
            self.opened(f, file, wanted | self.allowed(who, file) & X)

        self.attempt(error, open_)

    @rule(
        who=WHO,
        call=st.sampled_from(["open", "open", "unlink", "link", "rename", "mkdir"]),
        old=ANY_PATH,
        new=ANY_PATH,
        mode=st.sampled_from(OpenMode),
    )
    def use_names(self, who: Who, call: str, old: str, new: str, mode: OpenMode) -> None:
        if call == "open" and len(self.handles) < 2 * N_FILES:
            self.open(old, mode, who)
        elif call == "unlink":
            self.unlink(who, old)
        elif call == "link":
            self.link(who, old, new)
        elif call == "rename":
            self.rename(who, old, new)
        elif call == "mkdir":
            self.mkdir(who, DIRECTORIES[len(old + new) % len(DIRECTORIES)])

    def unlink(self, who: Who, path: str) -> None:
        error, at = self.no_node(path, who) or self.no_write(path, who), self.real(path, who)
        if error is None and any(other.startswith(f"{at}/") for other in self.nodes):
            error = DirectoryNotEmpty
        if self.attempt(error, lambda: self.fs.unlink(path, who=who, now=self.now)):
            self.unnamed(at)

    def mkdir(self, who: Who, path: str) -> None:
        error = self.no_vacancy(path, who) or self.no_quota(who, 0, n_files=1)
        if self.attempt(error, lambda: self.fs.mkdir(path, who=who, now=self.now)):
            self.nodes[self.real(path, who)] = Directory(who.user, who.group, 0o777 & ~who.umask)

    def link(self, who: Who, old: str, new: str) -> None:
        error, file = self.no_file(old, who), self.node(old, who)
        if error is None and (R | W) & ~self.allowed(who, file):
            error = AccessDenied
        if self.attempt(error or self.no_vacancy(new, who), lambda: self.fs.link(old, new, who=who, now=self.now)):
            assert isinstance(file, File)
            self.nodes[self.real(new, who)] = file
            file.n_links += 1

    def rename(self, who: Who, old: str, new: str) -> None:
        at, to = self.real(old, who), self.real(new, who)
        node, replaced = self.nodes.get(at), self.nodes.get(to)
        error = self.no_way(old, who) or self.no_way(new, who) or self.no_node(old, who)
        error = error or self.no_write(old, who) or self.no_write(new, who)
        if error is None and node is not replaced:
            if isinstance(replaced, Directory):
                error = IsADirectory
            elif isinstance(node, Directory):
                error = NotADirectory if replaced else InvalidArgument if to.startswith(f"{at}/") else None
        if self.attempt(error, lambda: self.fs.rename(old, new, who=who, now=self.now)) and node is not replaced:
            if replaced is not None:
                self.unnamed(to)
            for path in [p for p in self.nodes if p == at or p.startswith(f"{at}/")]:
                self.nodes[to + path.removeprefix(at)] = self.nodes.pop(path)

    def unnamed(self, path: str) -> None:
        node = self.nodes.pop(path)
        if isinstance(node, File):
            node.n_links -= 1
            self.reap(node)

    # --- looking ---

    @precondition(lambda self: self.handles)
    @rule(
        who=WHO,
        path=st.sampled_from([*PATHS, *DIRECTORIES, "/", "~"]),
        i=PICK,
        start=st.integers(-9, 9),
        stop=st.none() | st.integers(-9, 9),
    )
    def look_at_all(self, who: Who, path: str, i: int, start: int, stop: int | None) -> None:
        self.look(who, path)
        self.read(i, who, start, stop)

    def look(self, who: Who, path: str) -> None:
        node, error = self.node(path, who), self.no_node(path, who)
        self.attempt(error, lambda: self.is_as(self.fs.stat(path, who=who, now=self.now), node, who))
        if error is None:
            error = NotADirectory if isinstance(node, File) else None if self.allowed(who, node) & R else AccessDenied
        self.attempt(error, lambda: self.lists(path, who))

    def is_as(self, stat: Any, node: Node | None, who: Who) -> None:
        assert node is not None
        assert (stat.owner, stat.group, stat.mode) == (node.owner, node.group, node.mode)
        assert stat.kind == (FileKind.FILE if isinstance(node, File) else FileKind.DIRECTORY)
        if isinstance(node, File):
            table = self.table(node)
            n_host, is_own = sum(map(is_host, table)), who.root or who.tenant == node.tenant
            assert (stat.n_tokens, stat.n_links) == (len(node.slots), node.n_links)
            assert (stat.n_pages, stat.n_host_pages) == (len(table) - n_host, n_host)
            assert stat.n_open == (node.n_open if is_own else 0)
            assert stat.edited == (node.edited is not None)

    def lists(self, path: str, who: Who) -> None:
        at = self.real(path, who)
        kinds = {p.rpartition("/")[2]: node for p, node in self.nodes.items() if p and p.rpartition("/")[0] == at}
        if at == top_of(who) != "":
            kinds["shared"] = self.nodes["/shared"]
        found = self.fs.readdir(path, who=who, now=self.now)
        assert found == [
            DirEntry(name, FileKind.FILE if isinstance(node, File) else FileKind.DIRECTORY)
            for name, node in sorted(kinds.items())
        ]

    def read(self, i: int, who: Who, start: int, stop: int | None) -> None:
        f, file = self.handles[i % len(self.handles)]
        tokens, positions = self.fs.tokens(f, start, stop), self.fs.positions(f, start, stop)
        assert list(zip(tokens, positions, strict=True)) == file.slots[start:stop]
        assert (self.fs.length(f), self.fs.residency(f)) == (len(file.slots), self.residency(file))
        self.is_as(self.fs.fstat(f, self.now, who), file, who)

    # --- processes ---

    def end_process(self, who: Who) -> None:
        """Its handles are closed, its /tmp goes, and of a tenant what is empty and was made for it."""
        for handle in [handle for handle in self.handles if handle[0].pid == who.pid]:
            self.close_one(handle)
        self.fs.end_process(who, self.now)
        top = top_of(who)
        for path in [p for p in self.nodes if f"{p}/".startswith(f"{top}/tmp/{who.pid}/")]:
            self.unnamed(path)
        for path in (f"{top}/home/{who.user}", f"{top}/home", f"{top}/tmp", top) if top else ():
            if not any(p.startswith(f"{path}/") for p in self.nodes):
                del self.nodes[path]
        self.names_are_as_the_model_says()
        self.settle_in(who)

    def names_are_as_the_model_says(self) -> None:
        raise NotImplementedError

    # --- rights ---

    @rule(who=WHO, path=st.sampled_from([*PATHS, *DIRECTORIES, "/"]), mode=MODES)
    def chmod(self, who: Who, path: str, mode: int) -> None:
        node, error = self.node(path, who), self.no_node(path, who)
        if node is not None and who.user != node.owner and not who.root:
            error = error or AccessDenied
        if self.attempt(error, lambda: self.fs.chmod(path, mode, who=who, now=self.now)):
            assert node is not None
            node.mode = mode

    @rule(who=WHO, path=ANY_PATH, owner=st.sampled_from([None, *USERS]), group=st.sampled_from(GROUPS))
    def chown(self, who: Who, path: str, owner: str | None, group: str | None) -> None:
        error, node = self.no_node(path, who), self.node(path, who)
        if error is None and node is not None:
            is_new = owner not in (None, node.owner)
            if not who.root and (who.user != node.owner or is_new or group not in (None, node.group, *who.groups)):
                error = AccessDenied
            elif is_new and owner is not None:
                error = self.no_quota(USERS[owner], 0, n_files=1)
                if isinstance(node, File):
                    error = error or (Busy if node.claimed or node.n_leases else None)
                    error = error or self.no_quota(USERS[owner], len(self.table(node)))
        if self.attempt(error, lambda: self.fs.chown(path, owner, group, who=who, now=self.now)):
            assert node is not None
            node.owner, node.group = owner or node.owner, group or node.group

    @precondition(lambda self: len(self.handles) < 2 * N_FILES and len(self.files) < N_FILES)
    @rule(who=WHO, path=st.sampled_from(PATHS), bits=MODES, mode=st.sampled_from(OpenMode), other=WHO)
    def use_as_the_bits_say(self, who: Who, path: str, bits: int, mode: OpenMode, other: Who) -> None:
        """Most handles have all rights, or few runs would come to a batch; this one has what is left."""
        if not isinstance(self.node(path, ANN), File):
            return
        at = self.real(path, ANN)
        self.attempt(None, lambda: self.fs.chmod(at, bits, who=OPERATOR, now=self.now))
        self.nodes[at].mode = bits
        n = len(self.handles)
        self.open(path, mode, who)
        if len(self.handles) > n:
            self.dup(n, None)
            self.fork(n + 1, other, None)

    # --- handles ---

    @precondition(lambda self: self.handles and len(self.handles) < 2 * N_FILES)
    @rule(i=PICK, mode=st.none() | st.sampled_from(OpenMode))
    def dup(self, i: int, mode: OpenMode | None) -> None:
        f, file = self.handles[i % len(self.handles)]
        who = next(who for who in USERS.values() if who.pid == f.pid)
        held = self.rights[f]
        error = AccessDenied if mode is OpenMode.WRITE and not held & W else None

        def dup() -> None:
            rights = held & ~W if mode is OpenMode.READ else held
            self.opened(self.fs.dup(f, mode, who=who, now=self.now), file, rights)

        self.attempt(error, dup)

    @precondition(lambda self: len(self.handles) > 2)
    @rule(i=PICK, ends=st.sampled_from([None] * 19 + PROGRAMS))
    def close(self, i: int, ends: Who | None) -> None:
        """One handle, or all of a process that ends."""
        if ends is not None:
            self.end_process(ends)
        else:
            self.close_one(self.handles[i % len(self.handles)])

    def close_one(self, handle: tuple[OpenFile, File]) -> None:
        f, file = handle
        self.handles.remove(handle)
        self.answered(self.fs.close(f, self.now), closed=f)
        file.n_open -= 1
        for pin in [pin for pin in self.pins if pin.handle is f]:
            pin.handle = None
            if pin.until_s == math.inf or not file.n_links:
                self.pins.remove(pin)
        self.reap(file)

    @precondition(lambda self: self.handles and len(self.files) < N_FILES)
    @rule(i=PICK, who=WHO, paths=st.lists(st.sampled_from([None, None, None, *PATHS]), min_size=1, max_size=3))
    def fork_some(self, i: int, who: Who, paths: list[str | None]) -> None:
        for path in paths:
            self.fork(i, who, path)

    def fork(self, i: int, who: Who, path: str | None) -> None:
        f, file = self.handles[i % len(self.handles)]

        def fork() -> None:
            child = self.fs.fork(f, path, who=who, now=self.now)
            slots, origins = list(file.slots), list(file.origins)
            group, mode = self.derived(who, [file])
            copy = File(who.user, group, mode, who.tenant, slots, origins, file.tail_gone, file.device)
            copy.family, copy.transfer, copy.edited = file.family, file.transfer, file.edited
            self.opened(child, copy, RWX)
            self.named(path, child, who)

        error = None if self.rights[f] & X else AccessDenied
        error = error or self.no_quota(who, len(self.table(file))) or self.no_vacancy(path, who)
        self.attempt(error or self.no_quota(who, 0, n_files=1) or self.no_handle(who), fork)

    def derived(self, who: Who, sources: Iterable[File]) -> tuple[str, int]:
        """Group and mode of what is made of files: nobody but its owner may do with it what he may not do with each."""
        group, *others = {file.group for file in sources}
        mode = 0o777 & ~who.umask
        for file in sources:
            to_group, to_all = file.mode >> 3 & RWX, file.mode & RWX
            if others:
                to_group = to_all = to_group & to_all
            mode &= 0o700 | to_group << 3 | to_all
        return who.group if others else group, mode

    def placeable(self) -> list[tuple[OpenFile, File]]:
        return [(f, x) for f, x in self.handles if not x.origins and not x.n_leases and x.transfer is None]

    @precondition(lambda self: self.placeable() and self.devices)
    @rule(i=PICK, j=PICK)
    def place(self, i: int, j: int) -> None:
        f, file = self.placeable()[i % len(self.placeable())]
        file.device = sorted(self.devices)[j % len(self.devices)]
        self.fs.place(f, file.device)

    @precondition(lambda self: self.handles)
    @rule(i=PICK, n=PICK, call=st.sampled_from(["truncate", "truncate", "claim", "release"]))
    def truncate_or_claim(self, i: int, n: int, call: str) -> None:
        if call == "claim":
            self.claim(i)
        elif call == "release" and self.idle_claims():
            self.release(i)
        elif n % 2 and self.idle_claims():
            self.truncate_claimed(i, n // 2)
        else:
            self.truncate(i, n // 2)

    def truncate(self, i: int, n: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error = AccessDenied if not self.rights[f] & W else Busy if file.claimed or self.is_locked(f) else None
        self.truncate_by(lambda n: self.fs.truncate(f, n, self.now), file, n, error)

    def truncate_claimed(self, i: int, n: int) -> None:
        claim, file = self.idle_claim(i)
        self.truncate_by(lambda n: self.fs.truncate_claimed(claim, n, self.now), file, n, None)

    def truncate_by(self, call: Callable[[int], None], file: File, n: int, error: Refusal) -> None:
        n = len(file.slots) + 1 - n % (len(file.slots) + 3)  # mostly a little, and now and then more than there is
        error = error or (None if 0 <= n <= len(file.slots) else InvalidArgument)
        if self.attempt(error, lambda: call(n)):
            if n < len(file.slots):
                file.tail_gone = True
            del file.slots[n:], file.origins[n:]
            if file.edited is not None and n <= file.edited.at:
                file.edited = None
            if file.rebuild is not None and n < file.rebuild.lease.n_end:
                file.rebuild = None
