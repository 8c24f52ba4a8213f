"""Who leaves first, as a plain function of the facts."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kernel.costs import StepCosts
from kernel.eviction import Scene, Standing, order
from kvfs.tiers import FileFacts


def file(ino: int, **given: Any) -> FileFacts:
    """A file of 4 pages that nobody has open and that was used at 0 s."""
    facts: dict[str, Any] = {
        "pids": (), "n_tokens": 64, "n_kv": 64, "n_pages": 4, "n_host_pages": 0, "claimed": False, "n_leases": 0,
        "moving": False, "used_s": 0.0, "tenant": "a",
    }  # fmt: skip
    return FileFacts(ino, **(facts | given))


def scene(files: list[FileFacts], **given: Any) -> Scene:
    costs = StepCosts()
    costs.token_s, costs.page_s = 0.001, 0.001
    pages = {f.ino: f.n_pages for f in files}
    known: dict[str, Any] = {
        "now": 100.0, "n_pages": 100, "tenant": "a", "shares": {}, "hold_s": 600.0, "pinned": {},
        "unneeded": set(), "busy": (), "returns_at": lambda f: None, "costs": costs,
        "n_distinct": lambda inos: sum(pages[ino] for ino in inos),
    }  # fmt: skip
    return Scene(**(known | given))


def inos(files: list[FileFacts], **given: Any) -> list[int]:
    return [v.facts.ino for v in order(files, scene(files, **given))]


def test_by_standing():
    files = [file(1, pids=(1,)), file(2, pids=(2,)), file(3), file(4, pids=(4,))]
    away = {2: 200.0}
    assert inos(files, unneeded={4}, returns_at=lambda f: away.get(f.ino)) == [4, 3, 2, 1]
    standings = [v.standing for v in order(files, scene(files, unneeded={4}, returns_at=lambda f: away.get(f.ino)))]
    assert standings == [Standing.UNNEEDED, Standing.CACHED, Standing.AWAY, Standing.IDLE]


def test_what_is_wanted_latest_goes_first():
    assert inos([file(1, used_s=90.0), file(2, used_s=10.0), file(3, used_s=50.0)]) == [2, 3, 1]
    away = {1: 101.0, 2: 150.0, 3: 110.0}
    files = [file(i, pids=(i,), used_s=99.0) for i in away]
    assert inos(files, returns_at=lambda f: away[f.ino]) == [2, 3, 1]


def test_what_costs_least_to_get_back_goes_first():
    """By page: half a page's tokens are computed in half the time."""
    full, sparse = file(1, n_kv=64), file(2, n_kv=4)
    assert inos([full, sparse]) == [2, 1]
    assert inos([full, sparse._replace(used_s=99.0)]) == [1, 2], "but not one that was used just now"


def test_what_is_safe_on_disk_goes_before_what_is_not():
    assert inos([file(1, used_s=10.0), file(2, used_s=50.0, n_durable=64), file(3, used_s=10.0, n_durable=32)]) == [
        2,
        1,
        3,
    ]


def test_what_is_edited_cannot_be_had_by_computing():
    assert inos([file(1, n_kv=4, edited=True), file(2, n_kv=6)]) == [2, 1]


def test_pinned_pages_do_not_leave():
    files = [file(1), file(2)]
    (victim,) = order(files, scene(files, pinned={1: 4}))
    assert victim.facts.ino == 2
    found = {v.facts.ino: (v.n_kept, v.n_freed) for v in order(files, scene(files, pinned={1: 3}))}
    assert found == {1: (3, 1), 2: (0, 4)}


def test_what_is_in_use_stays():
    busy = [file(1, claimed=True), file(2, n_leases=1), file(3, moving=True), file(4, n_pages=0), file(5)]
    assert inos(busy, busy=[5]) == []


def test_another_tenants_cache_is_taken_down_to_its_share_and_not_below():
    files = [file(i, tenant="b", n_pages=20, used_s=i) for i in range(1, 4)]
    victims = order(files, scene(files))
    assert [(v.facts.ino, v.n_freed) for v in victims] == [(1, 10)], "its share is 50 of 100, and it has 60"
    assert order(files[:2], scene(files[:2])) == []
    assert [v.n_freed for v in order(files, scene(files, shares={"a": 3.0}))] == [20, 15]
    assert sum(v.n_freed for v in order(files, scene(files, tenant="b"))) == 60, "its own it may take, all of it"


def test_what_was_not_used_for_long_is_nobodys_cache():
    stale = [file(i, tenant="b", n_pages=20, used_s=0.0) for i in range(1, 3)]
    fresh = [file(3, tenant="b", n_pages=20, used_s=95.0)]
    assert [v.facts.ino for v in order([*stale, *fresh], scene([*stale, *fresh], hold_s=10.0))] == [1, 2]


def test_what_is_pinned_of_an_open_file_is_of_the_cache():
    files = [file(1, tenant="b", n_pages=40), file(2, tenant="b", n_pages=60, pids=(1,))]
    victims = order(files, scene(files, pinned={2: 30}))
    assert {v.facts.ino: v.n_freed for v in victims} == {1: 20, 2: 30}, "its share is 50, and 70 are cached or pinned"


def test_what_programs_of_a_tenant_beyond_its_share_have_open_goes_before_that_of_others():
    files = [
        file(1, tenant="b", n_pages=60),
        file(2, tenant="b", pids=(1,), used_s=99.0),
        file(3, tenant="c", pids=(2,)),
    ]
    assert inos(files) == [1, 2, 3]
    assert inos([files[0]._replace(n_pages=10), *files[1:]]) == [3, 2]


def test_who_wants_more_than_its_share_takes_from_its_own_programs_first():
    """Even from idle ones where those of another tenant are away for long."""
    away = {2: 1000.0}
    files = [file(1, n_pages=50, pids=(1,), used_s=99.0), file(2, tenant="b", n_pages=20, pids=(2,))]
    assert inos(files, returns_at=lambda f: away.get(f.ino)) == [1, 2]
    assert inos([files[0]._replace(n_pages=49), files[1]], returns_at=lambda f: away.get(f.ino)) == [2, 1]
    assert inos(files, tenant="b", returns_at=lambda f: away.get(f.ino)) == [2, 1], "both are within theirs"


FILES = st.lists(
    st.builds(
        lambda tenant, n, pids, used: file(0, tenant=tenant, n_pages=n, pids=pids, used_s=used),
        st.sampled_from("abc"), st.integers(0, 30), st.sampled_from([(), (), (1,)]), st.floats(0, 99),
    ), max_size=12,
)  # fmt: skip


@given(FILES, st.sampled_from("abc"), st.integers(40, 200), st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 9)))
def test_no_tenant_is_taken_below_its_share(found, tenant, n_pages, shares):
    """And what is not protected is enough for whoever wants no more than its own share."""
    files = [f._replace(ino=i) for i, f in enumerate(found, 1)]
    victims = order(files, scene(files, tenant=tenant, n_pages=n_pages, shares=shares))
    there = {f.tenant for f in files if f.n_pages} | {tenant}
    whole = sum(shares.get(t, 1.0) for t in there)
    protected = 0
    for other in there - {tenant}:
        share = int(n_pages * shares.get(other, 1.0) / whole)
        cached = sum(f.n_pages for f in files if f.tenant == other and not f.pids)
        taken = sum(v.n_freed for v in victims if v.facts.tenant == other and not v.facts.pids)
        assert cached - taken == min(cached, share)
        protected += cached - taken
    assert n_pages - protected >= int(n_pages * shares.get(tenant, 1.0) / whole)
