"""The registry of workers: who serves, who leaves, who is lost, and where a new file goes. Pure.

    JOINING --welcome--> READY --drain--> DRAINING --done--> (gone)
       |                   |                  |
       +------ lost -------+------ lost ------+-----------> (gone)

Only READY workers take new files; a DRAINING one still serves the files it has. All workers of a kernel serve the
same model in the same dtype: a file's distributions must not depend on where it was placed. `kernel/core.py`
feeds it; nothing here opens sockets.
"""

from enum import Enum

from gpuworker.wire import WIRE_HASH, Greeting, Refused, Welcome
from sdk.abi.errors import KernelPanic
from sdk.abi.values import ModelInfo


class State(Enum):
    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


TRANSITIONS = {
    (State.JOINING, "welcome"): State.READY,
    (State.JOINING, "lost"): State.LOST,
    (State.READY, "drain"): State.DRAINING,
    (State.READY, "lost"): State.LOST,
    (State.DRAINING, "ready"): State.READY,  # there is nowhere to drain to any more
    (State.DRAINING, "lost"): State.LOST,
}


class Worker:
    """What the kernel knows of one worker. `name` is its address, and the device name in kvfs."""

    __slots__ = (
        "answered",
        "heard",
        "kernel_s",
        "local_pid",
        "n_batches",
        "n_rows",
        "n_tokens",
        "name",
        "state",
        "step_s",
        "welcome",
    )

    def __init__(self, name: str, now: float, local_pid: int | None) -> None:
        self.name = name
        self.state = State.JOINING
        self.welcome: Welcome | None = None  # None iff JOINING
        self.local_pid = local_pid  # of a worker that this kernel started
        self.heard = now  # when it last said anything
        self.answered = False  # a batch, at least once: it really computes
        self.n_batches = 0
        self.n_rows = 0
        self.n_tokens = 0  # computed for this kernel
        self.step_s = 0.0  # device time, in all
        self.kernel_s = 0.0  # of this process, for its batches

    def move(self, event: str) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise KernelPanic(f"worker {self.name} is {self.state.value}: {event!r} cannot happen") from None


class Workers:
    """All workers of this kernel, by name."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self.model: ModelInfo | None = None  # of the first that served, and so of all files from then on

    def welcome(self, worker: Worker) -> None:
        """A worker that was not refused serves from now on."""
        assert worker.welcome is not None
        worker.move("welcome")
        if self.model is None:
            self.model = worker.welcome.model

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(list(self._workers.values()))

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._workers

    def join(self, name: str, now: float, local_pid: int | None = None) -> Worker:
        """A worker at this address is being attached."""
        if name in self._workers:
            raise KernelPanic(f"worker {name} joins twice")
        worker = self._workers[name] = Worker(name, now, local_pid)
        return worker

    def remove(self, name: str) -> None:
        del self._workers[name]

    def refusal(self, greeting: Greeting) -> str | None:
        """Why the worker that greets like this cannot be attached; None when it can."""
        if isinstance(greeting, Refused):
            return greeting.reason
        if not isinstance(greeting, Welcome):
            return "it answered as a kernel would, not as a worker"
        if greeting.schema != WIRE_HASH:
            return f"it speaks schema {greeting.schema}, this kernel {WIRE_HASH}: run the same version on both sides"
        if self.model is None:
            return None
        mine, its = self.model, greeting.model
        if mine.fingerprint != its.fingerprint:
            return (
                f"it serves another model: {its.name} ({its.fingerprint[:12]}), "
                f"while this kernel serves {mine.name} ({mine.fingerprint[:12]})"
            )
        if mine.dtype != its.dtype:
            return f"it computes in {its.dtype}, this kernel's other workers in {mine.dtype}: start it with --dtype"
        if mine.max_model_len != its.max_model_len:
            return f"its context is {its.max_model_len} tokens, here it is {mine.max_model_len}: use --max-model-len"
        return None

    @property
    def healthy(self) -> bool:
        """Whether a batch was answered by a worker that is still there to answer the next."""
        return any(w.answered and w.state is State.READY for w in self._workers.values())

    def place(self, load: dict[str, tuple[int, float]]) -> str | None:
        """The worker for a file whose KV is nowhere: least (jobs, share of pages in use), as `load` has them; None
        when there is none."""
        ready = [w.name for w in self._workers.values() if w.state is State.READY]
        return min(ready, key=lambda name: load[name], default=None)

    def excuse(self, now: float) -> None:
        """Nobody was listening until now: silence begins here."""
        for worker in self._workers.values():
            worker.heard = now
