"""Every system call as an async function. GENERATED from sdk/abi/calls.py by `python -m sdk.abi --write`.

`sdk.kv`, `sdk.model`, `sdk.process` and `sdk.channel` are the friendlier spelling; docs/syscalls.md is the manual.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sdk.abi import calls
from sdk.abi.trap import trap
from sdk.abi.values import (
    Advice,
    Advised,
    Chunk,
    Decoding,
    DeviceSpace,
    DirEntry,
    Distribution,
    ExitStatus,
    Fd,
    Generation,
    Limits,
    LockMode,
    Message,
    ModelInfo,
    OpenMode,
    Pid,
    PositionMode,
    Quota,
    Stat,
    Usage,
    Want,
)


async def pred(
    fd: Fd,
    *,
    tokens: Sequence[int] = (),
    positions: Sequence[int] | None = None,
    want: Want = Want(),  # noqa: B008
    visible: Sequence[tuple[int, int | None]] | None = None,
) -> list[Distribution]:
    """Run the model over `tokens`, appended to the open file, and return what `want` asks for."""
    return await trap(
        calls.Pred(
            fd=fd,
            tokens=list(tokens),
            positions=None if positions is None else list(positions),
            want=want,
            visible=None if visible is None else list(visible),
        )
    )


async def generate(
    fd: Fd,
    *,
    prompt: Sequence[int] = (),
    decoding: Decoding = Decoding(),  # noqa: B008
    visible: Sequence[tuple[int, int | None]] | None = None,
) -> Generation:
    """Append `prompt`, then sample and append tokens as `decoding` says, without waking the caller in between."""
    return await trap(
        calls.Generate(
            fd=fd, prompt=list(prompt), decoding=decoding, visible=None if visible is None else list(visible)
        )
    )


async def stream(
    fd: Fd,
    *,
    prompt: Sequence[int] = (),
    decoding: Decoding = Decoding(),  # noqa: B008
    visible: Sequence[tuple[int, int | None]] | None = None,
) -> Fd:
    """Begin what `generate` does and return a handle at once; `read` yields the tokens as they come."""
    return await trap(
        calls.Stream(fd=fd, prompt=list(prompt), decoding=decoding, visible=None if visible is None else list(visible))
    )


async def read(fd: Fd) -> Chunk:
    """Wait for the next tokens of a stream and return all that has come since the last read."""
    return await trap(calls.Read(fd=fd))


async def model_info() -> ModelInfo:
    """Facts of the model that is served. ENODEV: no worker has brought one yet."""
    return await trap(calls.GetModelInfo())


async def tokenize(text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
    """The tokens of `text`. `add_special` puts the model's begin-of-sequence token first, where it has one;
    `parse_special` reads special tokens such as `<|im_end|>` in the text as such rather than as letters.
    """
    return await trap(calls.Tokenize(text=text, add_special=add_special, parse_special=parse_special))


async def detokenize(tokens: Sequence[int], *, skip_special: bool = False) -> str:
    """The text of `tokens`; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves special tokens out."""
    return await trap(calls.Detokenize(tokens=list(tokens), skip_special=skip_special))


async def apply_chat_template(messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
    """The tokens of a chat, as the model's own template spells it (rendered in a sandbox)."""
    return await trap(calls.ApplyChatTemplate(messages=list(messages), add_generation_prompt=add_generation_prompt))


async def open(path: str, *, mode: OpenMode = OpenMode.WRITE) -> Fd:  # noqa: A001
    """Open the KV file at `path`. Mode "r" may read tokens and attend to them; "w" may append and truncate as well."""
    return await trap(calls.Open(path=path, mode=mode))


async def create(path: str | None = None) -> Fd:
    """A new empty KV file, open with all rights. Without a path it is anonymous and ends with its last handle; with
    one it stays until it is unlinked, whoever ends. Its mode is 0o777 without the bits of the process's `umask`.
    """
    return await trap(calls.Create(path=path))


async def close(fd: Fd) -> None:
    """Give a handle back. A stream's generation ends with its handle; calls in flight on a file run to their end."""
    await trap(calls.Close(fd=fd))


async def unlink(path: str) -> None:
    """Remove a name: of a file, whose pages are freed with its last handle, or of an empty directory."""
    await trap(calls.Unlink(path=path))


async def stat(path: str) -> Stat:
    """What kvfs knows of the file or directory at `path`."""
    return await trap(calls.StatPath(path=path))


async def fstat(fd: Fd) -> Stat:
    """`stat` of an open file."""
    return await trap(calls.StatFd(fd=fd))


async def readdir(path: str = "/") -> list[DirEntry]:
    """The entries of a directory, by name."""
    return await trap(calls.ReadDir(path=path))


async def mkdir(path: str) -> None:
    """Make a directory; its parent must exist."""
    await trap(calls.MkDir(path=path))


async def rename(old: str, new: str) -> None:
    """Give a file or directory another path; a file already there is replaced."""
    await trap(calls.Rename(old=old, new=new))


async def fork(fd: Fd, *, path: str | None = None) -> Fd:
    """A new file with the same tokens, open with all rights; pages are shared until one of the two writes."""
    return await trap(calls.Fork(fd=fd, path=path))


async def truncate(fd: Fd, n_tokens: int) -> None:
    """Keep the first `n_tokens` tokens and free the pages behind them. EBUSY: a call is appending."""
    await trap(calls.Truncate(fd=fd, n_tokens=n_tokens))


async def tokens(fd: Fd, *, start: int = 0, stop: int | None = None) -> list[int]:
    """The tokens of the file, from `start` to `stop` as a Python slice has them."""
    return await trap(calls.Tokens(fd=fd, start=start, stop=stop))


async def positions(fd: Fd, *, start: int = 0, stop: int | None = None) -> list[int]:
    """The position of each token, sliced as `tokens` is."""
    return await trap(calls.Positions(fd=fd, start=start, stop=stop))


async def link(old: str, new: str) -> None:
    """Give a file one more name. It lives until the last of them is unlinked and nobody has it open."""
    await trap(calls.Link(old=old, new=new))


async def chmod(path: str, mode: int) -> None:
    """Set the nine mode bits of a file or directory: three for each of its owner, its group and all others."""
    await trap(calls.Chmod(path=path, mode=mode))


async def chown(path: str, *, owner: str | None = None, group: str | None = None) -> None:
    """Give a file or directory another owner or group; None leaves it as it is."""
    await trap(calls.Chown(path=path, owner=owner, group=group))


async def umask(mode: int | None = None) -> int:
    """The mode bits that new files and directories of this process do not get; with a `mode` it is set, and the one
    before is returned. Children begin with their parent's.
    """
    return await trap(calls.Umask(mode=mode))


async def extract(
    fd: Fd,
    ranges: Sequence[tuple[int, int]],
    *,
    positions: PositionMode = PositionMode.KEEP,
    path: str | None = None,
) -> Fd:
    """A new file of some of the tokens: those of each range, from its start to its stop, in the order given. At most
    4,096 ranges.
    """
    return await trap(calls.Extract(fd=fd, ranges=list(ranges), positions=positions, path=path))


async def merge(fds: Sequence[Fd], *, positions: PositionMode = PositionMode.PACK, path: str | None = None) -> Fd:
    """A new file of all tokens of these files, one after another. Nothing is computed; see `extract`."""
    return await trap(calls.Merge(fds=list(fds), positions=positions, path=path))


async def splice(
    fd: Fd,
    start: int,
    stop: int,
    *,
    source: Fd | None = None,
    positions: PositionMode | None = None,
) -> None:
    """Replace the tokens from `start` to `stop` by all those of `source`, or by none."""
    await trap(calls.Splice(fd=fd, start=start, stop=stop, source=source, positions=positions))


async def lock(fd: Fd, *, mode: LockMode = LockMode.EXCLUSIVE, timeout: float | None = None) -> None:
    """Lock the file, whatever its names are: "shared" with others that do, or "exclusive". Waits until it is free."""
    await trap(calls.Lock(fd=fd, mode=mode, timeout=timeout))


async def unlock(fd: Fd) -> None:
    """Give the lock of this handle back. Nothing happens if it has none."""
    await trap(calls.Unlock(fd=fd))


async def pin(fd: Fd, *, ttl: float | None = None) -> Advised:
    """Keep the pages that the file has now on its device, for `ttl` seconds or while the handle is open."""
    return await trap(calls.Pin(fd=fd, ttl=ttl))


async def advise(fd: Fd, advice: Advice) -> Advised:
    """Say what is expected of the file's pages; costs nothing and waits for nothing."""
    return await trap(calls.Advise(fd=fd, advice=advice))


async def sync(fd: Fd) -> None:
    """Wait until the file is on disk as it is now: its tokens, its K/V, and its names."""
    await trap(calls.Sync(fd=fd))


async def quota(user: str | None = None) -> Quota:
    """What a user has of files and KV, and may have; the caller himself unless another is named."""
    return await trap(calls.GetQuota(user=user))


async def df() -> list[DeviceSpace]:
    """The devices that KV is kept on, with their pages and how many are free."""
    return await trap(calls.DeviceSpaces())


async def dup(fd: Fd, *, mode: OpenMode | None = None) -> Fd:
    """Another handle on the same open file, with the same rights, or with mode "r" without that to write."""
    return await trap(calls.Dup(fd=fd, mode=mode))


async def spawn(program: str, *, args: Mapping[str, Any] = {}, detach: bool = False) -> Pid:
    """Start the installed program `program` (or the caller's own, ".") as a child with these arguments."""
    return await trap(calls.Spawn(program=program, args=dict(args), detach=detach))


async def wait(pid: Pid | None = None) -> ExitStatus:
    """Wait until a child ends and take its status. Without a pid: the next child that ends."""
    return await trap(calls.Wait(pid=pid))


async def exit(code: int = 0) -> None:  # noqa: A001
    """End this process, every thread of it. Does not return."""
    await trap(calls.Exit(code=code))


async def kill(pid: Pid) -> None:
    """End another process of the same user, with all its children. It has ended when `wait` says so."""
    await trap(calls.Kill(pid=pid))


async def getpid() -> Pid:
    """The caller's process id."""
    return await trap(calls.GetPid())


async def sleep(seconds: float) -> None:
    """Wait that many seconds of the kernel's clock, which a simulation may run faster than the wall's."""
    await trap(calls.Sleep(seconds=seconds))


async def now() -> float:
    """Seconds on the kernel's monotonic clock."""
    return await trap(calls.Now())


async def random() -> float:
    """A number in [0, 1) from the process's own generator, which a recorded run can replay."""
    return await trap(calls.Random())


async def rusage(pid: Pid | None = None) -> Usage:
    """What this process, or another of its tenant, has used so far. ESRCH: there is no such process."""
    return await trap(calls.RUsage(pid=pid))


async def priority(value: int | None = None, *, pid: Pid | None = None) -> int:
    """The priority of this process, or of another; with a `value` it is set first. Lower goes first; 0 is usual."""
    return await trap(calls.Priority(value=value, pid=pid))


async def limits(
    tokens: int | None = None,
    *,
    pages: int | None = None,
    cpu_s: float | None = None,
    wall_s: float | None = None,
    horizon_tokens: int | None = None,
    files: int | None = None,
    kv_byte_s: float | None = None,
) -> Limits:
    """What this process may use; those of the limits that are given are set first."""
    return await trap(
        calls.SetLimits(
            tokens=tokens,
            pages=pages,
            cpu_s=cpu_s,
            wall_s=wall_s,
            horizon_tokens=horizon_tokens,
            files=files,
            kv_byte_s=kv_byte_s,
        )
    )


async def send(channel: str, message: Any) -> None:
    """Put a JSON-able message on a named channel; the first `recv` there takes it, in order."""
    await trap(calls.Send(channel=channel, message=message))


async def recv(channel: str, *, timeout: float | None = None) -> Any:
    """Take the oldest message of a channel, waiting for one. ETIMEDOUT after `timeout` seconds."""
    return await trap(calls.Recv(channel=channel, timeout=timeout))


async def emit(event: Any, *, stream: str | None = None) -> None:
    """Send a JSON-able event to the client that started this program (a string is shown as text)."""
    await trap(calls.Emit(event=event, stream=stream))


async def input(prompt: str = "") -> str:  # noqa: A001
    """Ask the client for a line. EPIPE: there is no client, or it has no more input."""
    return await trap(calls.Input(prompt=prompt))
