"""THE DOOR of a worker: one listening socket, one kernel at a time, one thread that computes.

The I/O thread (`Server.run`) reads messages, answers pings at once and hands all work to the compute thread, which
does it in the order of its arrival, each piece exactly once (executor.py), and sends the answer itself. So a step of
ten seconds never looks like a dead worker, and an answer waits for nobody's turn.

    nobody --Hello--> attached --Detach, Hello, end of the connection, silence of SILENCE_LIMIT_S--> nobody

All that belongs to one attachment carries its epoch. When the kernel leaves or is replaced the epoch moves on:
work that waits is dropped, the answer of what runs is thrown away, and no kernel ever hears another's. The worker
itself, its weights and its pages stay for the next Hello; a kernel that says hello again under its name replaces
itself at once, any other has to wait until the present one leaves or falls silent.

Bytes of a peer meet `stream.Assembler`, then `wire.decode_*`, and nothing else. A message that does not decode is
counted and dropped, a stream that has lost its place is closed. Never put scheduling, retries or any knowledge of
models in here.
"""

import contextlib
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuworker import wire
from gpuworker.address import address_of, listen, release
from gpuworker.backend import Backend
from gpuworker.executor import Executor, Work
from gpuworker.peer import Peer
from gpuworker.stream import Frames, StreamError
from sdk.abi.errors import Errno

MAX_FAULTS = 10  # messages that do not decode; after these a peer is let go
MAX_PEERS = 32  # connections at a time; one is the kernel's, the others wait for their turn or are nobody's
MAX_QUEUED = 256  # pieces of work that wait; a kernel that keeps the protocol sends a few
MAX_MESSAGE_BYTES = 65 << 20  # that is taken: of contents to store, backend.MAX_CONTENTS_BYTES and a header
SILENCE_LIMIT_S = 5.0  # a kernel pings a few times a second
TICK_S = 1.0  # how often silence is looked for when nothing else happens
CLOSE_LIMIT_S = 1.0  # for the running step to end and for the goodbye to leave


@dataclass(frozen=True, slots=True)
class Attachment:
    """The kernel that this worker serves."""

    peer: Peer
    kernel: str  # its name


class Server:
    """Serves one backend on one address. Listening begins at once, so that a bad address is known before a model is
    loaded; a kernel that says hello meanwhile is answered when `run` begins."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        end_on_detach: bool = False,
        log: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listens. Raises AddressError."""
        self._name, self._end_on_detach, self._log, self._clock = name, end_on_detach, log, clock
        self._listener = listen(address)
        self.address: str = address_of(self._listener)
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._peers: dict[Peer, None] = {}  # oldest first
        self._writing: set[Peer] = set()  # that have not taken all that was sent to them
        self._heard_at = 0.0
        self._work: queue.SimpleQueue[tuple[int, Work] | None] = queue.SimpleQueue()  # with the epoch it belongs to
        self._turn = threading.Lock()  # of the three that follow, which both threads change
        self._attached: Attachment | None = None
        self._epoch = 0
        self._n_owed = 0  # answers that the attached kernel still waits for
        self._end: str | None = None
        self._n_batches = self._n_tokens = 0
        self.crash: str | None = None  # the bug that ended the compute thread
        self._compute: threading.Thread | None = None

    def stop(self, reason: str) -> None:
        """Ends `run` soon; the first reason counts. For any thread, and for signal handlers."""
        self._end = self._end or reason
        self._wake()

    def run(self, backend: Backend, watch: Callable[[], str | None] = lambda: None) -> str:
        """Serves until there is a reason to end, and returns it: from `stop`, from a kernel that leaves, from a crash,
        or from `watch`, which is called at every message and every second."""
        self._facts = backend.info()
        self._assets = wire.encode(backend.assets())  # megabytes of text, made before anybody waits for a pong
        self._compute = threading.Thread(target=self._compute_all, args=(backend,), name="compute", daemon=True)
        self._compute.start()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        try:
            while self._end is None:
                self._look(self._selector.select(TICK_S))
                self._end = self._end or watch()
            return self._end
        finally:
            self._work.put(None)
            if self._attached is not None:
                self._detach(self._end or "the worker failed", tell=True)
            self._compute.join(CLOSE_LIMIT_S)

    def _look(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        heard = False
        for key, events in ready:
            peer = key.data
            if key.fileobj is self._listener:
                self._accept()
            elif peer is None:
                os.read(self._wake_r, 4096)
                self._write_on()
            else:
                if events & selectors.EVENT_WRITE:
                    self._flush(peer)
                if events & selectors.EVENT_READ:
                    heard = True
                    self._receive(peer)
        if not heard:  # only then is it silence: after a pause of this process, what was said meanwhile comes first
            self._detach_if_silent()

    @property
    def is_computing(self) -> bool:
        """Whether a step was still running when `run` gave up waiting for it."""
        return self._compute is not None and self._compute.is_alive()

    def close(self) -> None:
        """Gives up the address."""
        release(self.address)
        self._listener.close()
        for peer in self._peers:
            peer.close(CLOSE_LIMIT_S)  # only here, so that a goodbye leaves
        self._selector.close()
        if not self.is_computing:  # which would wake us up once more
            os.close(self._wake_r)
            os.close(self._wake_w)
            self._wake_w = -1

    # --- the I/O thread -----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it is gone again, or this process has no descriptor left
            return
        if len(self._peers) >= MAX_PEERS:
            strangers = (p for p in self._peers if self._attached is None or p is not self._attached.peer)
            self._let_go(next(strangers), "there are newer ones")
        peer = Peer(connection, MAX_MESSAGE_BYTES)
        self._peers[peer] = None
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _receive(self, peer: Peer) -> None:
        if peer not in self._peers:  # let go in this very round
            return
        try:
            messages = peer.receive()
        except StreamError as e:
            self._log(f"a connection is closed: {e}")
            messages = None
        if messages is None:
            return self._let_go(peer, "the connection was closed")
        for frames in messages:
            if peer in self._peers:
                self._read(peer, frames)

    def _read(self, peer: Peer, frames: Frames) -> None:
        try:
            if frames[0][:1] == b"{":  # a greeting is JSON; no message after it can begin so
                self._greet(peer, wire.decode_greeting(frames))
                return
            message = wire.decode_to_worker(frames)
            if self._attached is not None and peer is self._attached.peer:
                self._obey(self._attached, message)
            else:  # a kernel that was asleep, and has not heard that it was given up
                self._send(peer, wire.encode(wire.Bye("you are not attached: say hello first")))
        except wire.WireError as e:
            self._count_fault(peer, e)

    def _count_fault(self, peer: Peer, error: wire.WireError) -> None:
        peer.n_faults += 1
        self._log(f"dropped a message: {error}")
        if peer.n_faults == MAX_FAULTS:
            self._log(f"{MAX_FAULTS} messages of one peer did not decode: its connection is closed")
            reason = f"{MAX_FAULTS} of its messages did not decode"
            if self._attached is not None and peer is self._attached.peer:
                self._detach(reason, tell=True)
            else:
                self._send(peer, wire.encode(wire.Bye(reason)))
            self._let_go(peer, reason)

    def _let_go(self, peer: Peer, why: str) -> None:
        """Close a connection, if it is still there."""
        if self._attached is not None and peer is self._attached.peer:
            self._detach(why)
        if peer in self._peers:
            del self._peers[peer]
            self._writing.discard(peer)
            self._selector.unregister(peer.socket)
            peer.close()

    def _greet(self, peer: Peer, message: wire.Greeting) -> None:
        if not isinstance(message, wire.Hello):
            raise wire.WireError("a greeting of a worker, sent to a worker")
        if message.schema != wire.WIRE_HASH or message.protocol != wire.PROTOCOL:
            theirs, ours = f"{message.protocol} {message.schema}", f"{wire.PROTOCOL} {wire.WIRE_HASH}"
            reason = f"the kernel speaks {theirs}, the worker {ours}: install one version on both"
            return self._refuse(peer, reason)
        self._detach_if_silent()
        if self._attached is not None:
            if self._attached.kernel != message.kernel:
                return self._refuse(peer, f"this worker serves kernel {self._attached.kernel} already")
            self._detach("it said hello again")
        with self._turn:
            self._attached = Attachment(peer, message.kernel)
        self._heard_at = self._clock()
        f = self._facts
        welcome = wire.Welcome(
            schema=wire.WIRE_HASH,
            worker=self._name,
            os_pid=os.getpid(),
            device=f.device,
            attention=f.attention,
            model=f.model,
            n_pages=f.n_pages,
            n_host_pages=f.n_host_pages,
            page_bytes=f.page_bytes,
            max_rows=f.max_rows,
            max_batch_tokens=f.max_batch_tokens,
        )
        self._send(peer, wire.encode_greeting(welcome))
        self._log(f"attached to kernel {message.kernel}")

    def _refuse(self, peer: Peer, reason: str) -> None:
        self._log(f"refused a kernel: {reason}")
        self._send(peer, wire.encode_greeting(wire.Refused(wire.WIRE_HASH, reason)))

    def _obey(self, attached: Attachment, message: wire.FromKernel) -> None:
        self._heard_at = self._clock()
        match message:
            case wire.Batch() | wire.Fetch() | wire.Store():
                with self._turn:
                    self._n_owed += 1
                self._work.put((self._epoch, self._admitted(message)))
            case wire.Ping(nonce):
                self._send(attached.peer, wire.encode(wire.Pong(nonce, self._n_batches, self._n_tokens)))
            case wire.GetAssets():
                self._send(attached.peer, self._assets)
            case wire.Detach(reason):
                self._detach(f"it left: {reason}", tell=True)
                if self._end_on_detach:
                    self._end = "the kernel left"

    def _admitted(self, work: wire.Batch | wire.Fetch | wire.Store) -> Work:
        """The work, or the failure that takes its place in the queue, so that answers keep their order."""
        if self._work.qsize() < MAX_QUEUED:
            return work
        reason = f"{MAX_QUEUED} pieces of work wait: send fewer ahead"
        if isinstance(work, wire.Batch):
            return wire.BatchFailed(work.head.seq, Errno.EBUSY, reason)
        number = work.number if isinstance(work, wire.Fetch) else work.head.number
        return wire.PagesFailed(number, Errno.EBUSY, reason)

    def _detach_if_silent(self) -> None:
        if self._attached is not None and self._clock() - self._heard_at > SILENCE_LIMIT_S:
            self._detach(f"silent for {SILENCE_LIMIT_S:.0f} s", tell=True)

    def _detach(self, why: str, tell: bool = False) -> None:
        """Forgets the kernel and all it has asked for. `tell` it: for this kernel the worker is gone."""
        with self._turn:
            assert self._attached is not None
            left, self._attached = self._attached, None
            self._epoch += 1
            n_lost, self._n_owed = self._n_owed, 0
        lost = f"; {n_lost} answers that it waited for are thrown away" if n_lost else ""
        self._log(f"detached from kernel {left.kernel}: {why}{lost}")
        if tell:
            self._send(left.peer, wire.encode(wire.Bye(why)))

    def _send(self, peer: Peer, frames: Frames) -> None:
        """Never waits. A kernel that cannot be sent an answer is given up: it would wait for that answer for ever."""
        try:
            if not peer.send(frames):
                self._writing.add(peer)
                self._write_on()
        except OSError as e:
            self._let_go(peer, f"cannot send to it: {e.strerror or e}")

    def _write_on(self) -> None:
        """See to it that what could not be sent at once is sent when there is room."""
        if self._attached is not None:
            self._writing.add(self._attached.peer)  # perhaps it was the compute thread that could not
        for peer in list(self._writing):
            if peer in self._peers:
                self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        try:
            done = peer.flush()
        except OSError as e:
            return self._let_go(peer, f"cannot send to it: {e.strerror or e}")
        (self._writing.discard if done else self._writing.add)(peer)
        events = selectors.EVENT_READ if done else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(peer.socket, events, peer)

    # --- the compute thread -------------------------------------------------------------------------------------

    def _compute_all(self, backend: Backend) -> None:
        executor, served = Executor(backend), 0
        while (queued := self._work.get()) is not None:
            epoch, work = queued
            if epoch != self._epoch:
                continue
            if epoch != served:
                executor.begin()
                served = epoch
            answer = executor.answer(work)
            self._n_batches += isinstance(answer, wire.BatchDone | wire.BatchFailed)
            if isinstance(answer, wire.BatchDone):
                self._n_tokens += answer.head.n_tokens
            self._answer(epoch, wire.encode(answer))
            if executor.crash is not None:
                self.crash = executor.crash
                return self.stop(self.crash)

    def _answer(self, epoch: int, frames: Frames) -> None:
        with self._turn:
            if self._attached is None or epoch != self._epoch:
                return
            self._n_owed -= 1
            try:
                left = self._attached.peer.send(frames)
            except OSError:
                left = False
        if not left:  # the I/O thread goes on with it, and finds out what is the matter
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is full of wake-ups already, or `run` is over
            os.write(self._wake_w, b"\0")
