"""KV files: what the model has read so far, as a file that a program opens, forks, cuts and names.

A `KVFile` is a handle. It holds tokens and their KV; whatever appends tokens computes them, once, and everything
else (fork, truncate, `next`, `tokens`) computes nothing. Several forks may compute at the same time; one file has
one writer at a time (Busy otherwise). Every method may raise DeviceLost or NoDevice when the worker that holds the
pages fails, BadFile after `close`, and those that append NoSpace and TooLong.

All of it is system calls (`sdk.syscalls`) in fewer words: no state of the kernel is mirrored here.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack

from sdk import model, syscalls
from sdk.abi.errors import BadFile, Busy
from sdk.abi.values import (
    NOTHING,
    Advice,
    Advised,
    Chunk,
    Decoding,
    Distribution,
    Fd,
    Generation,
    LockMode,
    OpenMode,
    PositionMode,
    Sampling,
    Stat,
    Want,
    choice,
)
from sdk.locks import FileLock, Mode
from sdk.model import ChatMessage, TextOrTokens, tokens_of
from sdk.syscalls import chmod, chown, df, link, mkdir, quota, readdir, rename, stat, umask, unlink

__all__ = [
    "KVFile",
    "TokenStream",
    "chat",
    "chmod",
    "chown",
    "create",
    "df",
    "link",
    "merge",
    "mkdir",
    "open",
    "prompt",
    "quota",
    "readdir",
    "rename",
    "stat",
    "umask",
    "unlink",
]


Positions: TypeAlias = PositionMode | Literal["keep", "pack"]
Visible: TypeAlias = Sequence[tuple[int, int | None]]  # runs of token indices: see `KVFile.pred`


class Asked(TypedDict, total=False):
    """What a `Distribution` shall hold: the fields of `Want` that are not about where."""

    top_k: int
    logits: bool
    sample: Sampling | None
    logprobs_of: list[int]
    entropy: bool


class DecodingFields(TypedDict, total=False):
    """The fields of `Decoding` beside `sampling`; a single `stop` string needs no list."""

    max_tokens: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    min_tokens: int
    logprobs: int | None


def _decoding(sampling: Sampling | None, fields: DecodingFields) -> Decoding:
    given: dict[str, Any] = dict(fields)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    given |= {name: list(given[name]) for name in ("stop", "stop_tokens") if name in given}
    return Decoding(sampling=sampling or Sampling(), **given)


class KVFile:
    """An open KV file. `async with` closes it; a file without a name ends with its last handle."""

    def __init__(self, fd: Fd) -> None:
        self.fd = fd
        self._closed = False
        self._dropped: list[Fd] = []  # streams that a `break` left running
        self._ending: asyncio.Future[None] | None = None  # the task that closes them, kept from the collector

    def __repr__(self) -> str:
        return f"<KVFile fd={self.fd}{' closed' if self._closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(BadFile):
            await self.close()

    async def sync(self) -> None:
        """Wait until the file is on disk as it is now. Raises NotSupported when the kernel has no `--kv-dir`."""
        await syscalls.sync(self.fd)

    async def close(self) -> None:
        """Give the handle back; closing twice is no error. An unfinished stream ends with it. With `--kv-dir` a file
        that has a name is on disk when this returns."""
        if self._closed:
            return
        self._closed = True
        await self._end_dropped()
        await syscalls.close(self.fd)

    # --- computing ---

    async def append(self, text_or_tokens: TextOrTokens, *, visible: Visible | None = None) -> int:
        """Let the model read this; returns the number of tokens computed. `pred` also says what comes next."""
        tokens = await tokens_of(text_or_tokens)
        await self._compute(tokens, NOTHING, visible=visible)
        return len(tokens)

    async def pred(
        self,
        text_or_tokens: TextOrTokens,
        *,
        positions: Iterable[int] | None = None,
        visible: Visible | None = None,
        **asked: Unpack[Asked],
    ) -> Distribution:
        """Append and return the distribution after the last token.

        `asked` says what the distribution holds: `top_k` (32), `logits`, `sample`, `logprobs_of`, `entropy`, as in
        `Want`. `positions`, one for each token and non-decreasing, default to the next ones. `visible` says which
        tokens of the file the new ones attend to, as slices up to each of them, by default all:
        `[(0, 4), (-256, None)]` is four attention sinks and a sliding window, itself included.
        """
        (last,) = await self._compute(await tokens_of(text_or_tokens), Want(**asked), positions, visible)
        return last

    async def pred_all(
        self,
        text_or_tokens: TextOrTokens,
        *,
        at: Iterable[int] | None = None,
        targets: Iterable[int] = (),
        positions: Iterable[int] | None = None,
        visible: Visible | None = None,
        **asked: Unpack[Asked],
    ) -> list[Distribution]:
        """Append and return the distribution after each token, or at the offsets `at` (-1: before the first).

        `targets`, one token for each offset, asks for the logprob of that token there (`target_logprob`).
        """
        tokens = await tokens_of(text_or_tokens)
        offsets = list(range(len(tokens))) if at is None else list(at)
        return await self._compute(tokens, Want(at=offsets, targets=list(targets), **asked), positions, visible)

    async def next(self, **asked: Unpack[Asked]) -> Distribution:
        """The distribution after the last token. Computes nothing: a file knows what comes next.

        Raises InvalidArgument on an empty file.
        """
        (last,) = await self._compute([], Want(at=[-1], **asked))
        return last

    async def score(self, text_or_tokens: TextOrTokens) -> list[float]:
        """The logprob of each of these tokens, were they to come next. Leaves the file as it is.

        All but the last token are computed, on a fork. Raises InvalidArgument on an empty file.
        """
        tokens = await tokens_of(text_or_tokens)
        if not tokens:
            return []
        async with await self.fork() as fork:
            offsets = range(-1, len(tokens) - 1)
            found = await fork.pred_all(tokens[:-1], at=offsets, targets=tokens, top_k=0)
        return [d.target_logprob for d in found if d.target_logprob is not None]

    async def keep(self, tokens: Iterable[int]) -> int:
        """Make the file hold exactly these tokens; returns how many had to be computed.

        The longest prefix that the file already holds is kept and the rest truncated: a chat that grows by a turn
        computes that turn alone.
        """
        wanted = [int(token) for token in tokens]
        held = await self.tokens()
        n_same = 0
        for have, want in zip(held, wanted, strict=False):
            if have != want:
                break
            n_same += 1
        if n_same < len(held):
            await self.truncate(n_same)
        return await self.append(wanted[n_same:]) if n_same < len(wanted) else 0

    async def _compute(
        self,
        tokens: list[int],
        want: Want,
        positions: Iterable[int] | None = None,
        visible: Visible | None = None,
    ) -> list[Distribution]:
        await self._end_dropped()
        at = None if positions is None else [int(p) for p in positions]
        return await syscalls.pred(self.fd, tokens=tokens, positions=at, want=want, visible=visible)

    # --- generating ---

    async def generate(
        self,
        prompt: TextOrTokens | None = None,
        sampling: Sampling | None = None,
        *,
        visible: Visible | None = None,
        **decoding: Unpack[DecodingFields],
    ) -> Generation:
        """Append `prompt`, then sample until a stop; the file gains exactly the prompt and the returned tokens.

        `sampling` is greedy by default. `decoding` says when to end (`max_tokens`, `stop`, ...), as in `Decoding`.
        `visible` is what the prompt's and the sampled tokens attend to, as in `pred`.
        """
        tokens = [] if prompt is None else await tokens_of(prompt)
        await self._end_dropped()
        return await syscalls.generate(self.fd, prompt=tokens, decoding=_decoding(sampling, decoding), visible=visible)

    async def text(
        self,
        sampling: Sampling | None = None,
        *,
        prompt: TextOrTokens | None = None,
        visible: Visible | None = None,
        **decoding: Unpack[DecodingFields],
    ) -> str:
        """`generate`, for its text alone."""
        return (await self.generate(prompt, sampling, visible=visible, **decoding)).text

    def stream(
        self,
        prompt: TextOrTokens | None = None,
        sampling: Sampling | None = None,
        *,
        visible: Visible | None = None,
        **decoding: Unpack[DecodingFields],
    ) -> "TokenStream":
        """`generate`, in chunks as they come: `async for chunk in file.stream(max_tokens=64)`.

        It begins with the first chunk asked for. Leaving the loop early ends it; what was computed until then stays
        in the file (the last token read may not be among it).
        """
        return TokenStream(self, prompt, _decoding(sampling, decoding), visible)

    async def _end_dropped(self) -> None:
        while self._dropped:
            with suppress(BadFile):
                await syscalls.close(self._dropped.pop())

    def _end_dropped_soon(self) -> None:
        if self._dropped:
            self._ending = asyncio.ensure_future(self._end_dropped())

    # --- locking ---

    def lock(self, mode: Mode = LockMode.EXCLUSIVE, timeout: float | None = None) -> FileLock:
        """Lock the file while a block lasts: `async with file.lock(): ...`, "shared" or "exclusive".

        Nobody is kept from reading; nobody writes a file that another handle has exclusively (Busy). Raises TimedOut
        after `timeout` seconds (0: if it is not free), Deadlock when this program has to give way to others: leave
        the blocks you are in, and begin again. Blocks of one handle do not nest: leaving the inner one unlocks."""
        return FileLock(self.fd, mode, timeout)

    # --- the file itself ---

    async def fork(self, path: str | None = None) -> "KVFile":
        """A copy under its own handle, and under `path` if given. Costs no page and no computation.

        Raises FileExists when the path is taken.
        """
        return KVFile(await syscalls.fork(self.fd, path=path))

    async def dup(self, mode: OpenMode | Literal["r", "w"] | None = None) -> "KVFile":
        """Another handle on the same file; "r" gives up the right to write. Raises AccessDenied if it never had it."""
        return KVFile(await syscalls.dup(self.fd, mode=None if mode is None else choice(OpenMode, mode)))

    async def extract(
        self, *ranges: tuple[int, int], positions: Positions = PositionMode.KEEP, path: str | None = None
    ) -> "KVFile":
        """A new file of the tokens in these ranges: `await f.extract((0, 10), (50, 80))`. Computes nothing.

        "keep": tokens stay at their positions, as if attention did not see the others. "pack": they are at 0, 1, 2 …,
        keys turned. Either way a token knows what it saw when it was computed. Raises InvalidArgument, FileExists.
        """
        mode = choice(PositionMode, positions)
        return KVFile(await syscalls.extract(self.fd, ranges=list(ranges), positions=mode, path=path))

    async def splice(
        self, start: int, stop: int, source: "KVFile | None" = None, *, positions: Positions | None = None
    ) -> None:
        """Replace tokens `start` to `stop` by those of `source`, or by none. Computes nothing; see `extract`.

        `positions` are "keep" where nothing is put in, else "pack". Raises Busy while another call writes the file.
        """
        await self._end_dropped()
        fd, mode = None if source is None else source.fd, None if positions is None else choice(PositionMode, positions)
        await syscalls.splice(self.fd, start=start, stop=stop, source=fd, positions=mode)

    async def truncate(self, n_tokens: int) -> None:
        """Keep the first `n_tokens` tokens. Raises InvalidArgument when the file has fewer."""
        await self._end_dropped()
        await syscalls.truncate(self.fd, n_tokens)

    async def tokens(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The tokens, or a slice of them."""
        return await syscalls.tokens(self.fd, start=start, stop=stop)

    async def positions(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The position of each token, or of a slice of them."""
        return await syscalls.positions(self.fd, start=start, stop=stop)

    async def read_text(self, start: int = 0, stop: int | None = None, *, skip_special: bool = False) -> str:
        """The text of the tokens, or of a slice of them."""
        return await model.detokenize(await self.tokens(start, stop), skip_special=skip_special)

    async def pin(self, ttl: float | None = None) -> Advised:
        """Keep its pages on their device for `ttl` seconds, or while this handle is open; says what was done.

        `pin(3600)` of a named file outlives the program. See `Advised.outcome`: a quota may clip it.
        """
        return await syscalls.pin(self.fd, ttl=ttl)

    async def unpin(self) -> None:
        """End this handle's pin, and those that closed handles of the tenant have left."""
        await syscalls.pin(self.fd, ttl=0.0)

    async def willneed(self) -> Advised:
        """Begin to bring its pages back to the device, before somebody asks."""
        return await syscalls.advise(self.fd, Advice.WILLNEED)

    async def dontneed(self) -> Advised:
        """Let it be the first to leave the device when somebody wants room, until it is used again."""
        return await syscalls.advise(self.fd, Advice.DONTNEED)

    async def stat(self) -> Stat:
        """Its size in tokens and pages, who shares them, and where they are."""
        return await syscalls.fstat(self.fd)


class TokenStream(AsyncIterator[Chunk]):
    """The chunks of one generation; the last has `finish` set. An error or a cancellation while reading ends it.

    `async for` does not close an iterator that a `break` or an exception leaves behind, so a stream that is dropped
    unfinished hands its handle to its file, which closes it before it does anything else, or as soon as the event
    loop is free. (Not at once: the garbage collector may drop a stream in the middle of anything.)
    """

    def __init__(self, file: KVFile, prompt: TextOrTokens | None, decoding: Decoding, visible: Visible | None) -> None:
        self._file = file
        self._prompt = prompt
        self._decoding = decoding
        self._visible = visible
        self._fd: Fd | None = None
        self._ended = False

    async def __anext__(self) -> Chunk:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._fd is None:
                await self._begin()
            assert self._fd is not None
            chunk = await syscalls.read(self._fd)
        except Busy:  # another thread is at it
            raise
        except BaseException:  # the traceback of a cancellation would keep the stream alive
            await self.aclose()
            raise
        if chunk.finish is not None:  # which closed the handle
            self._fd, self._ended = None, True
        return chunk

    async def _begin(self) -> None:
        tokens = [] if self._prompt is None else await tokens_of(self._prompt)
        await self._file._end_dropped()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # of the program, in which the handle is valid
        self._fd = await syscalls.stream(self._file.fd, prompt=tokens, decoding=self._decoding, visible=self._visible)

    async def aclose(self) -> None:
        """End the generation, at once; closing twice is no error."""
        self._ended = True
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with suppress(BadFile):
                await syscalls.close(fd)

    def __del__(self) -> None:
        if self._fd is not None and not self._loop.is_closed():
            self._file._dropped.append(self._fd)
            self._loop.call_soon_threadsafe(self._file._end_dropped_soon, context=self._context)


async def merge(*files: KVFile, positions: Positions = PositionMode.PACK, path: str | None = None) -> KVFile:
    """A new file of all tokens of these, one after another: `await kv.merge(rules, document)`. Computes nothing.

    No token knows of those of the files before its own, until it is computed again; see `KVFile.extract`. Raises
    CrossDevice when the files' pages are on different workers.
    """
    fds = [file.fd for file in files]
    return KVFile(await syscalls.merge(fds, positions=choice(PositionMode, positions), path=path))


# --- files by name ----------------------------------------------------------------------------------------------


async def create(path: str | None = None) -> KVFile:
    """A new empty file; with a path it stays until it is unlinked. Raises FileExists."""
    return KVFile(await syscalls.create(path))


async def open(path: str, mode: OpenMode | Literal["r", "w"] = "w") -> KVFile:  # noqa: A001
    """Open the file at `path`: "w" to append and truncate, "r" to read. Either may fork if its owner allows that.

    Raises FileNotFound, AccessDenied. "~/" is the user's home; "/tmp/" is the process's own, and goes with it."""
    return KVFile(await syscalls.open(path, mode=choice(OpenMode, mode)))


async def chat(messages: Iterable[ChatMessage], path: str | None = None) -> KVFile:
    """A file that has read a chat and expects the assistant's turn: `await kv.chat([("user", "Hello!")])`."""
    return await _read(await model.chat_tokens(messages), path)


async def prompt(text: str, path: str | None = None) -> KVFile:
    """A file that has read `text`, after the model's begin-of-sequence token where it has one."""
    return await _read(await model.tokenize(text, add_special=True), path)


async def _read(tokens: list[int], path: str | None) -> KVFile:
    """Computed without a name and then forked to one, so that nobody ever opens half of it."""
    file = await create()
    try:
        await file.append(tokens)
        if path is None:
            return file
        named = await file.fork(path)
    except BaseException:
        await file.close()
        raise
    await file.close()
    return named
