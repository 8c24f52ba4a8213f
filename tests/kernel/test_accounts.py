"""Who had what, and what it costs to have been away."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.accounts import GENERATED_WEIGHT, WINDOW_S, WINDOW_TOKENS
from kernel.scheduler import Scheduler
from sdk.abi.errors import AccessDenied, QuotaExceeded
from sdk.abi.values import Limits

charges = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.floats(0, 0.1)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(charges)
def test_nothing_is_lost_on_the_way_up(given_out):
    scheduler = Scheduler()
    parent = scheduler.open("a", 0.0, tenant="t")
    accounts = [parent, scheduler.open("b", 0.0, tenant="t", parent=parent), scheduler.open("c", 0.0, tenant="t")]
    for i, charge in enumerate(given_out):
        accounts[i % 3].charge(*charge)
    tenant, families = scheduler.tenants["t"], {a.family for a in accounts}
    assert len(families) == 2
    assert sum(a.n_tokens for a in accounts) == sum(f.n_tokens for f in families) == sum(p + g for p, g, _ in given_out)
    assert sum(a.service for a in accounts) == pytest.approx(sum(f.service for f in families))
    assert tenant.service == tenant.vt == pytest.approx(sum(a.service for a in accounts))
    assert sum(a.device_s for a in accounts) == pytest.approx(scheduler.ledger.device_s)


def test_service_is_tokens_by_weight_and_as_much_again_for_average_time():
    scheduler = Scheduler()
    short, long = (scheduler.open(name, 0.0, tenant="t") for name in ("short", "long"))
    for _ in range(10):
        short.charge(0, 1, 0.001)
        long.charge(0, 1, 0.003)
    assert short.service + long.service == pytest.approx(20 * 2 * GENERATED_WEIGHT, rel=0.1)
    assert long.service > short.service, "equal tokens, which took the device longer"
    short.charge(10, 0, 0.0)
    assert short.service < long.service, "tokens of a prompt weigh less"


def test_a_share_of_two_makes_virtual_time_run_half_as_fast():
    scheduler = Scheduler(shares={"rich": 2.0})
    rich, poor = (scheduler.open("p", 0.0, tenant=name) for name in ("rich", "poor"))
    rich.charge(100, 0, 0.0)
    poor.charge(50, 0, 0.0)
    assert rich.tenant.vt == poor.tenant.vt == 50.0


@pytest.mark.parametrize("same_tenant", [True, False])
def test_who_was_away_is_a_window_ahead_and_no_more(same_tenant):
    scheduler = Scheduler()
    idler, hog = (scheduler.open(name, 0.0, tenant="t" if same_tenant else name) for name in ("idler", "hog"))
    hog.charge(100_000, 0, 0.0)
    idler.enter()
    newcomer = scheduler.open("new", 1.0, tenant="t" if same_tenant else "new")
    newcomer.enter()
    hog.enter()
    for account in (idler, newcomer):
        mine, others = (account.family.vt, hog.family.vt) if same_tenant else (account.tenant.vt, hog.tenant.vt)
        assert others - mine == WINDOW_TOKENS
    hog.charge(100_000, 0, 50.0)  # the rate is known from here on
    idler.enter()
    mine, others = (idler.family.vt, hog.family.vt) if same_tenant else (idler.tenant.vt, hog.tenant.vt)
    assert others - mine == pytest.approx(WINDOW_S * 2 * 200_000 / 50.0)


def test_who_had_more_is_not_set_back():
    scheduler = Scheduler()
    account = scheduler.open("a", 0.0, tenant="t")
    account.charge(100_000, 0, 0.0)
    before = account.family.vt, account.tenant.vt
    account.enter()
    assert (account.family.vt, account.tenant.vt) == before


# --- limits -------------------------------------------------------------------------------------------------------


def test_a_limit_of_tokens_holds_for_children_too():
    scheduler = Scheduler()
    parent = scheduler.open("a", 0.0, tenant="t")
    parent.charge(10, 0, 0.0)
    assert parent.n_left is None
    parent.afford(10**9)
    parent.narrow(Limits(tokens=100))
    child = scheduler.open("b", 0.0, tenant="t", parent=parent, limits=Limits(tokens=parent.n_left))
    assert child.limits == Limits(tokens=90)
    child.charge(30, 0, 0.0)
    assert (parent.n_left, child.n_left) == (60, 60)
    child.narrow(Limits(tokens=40))
    assert (parent.n_left, child.n_left) == (60, 10)
    child.afford(10)
    with pytest.raises(QuotaExceeded, match="the limit is 40 tokens: 30 are computed, and 11 more are wanted"):
        child.afford(11)
    with pytest.raises(QuotaExceeded, match="the limit is 100 tokens"):
        parent.afford(61)
    parent.charge(70, 0, 0.0)
    assert (parent.n_left, child.n_left) == (0, 0)


def test_a_limit_can_be_lowered_and_a_horizon_changed():
    account = Scheduler().open("a", 0.0, tenant="t")
    account.narrow(Limits(tokens=100, pages=5, horizon_tokens=50))
    account.narrow(Limits(tokens=50, wall_s=2.0, horizon_tokens=80))
    assert account.limits == Limits(tokens=50, pages=5, wall_s=2.0, horizon_tokens=80)
    assert (account.n_left, account.family.horizon) == (50, 80)
    with pytest.raises(AccessDenied, match="the limit pages is 5"):
        account.narrow(Limits(tokens=10, pages=6))
    assert account.n_left == 50, "all or nothing"


def test_age_is_the_class_then_the_beginning_of_the_family():
    scheduler = Scheduler()
    old = scheduler.open("a", 1.0, tenant="t")
    young = scheduler.open("b", 2.0, tenant="u")
    child = scheduler.open("c", 3.0, tenant="t", parent=old)
    urgent = scheduler.open("d", 4.0, tenant="t", priority=-1)
    assert sorted([young, child, urgent, old], key=lambda a: a.age) == [urgent, child, old, young]
    assert child.age == old.age
