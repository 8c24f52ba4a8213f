"""Who goes first: properties of the policies, on a device that takes so many jobs at a time."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.accounts import WINDOW_TOKENS, Account
from kernel.scheduler import N_TENANTS, Scheduler
from sdk.abi.values import Limits


class Job(NamedTuple):
    account: Account | None
    since: float = 0.0
    n_wanted: int = 1


def serve(scheduler: Scheduler, jobs: list[Job], n_places: int, now: float) -> list[Job]:
    """One batch of a device with so many places."""
    served = scheduler.order(jobs, now)[:n_places]
    for job in served:
        if job.account is not None:
            prompt = job.n_wanted > 1
            job.account.charge(job.n_wanted if prompt else 0, 0 if prompt else 1, 0.0)
    return served


# --- fair ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    shares=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=5),
    n_programs=st.lists(st.integers(1, 12), min_size=5, max_size=5),
    costs=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    n_places=st.integers(1, 16),
)
def test_tenants_get_their_shares_whatever_their_programs(shares, n_programs, costs, n_places):
    """Start-time fair queueing's bound (Goyal et al., theorem 1), with a batch in the place of a packet."""
    names = [f"t{i}" for i in range(len(shares))]
    scheduler = Scheduler(shares=dict(zip(names, shares, strict=True)))
    jobs = [
        Job(scheduler.open("p", 0.0, tenant=name), n_wanted=cost)
        for name, n, cost in zip(names, n_programs, costs, strict=False)
        for _ in range(n * n_places)  # each could fill the device
    ]
    for _ in range(60):
        serve(scheduler, jobs, n_places, 0.0)
    had = [scheduler.tenants[name].service / share for name, share in zip(names, shares, strict=True)]
    most = max(costs[: len(names)])
    bound = 2 * most * (1 / min(shares)) + 2 * most / min(shares)
    assert max(had) - min(had) <= bound


def test_a_batch_itself_is_shared_out_by_weight():
    scheduler = Scheduler(shares={"rich": 2.0})
    jobs = [Job(scheduler.open("p", 0.0, tenant=name)) for name in ("poor", "rich") for _ in range(40)]
    batch = [job.account.tenant.name for job in scheduler.order(jobs, 0.0)[:30]]
    assert (batch.count("rich"), batch.count("poor")) == (20, 10)
    prompts = [job._replace(n_wanted=10) if job.account.tenant.name == "rich" else job for job in jobs]
    batch = [job.account.tenant.name for job in scheduler.order(prompts, 0.0)[:21]]
    assert batch.count("rich") == 6, "what a prompt will take counts, too: 5 a time against 2"


@settings(deadline=None, max_examples=50)
@given(n_places=st.integers(2, 30), n_greedy=st.integers(2, 64))
def test_one_program_beside_a_tenant_with_many_is_in_every_batch(n_places, n_greedy):
    scheduler = Scheduler()
    greedy = [Job(scheduler.open("g", 0.0, tenant="greedy")) for _ in range(n_greedy)]
    single = Job(scheduler.open("s", 1.0, tenant="single"))
    assert all(single in serve(scheduler, [*greedy, single], n_places, 0.0) for _ in range(20))


@settings(deadline=None, max_examples=50)
@given(n_places=st.integers(1, 10), n_programs=st.integers(2, 20))
def test_programs_of_a_tenant_are_equal(n_places, n_programs):
    scheduler = Scheduler()
    jobs = [Job(scheduler.open("p", 0.0, tenant="t")) for _ in range(n_programs)]
    for _ in range(50):
        serve(scheduler, jobs, n_places, 0.0)
    had = [job.account.n_tokens for job in jobs]
    assert max(had) - min(had) <= 1


def test_what_children_had_counts_for_their_program():
    scheduler = Scheduler()
    parent = scheduler.open("a", 0.0, tenant="t")
    children = [scheduler.open("b", 0.0, tenant="t", parent=parent) for _ in range(9)]
    alone = Job(scheduler.open("c", 1.0, tenant="t"))
    jobs = [*(Job(child) for child in children), alone]
    for _ in range(100):
        serve(scheduler, jobs, 1, 0.0)
    assert abs(alone.account.n_tokens - parent.family.n_tokens) <= 1


def test_detached_children_are_programs_of_their_own():
    scheduler = Scheduler()
    parent = scheduler.open("a", 0.0, tenant="t", priority=3)
    child = scheduler.open("b", 0.0, tenant="x", parent=parent, detached=True, limits=Limits(pages=7))
    assert child.family is not parent.family
    assert (child.tenant, child.priority, child.limits.pages) == (parent.tenant, 3, 7)


@settings(deadline=None, max_examples=50)
@given(n_before=st.integers(0, 100_000))
def test_a_newcomer_goes_before_others_for_a_window_and_no_longer(n_before):
    scheduler = Scheduler()
    old = Job(scheduler.open("old", 0.0, tenant="t"))
    old.account.charge(n_before, 0, 0.0)
    new = Job(scheduler.open("new", 1.0, tenant="t"), n_wanted=16)
    new.account.enter()
    n_first = 0
    while serve(scheduler, [old, new], 1, 0.0) == [new]:
        n_first += 1
    assert n_first <= WINDOW_TOKENS / 16 + 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_nobody_of_a_class_waits_for_a_lower_one(priorities):
    scheduler = Scheduler()
    jobs = [Job(scheduler.open("p", 0.0, tenant=f"t{i % 3}", priority=p)) for i, p in enumerate(priorities)]
    order = [job.account.priority for job in scheduler.order(jobs, 0.0)]
    assert order == sorted(priorities)


@settings(deadline=None, max_examples=50)
@given(below=st.integers(1, 6), ageing_s=st.floats(0.5, 5.0), n_urgent=st.integers(1, 5))
def test_no_class_starves(below, ageing_s, n_urgent):
    """A device with one place, and more urgent work than it can ever do."""
    scheduler = Scheduler(ageing_s=ageing_s)
    urgent = [Job(scheduler.open("u", 0.0, tenant="t")) for _ in range(n_urgent)]
    low = Job(scheduler.open("l", 0.0, tenant="t", priority=below))
    served, step_s = [], ageing_s / 10
    for i in range(10 * (below + 2) * 3):
        if low in serve(scheduler, [*urgent, low], 1, i * step_s):
            served.append(i * step_s)
    waits = [b - a for a, b in zip([0.0, *served], served, strict=False)]
    assert len(waits) >= 2
    assert max(waits) <= (below + 1) * ageing_s + 2 * step_s
    assert min(waits) >= below * ageing_s - 2 * step_s, "and urgent work is urgent"


def test_the_kernels_own_work_is_first():
    scheduler = Scheduler()
    jobs = [
        Job(scheduler.open("a", 0.0, tenant="t", priority=-9)),
        Job(None),
        Job(scheduler.open("b", 0.0, tenant="u", priority=-9)),
    ]
    for order in (scheduler.order(jobs, 0.0), scheduler.order(jobs[:2], 0.0), scheduler.order(jobs[1:2], 0.0)):
        assert order[0] is jobs[1]


def test_nothing_to_order():
    assert Scheduler().order([], 0.0) == []


# --- the others ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(8)), st.lists(st.integers(0, 1000), min_size=8, max_size=8))
def test_fcfs_is_by_beginning_alone(arrivals, had):
    scheduler = Scheduler("fcfs")
    jobs = []
    for i, began in enumerate(sorted(arrivals)):
        account = scheduler.open("p", float(began), tenant=f"t{i % 3}", priority=-i)
        account.charge(had[i], 0, 0.0)
        jobs.append(Job(account))
    shuffled = [jobs[i] for i in arrivals]
    assert scheduler.order(shuffled, 100.0) == jobs


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 600)), min_size=1, max_size=12))
def test_srpt_is_by_what_is_left_then_as_fair(programs):
    scheduler = Scheduler("srpt")
    jobs = []
    for horizon, had in programs:
        account = scheduler.open("p", 0.0, tenant="t")
        account.narrow(Limits(horizon_tokens=horizon))
        account.charge(had, 0, 0.0)
        jobs.append(Job(account))
    silent = [Job(scheduler.open("s", 0.0, tenant="t")) for _ in range(3)]
    for i, job in enumerate(silent):
        job.account.charge(100 - i, 0, 0.0)
    order = scheduler.order([*silent, *jobs], 0.0)
    left = [job.account.family.horizon - job.account.n_tokens for job in order if job.account.family.horizon]
    honest = [n for n in left if n > 0]
    assert left[: len(honest)] == sorted(honest), "first those who are not done by their own word, nearest end first"
    rest = order[len(honest) :]
    assert rest == sorted(rest, key=lambda job: (job.account.family.vt, job.account.family.number))


def test_an_unknown_policy():
    with pytest.raises(KeyError):
        Scheduler("lottery")


# --- accounts that end --------------------------------------------------------------------------------------------


def test_tenants_that_are_gone_are_forgotten_when_nothing_depends_on_them():
    scheduler = Scheduler()
    busy = scheduler.open("b", 0.0, tenant="busy")
    busy.charge(100_000, 0, 0.0)
    debtor = scheduler.open("d", 0.0, tenant="debtor")
    debtor.charge(100_000, 0, 0.0)
    scheduler.close(debtor)
    for i in range(10 * N_TENANTS):
        scheduler.close(scheduler.open("p", 0.0, tenant=f"t{i}"))
    assert len(scheduler.tenants) <= 2 * N_TENANTS
    assert scheduler.open("d", 0.0, tenant="debtor").tenant is debtor.tenant, "it does not get rid of what it had"
    assert busy.tenant.name in scheduler.tenants
