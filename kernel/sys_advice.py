"""System calls about where a file's pages should be. Decode and call the advisor; mechanism never lives here."""

from kernel.core import Kernel
from kernel.credentials import tenant_of
from kernel.dispatch import handles
from kernel.process import Process
from kernel.sys_file import file_of
from sdk.abi import calls
from sdk.abi.values import Advised


@handles(calls.Pin)
def sys_pin(kernel: Kernel, process: Process, call: calls.Pin) -> Advised:
    return kernel.advisor.pin(file_of(process, call.fd), tenant_of(process.who), call.ttl)


@handles(calls.Advise)
def sys_advise(kernel: Kernel, process: Process, call: calls.Advise) -> Advised:
    return kernel.advisor.advise(file_of(process, call.fd), tenant_of(process.who), call.advice)
