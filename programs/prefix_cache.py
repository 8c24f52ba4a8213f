"""A prefix cache: what a prompt has in common with an earlier one is forked from that one's file, and not computed.

It is a program's own affair: a radix tree whose nodes are KV files, and whose structure is their names. Nothing is
kept in memory, so the tree outlives the programs that use it, and with durable files the kernel; `lip ls` shows it,
`lip rm` prunes it, and any program may use it. A node's name says

    PARENT-FIRST-LAST-START-TOKENS      all keys: BLAKE3, keyed by the salt, of the key before and a chunk of tokens

where its own tokens begin (at START, with the key PARENT before them and FIRST after their first chunk), the key
after its last whole chunk, and how many tokens it has in all: a node's file holds the whole prefix, and shares the
pages of what is not its own with other files. So the deepest node on a prompt's way is the one whose FIRST is the
last of the prompt's keys that any node has. Keys only lead there: what a hit is worth is found by comparing tokens.

When the tree is full, leaves are let go as a policy says, which is a function of an `Entry`. Another one:

    def longest_unused(entry: Entry) -> float:
        return entry.idle_s

    cache = PrefixCache(policy=longest_unused)

Tenants cannot meet here, as each has a `~` of its own; within one, a salt keeps its users apart, who then cannot even
tell by the time it takes what others have asked. Two programs may do anything at the same time: a file that is being
forked outlives its name, and who finds that a name has changed meanwhile goes without. Of those who `read` the same at
once one computes it (`programs/_growing.py`). No method raises an error of the cache's, whatever anybody has put into
its directory: that is no reason for a request to fail.

Run as a program this counts what is in a cache, and can clear it.
"""

import asyncio
import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from blake3 import blake3

from programs._growing import growing, make_directory, waited
from sdk import AccessDenied, DeviceLost, FileExists, FileNotFound, KVFile, SyscallError, kv, model, process
from sdk.abi.values import DirEntry, FileKind

CHUNK = 16  # tokens to a key; what differs within a chunk of a node's end is not worth a node of its own
KEY_CHARS = 16  # of a key, in names
NAME = re.compile("([0-9a-f]{16})-" * 3 + "(0|[1-9][0-9]{0,8})-([1-9][0-9]{0,8})")
DIRECTORY = "~/.cache/prefix"
VARIABLE = "SYMPHONY_PREFIX_CACHE_TOKENS"
N_NODES_MAX = 1000  # so that a look at all of them takes a millisecond or two
N_LOOKS = 4  # at what there is, each after somebody has computed something that was missing
N_KEYS_A_STEP = 1000  # others have a turn after so many
UNREADABLE = (AccessDenied, DeviceLost)  # what opening a file says of one that is locked away, or damaged on disk
SLACK = 10  # once it is full, one part in so many is freed at a time


def limit_of(said: str) -> int | None:
    """What the environment allows; None where it says nothing: half of what devices have room for. Raises ValueError,
    which ends the start of a kernel rather than each request."""
    if said and not (said.isascii() and said.isdecimal()):
        raise ValueError(f"{VARIABLE}: expected a number of tokens (0: keep nothing), got {said!r}")
    return int(said) if said else None


N_TOKENS_MAX = limit_of(os.environ.get(VARIABLE, ""))


class Entry(NamedTuple):
    """What a policy knows of a leaf."""

    n_tokens: int  # that a hit saves
    n_own: int  # that go with it
    n_uses: int  # how often it was found, since it has its present file
    idle_s: float  # since it was last found


Policy = Callable[[Entry], float]
"""How readily an entry is let go: the one with the highest value goes first."""


def least_saving(entry: Entry) -> float:
    """LRU, weighted by the tokens saved so far for each token held."""
    return entry.idle_s / (1 + entry.n_uses)


class Node(NamedTuple):
    """A node of the tree, as its name has it."""

    parent: str
    first: str
    last: str
    start: int
    n_tokens: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self))

    @property
    def path(self) -> str:
        return f"{DIRECTORY}/{self.name}"

    @classmethod
    def parse(cls, entry: DirEntry) -> "Node | None":
        """None for what somebody else has put there."""
        found = NAME.fullmatch(entry.name)
        if found is None or entry.kind is not FileKind.FILE:
            return None
        return cls(found[1], found[2], found[3], int(found[4]), int(found[5]))


class Tree:
    """The nodes there are at the moment."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = list(nodes)
        self._by_first = {node.first: node for node in sorted(self.nodes, key=lambda node: node.n_tokens)}

    def way(self, keys: Sequence[str]) -> list[Node]:
        """The nodes that a prompt with these keys goes through, from the root on."""
        return [self._by_first[key] for key in keys[1:] if key in self._by_first]

    def leaves(self) -> list[Node]:
        """All, where names that somebody made up go round in a circle."""
        parents = {node.parent for node in self.nodes}
        return [node for node in self.nodes if node.last not in parents] or self.nodes

    def sizes(self) -> dict[Node, int]:
        """The tokens that no other node holds, of each node. One whose parent somebody has removed holds all of its
        own."""
        ends = {node.last for node in self.nodes}
        return {node: node.n_tokens - (node.start if node.parent in ends else 0) for node in self.nodes}


class Room(NamedTuple):
    """How large the tree may become."""

    n_tokens: int
    n_nodes: int
    alone: bool  # tokens that nodes have in common count for each of them


class PrefixCache:
    """The cache of the user on whose behalf a program runs."""

    def __init__(self, *, salt: str = "", policy: Policy = least_saving, n_tokens_max: int | None = None) -> None:
        """It holds at most `n_tokens_max` tokens (N_TOKENS_MAX), together with what other salts have in it."""
        self._secret = blake3(salt.encode()).digest()
        self._policy = policy
        self._n_tokens_max = N_TOKENS_MAX if n_tokens_max is None else n_tokens_max
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, prompt: Sequence[int]) -> tuple[KVFile, int]:
        """A new file with as much of the prompt's beginning as is known, and how many tokens that is: less than all,
        so that something is left to compute, and what follows the prompt is known after it."""
        with suppress(SyscallError):
            return await self._find(prompt, await self._keys(prompt))
        return await kv.create(), 0

    async def read(self, prompt: Sequence[int], leave: int = 1) -> tuple[KVFile, int, Sequence[int]]:
        """As `open`, but what is not known is computed, and stored; of those who do so at once with prompts that have
        most of it in common one computes it, and the others wait. Less than `leave` tokens are left to the caller:
        they are returned as well. Raises what `KVFile.append` does."""
        keys: list[str] = []
        with suppress(SyscallError):
            keys = await self._keys(prompt)
        for n_more in reversed(range(N_LOOKS)):
            file, n = await self._find(prompt, keys)
            if len(prompt) - n < leave:
                return file, n, prompt[n:]
            if not n_more or not await waited(keys, n // CHUNK):
                break
            await file.close()
        async with growing(keys if await self._may_hold(prompt) else [], n // CHUNK):
            await file.append(prompt[n:])
            await self.store(file)
        return file, n, []

    async def store(self, file: KVFile) -> None:
        """Keep what a file holds, if that is what a prompt would compute. It stays the caller's to go on with, and to
        close."""
        with suppress(SyscallError):
            tokens = await file.tokens()
            keys = await self._keys(tokens)
            if len(keys) == 1 or (await file.stat()).edited or await file.positions() != list(range(len(tokens))):
                return
            await self._insert(file, tokens, keys)

    # --- looking ---

    async def _find(self, prompt: Sequence[int], keys: Sequence[str]) -> tuple[KVFile, int]:
        """What `open` returns; `keys` are the prompt's."""
        with suppress(SyscallError):
            way = (await self._tree()).way(keys)
            while way:
                if found := await self._fork(way.pop(), prompt):
                    await self._touch(way)
                    return found
        return await kv.create(), 0

    async def _keys(self, tokens: Sequence[int]) -> list[str]:
        """Of no tokens, of the first chunk, of the first two, and so on."""
        key = blake3((await model.info()).fingerprint.encode(), key=self._secret).digest()
        keys = [key.hex()[:KEY_CHARS]]
        packed, n_bytes = memoryview(array("I", tokens)).cast("B"), CHUNK * array("I").itemsize
        for at in range(n_bytes, len(packed) + 1, n_bytes):
            key = blake3(key + packed[at - n_bytes : at], key=self._secret).digest()
            keys.append(key.hex()[:KEY_CHARS])
            if len(keys) % N_KEYS_A_STEP == 0:
                await asyncio.sleep(0)
        return keys

    async def _tree(self) -> Tree:
        try:
            return Tree(filter(None, map(Node.parse, await kv.readdir(DIRECTORY))))
        except FileNotFound:
            return Tree([])

    async def _fork(self, node: Node, prompt: Sequence[int]) -> tuple[KVFile, int] | None:
        """What `open` returns, from one node; None when it is gone, or is not what its name promised."""
        try:
            async with await kv.open(node.path, "r") as held:
                n = n_common(await held.tokens(0, len(prompt) - 1), prompt)
                file = await held.fork()
        except (FileNotFound, *UNREADABLE):
            return None
        await file.truncate(n)
        if n:
            return file, n
        await file.close()
        return None

    async def _touch(self, way: list[Node]) -> None:
        """Whoever uses a node uses those above it, which the policy will know by their files."""
        for node in way:
            with suppress(FileNotFound):
                await (await kv.open(node.path, "r")).close()

    # --- growing ---

    async def _insert(self, file: KVFile, tokens: list[int], keys: list[str]) -> None:
        """Let `file` be a node: in place of a leaf that it goes on from, or a new leaf."""
        tree, outgrown = await self._tree(), None
        way = tree.way(keys)
        if not way:
            new = Node(keys[0], keys[1], keys[-1], 0, len(tokens))
        elif (held := await self._open(node := way[-1], tokens)) is None:
            return await self._insert(file, tokens, keys)
        else:
            async with held:
                theirs = await held.tokens()
                n = n_common(theirs, tokens)
                if n == node.n_tokens < len(tokens) and node in tree.leaves():
                    outgrown, new = node, node._replace(last=keys[-1], n_tokens=len(tokens))
                elif node.start // CHUNK < (at := n // CHUNK) < len(keys) - 1:
                    if at < node.n_tokens // CHUNK:
                        await self._split(node, held, n, keys[at], (await self._keys(theirs))[at + 1])
                        tree = await self._tree()
                    new = Node(keys[at], keys[at + 1], keys[-1], at * CHUNK, len(tokens))
                else:  # there is no chunk that the tree has not
                    return None
        if await self._make_room(tree, new, outgrown):
            await make_directory(DIRECTORY)
            self._close_soon(await file.fork(new.path))
            if outgrown:
                await kv.unlink(outgrown.path)

    async def _open(self, node: Node, tokens: Sequence[int]) -> KVFile | None:
        """A node on the way of these tokens. One that nobody can read, or that is not what its name says, would be in
        their way for ever, so it is removed: None."""
        end = node.start + CHUNK
        with suppress(*UNREADABLE):
            held = await kv.open(node.path, "r")
            theirs = await held.tokens()
            if len(theirs) == node.n_tokens and theirs[:end] == tokens[:end]:
                return held
            await held.close()
        await kv.unlink(node.path)
        return None

    async def _split(self, node: Node, held: KVFile, n: int, middle: str, after: str) -> None:
        """Let the first `n` tokens of a node be one of their own. `middle`: the key after their last whole chunk,
        `after`: the one after that on the node's way."""
        upper = node._replace(last=middle, n_tokens=n)
        async with await held.fork() as cut:
            await cut.truncate(n)
            with suppress(FileExists):  # somebody has not come further than here
                self._close_soon(await cut.fork(upper.path))
        await kv.rename(node.path, node._replace(parent=middle, first=after, start=n // CHUNK * CHUNK).path)

    def _close_soon(self, named: KVFile) -> None:
        """Close a new node, for which nobody waits: it goes to disk where there is one. What is not closed when the
        program ends is closed, and saved, by the kernel."""
        task = asyncio.create_task(closed(named))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- shrinking ---

    async def _make_room(self, tree: Tree, new: Node, outgrown: Node | None) -> bool:
        """Let leaves go until a node more fits. False when it never would."""
        room = await self._room()
        sizes = {node: node.n_tokens for node in tree.nodes} if room.alone else tree.sizes()
        n_more = new.n_tokens - (outgrown.n_tokens if outgrown else 0 if room.alone else new.start)
        if n_more > room.n_tokens:
            return False
        n_tokens_kept, n_nodes_kept = room.n_tokens - n_more, room.n_nodes - 2  # a node may be split
        if sum(sizes.values()) > n_tokens_kept or len(sizes) > n_nodes_kept:
            await self._shrink(sizes, n_tokens_kept - room.n_tokens // SLACK, n_nodes_kept - room.n_nodes // SLACK)
        return True

    async def _shrink(self, sizes: dict[Node, int], n_tokens: int, n_nodes: int) -> None:
        """Let leaves go until no more than so many tokens and nodes are left."""
        left, now = sum(sizes.values()), await process.now()
        while sizes and (left > n_tokens or len(sizes) > n_nodes):
            leaves = [(await self._value(node, sizes[node], now), node) for node in Tree(sizes).leaves()]
            for _, node in sorted(leaves, reverse=True):
                if left > n_tokens or len(sizes) > n_nodes:
                    with suppress(SyscallError):  # one that cannot go keeps none of the others
                        await kv.unlink(node.path)
                    left -= sizes.pop(node)

    async def _may_hold(self, tokens: Sequence[int]) -> bool:
        """Whether there will be room for these tokens."""
        with suppress(SyscallError):
            return len(tokens) <= (await self._room()).n_tokens
        return False

    async def _room(self) -> Room:
        """Where the user has a quota the cache takes half of it, and counts as the quota does: each file as if it
        shared nothing."""
        devices, quota, n_tokens = await kv.df(), await kv.quota(), self._n_tokens_max
        if n_tokens is None:
            n_tokens = sum(device.n_pages * device.page_size for device in devices) // 2
        n_nodes = N_NODES_MAX if quota.n_files_max is None else min(N_NODES_MAX, quota.n_files_max // 2)
        if quota.n_pages_max is None:
            return Room(n_tokens, n_nodes, alone=False)
        page_size = min((device.page_size for device in devices), default=1)
        return Room(min(n_tokens, quota.n_pages_max * page_size // 2), n_nodes, alone=True)

    async def _value(self, node: Node, n_own: int, now: float) -> float:
        try:
            stat = await kv.stat(node.path)
        except FileNotFound:
            return float("inf")
        return self._policy(Entry(node.n_tokens, n_own, stat.n_opens, now - stat.used_s))


async def closed(file: KVFile) -> None:
    with suppress(SyscallError):
        await file.close()


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


async def main(directory: str = DIRECTORY, clear: bool = False) -> dict[str, Any]:
    """How much is in a cache, by default in that of the user who runs this; `clear` empties it."""
    nodes: list[Node] = []
    try:
        nodes += filter(None, map(Node.parse, await kv.readdir(directory)))
    except FileNotFound as e:
        if directory != DIRECTORY:  # which is made when there is something to put in
            raise SystemExit(e.detail) from None
    if clear:
        for node in nodes:
            with suppress(FileNotFound):
                await kv.unlink(f"{directory}/{node.name}")
    return {"nodes": len(nodes), "tokens": sum(Tree(nodes).sizes().values()), "cleared": clear}
