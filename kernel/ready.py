"""The ready queue: where processes wait whose call was answered, until level 1 lets them go on. Its rim.

asyncio runs a task as soon as the future it awaits has a result, all of those in one pass over the event loop; ten
thousand of them would keep everybody else waiting, sockets first. So whoever answers a parked call `put`s the answer
here, and in the next pass as many are handed out as fit into the budget, in the order of `kernel/scheduler.py`; the
others follow in the passes after it, between which the loop looks at its sockets and timers.

How many fit is learnt from how long the steps took that were let go before (`Pace`). The clock that measures them is
an argument: where time stands still while code runs, as in a simulation, everything fits, in the same order each time.

An answer whose caller has gone, because it was cancelled or killed, is dropped, or given back to whoever can use it.
Called by `kernel/process.py`, and by `kernel/fleet.py` when all answers of a batch are here. Never add a policy.
"""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from kernel.accounts import Account
from kernel.scheduler import Rank

STEP_S = 50e-6  # what a step is taken to cost before any was measured
STEP_MIN_S = 10e-6  # and at least, so that a pass full of long steps is no worse a surprise than it must be
FADE = 0.125  # weight of a pass that was quicker than expected; a slower one counts in full
N_RANKED = 2000  # answers that are put in order in one pass; more than that first wait in the order they came
RERANK_S = 1.0  # so long the order of those who have to wait may lag behind what it should be


class Owner(Protocol):
    """A process, as the queue sees it."""

    account: Account
    dying: bool
    n_ready: int
    wait_s: dict[str, float]

    def begin(self) -> None:
        """Run its first thread."""


class WakeUp(Struct, eq=False):
    """The answer to a parked call; or a process that is to begin, where `future` is None."""

    owner: Any  # an Owner
    future: "asyncio.Future[Any] | None"
    result: Any = None
    error: BaseException | None = None
    give_back: Callable[[Any], None] | None = None  # takes the result when nobody is left to
    since: float = 0.0


class Pace:
    """How many steps fit into a pass. Pure."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.step_s = STEP_S
        self.room = max(1, int(budget_s / STEP_S))

    def took(self, n_steps: int, seconds: float) -> None:
        """So many steps took that long."""
        mean = seconds / n_steps
        self.step_s = max(STEP_MIN_S, mean if mean > self.step_s else self.step_s + FADE * (mean - self.step_s))
        self.room = max(1, int(self.budget_s / self.step_s))


class Ready:
    """All answers that were not handed out yet."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rank: Callable[[Account, float, float], Rank],
        *,
        budget_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.pace = Pace(budget_s)
        self.now = loop.time
        self._loop = loop
        self._rank = rank
        self._clock = clock
        self._arrived: list[WakeUp] = []  # since the last look
        self._backlog: list[tuple[Rank, int, WakeUp]] = []  # a heap
        self._n_put = 0
        self._n_running = 0  # let go, and not known to have had their step
        self._ranked_at = 0.0
        self._armed = False
        self._began = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._arrived) + len(self._backlog)

    def put(self, answer: WakeUp) -> None:
        """It will be handed out in the next pass, or in a later one."""
        if answer.owner.dying or (answer.future is not None and answer.future.done()):
            self._drop(answer)
            return
        answer.since = self.now()
        answer.owner.n_ready += 1
        self._arrived.append(answer)
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        """Hand out what is here, as far as the budget goes, without waiting for the next pass."""
        room = self.pace.room - self._n_running
        if self._backlog or len(self._arrived) > room:
            self._hand_out_backlog(room)
            return
        answers, self._arrived = self._arrived, []
        if len(answers) == 1:
            self._hand_out(answers[0], self.now())  # nothing to order, and nothing to learn
        elif answers:
            now, rank = self.now(), self._rank
            answers.sort(key=lambda a: rank(a.owner.account, now, a.since))
            self._hand_out_all(answers, now)

    def _turn(self) -> None:
        self._armed = False
        self.flush()

    def _hand_out_backlog(self, room: int) -> None:
        """More are here than fit."""
        now, backlog = self.now(), self._backlog
        if now - self._ranked_at > RERANK_S:
            self._ranked_at = now
            backlog[:] = [(self._rank(a.owner.account, now, a.since), n, a) for _, n, a in backlog]
            heapq.heapify(backlog)
        arrived, self._arrived = self._arrived[:N_RANKED], self._arrived[N_RANKED:]
        ranked = [(self._rank(a.owner.account, now, a.since), n, a) for n, a in enumerate(arrived, self._n_put)]
        self._n_put += len(ranked)
        if len(ranked) > len(backlog):
            backlog += ranked
            heapq.heapify(backlog)
        else:
            for entry in ranked:
                heapq.heappush(backlog, entry)
        if room > 0:
            self._hand_out_all([heapq.heappop(backlog)[2] for _ in range(min(room, len(backlog)))], now)

    def _hand_out_all(self, answers: list[WakeUp], now: float) -> None:
        """The steps run in the next pass between two marks of ours, since the loop keeps the order of its calls."""
        self._loop.call_soon(self._begin)
        for answer in answers:
            self._hand_out(answer, now)
        self._n_running += len(answers)
        self._loop.call_soon(self._end, len(answers))

    def _begin(self) -> None:
        self._began = self._clock()

    def _end(self, n: int) -> None:
        self.pace.took(n, self._clock() - self._began)
        self._n_running -= n
        if self._backlog or self._arrived:
            self.flush()

    def _hand_out(self, answer: WakeUp, now: float) -> None:
        owner, future = answer.owner, answer.future
        owner.n_ready -= 1
        if owner.dying or (future is not None and future.done()):
            self._drop(answer)
            return
        if now > answer.since:
            owner.wait_s["ready"] = owner.wait_s.get("ready", 0.0) + now - answer.since
        if future is None:
            owner.begin()
        elif answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.result)

    def _drop(self, answer: WakeUp) -> None:
        if answer.give_back is not None:
            answer.give_back(answer.result)
