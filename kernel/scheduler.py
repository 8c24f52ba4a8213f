"""Level 1's decisions: who goes first, of processes that were woken and of jobs that want a device. Pure.

A policy gives everybody who waits a rank; smaller goes first.

    fcfs   programs in the order they began, whatever else is known of them
    fair   priority class, then the tenant that has had least for its share, then its program that has had least
    srpt   as fair, but of a tenant's programs the one that will be done first, by its own word

A class is a priority, vLLM's way: lower goes first, and nobody of a class has to wait for a lower one. So that no
class starves, whoever has waited goes up by a class for every `ageing_s` seconds, until something is computed for it.

`rank` orders by what everybody had up to now. One batch may take many jobs, so `order` also counts what it gives
away while it orders: two equal tenants get every other place of it, however many programs each of them has.

`kernel/ready.py` asks for ranks, `kernel/batcher.py` for an order, `kernel/core.py` opens and closes accounts. Never
add here how much somebody may have: that is `kernel/shares.py` for batches, and the limits in `kernel/accounts.py`.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from kernel.accounts import GENERATED_WEIGHT, PROMPT_WEIGHT, Account, Family, Ledger, Tenant
from sdk.abi.values import Limits

N_NAMES = 64  # of programs that are told apart in what is counted
OTHERS = "other"  # the name of all the others
N_TENANTS = 64  # from so many on those who are gone are looked for now and then
FIRST: tuple[float, ...] = (float("-inf"),)  # the kernel's own work

Rank = tuple[float, ...]


class Waiting(Protocol):
    """A job, as the scheduler sees it."""

    @property
    def account(self) -> Account | None:
        """None for the kernel's own."""

    @property
    def since(self) -> float:
        """When it came."""

    @property
    def n_wanted(self) -> int:
        """Tokens it would compute next."""


W = TypeVar("W", bound=Waiting)


class Fcfs:
    """First come, first served."""

    by_tenant = False

    def __init__(self, ageing_s: float) -> None:
        pass  # who came first never has to wait for one who came later

    def rank(self, account: Account, now: float, since: float) -> Rank:
        return account.family.began, account.family.number


class Fair:
    """Least attained service, by shares, within priority classes."""

    by_tenant = True

    def __init__(self, ageing_s: float) -> None:
        self.ageing_s = ageing_s

    def rank(self, account: Account, now: float, since: float) -> Rank:
        family = account.family
        n_up = int(account.waited(now, since) / self.ageing_s)
        return account.priority - n_up, account.tenant.vt, family.vt, family.number


class Srpt(Fair):
    """Shortest remaining processing time, of those who declare one; the others come after them."""

    def rank(self, account: Account, now: float, since: float) -> Rank:
        family = account.family
        rest = family.horizon - family.n_tokens if family.horizon is not None else 0
        inner = (0.0, rest) if rest > 0 else (1.0, family.vt)  # who was wrong about itself is taken for silent
        n_up = int(account.waited(now, since) / self.ageing_s)
        return account.priority - n_up, account.tenant.vt, *inner, family.number


POLICIES: dict[str, Callable[[float], Fcfs | Fair]] = {"fcfs": Fcfs, "fair": Fair, "srpt": Srpt}


class Scheduler:
    """The accounts of one kernel, and the policy that ranks them."""

    def __init__(
        self, policy: str = "fair", *, ageing_s: float = 2.0, shares: Mapping[str, float] | None = None
    ) -> None:
        """`shares` are weights of tenants by name; 1 for all others. Raises KeyError for an unknown policy."""
        self.ledger = Ledger()
        self.tenants: dict[str, Tenant] = {}
        self.ended_s: dict[str, float] = {}  # of devices, that processes had which have ended; by `label`
        self._policy = POLICIES[policy](ageing_s)
        self.rank = self._policy.rank  # where somebody stands who has waited since `since`; of one moment
        self._shares = shares or {}
        self._n_families = 0
        self._names: set[str] = set()  # of families that are told apart
        self._n_tenants_max = N_TENANTS

    # --- accounts ---

    def open(
        self,
        name: str,
        now: float,
        *,
        tenant: str,
        priority: int = 0,
        parent: Account | None = None,
        limits: Limits | None = None,
        detached: bool = False,
    ) -> Account:
        """An account for a process that begins.

        A child takes part in its parent's family and is its tenant's; it begins with the parent's priority and with
        `limits`, what the parent has left of its own. `detached` makes it a family of its own."""
        if parent is None:
            account = Account(self.ledger, self._tenant(tenant), self._family(name, now), priority)
        else:
            family = self._family(name, now) if detached else parent.family
            account = Account(self.ledger, parent.tenant, family, parent.priority)
            account.inherit(parent, limits or Limits())
        account.tenant.n_processes += 1
        if len(self._names) < N_NAMES:
            self._names.add(account.family.name)
        return account

    def close(self, account: Account) -> None:
        """Its process has ended."""
        account.tenant.n_processes -= 1
        label = self.label(account)
        self.ended_s[label] = self.ended_s.get(label, 0.0) + account.device_s

    def label(self, account: Account) -> str:
        """The name under which its service is counted: labels of metrics are few."""
        name = account.family.name
        return name if name in self._names else OTHERS

    def _tenant(self, name: str) -> Tenant:
        found = self.tenants.get(name)
        if found is None:
            if len(self.tenants) >= self._n_tenants_max:
                self._forget_tenants()
            found = self.tenants[name] = Tenant(name, self._shares.get(name, 1.0))
        return found

    def _forget_tenants(self) -> None:
        """Those who have no process, and would be lifted to where a newcomer starts if they came back."""
        top, window = self.ledger.top, self.ledger.window
        for tenant in list(self.tenants.values()):
            if not tenant.n_processes and tenant.vt <= top - window * tenant.per_share:
                del self.tenants[tenant.name]
        self._n_tenants_max = max(N_TENANTS, 2 * len(self.tenants))

    def _family(self, name: str, now: float) -> Family:
        self._n_families += 1
        return Family(name, self._n_families, now)

    # --- order ---

    def order(self, jobs: Sequence[W], now: float) -> list[W]:
        """Jobs for one device, most deserving first."""
        rank = self.rank
        ranked = sorted(
            (FIRST if (account := job.account) is None else rank(account, now, job.since), i, job)
            for i, job in enumerate(jobs)
        )
        if not self._policy.by_tenant:
            return [job for _, _, job in ranked]
        queues: dict[Tenant | None, list[tuple[Rank, W]]] = {}
        for place, _, job in ranked:
            queues.setdefault(None if job.account is None else job.account.tenant, []).append((place, job))
        if len(queues) == 1:
            return [job for _, _, job in ranked]
        return _interleaved(queues)


def _interleaved(queues: "Mapping[Tenant | None, list[tuple[Rank, W]]]") -> list[W]:
    """Always the next job of the tenant that has had least of those with a job of the first class, where what a
    tenant's jobs before that one will compute counts as had."""
    heap = []
    for i, (tenant, queue) in enumerate(queues.items()):
        queue.reverse()
        heap.append((queue[-1][0][0], 0.0 if tenant is None else tenant.vt, i, tenant, queue))
    heapq.heapify(heap)
    order = []
    while heap:
        _, vt, i, tenant, queue = heap[0]
        _, job = queue.pop()
        order.append(job)
        if not queue:
            heapq.heappop(heap)
            continue
        n, per_share = job.n_wanted, 0.0 if tenant is None else tenant.per_share
        vt += per_share * (PROMPT_WEIGHT * n if n > 1 else GENERATED_WEIGHT)
        heapq.heapreplace(heap, (queue[-1][0][0], vt, i, tenant, queue))
    return order
