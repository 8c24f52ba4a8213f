"""THE HOST TIER: pages in main memory, and the way of pages' contents between it and the device.

A page here is a row of bytes: its contents as gpuworker/backend.py defines them, so that what is moved, fetched,
stored or one day written to a disk looks the same everywhere. Moves start when their step does and are waited for
before it is answered: they cost what they take longer than the step, and no more.

On a CPU one helper thread moves with numpy, which lets go of the GIL meanwhile. Torch must not do it: a second thread
that computes starts a second OpenMP team, and both are slow from then on (see gpuworker/__main__.py). On CUDA the
moves are queued on a stream of their own, to and from pinned memory.

Called by the engine alone. Which pages move, and when, is the kernel's to decide: never add it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpuworker.pagepool import PagePool, zeros

Moves = Iterable[tuple[int, int]]
Row = Any  # of bytes: a tensor where CUDA has a part in the copy, else a numpy array
cuda: Any = torch.cuda  # its streams and events have no types


class HostTier:
    """Pages in main memory, for one pool."""

    def __init__(self, pool: PagePool, num_pages: int) -> None:
        """Costs nothing until pages are written, but on CUDA, where all of it is pinned at once. Raises MemoryError."""
        kv, tails = pool.as_bytes()
        self._device = pool.kv.device
        self._kv_bytes, self._page_bytes = kv.shape[1], kv.shape[1] + tails.shape[1]
        self._parts = self._rows_of(kv), self._rows_of(tails)
        self.pages = zeros((num_pages, self._page_bytes), torch.uint8, torch.device("cpu"))
        if self._device.type == "cuda":
            _pin(self.pages)
            self._stream = cuda.Stream(self._device)
        else:
            self._helper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="moves")  # starts with the first move

    def start(self, moves_out: Sequence[tuple[int, int]], moves_in: Sequence[tuple[int, int]]) -> Callable[[], float]:
        """Begins to move pages: out as (page, host page), in as (host page, page); no page twice. The function that is
        returned waits for their end, and returns the seconds that they took."""
        if not moves_out and not moves_in:
            return lambda: 0.0
        pairs = self._pairs(self.pages, moves_out, moves_in)
        if self._device.type == "cuda":
            return self._start_on_cuda(pairs)
        return self._helper.submit(_timed_copy, pairs).result

    def read(self, pages: Sequence[int]) -> memoryview:
        """The contents of these pages, page after page; those in main memory are numbered behind the device's."""
        contents, n_device = np.empty((len(pages), self._page_bytes), dtype=np.uint8), len(self._parts[0])
        device = [(page, i) for i, page in enumerate(pages) if page < n_device]
        _copy(self._pairs(torch.from_numpy(contents), device, ()))
        for i, page in enumerate(pages):
            if page >= n_device:
                contents[i] = self.pages[page - n_device].numpy()
        return contents.reshape(-1).data

    def write(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        """Replaces the contents of these pages, numbered as for `read`."""
        rows = np.frombuffer(bytearray(contents), dtype=np.uint8).reshape(len(pages), self._page_bytes)
        n_device = len(self._parts[0])
        _copy(self._pairs(torch.from_numpy(rows), (), [(i, page) for i, page in enumerate(pages) if page < n_device]))
        for i, page in enumerate(pages):
            if page >= n_device:
                self.pages[page - n_device].numpy()[:] = rows[i]

    def _rows_of(self, matrix: Tensor) -> Any:
        """Rows to copy with the right hands: see Row."""
        return matrix if self._device.type == "cuda" else matrix.numpy()

    def _pairs(self, host: Tensor, out: Moves, back: Moves) -> Iterator[tuple[Row, Row]]:
        """What to copy, as (destination, source). A page's two parts lie apart on the device, side by side here."""
        cut, out, back = self._kv_bytes, list(out), list(back)
        for device, there in zip(self._parts, map(self._rows_of, (host[:, :cut], host[:, cut:])), strict=True):
            for page, host_page in out:
                yield there[host_page], device[page]
            for host_page, page in back:
                yield device[page], there[host_page]

    def _start_on_cuda(self, pairs: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], float]:
        begun, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        self._stream.wait_stream(cuda.current_stream(self._device))  # a page may just have been stored
        with cuda.stream(self._stream):
            begun.record()
            for destination, source in pairs:
                destination.copy_(source, non_blocking=True)
            ended.record()

        def finish() -> float:
            ended.synchronize()
            return float(begun.elapsed_time(ended)) / 1e3

        return finish


def _copy(pairs: Iterator[tuple[Row, Row]]) -> None:
    for destination, source in pairs:
        if isinstance(destination, np.ndarray):
            np.copyto(destination, source)
        else:
            destination.copy_(source)


def _timed_copy(pairs: Iterator[tuple[Row, Row]]) -> float:
    started = time.perf_counter()
    _copy(pairs)
    return time.perf_counter() - started


def _pin(pages: Tensor) -> None:
    """Pins exactly this memory; torch's own allocator of pinned memory rounds up to a power of two."""
    if pages.nbytes and int(cuda.cudart().cudaHostRegister(pages.data_ptr(), pages.nbytes, 0)):
        raise MemoryError(f"{pages.nbytes >> 20} MiB of main memory cannot be pinned: lower --swap-space")
