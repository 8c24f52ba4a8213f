"""`python -m gpuworker`: one worker process, from its options to its end.

Progress and complaints go to stderr, a line each. Exit codes: 0 when it was asked to end, 1 when a step met a bug of
ours, 2 when it could not start. Torch is imported only for a torch backend.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Annotated, Any, Literal

import typer

from gpuworker.address import AddressError, is_private
from gpuworker.backend import Backend
from gpuworker.options import OptionError, Options
from gpuworker.serve import Server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    listen: Annotated[str, typer.Option(help="tcp://HOST:PORT or ipc://PATH; port * takes a free one.")],
    model: Annotated[str | None, typer.Option(help="A known name, a .gguf, a directory, or org/name.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json, in place of the model's own.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Tokens a file can hold.")] = None,
    attention: Annotated[str, typer.Option(help="auto, cpu, sdpa or flash_attn.")] = "auto",
    group_prefixes: Annotated[bool, typer.Option(help="Read what rows share once, on a CPU.")] = True,
    backend: Annotated[Literal["torch", "null"], typer.Option(help="null: the contract without a model.")] = "torch",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a step.")] = None,
    kv_cache_memory: Annotated[float | None, typer.Option(min=0, help="Memory of the KV pages, in GiB.")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0, max=1, help="Share of a GPU's memory.")] = 0.9,
    num_pages: Annotated[int | None, typer.Option(min=1, max=2**31, help="KV pages, in place of a memory.")] = None,
    swap_space: Annotated[float, typer.Option(min=0, help="Main memory that pages may move to, in GiB.")] = 4.0,
    num_host_pages: Annotated[int | None, typer.Option(min=0, max=2**31, help="In place of a swap space.")] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Rows a batch may have.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="New tokens a batch may have.")] = 2048,
    step_time_us: Annotated[float, typer.Option(min=0, help="What a step of a null worker takes, at least.")] = 0.0,
    row_time_us: Annotated[float, typer.Option(min=0, help="… and more for each row,")] = 0.0,
    token_time_us: Annotated[float, typer.Option(min=0, help="… for each new token,")] = 0.0,
    context_time_us: Annotated[float, typer.Option(min=0, help="… for each token that a row reads.")] = 0.0,
    parent: Annotated[int | None, typer.Option(help="Pid of the process that starts this one; end with it.")] = None,
    name: Annotated[str | None, typer.Option(help="The worker's name; by default host-pid.")] = None,
    ready_fd: Annotated[int | None, typer.Option(help="Inherited; gets one line of JSON when ready or failed.")] = None,
) -> None:
    """Serve one model on one device to one kernel."""
    given = locals()
    options = Options(**{field: given[field] for field in Options.__dataclass_fields__})
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    try:
        code = work(options, listen, name, parent, ready_fd)
    except (AddressError, OptionError) as e:
        if ready_fd is not None and is_open(ready_fd):
            tell(ready_fd, {"error": str(e)})  # who started it says it
        else:
            say(f"gpuworker: {e}")
        code = 2
    raise typer.Exit(code)


def work(options: Options, listen: str, name: str, parent: int | None, ready_fd: int | None) -> int:
    """Listens, loads, serves. Returns the exit code. Raises AddressError and OptionError before it serves."""
    if ready_fd is not None and not is_open(ready_fd):
        raise OptionError(f"--ready-fd {ready_fd}: not an open file of this process")
    if not is_private(listen):
        say(f"warning: {listen} can be reached from other machines, and is neither encrypted nor authenticated")
    log = say if parent is None else (lambda line: None)  # a kernel tells what becomes of its own worker
    with contextlib.closing(Server(listen, name=name, end_on_detach=parent is not None, log=log)) as server:
        on_signal(lambda: sys.exit(0))
        with long_lived():
            backend = in_a_thread(lambda: load(options))
        on_signal(lambda: server.stop("it was told to end"))
        facts = backend.info()
        size = f"{facts.n_pages} pages of {facts.model.page_size} tokens, {facts.n_host_pages} in main memory"
        log(f"ready on {server.address}: {facts.model.name}, {facts.device}, {size}")
        if ready_fd is not None:
            tell(ready_fd, {"address": server.address, "worker": name, "os_pid": os.getpid()})
        reason = server.run(backend, watch_parent(parent))
        log(f"ended: {reason}")
    code = 0 if server.crash is None else 1
    if server.is_computing:
        os._exit(code)  # the interpreter cannot end while a step holds a thread
    return code


@contextlib.contextmanager
def long_lived() -> Iterator[None]:
    """What is made inside stays to the end, and the garbage collector need not look at it: with torch and a tokenizer
    that stops all threads for 0.15 s, again and again while they load and once in a while later, when it looks to the
    kernel like a worker that hangs."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def in_a_thread(make: Callable[[], Backend]) -> Backend:
    """The result, or the exception, of `make` in a thread that is gone afterwards.

    OpenMP keeps a team of threads for each thread that computes, and as soon as all its teams together are larger than
    the machine it stops spinning between products: a decode step then takes three times as long. So the thread that
    loads must not live on beside the one that runs the steps."""
    box: Future[Backend] = Future()

    def run() -> None:
        try:
            box.set_result(make())
        except BaseException as e:
            box.set_exception(e)

    thread = threading.Thread(target=run, name="load", daemon=True)  # a signal need not wait for it
    thread.start()
    backend = box.result()
    thread.join()
    return backend


def load(options: Options) -> Backend:
    """The backend that the options name. Raises OptionError."""
    if options.backend == "torch":
        # Read when torch is loaded. OpenMP's threads spin between the products of a step: without end by default, so
        # that any other busy process (the kernel, a client) stalls each product by milliseconds; with a tenth of
        # this a step on a quiet machine takes a third longer. Measured in perf/LOG.md.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        from gpuworker.load import load as load_engine

        return load_engine(options, say)
    from gpuworker.null import NullBackend
    from gpuworker.stepcost import StepCost

    n_pages = options.num_pages or 4096
    n_host_pages = options.num_host_pages
    if n_host_pages is None:
        n_host_pages = n_pages if options.swap_space else 0
    times_us = (options.step_time_us, options.row_time_us, options.token_time_us, options.context_time_us)
    try:
        return NullBackend(
            name=options.model or "null",
            n_pages=n_pages,
            n_host_pages=n_host_pages,
            max_model_len=options.max_model_len or 8192,
            max_rows=options.max_num_seqs,
            max_batch_tokens=options.max_num_batched_tokens,
            cost=StepCost(*(t / 1e6 for t in times_us)),
        )
    except MemoryError:
        raise OptionError(f"--num-pages {options.num_pages}: not enough memory") from None


def watch_parent(parent: int | None) -> Callable[[], str | None]:
    """A reason to end, as soon as that process is gone. It need not be the one that started this one."""
    gone = "the process it belongs to is gone"
    if parent is None:
        return lambda: None
    try:
        fd = os.pidfd_open(parent)
    except AttributeError:  # not on this system
        return lambda: None if os.getppid() == parent else gone
    except OSError:
        return lambda: gone
    return lambda: gone if select.select([fd], [], [], 0)[0] else None


def on_signal(act: Callable[[], None]) -> None:
    """What SIGTERM and SIGINT do from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: act())


def say(line: str) -> None:
    """One line of progress or complaint."""
    print(line, file=sys.stderr, flush=True)


def tell(ready_fd: int, facts: dict[str, Any]) -> None:
    """One line of JSON, for a process that waits for it. Closes the descriptor."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(ready_fd, "w") as f:
        f.write(json.dumps(facts) + "\n")


def is_open(fd: int) -> bool:
    """Whether this process has such a descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    app(prog_name="gpuworker")
