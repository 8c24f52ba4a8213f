"""`python -m kernel`: the command line; then the supervisor, or the event loop everything runs in.

What the kernel is made of is imported only where it runs: the supervisor starts at once and stays small.
"""

import asyncio
import faulthandler
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kernel.child import STACK_SIGNAL
from kernel.config import Config, ConfigError
from kernel.supervisor import supervise

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The Symphony kernel: serves LLM programs on a model. Options may also come from SYMPHONY_* variables "
    "and from --config; the command line counts most.",
)


# Options whose help is long.
PreemptionMode = Annotated[
    str | None, typer.Option(help="auto, swap or recompute: what becomes of pages that make room")
]
PinnedShare = Annotated[
    float | None, typer.Option(help="share of a device's pages that programs may pin, all together; 0.5")
]
TenantCache = Annotated[
    float | None, typer.Option(help="seconds for which a tenant's unopened files are safe from others; 600")
]
BatchPolicy = Annotated[
    str | None, typer.Option(help="eager, k, t, k-or-t or adaptive: when an idle worker gets its batch")
]


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="a known name, a .gguf file, a Hugging Face directory, or org/name")
    ] = None,
    served_model_name: Annotated[list[str] | None, typer.Option(help="name that clients use; repeat for more")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="a tokenizer.json, or a directory with one")] = None,
    load_format: Annotated[str | None, typer.Option(help="auto, or dummy for random weights")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N")] = None,
    attention: Annotated[str | None, typer.Option(help="auto, cpu, sdpa, flash_attn")] = None,
    group_prefixes: Annotated[bool | None, typer.Option(help="on a CPU, read once what rows share")] = None,
    backend: Annotated[str | None, typer.Option(help="torch, or null: deterministic, no model")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="context in tokens")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="rows of a batch")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="new tokens of a batch")] = None,
    kv_cache_memory: Annotated[float | None, typer.Option(help="GiB for KV pages")] = None,
    num_pages: Annotated[int | None, typer.Option(help="KV pages, instead of --kv-cache-memory")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the local worker")] = None,
    swap_space: Annotated[
        float | None, typer.Option(help="GiB of main memory that KV pages may move to; 0: none")
    ] = None,
    preemption_mode: PreemptionMode = None,
    max_pinned_share: PinnedShare = None,
    tenant_cache_s: TenantCache = None,
    batch_policy: BatchPolicy = None,
    scheduling_policy: Annotated[str | None, typer.Option(help="fair, fcfs or srpt: which program goes first")] = None,
    kv_dir: Annotated[Path | None, typer.Option(help="directory in which named files outlive the kernel")] = None,
    kv_dir_size: Annotated[float | None, typer.Option(help="GiB that they may have there")] = None,
    kv_repair: Annotated[str | None, typer.Option(help="recompute or fail: what if K/V on disk is damaged")] = None,
    worker: Annotated[
        list[str] | None, typer.Option(help="attach the worker at this address (tcp://HOST:PORT); repeat for more")
    ] = None,
    local_worker: Annotated[bool | None, typer.Option(help="start a worker on this machine")] = None,
    host: Annotated[str | None, typer.Option(help="address of the HTTP port")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one")] = None,
    http: Annotated[bool | None, typer.Option(help="open the HTTP port")] = None,
    socket: Annotated[Path | None, typer.Option(help="unix socket for `lip`")] = None,
    api_key: Annotated[str | None, typer.Option(help="secret that HTTP clients must send")] = None,
    parent: Annotated[int | None, typer.Option(help="pid of the process that starts this one: end with it")] = None,
    supervisor: Annotated[bool | None, typer.Option(help="restart a kernel that hangs or dies")] = None,
    kernel_name: Annotated[str | None, typer.Option(hidden=True)] = None,
    run_directory: Annotated[Path | None, typer.Option(hidden=True)] = None,
    beat_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    stack_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the programs' dice")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these options, and the limits")] = None,
) -> None:
    given = {k: v for k, v in locals().items() if k not in ("ctx", "config") and v is not None and v != []}
    try:
        ctx.obj = Config.load(given, config)
    except ConfigError as e:
        fail(e)
    if ctx.invoked_subcommand is None:
        options: Config = ctx.obj
        if options.supervisor:
            raise typer.Exit(supervise(options, [sys.executable, *sys.orig_argv[1:]], say))
        start(options, lambda boot: boot.serve(options, say))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(ctx: typer.Context, program: str) -> None:
    """Host kernel and PROGRAM in this process, for breakpoint().

    PROGRAM is a file or an installed name, and its parameters follow it: `--parameter value ...`."""
    if program in ("-h", "--help"):
        print(ctx.get_help())
        return
    if program.startswith("-"):
        say(f"kernel: {program} comes before `run`: python -m kernel [OPTIONS] run PROGRAM [--parameter value ...]")
        raise typer.Exit(2)
    start(ctx.obj, lambda boot: boot.run_program(ctx.obj, program, ctx.args, say))


def start(options: Config, main: Callable[[Any], Any]) -> None:
    """Run `main`, which is given the module of all that follows, to the end, and exit with its status."""
    import uvloop

    from kernel import boot

    if options.stack_fd is not None:
        faulthandler.enable(options.stack_fd)
        faulthandler.register(STACK_SIGNAL, options.stack_fd)
    ours = logging.getLogger("kernel")  # not the root: libraries keep their counsel
    ours.addHandler(logging.StreamHandler())
    ours.setLevel(logging.INFO)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(main(boot))
    except boot.BootError as e:
        fail(e)
    except asyncio.CancelledError:
        say("kernel: interrupted")
        raise typer.Exit(130) from None
    raise typer.Exit(status)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def fail(error: Exception) -> None:
    say(f"kernel: {error}")
    raise typer.Exit(2)


if __name__ == "__main__":
    app(prog_name="python -m kernel")
