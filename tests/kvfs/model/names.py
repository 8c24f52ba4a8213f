"""Names, rights, handles, forks."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.access import OPERATOR, RWX, R, W, Who, X
from kvfs.openfile import OpenFile
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    InvalidArgument,
    SyscallError,
)
from sdk.abi.values import OpenMode
from tests.kvfs.model.state import GROUPS, MODES, N_FILES, PATHS, PICK, USERS, WHO, File, State


class Names(State):
    # --- names; all are in the root ---

    @precondition(lambda self: len(self.files) < N_FILES)
    @rule(who=WHO, path=st.sampled_from([None, None, *PATHS]), device=st.sampled_from(["w0", "w0", "w1", None]))
    def create(self, who: Who, path: str | None, device: str | None) -> None:
        device = device if device in self.devices else None

        def create() -> None:
            f = self.fs.create(path, who=who, now=self.now, device=device)
            self.opened(f, File(who.user, who.group, 0o777 & ~who.umask, device=device), RWX)
            self.named(path, f)

        self.attempt(self.no_vacancy(path, who) or self.no_quota(who, 0, n_files=1), create)

    def named(self, path: str | None, f: OpenFile) -> None:
        if path is not None:
            self.names[path] = self.files[f.inode.ino]
            self.names[path].n_links += 1

    def open(self, path: str, mode: OpenMode, who: Who) -> None:
        wanted = R | W if mode is OpenMode.WRITE else R

        def open_() -> None:
            f = self.fs.open(path, mode, who=who, now=self.now)
            self.opened(f, self.names[path], wanted | self.allowed(who, self.names[path]) & X)

        error = self.no_file(path, who)
        if error is None and wanted & ~self.allowed(who, self.names[path]):
            error = AccessDenied
        self.attempt(error, open_)

    @rule(
        who=WHO,
        call=st.sampled_from(["open", "open", "unlink", "link", "rename"]),
        old=st.sampled_from(PATHS),
        new=st.sampled_from(PATHS),
        mode=st.sampled_from(OpenMode),
    )
    def use_names(self, who: Who, call: str, old: str, new: str, mode: OpenMode) -> None:
        error = self.no_file(old, who)
        by: Any = {"who": who, "now": self.now}
        if call == "open":
            if len(self.handles) < 2 * N_FILES:
                self.open(old, mode, who)
        elif call == "unlink":
            if self.attempt(error or self.no_write(who), lambda: self.fs.unlink(old, **by)):
                self.unnamed(old)
        elif call == "link":
            if error is None and (R | W) & ~self.allowed(who, self.names[old]):
                error = AccessDenied
            if self.attempt(error or self.no_vacancy(new, who), lambda: self.fs.link(old, new, **by)):
                self.names[new] = self.names[old]
                self.names[new].n_links += 1
        elif self.attempt(error or self.no_write(who), lambda: self.fs.rename(old, new, **by)):
            if self.names[old] is self.names.get(new):
                return
            if new in self.names:
                self.unnamed(new)
            self.names[new] = self.names.pop(old)

    def unnamed(self, path: str) -> None:
        file = self.names.pop(path)
        file.n_links -= 1
        self.reap(file)

    # --- rights ---

    @rule(who=WHO, path=st.sampled_from([*PATHS, "/"]), mode=MODES)
    def chmod(self, who: Who, path: str, mode: int) -> None:
        node = self.root if path == "/" else self.names.get(path)
        error = None if path == "/" else self.no_file(path, who)
        if node is not None and who.user != node.owner and not who.root:
            error = error or AccessDenied
        if self.attempt(error, lambda: self.fs.chmod(path, mode, who=who, now=self.now)):
            assert node is not None
            node.mode = mode

    @rule(who=WHO, path=st.sampled_from(PATHS), owner=st.sampled_from([None, *USERS]), group=st.sampled_from(GROUPS))
    def chown(self, who: Who, path: str, owner: str | None, group: str | None) -> None:
        error = self.no_file(path, who)
        file = self.names.get(path)
        if error is None and file is not None:
            is_new = owner not in (None, file.owner)
            if not who.root and (who.user != file.owner or is_new or group not in (None, file.group, *who.groups)):
                error = AccessDenied
            elif is_new and owner is not None:
                error = self.no_quota(USERS[owner], 0, n_files=1) or (Busy if file.claimed or file.n_leases else None)
                error = error or self.no_quota(USERS[owner], len(self.table(file)))
        if self.attempt(error, lambda: self.fs.chown(path, owner, group, who=who, now=self.now)):
            assert file is not None
            file.owner, file.group = owner or file.owner, group or file.group

    @precondition(lambda self: self.names and len(self.handles) < 2 * N_FILES and len(self.files) < N_FILES)
    @rule(who=WHO, other=WHO, path=st.sampled_from(PATHS), bits=MODES, mode=st.sampled_from(OpenMode))
    def use_as_the_bits_say(self, who: Who, other: Who, path: str, bits: int, mode: OpenMode) -> None:
        """Most handles have all rights, or few runs would come to a batch; this one has what is left."""
        self.chmod(OPERATOR, path, bits)
        n = len(self.handles)
        self.open(path, mode, who)
        if len(self.handles) > n:
            self.dup(n, other, None)
            self.fork(n + 1, other, None)

    # --- handles ---

    @precondition(lambda self: self.handles and len(self.handles) < 2 * N_FILES)
    @rule(i=PICK, who=WHO, mode=st.none() | st.sampled_from(OpenMode))
    def dup(self, i: int, who: Who, mode: OpenMode | None) -> None:
        f, file = self.handles[i % len(self.handles)]
        held = self.rights[f]
        error = AccessDenied if mode is OpenMode.WRITE and not held & W else None

        def dup() -> None:
            rights = held & ~W if mode is OpenMode.READ else held
            self.opened(self.fs.dup(f, mode, who=who, now=self.now), file, rights)

        self.attempt(error, dup)

    @precondition(lambda self: len(self.handles) > 2)
    @rule(i=PICK)
    def close(self, i: int) -> None:
        f, file = self.handles.pop(i % len(self.handles))
        self.fs.close(f, self.now)
        file.n_open -= 1
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
            mode = (file.mode | 0o700) & 0o777 & ~who.umask
            slots, origins = list(file.slots), list(file.origins)
            copy = File(who.user, file.group, mode, slots, origins, file.tail_gone, file.device)
            copy.family, copy.transfer = file.family, file.transfer
            self.opened(child, copy, RWX)
            self.named(path, child)

        error = None if self.rights[f] & X else AccessDenied
        error = error or self.no_quota(who, len(self.table(file))) or self.no_vacancy(path, who)
        self.attempt(error or self.no_quota(who, 0, n_files=1), fork)

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
        error = AccessDenied if not self.rights[f] & W else Busy if file.claimed else None
        self.truncate_by(lambda n: self.fs.truncate(f, n, self.now), file, n, error)

    def truncate_claimed(self, i: int, n: int) -> None:
        claim, file = self.idle_claim(i)
        self.truncate_by(lambda n: self.fs.truncate_claimed(claim, n, self.now), file, n, None)

    def truncate_by(self, call: Callable[[int], None], file: File, n: int, error: type[SyscallError] | None) -> None:
        n = len(file.slots) + 1 - n % (len(file.slots) + 3)  # mostly a little, and now and then more than there is
        error = error or (None if 0 <= n <= len(file.slots) else InvalidArgument)
        if self.attempt(error, lambda: call(n)):
            if n < len(file.slots):
                file.tail_gone = True
            del file.slots[n:], file.origins[n:]
            if file.rebuild is not None and n < file.rebuild.lease.n_end:
                file.rebuild = None
