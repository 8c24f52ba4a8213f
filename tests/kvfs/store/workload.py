"""Random use of a store, against a model that says which states the disk may have after a crash.

A state is {path: file or directory}. What was acknowledged must be there; what was under way, or failed, may be there
as a whole or not at all: `possible` has all such states, and each operation that succeeds ends the doubt.
"""

import random
from array import array
from typing import NamedTuple

from kvfs.store.format import Geometry
from kvfs.store.store import Commit, Store, Writer
from kvfs.store.tree import ROOT, Attributes, ClearName, SetAttributes, SetDirectory, SetFile, SetName

GEOMETRY = Geometry("toy", "f" * 32, "float32", page_size=4, page_bytes=24)
NAMES = ("a", "b", "c")


class File(NamedTuple):
    mode: int
    tokens: tuple[int, ...]
    pages: bytes


class Directory(NamedTuple):
    mode: int


State = dict[str, File | Directory]


def attributes(mode: int) -> Attributes:
    return Attributes("me", "us", mode, 1.0, 2.0)


def finish(writer: Writer) -> None:
    """All its pages are there. Raises OSError; then it is discarded."""
    try:
        writer.sync()
    except OSError:
        writer.discard()
        raise
    writer.finish()


class Workload:
    """One random user of one store, who holds no file open."""

    def __init__(self, seed: int, store: Store) -> None:
        self.dice = random.Random(seed)
        self.store = store
        self.state: State = {}  # as kvfs has it in memory
        self.inos: dict[str, int] = {"": ROOT}
        self.possible: list[State] = [{}]
        self.acknowledged = 0
        self.last_ino = ROOT

    def run(self, n: int) -> None:
        """So many operations; an OSError is the caller's of that operation, who goes on."""
        for _ in range(n):
            self.step()

    def step(self) -> None:
        action = self.dice.choice([self.save, self.save, self.save, self.mkdir, self.rename, self.unlink, self.chmod])
        action()

    # --- operations ---

    def save(self) -> None:
        """One file, or some together: they come to be in one record, all of them or none."""
        together: list[Commit] = []
        after, new_inos = dict(self.state), {}
        for path in dict.fromkeys(self._some_path() for _ in range(self.dice.choice([1, 1, 1, 3]))):
            if isinstance(self.state.get(path), Directory):
                continue
            ino = self.inos.get(path) or self._new_ino()
            file = self._new_file(self.state.get(path))
            try:
                commit = self._written(path, ino, file)
            except OSError:
                continue
            together.append(commit)
            after[path], new_inos[path] = file, ino
        if not together:
            return
        self.possible.append(after)
        try:
            self.store.commit(together)
        except OSError:
            return
        self.inos |= new_inos
        self._done(after)

    def _new_file(self, old: File | Directory | None) -> File:
        tokens = tuple(self.dice.getrandbits(32) for _ in range(self.dice.randint(0, 9)))
        n_pages = -(-self.dice.randint(0, len(tokens)) // GEOMETRY.page_size)
        return File(old.mode if old else 0o644, tokens, self.dice.randbytes(n_pages * GEOMETRY.page_bytes))

    def _written(self, path: str, ino: int, file: File) -> Commit:
        """A version that is finished, and what makes it count."""
        n_pages, n_tokens = len(file.pages) // GEOMETRY.page_bytes, len(file.tokens)
        n_kv = min(n_tokens, n_pages * GEOMETRY.page_size)
        positions = array("I", range(n_tokens))
        writer = self.store.begin(ino, GEOMETRY, array("I", file.tokens), positions, n_kv, False)
        for i in range(n_pages):
            writer.add(file.pages[i * GEOMETRY.page_bytes : (i + 1) * GEOMETRY.page_bytes])
        finish(writer)
        made = SetFile(ino, attributes(file.mode), writer.version, writer.n_bytes, n_tokens)
        return Commit([made, SetName(*self._key(path), ino)], writer)

    def mkdir(self) -> None:
        path = self._some_path()
        if path in self.state or path.count("/") > 2:
            return
        ino = self._new_ino()
        self.inos[path] = ino
        self._commit({**self.state, path: Directory(0o755)}, [
            SetDirectory(ino, attributes(0o755)), SetName(*self._key(path), ino)
        ])  # fmt: skip

    def rename(self) -> None:
        old, new = self._existing(), self._some_path()
        if old is None or old == new or new.startswith(old + "/") or new.count("/") > 2:
            return
        there = self.state.get(new)
        if isinstance(there, Directory) or (there is not None and isinstance(self.state[old], Directory)):
            return
        if isinstance(self.state[old], Directory) and new.count("/") > 1:
            return
        old_key, new_key, ino = self._key(old), self._key(new), self.inos[old]

        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

        after = {moved(path): node for path, node in self.state.items() if path != new}
        self.inos.pop(new, None)
        self.inos = {moved(path): number for path, number in self.inos.items()}
        self._commit(after, [ClearName(*old_key), SetName(*new_key, ino)])

    def unlink(self) -> None:
        path = self._existing()
        if path is None or any(other.startswith(path + "/") for other in self.state):
            return
        key = self._key(path)
        del self.inos[path]
        self._commit({other: node for other, node in self.state.items() if other != path}, [ClearName(*key)])

    def chmod(self) -> None:
        path = self._existing()
        if path is None:
            return
        mode = self.dice.choice([0o600, 0o640, 0o755])
        after = {**self.state, path: self.state[path]._replace(mode=mode)}
        self._commit(after, [SetAttributes(self.inos[path], attributes(mode))])

    def _commit(self, after: State, changes: list) -> None:
        """A change of names is made in memory whatever the disk says."""
        self.state = after
        self.possible.append(after)
        try:
            self.store.commit([Commit(changes)])
        except OSError:
            return
        self._done(after)

    def _done(self, state: State) -> None:
        self.state = state
        self.possible = [state]
        self.acknowledged += 1

    # --- choosing ---

    def _existing(self) -> str | None:
        return self.dice.choice(sorted(self.state)) if self.state else None

    def _some_path(self) -> str:
        parents = ["", *(path for path, node in sorted(self.state.items()) if isinstance(node, Directory))]
        return f"{self.dice.choice(parents)}/{self.dice.choice(NAMES)}"

    def _key(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        return self.inos[parent], name

    def _new_ino(self) -> int:
        self.last_ino += 1
        return self.last_ino


def found(store: Store) -> State:
    """What a store has, read back in full. Raises Damaged."""
    paths, state = {ROOT: ""}, State()
    tree = store.tree
    for parent, name, ino in tree.walk():
        path = paths[ino] = f"{paths[parent]}/{name}"
        if ino in tree.directories:
            state[path] = Directory(tree.directories[ino].mode)
        else:
            file = tree.files[ino]
            contents = store.read_start(file.version)
            pages = store.read_pages(contents, 0, contents.head.n_pages)
            assert len(pages) == contents.head.n_pages * GEOMETRY.page_bytes
            assert list(contents.positions) == list(range(file.n_tokens))
            state[path] = File(file.attributes.mode, tuple(contents.tokens), pages)
    return state
