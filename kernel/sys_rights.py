"""System calls on rights: who may do what with a file, and how much of everything a user may have.

Decode and call kvfs; mechanism never lives here.
"""

from typing import Any

from msgspec.structs import replace

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Process
from kernel.sys_file import FileHandle, file_of, settled
from sdk.abi import calls
from sdk.abi.errors import AccessDenied
from sdk.abi.values import DeviceSpace, Fd, Quota


@handles(calls.Chmod)
def sys_chmod(kernel: Kernel, process: Process, call: calls.Chmod) -> Any:
    kernel.fs.chmod(call.path, call.mode, who=process.who, now=kernel.now())
    return settled(kernel, process, "chmod")


@handles(calls.Chown)
def sys_chown(kernel: Kernel, process: Process, call: calls.Chown) -> Any:
    kernel.fs.chown(call.path, call.owner, call.group, who=process.who, now=kernel.now())
    return settled(kernel, process, "chown")


@handles(calls.Umask)
def sys_umask(kernel: Kernel, process: Process, call: calls.Umask) -> int:
    before = process.who.umask
    if call.mode is not None:
        process.who = process.who._replace(umask=call.mode)
    return before


@handles(calls.Dup)
def sys_dup(kernel: Kernel, process: Process, call: calls.Dup) -> Fd:
    file = kernel.fs.dup(file_of(process, call.fd), call.mode, who=process.who, now=kernel.now())
    return process.install(FileHandle(kernel, file))


@handles(calls.GetQuota)
def sys_quota(kernel: Kernel, process: Process, call: calls.GetQuota) -> Quota:
    who = process.who
    user = who.user if call.user is None else call.user
    if user != who.user and not who.root:
        raise AccessDenied(f"only the operator may see what {user!r} has: ask without a name for your own")
    quota = kernel.fs.quota(user, kernel.now())
    if kernel.durable is None:
        return quota
    return replace(quota, n_disk_bytes=kernel.durable.ledger.n_bytes(user))


@handles(calls.DeviceSpaces)
def sys_df(kernel: Kernel, process: Process, call: calls.DeviceSpaces) -> list[DeviceSpace]:
    return kernel.fs.df(process.who)
