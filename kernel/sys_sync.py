"""System calls on durability: `sync`, and the end of those that change names or close files. Decode and hand on.

Without `--kv-dir` nothing is durable, and nothing here waits.
"""

from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Process
from kernel.sys_file import file_of
from sdk.abi import calls
from sdk.abi.errors import InvalidArgument, NotSupported


@handles(calls.Sync)
def sys_sync(kernel: Kernel, process: Process, call: calls.Sync) -> Any:
    inode = file_of(process, call.fd).live()
    durable = kernel.durable
    if durable is None:
        raise NotSupported("this kernel keeps nothing on disk: start it with --kv-dir")
    tasks = durable.settle()
    if not durable.ledger.is_kept(inode):
        raise InvalidArgument("this file has no name that is kept on disk: give it one outside of /tmp")
    save = durable.save(inode)
    return durable.answer(process, "sync", tasks if save is None else [*tasks, save])
