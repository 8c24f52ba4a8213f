"""Who a process is. Nobody but the operator becomes what the operator is."""

import pytest

from kernel.credentials import credentials
from kvfs.access import OPERATOR, Who
from sdk.abi.values import Pid

GROUPS = {"team": ["ann", "http"], "crew": ["bob"], "acme": ["ann"], "local": ["ann", "eve"]}


@pytest.mark.parametrize(
    ("owner", "tenant", "who"),
    [
        ("local", "local", OPERATOR._replace(pid=7)),
        ("ann", "ann", Who("ann", ("ann", "acme", "team"), tenant="ann", pid=7)),
        ("ann", "acme", Who("ann", ("acme", "team"), tenant="acme", pid=7)),
        ("http", "somebody", Who("http", ("somebody", "team"), tenant="somebody", pid=7)),
        ("local", "bob", Who("bob", ("bob", "crew"), tenant="bob", pid=7)),
        ("eve", "local", Who("eve", ("eve",), tenant="eve", pid=7)),
    ],
)
def test_owner_and_tenant_make_a_user(owner: str, tenant: str, who: Who) -> None:
    assert credentials(owner, tenant, Pid(7), parent=None, groups=GROUPS) == who
