"""A worker process as the wire sees it, in virtual time: what `gpuworker/serve.py` does around the same `Executor`.

One kernel at a time, work done in the order of its arrival, each piece answered exactly once, pings at once. What
belongs to an attachment carries its epoch; a result of an old one is thrown away. With each attachment the pages are
new ones: what an earlier one has left in them may not be relied on.

What can happen to it: it is killed (`crash`), stopped and continued (`hang`, `resume`), slow, out of memory, or it
ends itself (`leave`). A batch that it refuses has been tried: its rows' own new slots hold garbage after it.

Never add here: when any of that happens (`faults.py`), or how frames travel (`transport.py`).
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from gpuworker import wire
from gpuworker.backend import Backend, Facts, StepError
from gpuworker.executor import Answer, Executor, Work
from gpuworker.serve import MAX_QUEUED, SILENCE_LIMIT_S
from gpuworker.stepcost import StepCost
from sdk.abi.errors import Errno
from tests.sim.loop import SimLoop
from tests.sim.transport import Connection, Network


class Cost(Struct, frozen=True):
    """Seconds of device time."""

    steps: StepCost
    page_s: float  # a page moved between the tiers, beside the step, or sent or stored

    def of(self, work: Work) -> float:
        match work:
            case wire.Batch(head=head):
                edits_s = self.page_s * len({edit.page for edit in head.edits})
                moves_s = self.page_s * (len(head.moves_out) + len(head.moves_in))
                return max(self.steps.of(head.rows) + edits_s, moves_s)
            case wire.Fetch(pages=pages):
                return self.page_s * len(pages)
            case wire.Store(head=wire.StoreHead(pages=pages)):
                return self.page_s * len(pages)
        return 0.0


class Refusing:
    """A `Backend` that refuses batches after it has tried them: large ones, while it is short of memory; any."""

    def __init__(self, body: Backend) -> None:
        self._body = body
        self.n_tokens_max: int | None = None  # in a batch, while memory is short
        self.n_glitches = 0  # so many of the next batches fail, whatever is in them
        self.n_balks = 0  # so many of the next fetches and stores fail

    def info(self) -> Facts:
        return self._body.info()

    def assets(self) -> wire.Assets:
        return self._body.assets()

    def fetch(self, pages: Sequence[int]) -> bytes | memoryview:
        self._balk()
        return self._body.fetch(pages)

    def store(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        self._balk()
        self._body.store(pages, contents)

    def _balk(self) -> None:
        if self.n_balks:
            self.n_balks -= 1
            raise StepError(Errno.EIO, "no pages today")

    def run(self, batch: wire.Batch) -> wire.BatchDone:
        n_tokens = max(len(batch.tokens), len(batch.head.rows))
        if self.n_tokens_max is not None and n_tokens > self.n_tokens_max:
            self._spoil(batch)
            raise StepError(Errno.ENOSPC, f"no memory for {n_tokens} tokens")
        if self.n_glitches and batch.head.rows:
            self.n_glitches -= 1
            self._spoil(batch)
            raise StepError(Errno.EIO, "a glitch of the device")
        return self._body.run(batch)

    def _spoil(self, batch: wire.Batch) -> None:
        """What a step leaves behind that fails in its middle: other tokens than were asked for, and no answers."""
        rows = [wire.Row(r.job, r.n_before, r.n_new, r.n_pages) for r in batch.head.rows]
        head = msgspec.structs.replace(batch.head, rows=rows)
        tokens = array("I", [1] * len(batch.tokens))
        with suppress(StepError):
            self._body.run(wire.Batch(head, tokens, batch.positions, batch.pages, array("I")))


class Attachment(Struct, frozen=True):
    """The kernel that this worker serves."""

    connection: Connection
    kernel: str


class SimWorker:
    """One process. `complain` is told of what no kernel may ever do; `saw` of what is rare."""

    def __init__(
        self,
        network: Network,
        address: str,
        name: str,
        make_body: Callable[[], Backend],
        cost: Cost,
        *,
        complain: Callable[[str], None],
        saw: Callable[[str], None],
    ) -> None:
        self.address = address
        self.name = name
        self.cost = cost
        self.slowness = 1.0
        self._network = network
        self._loop: SimLoop = network.loop
        self._make_body = make_body
        self._complain = complain
        self._saw = saw
        self._begin()
        self._attached: Attachment | None = None
        self._heard_s = 0.0
        self._epoch = 0
        self._work: deque[tuple[int, Work]] = deque()
        self._running: tuple[int, Work] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of the work that runs
        self._left_s = 0.0  # of it, when the process was stopped
        self._silence: asyncio.TimerHandle | None = None
        self._inbox: list[tuple[Connection, wire.Frames]] | None = None  # a stopped process does not read
        self._n_batches = self._n_tokens = 0
        network.listen(address, self)

    def _begin(self) -> None:
        self._body = Refusing(self._make_body())
        self._executor = Executor(self._body)

    # --- life ---

    @property
    def is_hung(self) -> bool:
        return self._inbox is not None

    @property
    def is_alive(self) -> bool:
        return self._network.peers.get(self.address) is self

    @property
    def serves(self) -> str | None:
        """The kernel it is attached to."""
        return self._attached.kernel if self._attached is not None else None

    @property
    def device(self) -> Refusing:
        """What can be short of memory, or have a glitch; a new one with every attachment."""
        return self._body

    def crash(self, seen_s: float | None) -> None:
        """kill -9, or the power: the kernel sees the connection end after `seen_s`, or hears silence."""
        self._network.vanish(self.address, seen_s)
        self._attached = None
        self._epoch += 1
        self._work.clear()
        for timer in (self._timer, self._silence):
            if timer is not None:
                timer.cancel()
        self._running = self._timer = self._silence = None

    def leave(self, reason: str) -> None:
        """The process ends by itself and says so."""
        if self._attached is not None:
            self._detach(reason, tell=True)
        self._loop.call_later(0.05, self._gone)

    def _gone(self) -> None:
        if self.is_alive:
            self.crash(0.001)

    def hang(self) -> None:
        """SIGSTOP."""
        self._inbox = []
        if self._timer is not None:
            self._left_s = max(0.0, self._timer.when() - self._loop.time())
            self._timer.cancel()

    def resume(self) -> None:
        """SIGCONT: what came meanwhile is read first, then the clock is looked at."""
        inbox, self._inbox = self._inbox or [], None
        if self._timer is not None:
            self._timer = self._loop.call_later(self._left_s, self._done)
        for connection, frames in inbox:
            self.receive(connection, frames)

    # --- messages ---

    def receive(self, connection: Connection, frames: wire.Frames) -> None:
        if not self.is_alive:
            return
        if self._inbox is not None:
            self._inbox.append((connection, frames))
            return
        self._network.tap("worker receives", self.address, frames)
        try:
            if frames[0][:1] == b"{":
                return self._greet(connection, wire.decode_greeting(frames))
            message = wire.decode_to_worker(frames)
        except wire.WireError as e:
            return self._complain(f"worker {self.address} cannot read a message: {e}")
        if self._attached is not None and connection is self._attached.connection:
            self._obey(message)
        else:
            self._saw("a stranger is told to say hello")
            self._send(connection, wire.encode(wire.Bye("you are not attached: say hello first")))

    def _greet(self, connection: Connection, message: wire.Greeting) -> None:
        assert isinstance(message, wire.Hello)
        self._detach_if_silent()
        if self._attached is not None:
            if self._attached.kernel != message.kernel:
                reason = f"this worker serves kernel {self._attached.kernel} already"
                return self._send(connection, wire.encode_greeting(wire.Refused(wire.WIRE_HASH, reason)))
            self._saw("a kernel says hello again")
            self._detach("it said hello again")
        self._attached = Attachment(connection, message.kernel)
        self._heard_s = self._loop.time()
        self._begin()
        self._watch()
        f = self._body.info()
        welcome = wire.Welcome(
            schema=wire.WIRE_HASH,
            worker=self.name,
            os_pid=1,
            device=f.device,
            attention=f.attention,
            model=f.model,
            n_pages=f.n_pages,
            n_host_pages=f.n_host_pages,
            page_bytes=f.page_bytes,
            max_rows=f.max_rows,
            max_batch_tokens=f.max_batch_tokens,
        )
        self._send(connection, wire.encode_greeting(welcome))

    def _obey(self, message: wire.FromKernel) -> None:
        assert self._attached is not None
        connection, self._heard_s = self._attached.connection, self._loop.time()
        match message:
            case wire.Batch() | wire.Fetch() | wire.Store():
                if len(self._work) >= MAX_QUEUED:
                    self._complain(f"worker {self.address} is sent more than {MAX_QUEUED} pieces of work")
                self._work.append((self._epoch, message))
                self._do_next()
            case wire.Ping(nonce):
                self._send(connection, wire.encode(wire.Pong(nonce, self._n_batches, self._n_tokens)))
            case wire.GetAssets():
                self._send(connection, wire.encode(self._body.assets()))
            case wire.Detach(reason):
                self._detach(f"it left: {reason}", tell=True)

    def _send(self, connection: Connection, frames: wire.Frames) -> None:
        if not connection.from_worker(frames) and self._attached and self._attached.connection is connection:
            self._detach("cannot send to it")

    def _detach(self, why: str, *, tell: bool = False) -> None:
        assert self._attached is not None
        left, self._attached = self._attached, None
        self._epoch += 1
        if tell:
            self._send(left.connection, wire.encode(wire.Bye(why)))

    def _detach_if_silent(self) -> None:
        if self._attached is not None and self._loop.time() - self._heard_s > SILENCE_LIMIT_S:
            self._saw("a worker gives up a silent kernel")
            self._detach(f"silent for {SILENCE_LIMIT_S:.0f} s", tell=True)

    def _watch(self) -> None:
        """Look for silence as often as there can be news."""
        if self._silence is not None:
            self._silence.cancel()
        self._silence = None
        if not self.is_hung:
            self._detach_if_silent()
        if self._attached is not None:
            at = max(self._heard_s + SILENCE_LIMIT_S, self._loop.time()) + 1.0
            self._silence = self._loop.call_at(at, self._watch)

    # --- work ---

    def _do_next(self) -> None:
        while self._running is None and self._work:
            epoch, work = self._work.popleft()
            if epoch != self._epoch:
                self._saw("work of an old epoch is dropped")
                continue
            self._running = (epoch, work)
            self._timer = self._loop.call_later(self.cost.of(work) * self.slowness, self._done)

    def _done(self) -> None:
        assert self._running is not None
        (epoch, work), self._running, self._timer = self._running, None, None
        if epoch == self._epoch:
            answer = self._timed(work, self._executor.answer(work))
            self._judge(answer)
            self._n_batches += isinstance(answer, wire.BatchDone | wire.BatchFailed)
            if isinstance(answer, wire.BatchDone):
                self._n_tokens += answer.head.n_tokens
            assert self._attached is not None
            self._send(self._attached.connection, wire.encode(answer))
        else:
            self._saw("the result of an old epoch is thrown away")
        self._do_next()

    def _timed(self, work: Work, answer: Answer) -> Answer:
        """The answer with virtual times in it."""
        if not (isinstance(answer, wire.BatchDone) and isinstance(work, wire.Batch)):
            return answer
        head = work.head
        n_moves = len(head.moves_out) + len(head.moves_in)
        step_s, move_s = self.cost.steps.of(head.rows) * self.slowness, self.cost.page_s * n_moves * self.slowness
        return wire.BatchDone(msgspec.structs.replace(answer.head, step_s=step_s, move_s=move_s), answer.logits)

    def _judge(self, answer: Answer) -> None:
        """A kernel that is right is refused nothing but what this worker was made to refuse."""
        if self._executor.crash is not None:
            self._complain(f"worker {self.address}: {self._executor.crash}")
        elif isinstance(answer, wire.BatchFailed | wire.PagesFailed) and answer.errno == Errno.EINVAL:
            self._complain(f"worker {self.address} must refuse what it was sent: {answer.detail}")
        if isinstance(answer, wire.BatchFailed) and answer.void:
            self._saw("a void batch is refused untried")
