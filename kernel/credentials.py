"""Who a process is: from the names that it was started under to what kvfs goes by.

A process acts as its owner. Its groups are its tenant, which is that of new files, and those of the configuration's
`groups` that list its owner. The operator is whoever uses the kernel's own socket, for himself: what he starts on
behalf of a tenant acts as a user of that tenant's name, and nobody else is ever called what the operator is. Children
have their parent's credentials, its umask as it is then included. Called by `kernel/core.py`.
"""

from collections.abc import Mapping, Sequence

from kernel.process import Process
from kvfs.access import OPERATOR, OPERATOR_NAME, Who
from sdk.abi.values import Pid


def credentials(
    owner: str, tenant: str, pid: Pid, *, parent: Process | None, groups: Mapping[str, Sequence[str]]
) -> Who:
    """Of a new process."""
    if parent is not None:
        return parent.who._replace(pid=pid)
    if owner == tenant == OPERATOR_NAME:
        return OPERATOR._replace(pid=pid)
    user, tenant = (tenant, tenant) if owner == OPERATOR_NAME else (owner, owner if tenant == OPERATOR_NAME else tenant)
    others = sorted(group for group, users in groups.items() if user in users and group not in (tenant, OPERATOR_NAME))
    return Who(user, (tenant, *others), tenant=tenant, pid=pid)
