"""Jobs: model work that a system call has asked for and a batch will do. Pure.

A job is cut into steps; each step is one row of one batch. The batcher asks for `next_step`, gets pages for it,
and gives the answers back with `took`. A job is QUEUED until its first step is sent, then RUNNING, and ends once
with `finish` or `fail`, which call back whoever waits. `Pred` is here; `kernel/generate.py` has the other kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from gpuworker.wire import Answer, Ask, Draw
from kvfs.lease import Claim
from kvfs.openfile import OpenFile
from sdk.abi.errors import SyscallError
from sdk.abi.values import Distribution, Sampling, Want

N_LOGITS_MAX = 64  # positions of one step that may ask for raw logits; a longer call is cut there


class Step(Struct, frozen=True):
    """What a job wants of the next batch."""

    tokens: Sequence[int]  # to compute now; empty: only the tail is asked
    positions: Sequence[int] | None  # None: consecutive
    asks: list[Ask]
    history: Sequence[int] = ()  # for penalties; the asks say how much of it is whose
    n_again: int = 0  # the first of `tokens` are the file's last, computed again for their tail


class Job(ABC):
    """Work on one file."""

    def __init__(self, file: OpenFile, on_done: Callable[[Any], None], on_fail: Callable[[SyscallError], None]) -> None:
        self.number = 0  # the batcher's
        self.file = file
        self.claim: Claim | None = None  # held from submission to the end; None for a look at the tail
        self.n_file = 0  # tokens in the file at submission
        self.tail_valid = True  # at submission
        self.cancelled = False
        self.alone = False  # its last batch failed: it goes by itself, so that it harms no other
        self.truncate_to: int | None = None  # the batcher cuts the file so before the next step, or the end
        self.n_prompt_tokens = 0  # computed so far, by kind
        self.n_generated_tokens = 0
        self._on_done = on_done
        self._on_fail = on_fail

    @abstractmethod
    def again(self) -> None:
        """The file's tail is gone (it was truncated): compute its last token once more, to ask after it."""

    @property
    @abstractmethod
    def n_wanted(self) -> int:
        """Tokens the next step would like to compute."""

    @abstractmethod
    def next_step(self, n_tokens_max: int) -> Step:
        """The next step, of at most that many tokens (at least 1)."""

    @abstractmethod
    def computed(self, step: Step) -> None:
        """Count the tokens of a step that the worker has computed, or will have."""

    @abstractmethod
    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> bool:
        """The step was computed. True when the job has no more of them."""

    @abstractmethod
    def result(self) -> Any:
        """What the system call returns."""

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
    ) -> None:
        super().__init__(file, on_done, on_fail)
        self.tokens = tokens
        self.positions = positions
        self.want = want
        self.last_token = last_token  # of the file, with its position: what an ask at -1 comes after
        self.last_position = last_position
        self.seed = seed
        self.history = history  # the file's tokens, for penalties
        self.at = [len(tokens) - 1] if want.at is None else want.at
        self.n_done = 0  # tokens computed
        self.n_asked = -1  # asks below this offset are answered
        self.n_again = 0
        self.answered: dict[int, Distribution] = {}  # by index into `at`

    @staticmethod
    def probe(file: OpenFile, on_done: Callable[[Any], None], on_fail: Callable[[SyscallError], None]) -> "PredJob":
        """The smallest job there is: token 0 in an empty file."""
        return PredJob(
            file,
            [0],
            [0],
            Want(),
            last_token=0,
            last_position=-1,
            seed=0,
            history=list,
            on_done=on_done,
            on_fail=on_fail,
        )

    def again(self) -> None:
        self.n_again = 1

    @property
    def n_wanted(self) -> int:
        return len(self.tokens) - self.n_done + self.n_again

    def next_step(self, n_tokens_max: int) -> Step:
        if self.want.logits:
            n_tokens_max = min(n_tokens_max, N_LOGITS_MAX)
        tokens = self.tokens[self.n_done : self.n_done + n_tokens_max - self.n_again]
        positions = self.positions[self.n_done : self.n_done + len(tokens)]
        history: list[int] = []
        asks = [self._ask(index, self.at[index], history) for index in self._asked(len(tokens))]
        if self.n_again:
            tokens, positions = [self.last_token, *tokens], [self.last_position, *positions]
        return Step(tokens, positions, asks, history, self.n_again)

    def _asked(self, n_tokens: int) -> list[int]:
        """Which of the asks a step of so many new tokens answers, as indices into `at`."""
        return [i for i, offset in enumerate(self.at) if self.n_asked <= offset < self.n_done + n_tokens]

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
            offset - self.n_done + self.n_again,
            draw,
            want.top_k,
            want.logits,
            want.logprobs_of,
            want.targets[index] if want.targets else None,
            want.entropy,
        )

    def _position(self, offset: int) -> int:
        return self.positions[offset] if offset >= 0 else self.last_position

    def computed(self, step: Step) -> None:
        self.n_prompt_tokens += len(step.tokens)

    def took(self, step: Step, answers: list[Answer], logits: list[bytes]) -> bool:
        rows = iter(logits)
        n_new = len(step.tokens) - step.n_again
        for index, answer in zip(self._asked(n_new), answers, strict=True):
            raw = next(rows) if answer.has_logits else b""
            self.answered[index] = distribution(answer, self._position(self.at[index]), self.want, raw)
        self.n_done += n_new
        self.n_asked = self.n_done
        self.n_again = 0
        self.computed(step)
        return self.n_done == len(self.tokens)

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
