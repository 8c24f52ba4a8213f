"""The device: which one, with how many threads, and how many pages its memory has room for.

Called by load.py. Only this file asks an accelerator or the operating system about memory.
"""

import math
from collections.abc import Callable

import psutil
import torch

from gpuworker.options import OptionError, Options

GIB = 1 << 30
CPU_CACHE_BYTES = 2 * GIB  # a laptop's share, where nothing else is said …
CPU_CACHE_FRACTION = 0.25  # … and never more than this of the memory that is free
SWAP_FRACTION = 0.5  # of the memory that is free: programs, the kernel and other workers live here too
SWAP_RATIO = 4  # host pages for each page: with more, a program waits for its turn longer than computing again takes


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises OptionError for a device that is not there."""
    n_cuda = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if n_cuda else "cpu"
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise OptionError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    if int(number or "0") >= n_cuda:
        raise OptionError(f"--device {name}: torch finds {n_cuda} CUDA devices here")
    return torch.device("cuda", int(number or "0"))


def set_threads(n: int | None) -> int:
    """Threads of torch's operations; by default torch's own choice, and no more than there are physical cores."""
    if n is not None and n < 1:
        raise OptionError(f"--threads {n}: use 1 or more")
    torch.set_num_threads(n or min(torch.get_num_threads(), psutil.cpu_count(logical=False) or 1))
    return torch.get_num_threads()


def describe(device: torch.device) -> str:
    """For the Welcome: cpu with its threads, cuda:0 with its name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu, {torch.get_num_threads()} threads"


def count_pages(options: Options, device: torch.device, bytes_per_page: int, largest_step: Callable[[], None]) -> int:
    """How many pages to allocate, the weights being loaded. `largest_step` runs the most expensive step there is, so
    that its memory is left free; it is called where it must be measured. Raises OptionError when none fit."""
    if options.num_pages is not None:
        return options.num_pages
    if options.kv_cache_memory is not None:
        if math.isinf(options.kv_cache_memory):
            raise OptionError("--kv-cache-memory inf: say how many GiB, or leave it out and some will be chosen")
        budget = int(options.kv_cache_memory * GIB)
    elif device.type == "cuda":
        budget = _left_on_gpu(device, options.gpu_memory_utilization, largest_step)
    else:
        budget = min(CPU_CACHE_BYTES, int(CPU_CACHE_FRACTION * psutil.virtual_memory().available))
    if budget < bytes_per_page:
        raise OptionError(
            f"no memory for pages: {max(budget, 0) >> 20} MiB are left for them; set --kv-cache-memory"
            + (" or raise --gpu-memory-utilization" if device.type == "cuda" else "")
        )
    return budget // bytes_per_page


def count_host_pages(options: Options, n_pages: int, bytes_per_page: int) -> int:
    """How many pages main memory takes in, when the device has `n_pages`."""
    if options.num_host_pages is not None:
        return options.num_host_pages
    budget = int(min(options.swap_space * GIB, SWAP_FRACTION * psutil.virtual_memory().available))
    return min(budget // bytes_per_page, SWAP_RATIO * n_pages)


def _left_on_gpu(device: torch.device, utilization: float, largest_step: Callable[[], None]) -> int:
    """Bytes of the device's share that neither other processes, nor the weights, nor the largest step need."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    largest_step()
    step = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return int(total * utilization) - (total - free) - step
