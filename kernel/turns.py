"""Whose turn it is: whom a batcher asks for a step, best first, and how many tokens each may have. Pure.

With one tenant everybody is asked, as far as there are rows, those who continue a generation first. With several,
`kernel/scheduler.py` says who is first and `kernel/shares.py` how much each tenant may add.

Called by `kernel/batcher.py` for each batch. Never add here what a job gets of what it asks for.
"""

from collections.abc import Callable, Container

from kernel.costs import StepCosts
from kernel.jobs import Job
from kernel.shares import Grants, Presence, allot

Order = Callable[[list[Job], float], list[Job]]


class Turns:
    """Of one worker."""

    def __init__(self, order: Order, costs: StepCosts, max_rows: int, max_tokens: int) -> None:
        """`order` sorts jobs, first one first, as of a time."""
        self._order = order
        self._costs = costs
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._presence = Presence()

    def grants(self, ready: list[Job], decoding: Container[int], now: float) -> Grants:
        """Whom to ask for a step, best first, with the tokens each may have. `ready`: those who have one; `decoding`:
        the numbers of the jobs that continue a generation."""
        tenants = {job.account.tenant for job in ready if job.account is not None}
        n_absent = self._presence.n_absent(tenants, now)
        if not tenants or len(tenants) + n_absent < 2:
            if len(ready) > self._max_rows:
                ready = self._order(ready, now)[: self._max_rows]
                ready.sort(key=lambda job: job.number not in decoding)
            return [(job, self._max_tokens) for job in ready]
        own = [job for job in ready if job.account is None]  # the kernel's, which are few and short
        others = self._order([job for job in ready if job.account is not None], now)
        shared = [(job.account.tenant, job) for job in others]
        grants = allot(shared, n_absent, self._max_rows, self._max_tokens, self._costs)
        return [(job, self._max_tokens) for job in own] + grants
