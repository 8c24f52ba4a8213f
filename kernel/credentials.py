"""Who a process is: from the door that it came in by, and the tenant it was started for, to what kvfs goes by.

A process acts as its owner. What a front door starts on behalf of a tenant acts as a user of that tenant's name; the
operator is whoever uses the kernel's own socket, for himself. Its groups are its tenant, which is that of new files,
and those of the configuration's `groups` that list its user. Nobody else is ever called what the operator is, or what
the kernel is in its own file system. Children have their parent's credentials, its umask as it is then included.
Called by `kernel/core.py`.
"""

from collections.abc import Mapping, Sequence

from kernel.process import Process
from kvfs.access import KERNEL, OPERATOR, OPERATOR_NAME, Who
from sdk.abi.values import Pid

PORT_NAME = "http"  # owner of what clients of the port start, and user and tenant of those that name none
DOORS = (OPERATOR_NAME, PORT_NAME)
RESERVED = (OPERATOR_NAME, KERNEL.user)


def credentials(
    owner: str, tenant: str, pid: Pid, *, parent: Process | None, groups: Mapping[str, Sequence[str]]
) -> Who:
    """Of a new process. A tenant with a name that is reserved is the owner's, as if none had been named."""
    if parent is not None:
        return parent.who._replace(pid=pid)
    if owner == tenant == OPERATOR_NAME:
        return OPERATOR._replace(pid=pid)
    if tenant in RESERVED:
        tenant = PORT_NAME if owner == OPERATOR_NAME else owner
    user = tenant if owner in DOORS else owner
    others = sorted(group for group, users in groups.items() if user in users and group not in (tenant, *RESERVED))
    return Who(user, (tenant, *others), tenant=tenant, pid=pid)


def tenant_of(who: Who) -> str:
    """Whose share of devices and of their pages counts: as for the files that it makes."""
    return who.tenant or OPERATOR_NAME
