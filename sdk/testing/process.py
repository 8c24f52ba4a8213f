"""The system calls of the fake kernel, one method each, and what its processes share.

Called by `sdk.testing.kernel`. Arguments are checked as the kernel checks them, so a method sees them in range.
"""

import asyncio
import contextvars
import inspect
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from sdk.abi import calls
from sdk.abi.errors import (
    AccessDenied,
    BadFile,
    BrokenPipe,
    Busy,
    Errno,
    FileNotFound,
    InvalidArgument,
    NoSuchProcess,
    NotAChild,
    QuotaExceeded,
    SyscallError,
    TimedOut,
    TooLong,
)
from sdk.abi.table import TABLE, Syscall
from sdk.abi.trap import Pending, door
from sdk.abi.values import (
    Chunk,
    Decoding,
    Distribution,
    ExitStatus,
    Fd,
    Generation,
    Limits,
    ModelInfo,
    Pid,
    Sampling,
    Usage,
)
from sdk.testing import model
from sdk.testing.filecalls import FileCalls
from sdk.testing.files import PAGE_SIZE, File, Handle, Names, Stream

Program = Callable[..., Coroutine[Any, Any, Any]]

N_MESSAGES_MAX = 1024  # in a channel
KILLED = 137


class Event(NamedTuple):
    """What a program emitted, and on which of its streams."""

    data: Any
    stream: str | None = None


@dataclass
class World:
    """What all processes of a fake kernel share."""

    replies: Iterator[str] | None  # None: the toy model speaks
    inputs: Iterator[str]
    programs: dict[str, Program]
    max_model_len: int
    events: list[Event] = field(default_factory=list)
    calls: list[Syscall[Any]] = field(default_factory=list)
    faults: dict[type[Syscall[Any]], Errno] = field(default_factory=dict)  # what the next such call fails with
    names: Names = field(default_factory=Names)
    channels: "dict[str, asyncio.Queue[Any]]" = field(default_factory=dict)
    processes: "dict[Pid, Process]" = field(default_factory=dict)  # the running ones
    n_processes: int = 0  # ever
    now: float = 0.0


class Process(FileCalls):
    """A running program: its door, and one method for each system call."""

    world: World

    def __init__(self, world: World, program: Program | None, parent: "Process | None") -> None:
        world.n_processes += 1
        self.world = world
        self.pid = Pid(world.n_processes)
        self.program = program
        self.parent = parent
        self.task: asyncio.Task[ExitStatus] | None = None  # None for the test's own process
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.children: dict[Pid, Process] = {}  # not waited for
        self.handles: dict[Fd, Handle | Stream] = {}
        self.dice = random.Random(int(self.pid))
        self.priority: int = 0 if parent is None else parent.priority
        self.most_urgent = self.priority
        self.limits = Limits()
        self.n_tree_tokens = 0  # computed, with those of children
        world.processes[self.pid] = self
        self.n_fds = self.n_syscalls = self.n_prompt_tokens = self.n_generated_tokens = 0

    def __call__(self, call: Syscall[Any]) -> Any:
        """Answer a system call: the door."""
        name = TABLE[type(call)].name
        self.n_syscalls += 1
        self.world.calls.append(call)
        if type(call) in self.world.faults:
            raise SyscallError.make(self.world.faults.pop(type(call)), f"the test lets {name} fail")
        try:
            checked = msgspec.convert(msgspec.to_builtins(call), type(call))
        except (msgspec.ValidationError, TypeError, ValueError) as e:
            raise InvalidArgument(f"{name}: {e}") from None
        answer = getattr(self, f"sys_{name}")(checked)
        return Pending(answer) if inspect.iscoroutine(answer) else answer

    async def live(self, args: dict[str, Any]) -> ExitStatus:
        """The life of a child."""
        assert self.program is not None
        try:
            return ExitStatus(self.pid, 0, msgspec.json.encode(await self.program(**args)))
        except SystemExit as e:
            return ExitStatus(self.pid, e.code if isinstance(e.code, int) else 1)
        except Exception as e:
            return ExitStatus(self.pid, 1, error=f"{type(e).__name__}: {e}")

    def end(self, status: ExitStatus) -> None:
        for fd in list(self.handles):
            self.sys_close(calls.Close(fd=fd))
        for child in self.children.values():
            if child.task is not None:
                child.task.cancel()
        del self.world.processes[self.pid]
        self.status.set_result(status)

    # --- computing ---

    async def work(self, file: File) -> None:
        """Let the other threads run, as they would while a worker computes."""
        file.busy = True
        try:
            await asyncio.sleep(0)
        finally:
            file.busy = False

    def lineage(self) -> "Iterator[Process]":
        """This process, its parent, and so on."""
        process: Process | None = self
        while process is not None:
            yield process
            process = process.parent

    def spend(self, n_tokens: int) -> None:
        """Count tokens that are about to be computed, unless a limit forbids it."""
        for process in self.lineage():
            limit = process.limits.tokens
            if limit is not None and process.n_tree_tokens + n_tokens > limit:
                raise QuotaExceeded(f"the limit is {limit} tokens, and {process.n_tree_tokens} are computed")
        for process in self.lineage():
            process.n_tree_tokens += n_tokens

    def check(self, file: File, tokens: list[int]) -> None:
        if any(token >= model.VOCAB_SIZE for token in tokens):
            raise InvalidArgument(f"the vocabulary has {model.VOCAB_SIZE} tokens")
        if len(file.tokens) + len(tokens) > self.world.max_model_len:
            raise TooLong(f"a file holds at most {self.world.max_model_len} tokens")
        if not file.tokens and not tokens:
            raise InvalidArgument("the file is empty, so nothing comes after it")

    def seed(self, sampling: Sampling | None) -> int:
        drawn = self.dice.getrandbits(63)
        return drawn if sampling is None or sampling.seed is None else sampling.seed

    # --- model ---

    async def sys_pred(self, c: calls.Pred) -> list[Distribution]:
        file = self.idle(c.fd, write=bool(c.tokens))
        at = [len(c.tokens) - 1] if c.want.at is None else c.want.at
        if c.tokens or at:
            self.check(file, c.tokens)
        first, n = file.next_position, len(file.tokens)
        positions = list(range(first, first + len(c.tokens))) if c.positions is None else c.positions
        if len(positions) != len(c.tokens) or positions != sorted(positions):
            raise InvalidArgument("give each token one position, and none before another")
        if positions and positions[-1] >= self.world.max_model_len:
            raise TooLong(f"positions end at {self.world.max_model_len - 1}")
        if any(not 0 <= n + i < n + len(c.tokens) for i in at) or len(set(at)) < len(at):
            raise InvalidArgument("an offset is outside of the tokens, or asked twice")
        if len(c.want.targets) not in (0, len(at)):
            raise InvalidArgument("give each offset one target")
        self.spend(len(c.tokens))
        await self.work(file)
        file.extend(c.tokens, positions)
        self.n_prompt_tokens += len(c.tokens)
        targets: Sequence[int | None] = c.want.targets or [None] * len(at)
        ends = [n + i for i in at]
        return [
            model.distribution(file.tokens[: end + 1], file.positions[end], c.want, target, self.seed(c.want.sample))
            for end, target in zip(ends, targets, strict=True)
        ]

    def plan(self, fd: Fd, prompt: list[int], decoding: Decoding) -> tuple[File, Generation]:
        """Append the prompt and think up what follows."""
        file = self.idle(fd)
        self.check(file, prompt)
        self.spend(len(prompt))
        file.extend(prompt)
        self.n_prompt_tokens += len(prompt)
        room = self.world.max_model_len - len(file.tokens)
        n_max = min(decoding.max_tokens or room, room)
        seed = self.seed(decoding.sampling)
        made = model.generation(file.tokens, decoding, n_max, seed, self.reply())
        self.spend(len(made.tokens))
        return file, made

    def reply(self) -> str | None:
        """The next scripted reply; None when the model is to speak."""
        for reply in self.world.replies or ():
            return reply
        assert self.world.replies is None, "the program generates once more than the test has replies for"
        return None

    async def sys_generate(self, c: calls.Generate) -> Generation:
        file, plan = self.plan(c.fd, c.prompt, c.decoding)
        await self.work(file)
        file.extend(plan.tokens)
        self.n_generated_tokens += len(plan.tokens)
        return plan

    def sys_stream(self, c: calls.Stream) -> Fd:
        file, plan = self.plan(c.fd, c.prompt, c.decoding)
        file.busy = True
        return self.install(Stream(file, plan))

    async def sys_read(self, c: calls.Read) -> Chunk:
        stream = self.handles.get(c.fd)
        if not isinstance(stream, Stream):
            raise BadFile(f"{c.fd} is not a stream")
        if stream.reading:
            raise Busy("another thread is reading this stream")
        stream.reading = True
        try:
            await asyncio.sleep(0)
        finally:
            stream.reading = False
        if c.fd not in self.handles:
            raise BadFile(f"stream {c.fd} was closed")
        chunk = stream.next()
        self.n_generated_tokens += len(chunk.tokens)
        if chunk.finish is not None:
            self.sys_close(calls.Close(fd=c.fd))
        return chunk

    def sys_model_info(self, c: calls.GetModelInfo) -> ModelInfo:
        return ModelInfo(
            name="toy",
            fingerprint="toy",
            architecture="toy",
            n_parameters=0,
            dtype="float32",
            vocab_size=model.VOCAB_SIZE,
            max_model_len=self.world.max_model_len,
            page_size=PAGE_SIZE,
            bos_token=None,
            eos_tokens=[model.IM_END],
            has_chat_template=True,
        )

    def sys_tokenize(self, c: calls.Tokenize) -> list[int]:
        return model.encode(c.text, c.parse_special)

    def sys_detokenize(self, c: calls.Detokenize) -> str:
        if any(token >= model.VOCAB_SIZE for token in c.tokens):
            raise InvalidArgument(f"the vocabulary has {model.VOCAB_SIZE} tokens")
        return model.render(c.tokens, c.skip_special).decode(errors="replace")

    def sys_apply_chat_template(self, c: calls.ApplyChatTemplate) -> list[int]:
        text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in c.messages)
        return model.encode(text + ("<|im_start|>assistant\n" if c.add_generation_prompt else ""))

    # --- process ---

    def sys_spawn(self, c: calls.Spawn) -> Pid:
        program = self.program if c.program == "." else self.world.programs.get(c.program)
        if program is None:
            raise FileNotFound(f"no program {c.program!r}")
        try:
            inspect.signature(program).bind(**c.args)
        except TypeError as e:
            raise InvalidArgument(f"{c.program}: {e}") from None
        child = Process(self.world, program, self)
        if not c.detach:
            self.children[child.pid] = child
        context = contextvars.copy_context()
        context.run(door.set, child)
        child.task = asyncio.get_running_loop().create_task(child.live(c.args), context=context)
        killed = ExitStatus(child.pid, KILLED, error="killed")
        child.task.add_done_callback(lambda task: child.end(killed if task.cancelled() else task.result()))
        return child.pid

    async def sys_wait(self, c: calls.Wait) -> ExitStatus:
        if not self.children or (c.pid is not None and c.pid not in self.children):
            raise NotAChild(f"{c.pid or 'nobody'} is a child to wait for")
        wanted = self.children.values() if c.pid is None else [self.children[c.pid]]
        done, _ = await asyncio.wait([child.status for child in wanted], return_when=asyncio.FIRST_COMPLETED)
        status = done.pop().result()
        self.children.pop(Pid(status.pid), None)
        return status

    def sys_exit(self, c: calls.Exit) -> None:
        raise SystemExit(c.code)

    def sys_kill(self, c: calls.Kill) -> None:
        task = self.running(c.pid).task
        if task is not None:
            task.cancel()

    def running(self, pid: Pid) -> "Process":
        if pid not in self.world.processes:
            raise NoSuchProcess(f"no process {pid} is running")
        return self.world.processes[pid]

    def sys_getpid(self, c: calls.GetPid) -> Pid:
        return self.pid

    async def sys_sleep(self, c: calls.Sleep) -> None:
        until = self.world.now + c.seconds
        await asyncio.sleep(0)
        self.world.now = max(self.world.now, until)

    def sys_now(self, c: calls.Now) -> float:
        return self.world.now

    def sys_random(self, c: calls.Random) -> float:
        return self.dice.random()

    def sys_rusage(self, c: calls.RUsage) -> Usage:
        p = self if c.pid is None else self.running(c.pid)
        return Usage(0.0, p.n_syscalls, p.n_prompt_tokens, p.n_generated_tokens)

    def sys_priority(self, c: calls.Priority) -> int:
        p = self if c.pid is None else self.running(c.pid)
        if c.value is not None:
            if c.value < p.most_urgent:
                raise AccessDenied(f"process {p.pid} was started with priority {p.most_urgent}")
            p.priority = c.value
        return p.priority

    def sys_limits(self, c: calls.SetLimits) -> Limits:
        self.limits = self.limits.narrowed(Limits(**{f: getattr(c, f) for f in Limits.__struct_fields__}))
        return self.limits

    # --- ipc ---

    def channel(self, name: str) -> "asyncio.Queue[Any]":
        return self.world.channels.setdefault(name, asyncio.Queue(N_MESSAGES_MAX))

    def sys_send(self, c: calls.Send) -> None:
        try:
            self.channel(c.channel).put_nowait(c.message)
        except asyncio.QueueFull:
            raise QuotaExceeded(f"channel {c.channel!r} is full") from None

    async def sys_recv(self, c: calls.Recv) -> Any:
        try:
            async with asyncio.timeout(c.timeout):
                return await self.channel(c.channel).get()
        except TimeoutError:
            raise TimedOut(f"nothing came on channel {c.channel!r} in {c.timeout} s") from None

    def sys_emit(self, c: calls.Emit) -> None:
        if self.parent is None:  # children have no client
            self.world.events.append(Event(c.event, c.stream))

    def sys_input(self, c: calls.Input) -> str:
        for line in self.world.inputs if self.parent is None else ():
            return line
        raise BrokenPipe("the client has no more input")
