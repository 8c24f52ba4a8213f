"""Jobs: model work that a system call has asked for and a batch will do. Pure.

A job is cut into steps; each step is one row of one batch. The batcher asks for `next_step` while the job is
`ready`, gets pages for it, and gives the answers back with `took`, in order. A second step may be asked for while
the first is in flight, since one batch is always ahead of the running one; a step whose batch did not run is taken
back with `retract`, newest first, and the job is as if it had never been asked. It ends once with `finish` or
`fail`, which call back whoever waits. `Pred` is here; `kernel/generate.py` has the other kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

from msgspec import Struct

from gpuworker.wire import Answer, Ask, Draw
from kernel.latency import CallTimes
from kvfs.lease import Claim, Lease
from kvfs.openfile import OpenFile
from sdk.abi.errors import SyscallError
from sdk.abi.values import Distribution, FinishReason, Sampling, Want
from sdk.abi.visible import Runs

N_LOGITS_MAX = 64  # positions of one step that may ask for raw logits; a longer call is cut there


class Step(Struct):
    """What a job wants of the next batch. Made once, and not changed."""

    tokens: Sequence[int]  # to compute now; empty: only the tail is asked
    positions: Sequence[int] | None  # None: consecutive
    asks: list[Ask]
    history: Sequence[int] = ()  # for penalties; the asks say how much of it is whose
    n_again: int = 0  # the first of `tokens` are the file's last, computed again for their tail
    chained: bool = False  # the one token is what the step in flight draws; `tokens` holds 0
    visible: Runs = ()  # what the tokens attend to; empty: all before them
    mark: Any = None  # the job's own


class Sent:
    """One row of a batch in flight. The batcher's; a job only carries its own, oldest first."""

    __slots__ = ("account", "job", "lease", "settled", "step")

    def __init__(self, job: "Job | None", step: Step | None, lease: Lease) -> None:
        self.job = job  # None: computes again what a file has lost, for all who wait for it
        self.step = step
        self.lease = lease
        self.account: Any = None  # where there is no job: who wants it computed again
        self.settled = False  # the lease ended before the batch

    @property
    def is_known(self) -> bool:
        """Whether its tokens are known here; those of a chained step are not before the one before it is answered."""
        return not self.lease.chained


class Job(ABC):
    """Work on one file."""

    finish_reason: FinishReason | None = None  # of a generation
    undoes_steps = False  # whether a step in flight does not count when the job is cancelled, though it has no claim
    host_decides = False  # whether the program must see each step before there is another: true of a `pred`

    def __init__(self, file: OpenFile, on_done: Callable[[Any], None], on_fail: Callable[[SyscallError], None]) -> None:
        self.number = 0  # the batcher's
        self.file = file
        self.account: Any = None  # whose it is: a kernel.scheduler.Account, or None for the kernel's own
        self.claim: Claim | None = None  # held from submission to the end; None for a look at the tail
        self.n_file = 0  # tokens in the file at submission
        self.since = 0.0  # when it was submitted
        self.times = CallTimes()
        self.sent: list[Sent] = []  # in flight, oldest first
        self.visible: Runs = ()  # what each new token attends to; empty: all before it
        self.cancelled = False
        self.paused = False  # makes no step until its file is on another worker
        self.preempted = False  # makes no step until its file has been moved away and is back
        self.truncate_to: int | None = None  # the batcher cuts the file so before the next step, or the end
        self.n_prompt_tokens = 0  # computed so far, by kind
        self.n_generated_tokens = 0
        self._on_done = on_done
        self._on_fail = on_fail

    @abstractmethod
    def again(self) -> None:
        """The file's tail is gone (it was truncated): compute its last token once more, to ask after it."""

    @property
    def inos(self) -> Collection[int]:
        """The files that it works on."""
        return (self.file.inode.ino,)

    def look(self) -> None:  # noqa: B027  (most jobs have one file)
        """Let `file` be one that is not there, if it works on several."""

    def n_pages_wanted(self, n_tokens: int, page_size: int) -> int:
        """Pages that its file has to get for so many tokens more."""
        inode = self.file.inode
        n_in_flight = sum(s.lease.n_new for s in self.sent)
        return -(-(inode.n_kv + n_in_flight + n_tokens) // page_size) - len(inode.table)

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether there is a next step, given those in flight."""

    @property
    @abstractmethod
    def n_wanted(self) -> int:
        """Tokens the next step would like to compute."""

    @abstractmethod
    def next_step(self, n_tokens_max: int) -> Step:
        """The next step, of at most that many tokens (at least 1). It is in flight from now on."""

    @abstractmethod
    def retract(self, step: Step) -> None:
        """The newest step in flight was not done."""

    @abstractmethod
    def computed(self, step: Step) -> None:
        """Count the tokens of a step that the worker has computed, or will have."""

    @abstractmethod
    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> None:
        """The oldest step in flight was computed."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether nothing is left to compute, and nothing in flight."""

    @abstractmethod
    def result(self) -> Any:
        """What the system call returns."""

    @property
    def surplus(self) -> bool:
        """After `took`: the step still in flight was built on a draw that is not part of the result."""
        return False

    @property
    def keeps_partial(self) -> bool:
        """Whether tokens stay in the file when the job does not come to its end."""
        return False

    def tell(self) -> None:  # noqa: B027  (most jobs have no followers)
        """Report what the last step brought, where somebody follows."""

    def finish(self) -> None:
        self._on_done(self.result())

    def fail(self, error: SyscallError) -> None:
        self._on_fail(error)


class PredJob(Job):
    """`pred`: some tokens, and distributions at the asked offsets. A long one is computed in chunks."""

    host_decides = True

    def __init__(
        self,
        file: OpenFile,
        tokens: list[int],
        positions: list[int],
        want: Want,
        *,
        last_token: int,
        last_position: int,
        seed: int,
        history: Callable[[], list[int]],
        on_done: Callable[[list[Distribution]], None],
        on_fail: Callable[[SyscallError], None],
        visible: Runs = (),
    ) -> None:
        super().__init__(file, on_done, on_fail)
        self.visible = visible
        self.tokens = tokens
        self.positions = positions
        self.want = want
        self.last_token = last_token  # of the file, with its position: what an ask at -1 comes after
        self.last_position = last_position
        self.seed = seed
        self.history = history  # the file's tokens, for penalties
        self.at = [len(tokens) - 1] if want.at is None else want.at
        self.n_sent = 0  # tokens computed or in flight
        self.n_asked = -1  # asks below this offset are answered, or in flight
        self.n_again = 0
        self.answered: dict[int, Distribution] = {}  # by index into `at`

    @staticmethod
    def probe(
        file: OpenFile, n_file: int, n_tokens: int, on_done: Callable[[Any], None], on_fail: Callable[[Any], None]
    ) -> "PredJob":
        """The plainest job there is: so many times token 0, appended."""
        return PredJob(
            file,
            [0] * n_tokens,
            list(range(n_file, n_file + n_tokens)),
            Want(),
            last_token=0,
            last_position=n_file - 1,
            seed=0,
            history=list,
            on_done=on_done,
            on_fail=on_fail,
        )

    def again(self) -> None:
        self.n_again = 1

    @property
    def ready(self) -> bool:
        return self.n_sent < len(self.tokens) or self.n_asked < self.n_sent

    @property
    def n_wanted(self) -> int:
        return len(self.tokens) - self.n_sent + self.n_again

    def next_step(self, n_tokens_max: int) -> Step:
        if self.want.logits:
            n_tokens_max = min(n_tokens_max, N_LOGITS_MAX)
        first, n_again = self.n_sent, self.n_again
        if n_again and self.visible:
            n_tokens_max = n_again  # alone, since it is no new token and sees all
        tokens = self.tokens[first : first + n_tokens_max - n_again]
        positions = self.positions[first : first + len(tokens)]
        end = first + len(tokens)
        asked = [i for i, offset in enumerate(self.at) if self.n_asked <= offset < end]
        history: list[int] = []
        asks = [self._ask(index, self.at[index], history) for index in asked]
        mark = (first, self.n_asked, asked)
        self.n_sent, self.n_asked, self.n_again = end, end, 0
        if n_again:
            tokens, positions = [self.last_token, *tokens], [self.last_position, *positions]
        return Step(tokens, positions, asks, history, n_again, visible=() if n_again else self.visible, mark=mark)

    def _ask(self, index: int, offset: int, history: list[int]) -> Ask:
        want, draw = self.want, None
        if want.sample is not None:
            n_history = 0
            if needs_history(want.sample):
                past = self.history()[: self.n_file] + self.tokens[: offset + 1]
                n_history = len(past)
                history.extend(past)
            draw = Draw(want.sample, self.seed, self._position(offset) + 1, n_history)
        return Ask(
            offset - self.n_sent + self.n_again,
            draw,
            want.top_k,
            want.logits,
            want.logprobs_of,
            want.targets[index] if want.targets else None,
            want.entropy,
        )

    def _position(self, offset: int) -> int:
        return self.positions[offset] if offset >= 0 else self.last_position

    def retract(self, step: Step) -> None:
        self.n_sent, self.n_asked, _ = step.mark
        self.n_again = step.n_again

    def computed(self, step: Step) -> None:
        self.n_prompt_tokens += len(step.tokens)

    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> None:
        rows = iter(logits)
        _, _, asked = step.mark
        for index, answer in zip(asked, answers, strict=True):
            raw = next(rows) if answer.has_logits else b""
            self.answered[index] = distribution(answer, self._position(self.at[index]), self.want, raw)
        self.computed(step)

    @property
    def over(self) -> bool:
        return not self.ready and not self.sent

    def result(self) -> list[Distribution]:
        return [self.answered[index] for index in range(len(self.at))]


def needs_history(sampling: Sampling) -> bool:
    """Whether a penalty looks at the tokens before."""
    return sampling.repetition_penalty != 1.0 or sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0


def distribution(answer: Answer, position: int, want: Want, logits: bytes) -> Distribution:
    """The worker's answer in the program's words."""
    return Distribution(
        position,
        answer.top_tokens,
        answer.top_logprobs,
        logits,
        answer.sample,
        answer.sample_logprob,
        dict(zip(want.logprobs_of, answer.logprobs_of, strict=True)) if want.logprobs_of else {},
        answer.target_logprob,
        answer.entropy,
    )
