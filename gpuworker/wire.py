"""THE WIRE between the kernel and a worker: every message, and nothing else. No torch, no numpy.

The worker owns this contract, so that a remote box needs no kernel. Workers know pages, not files: the kernel
sends page tables, the worker executes batches in the order they arrive and answers each exactly once.

A message is a list of frames. The first is msgpack of one of the tagged structs below; `Batch` and `BatchDone`
are followed by raw little-endian arrays, because a token list as u32 bytes costs a seventieth of a msgpack list.
Only `Hello`, `Welcome` and `Refused` are JSON, so that two versions that disagree on everything else can still
say so by name: the schema hash in the hello is compared before any other byte is decoded.

Rules: every field is bounded by `gpuworker/backend.py` or by the batch that asked; `Row` and `Ask`
are array-like, so their fields are appended and never reordered; no field ever carries code or pickles.
"""

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo, Sampling
from sdk.abi.visible import Run

if sys.byteorder != "little":
    raise ImportError("the wire is little-endian, and so must be its hosts")

PROTOCOL = "symphony-worker"


# --- attaching --------------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """Kernel to worker, first of all: who I am and which schema I speak."""

    schema: str
    kernel: str  # unique per kernel process
    protocol: str = PROTOCOL


class Welcome(Struct, frozen=True, tag="welcome"):
    """Worker to kernel: attached. From here on all pages are the kernel's to give out."""

    schema: str
    worker: str  # unique per worker process
    os_pid: int
    device: str  # cpu, cuda:0 … with its name
    attention: str  # which body answers
    model: ModelInfo
    n_pages: int
    n_host_pages: int  # room in main memory where pages can be moved to; 0: none
    page_bytes: int  # of one page's contents, as `Fetched` and `Store` carry it
    max_rows: int  # rows a batch may have
    max_batch_tokens: int  # new tokens a batch may have
    protocol: str = PROTOCOL


class Refused(Struct, frozen=True, tag="refused"):
    """Worker to kernel: not attached, and why."""

    schema: str
    reason: str
    protocol: str = PROTOCOL


# --- kernel to worker -------------------------------------------------------------------------------------------


class Draw(Struct, frozen=True, array_like=True):
    """Sample one token. `seed` and `position` key the draw, and nothing else does (see gpuworker/sampling.py)."""

    sampling: Sampling
    seed: int  # unsigned, 64 bits
    position: int  # of the token to be drawn
    n_history: int = 0  # tokens of this row in the history frame; sent only when a penalty wants them
    n_generated: int = 0  # how many of those, at the end, the present call has generated


class Ask(Struct, frozen=True, array_like=True):
    """What to answer at one position of a row."""

    offset: int  # into the row's new tokens; -1: after the last token before them (a tail, stored with its page)
    draw: Draw | None = None
    top_k: int = 0
    logits: bool = False
    logprobs_of: list[int] = []
    target: int | None = None
    entropy: bool = False


class Row(Struct, frozen=True, array_like=True):
    """One file's share of a step. Its slices of the batch's arrays follow those of the rows before it."""

    job: int  # the kernel's number, echoed
    n_before: int  # tokens whose KV is in the pages already
    n_new: int  # tokens to compute now; 0 only asks for the tail
    n_pages: int  # pages of its table: they cover n_before + n_new tokens
    asks: list[Ask] = []
    chained: bool = False  # its first new token is what this job's last ask drew in the batch before; the tokens say 0
    visible: list[Run] = []  # what its new tokens attend to (sdk/abi/visible.py); empty: all before them


class Edit(Struct, frozen=True, array_like=True):
    """Slots of one page that are copied into another, in all layers: V as it is, K turned to a position `delta` further
    (negative: back)."""

    source: int  # page
    source_slot: int  # the first
    page: int  # to write
    slot: int  # the first
    n: int
    delta: int = 0


class BatchHead(Struct, frozen=True, tag="batch"):
    """Frames after it: tokens u32, positions u32, page tables u32, history u32.

    A batch may be sent while the one before it runs, with rows that are chained to its draws. If that one fails, what
    was built on it is void: `n_failed` says how many failures the kernel had heard of when it sent this, and a worker
    that has had more refuses it untried (BatchFailed.void).

    Moves between the tiers are done beside the step, and are complete when the batch is answered. They touch no page
    that its copies, edits or rows touch, and each page once. A batch may have moves and no rows.

    Edits are done after the copies and before the step, in any order: none writes a page that another one reads, and
    no slot is written twice. They leave tails alone."""

    seq: int
    copies: list[tuple[int, int]]  # (source page, destination page), done in order before the step
    rows: list[Row]
    n_failed: int = 0
    moves_out: list[tuple[int, int]] = []  # (page, host page)
    moves_in: list[tuple[int, int]] = []  # (host page, page)
    edits: list[Edit] = []


class Fetch(Struct, frozen=True, tag="fetch"):
    """Send me the contents of these pages, as all batches before this have left them. Numbers from `n_pages` on are
    those of pages in main memory."""

    number: int  # the kernel's, echoed
    pages: list[int]


class StoreHead(Struct, frozen=True, tag="store"):
    """Write these contents into these pages, numbered as in `Fetch`. Frame after it: page after page, `page_bytes`
    each."""

    number: int
    pages: list[int]


class GetAssets(Struct, frozen=True, tag="get-assets"):
    """Send me the tokenizer and the chat template."""


class Ping(Struct, frozen=True, tag="ping"):
    nonce: int


class Detach(Struct, frozen=True, tag="detach"):
    """The kernel leaves. A worker that the kernel started ends; any other waits for the next kernel."""

    reason: str


# --- worker to kernel -------------------------------------------------------------------------------------------


class Answer(Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one `Ask` asked for. Raw logits are in the frame after, row after row, in the order of the asks."""

    sample: int | None = None
    sample_logprob: float | None = None
    top_tokens: list[int] = []
    top_logprobs: list[float] = []
    logprobs_of: list[float] = []
    target_logprob: float | None = None
    entropy: float | None = None
    has_logits: bool = False


class RowDone(Struct, frozen=True, array_like=True):
    job: int
    answers: list[Answer]


class BatchDoneHead(Struct, frozen=True, tag="done"):
    """Frame after it: logits f32, [number of answers with has_logits, vocab]."""

    seq: int
    rows: list[RowDone]
    n_tokens: int  # computed in this step
    step_s: float  # time the device took
    move_s: float = 0.0  # time the moves took, beside it


class BatchFailed(Struct, frozen=True, tag="failed"):
    """The step was not done, and no page is changed beyond the rows' own new slots and the moves' destinations."""

    seq: int
    errno: Errno
    detail: str
    void: bool = False  # not tried at all: it was sent before the failure of an earlier one was known


class FetchedHead(Struct, frozen=True, tag="fetched"):
    """Frame after it: the pages' contents, in the order they were asked for."""

    number: int


class Stored(Struct, frozen=True, tag="stored"):
    number: int


class PagesFailed(Struct, frozen=True, tag="pages-failed"):
    """A `Fetch` or `Store` was refused; nothing was written."""

    number: int
    errno: Errno
    detail: str


class Assets(Struct, frozen=True, tag="assets"):
    """All the kernel needs to speak the model's language."""

    tokenizer_json: str  # a complete tokenizer.json of the `tokenizers` library
    chat_template: str | None  # jinja
    special_tokens: dict[str, str]  # bos_token, eos_token, … as the template spells them
    add_bos: bool  # prepend bos_token to a plain text prompt


class Pong(Struct, frozen=True, tag="pong"):
    nonce: int
    n_batches: int  # answered since the start: progress, not only life
    n_tokens: int  # computed since the start


class Bye(Struct, frozen=True, tag="bye"):
    """The worker ends, and why."""

    reason: str


Greeting: TypeAlias = Hello | Welcome | Refused
ToWorker: TypeAlias = BatchHead | Fetch | StoreHead | GetAssets | Ping | Detach
ToKernel: TypeAlias = BatchDoneHead | BatchFailed | FetchedHead | Stored | PagesFailed | Assets | Pong | Bye
Frames: TypeAlias = Sequence[bytes | memoryview]

H = TypeVar("H")


class Batch:
    """A batch with its arrays: `tokens`, `positions`, `pages`, `history`, each `array("I")` or a u32 memoryview."""

    __slots__ = ("head", "history", "pages", "positions", "tokens")

    def __init__(
        self,
        head: BatchHead,
        tokens: "array[int] | memoryview",
        positions: "array[int] | memoryview",
        pages: "array[int] | memoryview",
        history: "array[int] | memoryview",
    ) -> None:
        self.head = head
        self.tokens = tokens
        self.positions = positions
        self.pages = pages
        self.history = history


class BatchDone:
    """A finished batch with its logits: float32 bytes, row after row."""

    __slots__ = ("head", "logits")

    def __init__(self, head: BatchDoneHead, logits: bytes | memoryview = b"") -> None:
        self.head = head
        self.logits = logits


class Store:
    """Contents for pages: bytes, page after page."""

    __slots__ = ("contents", "head")

    def __init__(self, head: StoreHead, contents: bytes | memoryview) -> None:
        self.head = head
        self.contents = contents


class Fetched:
    """Contents of pages: bytes, page after page."""

    __slots__ = ("contents", "head")

    def __init__(self, head: FetchedHead, contents: bytes | memoryview) -> None:
        self.head = head
        self.contents = contents


FromKernel: TypeAlias = Batch | Store | Fetch | GetAssets | Ping | Detach  # as decoded
FromWorker: TypeAlias = BatchDone | BatchFailed | Fetched | Stored | PagesFailed | Assets | Pong | Bye


class WireError(Exception):
    """A message that cannot be understood; the peer is at fault."""


# What msgspec raises at bytes: besides its own errors, text that is no UTF-8, and nesting without an end.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _schema_hash() -> str:
    schemas, components = msgspec.json.schema_components((Greeting, ToWorker, ToKernel, Sampling, ModelInfo))
    text = msgspec.json.encode([schemas, components], order="deterministic")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


WIRE_HASH = _schema_hash()

_pack = msgspec.msgpack.Encoder().encode
_greeting: msgspec.json.Decoder[Greeting] = msgspec.json.Decoder(Greeting)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_kernel: msgspec.msgpack.Decoder[ToKernel] = msgspec.msgpack.Decoder(ToKernel)


def encode_greeting(message: Greeting) -> list[bytes]:
    """One JSON frame."""
    return [msgspec.json.encode(message)]


def decode_greeting(frames: Frames) -> Greeting:
    """Raises WireError when this is no greeting of ours."""
    try:
        if len(frames) != 1:
            raise WireError(f"a greeting is one frame, not {len(frames)}")
        return _greeting.decode(frames[0])
    except UNREADABLE as e:
        raise WireError(f"not a greeting of {PROTOCOL}: {e}") from None


def encode(message: FromKernel | FromWorker) -> list[bytes | memoryview]:
    """Any message after the greeting, as frames."""
    if isinstance(message, Batch):
        arrays = (message.tokens, message.positions, message.pages, message.history)
        return [_pack(message.head), *(a.tobytes() for a in arrays)]
    if isinstance(message, BatchDone):
        return [_pack(message.head), bytes(message.logits)]
    if isinstance(message, Store | Fetched):
        return [_pack(message.head), message.contents]
    return [_pack(message)]


def decode_to_worker(frames: Frames) -> FromKernel:
    """Raises WireError when the frames are no message, or their arrays do not fit the rows."""
    head = _decode(_to_worker, frames)
    if isinstance(head, StoreHead):
        if len(frames) != 2:
            raise WireError("contents to store are one header and one frame")
        return Store(head, frames[1])
    if not isinstance(head, BatchHead):
        return head
    if len(frames) != 5 or any(len(f) % 4 for f in frames[1:]):
        raise WireError("a batch is one header and four arrays of u32")
    tokens, positions, pages, history = (memoryview(f).cast("B").cast("I") for f in frames[1:])
    n_new = sum(r.n_new for r in head.rows)
    n_history = sum(a.draw.n_history for r in head.rows for a in r.asks if a.draw is not None)
    wanted = (n_new, n_new, sum(r.n_pages for r in head.rows), n_history)
    if (len(tokens), len(positions), len(pages), len(history)) != wanted:
        raise WireError("the arrays of the batch do not fit its rows")
    return Batch(head, tokens, positions, pages, history)


def decode_to_kernel(frames: Frames) -> FromWorker:
    """Raises WireError when the frames are no message."""
    head = _decode(_to_kernel, frames)
    if not isinstance(head, BatchDoneHead | FetchedHead):
        return head
    if len(frames) != 2:
        raise WireError("a finished batch, and fetched pages, are one header and one array")
    return BatchDone(head, frames[1]) if isinstance(head, BatchDoneHead) else Fetched(head, frames[1])


def _decode(decoder: "msgspec.msgpack.Decoder[H]", frames: Frames) -> H:
    if not frames:
        raise WireError("an empty message")
    try:
        return decoder.decode(frames[0])
    except UNREADABLE as e:
        raise WireError(f"not a message of schema {WIRE_HASH}: {e}") from None
