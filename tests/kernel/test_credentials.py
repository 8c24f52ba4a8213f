"""Who a process is. Nobody becomes what the operator is, or the kernel."""

import pytest

from kernel.credentials import credentials, tenant_of
from kvfs.access import OPERATOR, Who
from sdk.abi.values import Pid

GROUPS = {"team": ["ann", "http"], "crew": ["bob"], "acme": ["ann"], "local": ["ann", "eve"], "kernel": ["eve"]}


@pytest.mark.parametrize(
    ("owner", "tenant", "who"),
    [
        ("local", "local", OPERATOR._replace(pid=7)),
        ("ann", "ann", Who("ann", ("ann", "acme", "team"), tenant="ann", pid=7)),
        ("ann", "acme", Who("ann", ("acme", "team"), tenant="acme", pid=7)),
        ("http", "http", Who("http", ("http", "team"), tenant="http", pid=7)),
        ("http", "bob", Who("bob", ("bob", "crew"), tenant="bob", pid=7)),
        ("local", "bob", Who("bob", ("bob", "crew"), tenant="bob", pid=7)),
        ("eve", "local", Who("eve", ("eve",), tenant="eve", pid=7)),
        ("http", "local", Who("http", ("http", "team"), tenant="http", pid=7)),
        ("http", "kernel", Who("http", ("http", "team"), tenant="http", pid=7)),
        ("local", "kernel", Who("http", ("http", "team"), tenant="http", pid=7)),
    ],
)
def test_owner_and_tenant_make_a_user(owner: str, tenant: str, who: Who) -> None:
    assert credentials(owner, tenant, Pid(7), parent=None, groups=GROUPS) == who
    assert tenant_of(who) == (who.tenant or "local")
