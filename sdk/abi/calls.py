"""Every system call, in the order of its number. The docstrings are the man pages.

`python -m sdk.abi --write` derives `sdk/syscalls.py` and `docs/syscalls.md` from this file; `--check` fails when
they are stale. Numbers 1-19 model, 20-49 file (in `sdk/abi/file_calls.py`, to be found here as well), 50-69
process, 70-89 ipc.
"""

from typing import Annotated, Any

from msgspec import Meta

from sdk.abi.errors import Errno
from sdk.abi.file_calls import *  # noqa: F403  (its names are ours)
from sdk.abi.table import Syscall, syscall
from sdk.abi.values import (
    Chunk,
    Decoding,
    Distribution,
    ExitStatus,
    Fd,
    Generation,
    Limits,
    Message,
    ModelInfo,
    Pid,
    Token,
    Usage,
    Want,
)
from sdk.abi.visible import VisibleRuns

_MODEL = (
    Errno.EBADF,
    Errno.EACCES,
    Errno.EINVAL,
    Errno.E2BIG,
    Errno.EBUSY,
    Errno.EDQUOT,
    Errno.ENOSPC,
    Errno.ENODEV,
    Errno.EIO,
    Errno.ESTALE,
)


# --- model ------------------------------------------------------------------------------------------------------


@syscall(1, "pred", group="model", blocks=True, errnos=_MODEL)
class Pred(Syscall[list[Distribution]], frozen=True, kw_only=True):
    """Run the model over `tokens`, appended to the open file, and return what `want` asks for.

    The tokens' KV becomes part of the file. `positions` default to the ones after the file's last; they may be
    any from the last on, not decreasing and below the model's length. With no tokens nothing is computed and the
    distribution after the file's present end is answered (offset -1), at the price of a look-up.

    `visible` says which of the file's tokens each new token attends to: runs of token indices, each with the meaning
    of a Python slice of the tokens up to the one that attends, itself included. Negative numbers count from it:
    `[(0, 4), (-256, None)]` is four attention sinks and a sliding window of 256. A token always sees itself and never
    what comes after it; positions stay as they are. None: everything before. The tokens then hold K/V of that context
    for good (`stat` calls such a file edited); only where it is lost and computed again do they see everything.

    One `Distribution` is returned per asked offset, in the order asked. All or nothing: on an error the file is
    as it was. A worker that is lost costs time and is no error: another one goes on.

    EBUSY: another call is appending to this file. E2BIG: the file or a position would exceed the model's context.
    EINVAL: a token that the model does not have, positions that decrease, an offset asked twice or of no token, a
    visible run that is empty.
    EDQUOT: the limit of tokens is reached. ENOSPC: no free pages.
    ENODEV: no worker came in time. EIO: the worker failed at this call.
    """

    fd: Fd
    tokens: list[Token] = []
    positions: list[Annotated[int, Meta(ge=0)]] | None = None
    want: Want = Want()
    visible: VisibleRuns | None = None


@syscall(2, "generate", group="model", blocks=True, errnos=_MODEL)
class Generate(Syscall[Generation], frozen=True, kw_only=True):
    """Append `prompt`, then sample and append tokens as `decoding` says, without waking the caller in between.

    The file ends up holding the prompt and exactly the returned tokens, each computed once. EDQUOT, ENOSPC and EIO
    in the middle leave the tokens so far in the file. `visible` is what each of the new tokens attends to, those of
    the prompt and the sampled ones, as in `pred`. Without a prompt the first token is sampled from what is stored.
    """

    fd: Fd
    prompt: list[Token] = []
    decoding: Decoding = Decoding()
    visible: VisibleRuns | None = None


@syscall(3, "stream", group="model", errnos=_MODEL)
class Stream(Syscall[Fd], frozen=True, kw_only=True):
    """Begin what `generate` does and return a handle at once; `read` yields the tokens as they come.

    Closing the handle ends the generation: what was appended so far stays in the file.
    """

    fd: Fd
    prompt: list[Token] = []
    decoding: Decoding = Decoding()
    visible: VisibleRuns | None = None


@syscall(
    4,
    "read",
    group="model",
    blocks=True,
    errnos=(Errno.EBADF, Errno.EBUSY, Errno.EDQUOT, Errno.ENOSPC, Errno.EIO, Errno.ENODEV),
)
class Read(Syscall[Chunk], frozen=True, kw_only=True):
    """Wait for the next tokens of a stream and return all that has come since the last read.

    The last chunk has `finish` set and closes the handle. An error of the generation is raised here, once.
    EBUSY: another thread is reading this stream.
    """

    fd: Fd


@syscall(5, "model_info", group="model", errnos=(Errno.ENODEV,))
class GetModelInfo(Syscall[ModelInfo], frozen=True, kw_only=True):
    """Facts of the model that is served. ENODEV: no worker has brought one yet."""


@syscall(6, "tokenize", group="model", errnos=(Errno.ENODEV, Errno.EINVAL))
class Tokenize(Syscall[list[int]], frozen=True, kw_only=True):
    """The tokens of `text`. `add_special` puts the model's begin-of-sequence token first, where it has one;
    `parse_special` reads special tokens such as `<|im_end|>` in the text as such rather than as letters."""

    text: str
    add_special: bool = False
    parse_special: bool = True


@syscall(7, "detokenize", group="model", errnos=(Errno.ENODEV, Errno.EINVAL))
class Detokenize(Syscall[str], frozen=True, kw_only=True):
    """The text of `tokens`; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves special tokens out."""

    tokens: list[Token]
    skip_special: bool = False


@syscall(8, "apply_chat_template", group="model", errnos=(Errno.ENODEV, Errno.EINVAL, Errno.ENOSYS))
class ApplyChatTemplate(Syscall[list[int]], frozen=True, kw_only=True):
    """The tokens of a chat, as the model's own template spells it (rendered in a sandbox).

    `add_generation_prompt` ends with the header of the assistant's turn. ENOSYS: the model has no template.
    EINVAL: the template refuses these messages.
    """

    messages: list[Message]
    add_generation_prompt: bool = True


# --- process ----------------------------------------------------------------------------------------------------


@syscall(50, "spawn", group="process", errnos=(Errno.ENOENT, Errno.EINVAL, Errno.EDQUOT))
class Spawn(Syscall[Pid], frozen=True, kw_only=True):
    """Start the installed program `program` (or the caller's own, ".") as a child with these arguments.

    A child ends with its parent, unless `detach`. ENOENT: no such program. EINVAL: wrong arguments.
    """

    program: str
    args: dict[str, Any] = {}
    detach: bool = False


@syscall(51, "wait", group="process", blocks=True, errnos=(Errno.ECHILD,))
class Wait(Syscall[ExitStatus], frozen=True, kw_only=True):
    """Wait until a child ends and take its status. Without a pid: the next child that ends."""

    pid: Pid | None = None


@syscall(52, "exit", group="process")
class Exit(Syscall[None], frozen=True, kw_only=True):
    """End this process, every thread of it. Does not return."""

    code: Annotated[int, Meta(ge=0, le=255)] = 0


@syscall(53, "kill", group="process", errnos=(Errno.ESRCH, Errno.EACCES))
class Kill(Syscall[None], frozen=True, kw_only=True):
    """End another process of the same user, with all its children. It has ended when `wait` says so.

    EACCES: it is another user's. ESRCH: there is none, as far as the caller's tenant knows.
    """

    pid: Pid


@syscall(54, "getpid", group="process")
class GetPid(Syscall[Pid], frozen=True, kw_only=True):
    """The caller's process id."""


@syscall(55, "sleep", group="process", blocks=True, errnos=(Errno.EINVAL,))
class Sleep(Syscall[None], frozen=True, kw_only=True):
    """Wait that many seconds of the kernel's clock, which a simulation may run faster than the wall's."""

    seconds: Annotated[float, Meta(ge=0.0)]


@syscall(56, "now", group="process")
class Now(Syscall[float], frozen=True, kw_only=True):
    """Seconds on the kernel's monotonic clock."""


@syscall(57, "random", group="process")
class Random(Syscall[float], frozen=True, kw_only=True):
    """A number in [0, 1) from the process's own generator, which a recorded run can replay."""


@syscall(58, "rusage", group="process", errnos=(Errno.ESRCH,))
class RUsage(Syscall[Usage], frozen=True, kw_only=True):
    """What this process, or another of its tenant, has used so far. ESRCH: there is no such process."""

    pid: Pid | None = None


@syscall(59, "priority", group="process", errnos=(Errno.ESRCH, Errno.EACCES, Errno.EINVAL))
class Priority(Syscall[int], frozen=True, kw_only=True):
    """The priority of this process, or of another; with a `value` it is set first. Lower goes first; 0 is usual.

    Work of a class waits for that of all more urgent ones, except that whoever waits goes up a class now and then.
    A child begins with the priority that its parent has then. A process can become less urgent, and as urgent again
    as it was started, but no more than that. EACCES: more urgent than it was started, or of another user.
    ESRCH: there is none, as far as the caller's tenant knows.
    """

    value: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    pid: Pid | None = None


@syscall(60, "limits", group="process", errnos=(Errno.EACCES, Errno.EINVAL))
class SetLimits(Syscall[Limits], frozen=True, kw_only=True):
    """What this process may use; those of the limits that are given are set first.

    A limit counts from the start of the process, as `rusage` does, and can only be lowered. Over `tokens`, calls on
    the model are refused; over `cpu_s` or `wall_s` the process is ended; `pages` are what it may hold at a time.
    Over `files` (KV files that are open) and `kv_byte_s` (bytes of KV that were open, over time) it gets no more.
    Tokens and processor time of children count as the parent's. A child begins with what its parent has left then.
    `horizon_tokens` is a declaration for the scheduler, and may be changed at any time. EACCES: higher than it is.
    """

    tokens: Annotated[int, Meta(ge=1)] | None = None
    pages: Annotated[int, Meta(ge=1)] | None = None
    cpu_s: Annotated[float, Meta(gt=0.0)] | None = None
    wall_s: Annotated[float, Meta(gt=0.0)] | None = None
    horizon_tokens: Annotated[int, Meta(ge=1)] | None = None
    files: Annotated[int, Meta(ge=1)] | None = None
    kv_byte_s: Annotated[float, Meta(gt=0.0)] | None = None


# --- ipc --------------------------------------------------------------------------------------------------------


@syscall(70, "send", group="ipc", errnos=(Errno.EINVAL, Errno.EDQUOT))
class Send(Syscall[None], frozen=True, kw_only=True):
    """Put a JSON-able message on a named channel; the first `recv` there takes it, in order.

    A tenant's channels are its own; the operator has those of all, as TENANT/CHANNEL.

    EINVAL: not JSON-able. EDQUOT: the channel is full (the reader is too slow, or there is none).
    """

    channel: Annotated[str, Meta(min_length=1, max_length=255)]
    message: Any


@syscall(71, "recv", group="ipc", blocks=True, errnos=(Errno.ETIMEDOUT, Errno.EINVAL, Errno.EDQUOT))
class Recv(Syscall[Any], frozen=True, kw_only=True):
    """Take the oldest message of a channel, waiting for one. ETIMEDOUT after `timeout` seconds.

    EDQUOT: too many channels are in use.
    """

    channel: Annotated[str, Meta(min_length=1, max_length=255)]
    timeout: Annotated[float, Meta(ge=0.0)] | None = None


@syscall(72, "emit", group="ipc", blocks=True, errnos=(Errno.EINVAL, Errno.EPIPE))
class Emit(Syscall[None], frozen=True, kw_only=True):
    """Send a JSON-able event to the client that started this program (a string is shown as text).

    `stream` names one of several outputs shown side by side. Waits while the client is slow to take them;
    without a client the event is dropped. EPIPE: the client was cut off.
    """

    event: Any
    stream: str | None = None


@syscall(73, "input", group="ipc", blocks=True, errnos=(Errno.EPIPE,))
class Input(Syscall[str], frozen=True, kw_only=True):
    """Ask the client for a line. EPIPE: there is no client, or it has no more input."""

    prompt: str = ""
