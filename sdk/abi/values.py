"""The values that cross the door: handles, sampling, distributions, generations, stats.

Frozen msgspec structs, so that the same value is an argument here, a message on the wire and JSON outside.
Tokens are unsigned 32-bit ids; log-probabilities are natural logarithms in fp32; times are in seconds.
"""

from enum import StrEnum
from typing import Annotated, NewType, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace

from sdk.abi.errors import AccessDenied, InvalidArgument

Pid = NewType("Pid", int)
Fd = NewType("Fd", int)

Token = Annotated[int, Meta(ge=0, le=2**32 - 1)]
TokenRange = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]  # start and stop
PositiveInt = Annotated[int, Meta(ge=1)]

Word = TypeVar("Word", bound=StrEnum)


def choice(kind: type[Word], word: str) -> Word:
    """The member of `kind` that a program has named. Raises InvalidArgument, which names them all."""
    try:
        return kind(word)
    except ValueError:
        raise InvalidArgument(f"{word!r} is none of: {', '.join(kind)}") from None


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen from a distribution; the names and the order of steps are vLLM's.

    Order: logit_bias, penalties (repetition, then frequency and presence), temperature, min_p, top_k, top_p.
    `temperature=0` is greedy. The draw is keyed by (`seed`, position of the token in its file) alone, so it is
    the same whatever else shares the batch; without a seed the kernel draws one per call.

    Penalties count the tokens already in the file: `repetition_penalty` all of them (Keskar et al., 2019),
    `frequency_penalty` and `presence_penalty` those this call has generated (OpenAI's definition).
    """

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    top_k: Annotated[int, Meta(ge=-1)] = 0  # 0 or -1: off
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: dict[Token, Annotated[float, Meta(ge=-1e9, le=100.0)]] = {}
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class Decoding(Struct, frozen=True, omit_defaults=True):
    """How a generation runs and when it ends.

    It ends at the model's end-of-sequence token (unless `ignore_eos`), at a token of `stop_tokens`, at the first
    occurrence of a string of `stop`, or after `max_tokens` (default: at the end of the context). What stopped it
    is neither in the text nor in the file, so the file always holds exactly the text returned; with
    `include_stop` both hold it. Before `min_tokens` none of the stops counts. `logprobs` asks for each token's
    logprob and that many likeliest alternatives (0: the token alone).
    """

    sampling: Sampling = Sampling()
    max_tokens: PositiveInt | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=16)] = []
    stop_tokens: list[Token] = []
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    logprobs: Annotated[int, Meta(ge=0, le=128)] | None = None


class Want(Struct, frozen=True, omit_defaults=True):
    """What `pred` returns for each asked position.

    `at` holds offsets into the tokens of the call: offset i is the distribution *after* token i, and -1 the
    distribution before the first one, that is after the file's present last token. None means the last.
    """

    at: list[Annotated[int, Meta(ge=-1)]] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1024)] = 32  # the k likeliest tokens with their logprobs
    logits: bool = False  # the whole row of raw logits, fp32
    sample: Sampling | None = None  # draw one token
    logprobs_of: list[Token] = []  # logprobs of these tokens, at every asked position
    targets: list[Token] = []  # one token per asked position: the logprob of that token there
    entropy: bool = False  # in nats


NOTHING = Want(at=[])  # compute and store, return no distribution


class Distribution(Struct, frozen=True, omit_defaults=True):
    """The model's belief about the token that follows `position`. All logprobs are of the raw softmax:
    before temperature, penalties and filters."""

    position: int  # of the token this distribution comes after
    top_tokens: list[int] = []
    top_logprobs: list[float] = []
    raw_logits: bytes = b""  # little-endian fp32, [vocab]
    sample: int | None = None
    sample_logprob: float | None = None
    logprobs_of: dict[int, float] = {}
    target_logprob: float | None = None
    entropy: float | None = None

    def top(self, k: int | None = None) -> list[tuple[int, float]]:
        """The k likeliest (token, logprob) pairs, best first.

        Raises ValueError when more are wanted than the call asked for (`Want(top_k=...)`)."""
        n = len(self.top_tokens) if k is None else k
        if n > len(self.top_tokens):
            raise ValueError(f"this distribution holds {len(self.top_tokens)} tokens: ask with Want(top_k={n})")
        return list(zip(self.top_tokens[:n], self.top_logprobs[:n], strict=True))

    def argmax(self) -> int:
        """The likeliest token."""
        return self.top(1)[0][0]

    @property
    def logits(self) -> "memoryview[float]":
        """Raw logits as a float32 memoryview of shape [vocab]; `numpy.asarray(d.logits)` copies nothing.

        Raises ValueError when the call did not ask for them (`Want(logits=True)`)."""
        if not self.raw_logits:
            raise ValueError("this distribution holds no logits: ask with Want(logits=True)")
        return memoryview(self.raw_logits).cast("f")


class TokenLogprob(Struct, frozen=True, omit_defaults=True):
    """One generated token with its logprob and the likeliest alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = []


class FinishReason(StrEnum):
    """Why a generation ended; OpenAI's words."""

    STOP = "stop"  # a stop token, a stop string, or the model's end of sequence
    LENGTH = "length"  # max_tokens, or the context is full


class Chunk(Struct, frozen=True, omit_defaults=True):
    """What a stream has produced since the last read. `finish` is set on the last chunk only."""

    text: str = ""
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token or string that ended it; None for end of sequence
    n_sampled: int = 0  # so far, with those that a stop cut off


class Generation(Struct, frozen=True, omit_defaults=True):
    """A finished generation. `text` and `tokens` are exactly what the file gained by it."""

    text: str
    tokens: list[int]
    finish: FinishReason
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprob] = []
    n_sampled: int = 0


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of a chat."""

    role: str
    content: str


class ModelInfo(Struct, frozen=True):
    """What the kernel serves."""

    name: str
    fingerprint: str  # BLAKE2 over config and weights: equal means the same distributions
    architecture: str
    n_parameters: int
    dtype: str
    vocab_size: int
    max_model_len: int  # tokens a file can hold
    page_size: int  # tokens a page holds
    bos_token: int | None
    eos_tokens: list[int]  # any of them ends a generation
    has_chat_template: bool


class OpenMode(StrEnum):
    """What the handle may do: `r` read and attend, `w` append and truncate as well."""

    READ = "r"
    WRITE = "w"


class LockMode(StrEnum):
    """How a file is locked: for many who read, or for one who writes."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class Advice(StrEnum):
    """What a program expects of a file's pages: to need them soon, or not until it says so by using them."""

    WILLNEED = "willneed"
    DONTNEED = "dontneed"


class Outcome(StrEnum):
    """What became of a wish about a file's pages."""

    ACCEPTED = "accepted"  # it is so, or will be as soon as there is reason to
    CLIPPED = "clipped"  # for fewer pages than the file has: the quota does not allow more
    DEFERRED = "deferred"  # the pages are not on the device yet, and are on their way
    REFUSED = "refused"  # `detail` says why


class Advised(Struct, frozen=True, omit_defaults=True):
    """What the kernel made of a wish about a file's pages."""

    outcome: Outcome
    n_pages: int = 0  # leading pages of the file that it holds for
    until_s: float | None = None  # on the kernel's clock; None: while the handle is open, or for no time at all
    detail: str = ""  # one line, where something was not done as asked


class PositionMode(StrEnum):
    """Where the tokens of an edited file are: KEEP, where they were; PACK, at 0, 1, 2 and so on."""

    KEEP = "keep"
    PACK = "pack"


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"


class Stat(Struct, frozen=True):
    """What kvfs knows of a file or directory. Of a file of another tenant it does not say who uses it: what is open,
    shared, pinned and when it was used is then as if nobody did."""

    ino: int  # the same for all names of a file, and for no other; what else it says is the operator's to know
    kind: FileKind
    n_tokens: int
    n_resident: int  # tokens whose KV is on the worker's device; the others' is brought back, or computed, when needed
    n_pages: int  # on the device
    n_host_pages: int  # in the worker's main memory
    n_shared_pages: int  # of all these, how many other files share
    n_links: int
    n_open: int
    owner: str
    mode: int
    worker: str | None  # where its pages live; None while it has none
    created_s: float  # on the kernel's monotonic clock
    modified_s: float
    group: str = ""
    used_s: float = 0.0  # when it was last opened or forked, or its tail read
    n_opens: int = 0  # handles that were ever opened
    edited: bool = False  # some of its KV was computed in another context: see docs/kvfs.md
    n_pinned_pages: int = 0  # leading ones that stay on the device
    pinned_until_s: float | None = None  # None: while the handle that pinned them is open, if any are


class DirEntry(Struct, frozen=True):
    name: str
    kind: FileKind


class Quota(Struct, frozen=True):
    """What a user has, and may have; a limit of None is none.

    `n_files` are files and directories that belong to the user. Pages are those of the files' tables, each file's as
    if it shared none of them; `n_pages_max` is of device and host memory together. `kv_byte_s` is the area under the
    curve of bytes of KV over time, in byte-seconds."""

    user: str
    n_files: int
    n_files_max: int | None
    n_pages: int  # on devices
    n_host_pages: int  # in the workers' main memory
    n_pages_max: int | None
    kv_byte_s: float
    kv_byte_s_max: float | None
    n_host_pages_max: int | None = None  # what is beyond is dropped, and computed again
    n_disk_bytes: int = 0  # of durable files
    n_disk_bytes_max: int | None = None


class DeviceSpace(Struct, frozen=True):
    """One line of `lip df`: a device and the main memory of its worker, in pages. To anybody but the operator, only
    what the caller's own tenant has counts as used."""

    device: str
    page_size: int  # tokens a page holds
    page_bytes: int  # of KV in one; 0 where it is not known
    n_pages: int
    n_free: int
    n_host_pages: int
    n_host_free: int
    n_files: int


class ExitStatus(Struct, frozen=True, omit_defaults=True):
    """How a process ended. `code` is 0 for a return, 1 for an exception, 137 when killed, else sys.exit's."""

    pid: int
    code: int
    result: bytes = b""  # the returned value as JSON, when code is 0
    error: str = ""  # one line
    traceback: str = ""  # the program's own frames only


class Limits(Struct, frozen=True, omit_defaults=True):
    """What a process may use from its start on, and what it says of itself; None: without a limit.

    `tokens` and `cpu_s` count all that it starts as well. `horizon_tokens` is no limit: it is how many tokens the
    process expects to have computed at its end, with all that it starts, for a scheduler that goes by it.
    """

    tokens: int | None = None  # computed, of prompts and generated
    pages: int | None = None  # KV pages that it may hold at a time
    cpu_s: float | None = None  # of processor time in the kernel
    wall_s: float | None = None
    horizon_tokens: int | None = None
    files: int | None = None  # KV files that it may have open, each once
    kv_byte_s: float | None = None  # bytes of KV of its open files, over time

    def narrowed(self, wanted: "Limits") -> "Limits":
        """These limits with those that `wanted` has. Raises AccessDenied when one of them is higher than it is here."""
        named = {name: new for name in self.__struct_fields__ if (new := getattr(wanted, name)) is not None}
        for name, new in named.items():
            old = getattr(self, name)
            if old is not None and new > old and name != "horizon_tokens":
                raise AccessDenied(f"the limit {name} is {old}, and a process can only lower its own: not to {new}")
        return replace(self, **named)


class Usage(Struct, frozen=True):
    """What a process has used so far."""

    cpu_s: float
    n_syscalls: int
    n_prompt_tokens: int  # computed for pred, and for the prompts of generate
    n_generated_tokens: int
    device_s: float = 0.0  # of the device's time, its share of each step that it took part in
    service: float = 0.0  # what the scheduler goes by: tokens by weight, and time of the device
    n_pages: int = 0  # KV pages of its open files, now, on a device or in main memory
    n_swapped_tokens: int = 0  # whose KV was moved to main memory to make room
    n_recomputed_tokens: int = 0  # whose KV was computed again
    wait_s: dict[str, float] = {}  # waited, by system call; "ready": of that, for a turn after the answer was there
    kv_byte_s: float = 0.0  # bytes of KV of its open files, over time


class ProcessState(StrEnum):
    """RUNNING: has a thread in a step or about to be; READY: has an answer and waits for its turn; BLOCKED: all its
    threads wait for something; DONE: ended."""

    RUNNING = "running"
    READY = "ready"
    BLOCKED = "blocked"
    DONE = "done"


class ProcessInfo(Struct, frozen=True):
    """One line of `lip ps`."""

    pid: int
    ppid: int
    name: str
    state: ProcessState
    wait: str  # what a blocked one waits for: a system call and its object, or the line of an `await`
    age_s: float
    n_threads: int
    n_files: int
    usage: Usage
    priority: int = 0  # lower goes first
    tenant: str = ""  # whose share of the machine it uses
