"""How much each tenant may add to a batch. Pure.

Rows of one batch share its time: a tenant with many rows makes everybody's step longer, although everybody gets
a row. So where several tenants want to compute, the batch may take `SLOWDOWN` times as long as it would if each
of them wanted what the most modest of them wants, and no longer. Up to there nobody is held back, and on a device
where more rows cost nothing nobody ever is. A tenant that has had less than the most modest one so far may go on to
where each would have had the device to itself in turn: so a newcomer's prompt is not computed in crumbs.

What each tenant is guaranteed is as much as the most modest one asks for; what is left is given in service order.
Called by `kernel/turns.py` when more than one tenant is there, with the jobs in the order of `kernel/scheduler.py`.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from kernel.costs import StepCosts
from kernel.jobs import Job

SLOWDOWN = 1.2
N_TOKENS_MIN = 16  # a chunk of a prompt is at least so long, or all that is left: less is not worth a row

PRESENT_S = 0.1  # a tenant that had something to compute no longer ago is expected back

Grants = list[tuple[Job, int]]  # with the tokens it may compute


class Tenant(Protocol):
    """Whose jobs they are; compared by identity."""

    vt: float  # service by share so far


class Presence:
    """Which tenants are there, though they may have nothing ready at this moment."""

    def __init__(self) -> None:
        self._seen: dict[Tenant, float] = {}

    def n_absent(self, tenants: Collection[Tenant], now: float) -> int:
        """How many were there just now and are not among these, who are."""
        for tenant in tenants:
            self._seen[tenant] = now
        if len(self._seen) == len(tenants):
            return 0
        self._seen = {tenant: at for tenant, at in self._seen.items() if now - at < PRESENT_S}
        return len(self._seen) - len(tenants)


def allot(
    jobs: Sequence[tuple[Tenant, Job]], n_absent: int, max_rows: int, max_tokens: int, costs: StepCosts
) -> Grants:
    """What of `jobs`, each with its tenant and most deserving first, goes into the next batch. `n_absent`: tenants
    that have nothing ready at this moment and are expected back, each with a row of one token."""
    rows: dict[Tenant, int] = dict.fromkeys((tenant for tenant, _ in jobs), 0)
    tokens = rows.copy()
    for tenant, job in jobs:
        rows[tenant] = min(rows[tenant] + 1, max_rows)
        tokens[tenant] = min(tokens[tenant] + max(1, job.n_wanted), max_tokens)
    modest = min(rows, key=lambda t: costs.predict(rows[t], tokens[t]))
    n_rows, n_tokens = (1, 1) if n_absent else (rows[modest], tokens[modest])
    n_tenants = len(rows) + n_absent
    together_s = costs.predict(min(max_rows, n_tenants * n_rows), min(max_tokens, n_tenants * n_tokens))
    in_turn_s = n_tenants * costs.predict(n_rows, n_tokens)

    granted: dict[Job, int] = {}
    rows_left = dict.fromkeys(rows, n_rows)
    tokens_left = dict.fromkeys(rows, n_tokens)
    given = 0
    for tenant, job in jobs:  # what is guaranteed
        n = min(max(1, job.n_wanted), tokens_left[tenant], max_tokens - given)
        if rows_left[tenant] and n > 0 and len(granted) < max_rows:
            rows_left[tenant] -= 1
            tokens_left[tenant] -= n
            given += n
            granted[job] = n
    for tenant, job in jobs:  # what is left
        has, wanted = granted.get(job, 0), max(1, job.n_wanted)
        if has == wanted or given >= max_tokens or (not has and len(granted) == max_rows):
            continue
        behind = tenant is not modest and tenant.vt < modest.vt
        limit_s = max(in_turn_s, SLOWDOWN * together_s) if behind else SLOWDOWN * together_s
        room = _room(costs, len(granted) + (not has), given + (not has), limit_s)
        more = min(wanted - has, max_tokens - given, room if not has else room - 1)
        if more >= (1 if has else min(wanted, N_TOKENS_MIN)):
            given += more
            granted[job] = has + more
    return [(job, granted[job]) for _, job in jobs if job in granted]


def _room(costs: StepCosts, n_rows: int, n_tokens: int, limit_s: float) -> int:
    """Tokens that the last row may have within the limit."""
    left = limit_s - costs.predict(n_rows, n_tokens)
    if left < 0:
        return 0
    return 1 + int(left / costs.token_s) if costs.token_s else 1 << 30
