"""How much each tenant may add to a batch. Pure.

Rows of one batch share its time: a tenant with many rows makes everybody's step longer, although everybody gets
a row. So where several tenants want to compute, the batch may take `SLOWDOWN` times as long as it would if each
of them wanted what the most modest of them wants, and no longer. Up to there nobody is held back, and on a device
where more rows cost nothing nobody ever is.

What each tenant is guaranteed is as much as the most modest one asks for; what is left is given in service order.
Called by `kernel/batcher.py` when more than one tenant is there, with the jobs in the order of `kernel/scheduler.py`.
"""

from collections.abc import Collection, Hashable, Sequence

from kernel.costs import StepCosts
from kernel.jobs import Job

SLOWDOWN = 1.2
N_TOKENS_MIN = 16  # a chunk of a prompt is at least so long, or all that is left: less is not worth a row

PRESENT_S = 0.1  # a tenant that had something to compute no longer ago is expected back

Grants = list[tuple[Job, int]]  # with the tokens it may compute


class Presence:
    """Which tenants are there, though they may have nothing ready at this moment."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, float] = {}

    def n_absent(self, tenants: Collection[Hashable], now: float) -> int:
        """How many were there just now and are not among these, who are."""
        for tenant in tenants:
            self._seen[tenant] = now
        if len(self._seen) == len(tenants):
            return 0
        self._seen = {tenant: at for tenant, at in self._seen.items() if now - at < PRESENT_S}
        return len(self._seen) - len(tenants)


def allot(
    jobs: Sequence[tuple[Hashable, Job]], n_absent: int, max_rows: int, max_tokens: int, costs: StepCosts
) -> Grants:
    """What of `jobs`, each with its tenant and most deserving first, goes into the next batch. `n_absent`: tenants
    that have nothing ready at this moment and are expected back, each with a row of one token."""
    rows: dict[Hashable, int] = dict.fromkeys((tenant for tenant, _ in jobs), 0)
    tokens = rows.copy()
    for tenant, job in jobs:
        rows[tenant] = min(rows[tenant] + 1, max_rows)
        tokens[tenant] = min(tokens[tenant] + max(1, job.n_wanted), max_tokens)
    modest = min(rows, key=lambda t: costs.predict(rows[t], tokens[t]))
    n_rows, n_tokens = (1, 1) if n_absent else (rows[modest], tokens[modest])
    n_tenants = len(rows) + n_absent
    limit_s = SLOWDOWN * costs.predict(min(max_rows, n_tenants * n_rows), min(max_tokens, n_tenants * n_tokens))

    grants: Grants = []
    rows_left = dict.fromkeys(rows, n_rows)
    tokens_left = dict.fromkeys(rows, n_tokens)
    others: list[Job] = []
    given = 0
    for tenant, job in jobs:  # what is guaranteed
        n = min(max(1, job.n_wanted), tokens_left[tenant], max_tokens - given)
        if rows_left[tenant] and n > 0 and len(grants) < max_rows:
            rows_left[tenant] -= 1
            tokens_left[tenant] -= n
            given += n
            grants.append((job, n))
        else:
            others.append(job)
    for job in others:  # what is left
        if len(grants) == max_rows or given >= max_tokens:
            break
        wanted = max(1, job.n_wanted)
        n = min(wanted, max_tokens - given, _room(costs, len(grants) + 1, given + 1, limit_s))
        if n >= min(wanted, N_TOKENS_MIN):
            given += n
            grants.append((job, n))
    return grants


def _room(costs: StepCosts, n_rows: int, n_tokens: int, limit_s: float) -> int:
    """Tokens that the last row may have within the limit."""
    left = limit_s - costs.predict(n_rows, n_tokens)
    if left < 0:
        return 0
    return 1 + int(left / costs.token_s) if costs.token_s else 1 << 30
