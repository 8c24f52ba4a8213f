"""System calls on the model: check the arguments against file and model, make a job, park the caller."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.generate import GenerateJob
from kernel.jobs import Job, PredJob
from kernel.process import Process
from kernel.sys_file import file_of
from kvfs.fs import Kvfs
from kvfs.openfile import OpenFile
from sdk.abi import calls
from sdk.abi.errors import BadFile, Busy, InvalidArgument, SyscallError, TooLong
from sdk.abi.trap import Pending
from sdk.abi.values import Chunk, Distribution, Fd, FinishReason, Generation, ModelInfo, Sampling, Want
from sdk.abi.visible import ITSELF, Runs, VisibleRuns, fault

N_SEEDS = 2**64


@handles(calls.Pred)
def sys_pred(kernel: Kernel, process: Process, call: calls.Pred) -> list[Distribution] | Pending:
    model, fs = kernel.model_info(), kernel.fs
    file = file_of(process, call.fd)
    n_file = fs.length(file)
    check_tokens(call.tokens, model)
    check_room(n_file, len(call.tokens), model)
    check_want(call.want, len(call.tokens), model)
    process.account.afford(len(call.tokens))
    positions = check_positions(call.positions, len(call.tokens), fs.next_position(file), model)
    visible = check_visible(call.visible)
    asks_tail = -1 in call.want.at if call.want.at is not None else not call.tokens
    if asks_tail and n_file == 0:
        raise InvalidArgument("the file is empty, so nothing comes next: give at least one token")
    if not call.tokens and not asks_tail:
        return []

    needs_tail = asks_tail and lacks_tail(fs, file)
    job = PredJob(
        file,
        call.tokens,
        positions,
        call.want,
        last_token=fs.tokens(file, n_file - 1)[0] if n_file else 0,
        last_position=fs.next_position(file) - 1,
        seed=seed_of(call.want.sample, process),
        history=lambda: fs.tokens(job.claim or file),
        on_done=lambda result: process.complete(future, result),
        on_fail=lambda error: process.fail(future, error),
        visible=visible,
    )
    kernel.submit(job, process, claim=bool(call.tokens) or needs_tail, again=needs_tail)
    future = process.park("pred", lambda: kernel.cancel(job), lambda: f"#{job.number}")
    return Pending(future)


@handles(calls.Generate)
def sys_generate(kernel: Kernel, process: Process, call: calls.Generate) -> Generation | Pending:
    job = generation(
        kernel,
        process,
        call,
        on_done=lambda result: process.complete(future, result),
        on_fail=lambda error: process.fail(future, error),
    )
    if job.over:
        return job.result()
    submit(kernel, process, job)
    future = process.park("generate", lambda: kernel.cancel(job), lambda: f"#{job.number}")
    return Pending(future)


@handles(calls.Stream)
def sys_stream(kernel: Kernel, process: Process, call: calls.Stream) -> Fd:
    handle = StreamHandle(kernel, process)
    job = generation(kernel, process, call, on_done=lambda _: None, on_fail=handle.fail, on_chunk=handle.push)
    if job.over:
        handle.push(Chunk(finish=FinishReason.LENGTH))
    else:
        submit(kernel, process, job)
        handle.job = job
    return process.install(handle)


@handles(calls.Read)
def sys_read(kernel: Kernel, process: Process, call: calls.Read) -> Chunk | Pending:
    handle = process.handle(call.fd)
    if not isinstance(handle, StreamHandle):
        raise BadFile(f"{call.fd} is a KV file, not a stream")
    if handle.reader is not None:
        raise Busy("another thread is reading this stream")
    if not handle.chunks and handle.error is None:
        handle.reader = process.park("read", handle.unread, str(call.fd))
        handle.on_last = lambda: process.close(call.fd)
        return Pending(handle.reader)
    chunk = handle.take()
    if chunk is None or chunk.finish is not None:
        process.close(call.fd)
    if chunk is None:
        assert handle.error is not None
        raise handle.error
    return chunk


@handles(calls.GetModelInfo)
def sys_model_info(kernel: Kernel, process: Process, call: calls.GetModelInfo) -> ModelInfo:
    return kernel.model_info()


@handles(calls.Tokenize)
def sys_tokenize(kernel: Kernel, process: Process, call: calls.Tokenize) -> list[int]:
    return kernel.language.encode(call.text, add_special=call.add_special, parse_special=call.parse_special)


@handles(calls.Detokenize)
def sys_detokenize(kernel: Kernel, process: Process, call: calls.Detokenize) -> str:
    check_tokens(call.tokens, kernel.model_info())
    return kernel.language.decode(call.tokens, skip_special=call.skip_special)


@handles(calls.ApplyChatTemplate)
def sys_apply_chat_template(kernel: Kernel, process: Process, call: calls.ApplyChatTemplate) -> list[int]:
    text = kernel.language.render(call.messages, add_generation_prompt=call.add_generation_prompt)
    return kernel.language.encode(text)


class StreamHandle:
    """A descriptor that stands for a running generation. Closing it ends the generation."""

    def __init__(self, kernel: Kernel, process: Process) -> None:
        self._kernel = kernel
        self._process = process
        self.job: Job | None = None
        self.chunks: deque[Chunk] = deque()
        self.error: SyscallError | None = None
        self.reader: Any = None  # the future of the thread in `read`
        self.on_last: Any = None  # closes the descriptor when the waiting reader gets the last chunk

    def pages(self) -> tuple[()]:
        """None of its own: the file has them."""
        return ()

    def close(self) -> None:
        if self.job is not None:
            self._kernel.cancel(self.job)

    def push(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._wake()

    def fail(self, error: SyscallError) -> None:
        self.error = error
        self._wake()

    def unread(self) -> None:
        self.reader = None

    def take(self) -> Chunk | None:
        """All chunks since the last read as one; None when only the error is left."""
        if not self.chunks:
            return None
        if len(self.chunks) == 1:
            return self.chunks.popleft()
        parts, last = list(self.chunks), self.chunks[-1]
        self.chunks.clear()
        return Chunk(
            "".join(c.text for c in parts),
            [t for c in parts for t in c.tokens],
            [p for c in parts for p in c.logprobs],
            last.finish,
            last.stop_reason,
            last.n_sampled,
        )

    def _wake(self) -> None:
        reader, self.reader = self.reader, None
        if reader is None or reader.done():
            return
        chunk = self.take()
        if chunk is None or chunk.finish is not None:
            self.on_last()
        if chunk is not None:
            self._process.complete(reader, chunk, self.chunks.appendleft)
        else:
            assert self.error is not None
            self._process.fail(reader, self.error)


# --- making jobs ------------------------------------------------------------------------------------------------


def generation(
    kernel: Kernel,
    process: Process,
    call: calls.Generate | calls.Stream,
    *,
    on_done: Callable[[Generation], None],
    on_fail: Callable[[SyscallError], None],
    on_chunk: Callable[[Chunk], None] | None = None,
) -> GenerateJob:
    """Check a generation's arguments and make its job."""
    model, fs = kernel.model_info(), kernel.fs
    file = file_of(process, call.fd)
    n_file = fs.length(file)
    check_tokens([*call.prompt, *call.decoding.stop_tokens, *call.decoding.sampling.logit_bias], model)
    check_room(n_file, len(call.prompt), model)
    process.account.afford(len(call.prompt) + 1)
    if not call.prompt and n_file == 0:
        raise InvalidArgument("the file is empty and so is the prompt: give at least one token")
    job = GenerateJob(
        file,
        call.prompt,
        call.decoding,
        language=kernel.language,
        eos_tokens=frozenset(model.eos_tokens),
        n_room=max(0, model.max_model_len - max(n_file, fs.next_position(file)) - len(call.prompt)),
        next_position=fs.next_position(file),
        last_token=fs.tokens(file, n_file - 1)[0] if n_file else 0,
        seed=seed_of(call.decoding.sampling, process),
        history=lambda: fs.tokens(job.claim or file),
        on_done=on_done,
        on_fail=on_fail,
        on_chunk=on_chunk,
        visible=check_visible(call.visible),
    )
    return job


def submit(kernel: Kernel, process: Process, job: GenerateJob) -> None:
    again = not job.prompt and lacks_tail(kernel.fs, job.file)
    kernel.submit(job, process, claim=True, again=again)


def lacks_tail(fs: Kvfs, file: OpenFile) -> bool:
    """Whether the last token must be computed again to know what comes next. Where KV is missing it will be, anyway."""
    return not fs.tail_valid(file) and file.inode.n_kv == fs.length(file)


# --- checking arguments -----------------------------------------------------------------------------------------


def check_tokens(tokens: list[int], model: ModelInfo) -> None:
    if tokens and max(tokens) >= model.vocab_size:
        raise InvalidArgument(f"token {max(tokens)} is not one of the model's {model.vocab_size}")


def check_room(n_file: int, n_new: int, model: ModelInfo) -> None:
    if n_file + n_new > model.max_model_len:
        raise TooLong(
            f"the model's context is {model.max_model_len} tokens; the file has {n_file} and {n_new} more were given"
        )


def check_positions(positions: list[int] | None, n_new: int, first: int, model: ModelInfo) -> list[int]:
    if positions is None:
        positions = list(range(first, first + n_new))
    elif len(positions) != n_new:
        raise InvalidArgument(f"{len(positions)} positions for {n_new} tokens")
    elif any(b < a for a, b in pairwise([max(0, first - 1), *positions])):
        raise InvalidArgument(f"positions must not decrease: the file's next one is {first}")
    if positions and positions[-1] >= model.max_model_len:
        raise TooLong(f"position {positions[-1]} is beyond the model's context of {model.max_model_len}")
    return positions


def check_visible(visible: VisibleRuns | None) -> Runs:
    """The runs as jobs have them, where none at all is everything."""
    if visible is None:
        return ()
    if (wrong := fault(visible)) is not None:
        raise InvalidArgument(wrong)
    return visible or ITSELF


def check_want(want: Want, n_new: int, model: ModelInfo) -> None:
    n_asked = 1 if want.at is None else len(want.at)
    if want.at and len(set(want.at)) != n_asked:
        raise InvalidArgument("an offset is asked twice")
    if want.at and max(want.at) >= n_new:
        raise InvalidArgument(f"offset {max(want.at)} was asked of {n_new} tokens")
    if want.targets and len(want.targets) != n_asked:
        raise InvalidArgument(f"{len(want.targets)} targets for {n_asked} asked positions")
    check_tokens([*want.logprobs_of, *want.targets, *(want.sample.logit_bias if want.sample else ())], model)


def seed_of(sampling: Sampling | None, process: Process) -> int:
    """The 64-bit seed of a call: the one given, or one of the process's own."""
    if sampling is None or sampling.temperature == 0.0:
        return 0
    if sampling.seed is None:
        return process.dice.getrandbits(64)
    return sampling.seed % N_SEEDS
