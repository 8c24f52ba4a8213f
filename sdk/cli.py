"""`lip`: run programs, and look after the kernel they run in.

Every command talks to the kernel over its unix socket (`sdk/client.py`); `lip run` starts a kernel of its own when
none is there. The commands on files are in `sdk/cli_fs.py`. Errors are one line on standard error. Exit status: the
program's own; 2 for wrong use; 1 when the kernel refused; 130 after Ctrl-C.
"""

import shlex
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sdk.cli_fs import files
from sdk.client import Client
from sdk.command import WRONG_USE, Json, execute, print_json, table, with_kernel
from sdk.recording import record
from sdk.runner import Run, complain
from sdk.top import watch

SECTIONS = {  # of `lip --help`
    "Programs": ("run", "ps", "kill", "programs"),
    "Kernel and workers": ("top", "trace", "worker"),
    "KV files": ("ls", "tree", "stat", "cat", "cp", "mv", "rm", "mkdir", "chmod", "df", "lsof", "fsck"),
}


class Sections(TyperGroup):
    """A group that lists its commands in sections, each with the first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=80)) for name in names])


app = typer.Typer(
    name="lip",
    cls=Sections,
    help="Run LLM programs, and look after the kernel they run in.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain errors, without boxes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
worker = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The workers that serve the model.")
app.add_typer(worker, name="worker")
app.add_typer(files)

Socket = Annotated[Path | None, typer.Option("--socket", help="the kernel's socket, if it is not where it usually is")]


@app.callback()
def options(ctx: typer.Context, socket: Socket = None) -> None:
    ctx.obj = socket


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal's encoding lacks is a `?`, and no reason to fail
    app()


# --- run --------------------------------------------------------------------------------------------------------


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    no_args_is_help=True,
)
def run(
    ctx: typer.Context,
    program: Annotated[str, typer.Argument(help="a Python file, or the name of an installed program")],
    json: Annotated[bool, typer.Option("--json", help="print the result and nothing else")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="print the pid and leave the program running")] = False,
    priority: Annotated[int, typer.Option(help="lower goes first")] = 0,
    tenant: Annotated[str | None, typer.Option(help="whose share of the machine it uses; default: the owner's")] = None,
    kernel_arg: Annotated[
        list[str] | None, typer.Option(help="option of `python -m kernel`, when one is started; repeat for more")
    ] = None,
) -> None:
    """Run a program, from a file or by its name.

    `lip run FILE|NAME --parameter value ...`; `lip run FILE|NAME --help` shows its parameters."""
    if program in ("-h", "--help"):
        print(ctx.get_help())
        return
    if program.startswith("-"):
        complain(f"{program} comes before the program: lip run PROGRAM [--parameter value ...]")
        raise typer.Exit(WRONG_USE)
    options = [word for given in kernel_arg or [] for word in shlex.split(given)]
    one = Run(ctx.obj, program, ctx.args, options, json_only=json, priority=priority, tenant=tenant)
    execute(one.go(detach=detach))


# --- looking after ----------------------------------------------------------------------------------------------


@app.command()
def ps(ctx: typer.Context, json: Json = False) -> None:
    """List running programs: what they wait for and have used."""

    async def show(client: Client) -> None:
        if json:
            print_json(await client.ps())
            return
        rows = [
            (
                p["pid"],
                p["ppid"] or "-",
                p["state"],
                p["tenant"],
                p["priority"],
                p["wait"] or "-",
                f"{p['age_s']:.1f}",
                p["usage"]["n_pages"],
                p["usage"]["n_prompt_tokens"] + p["usage"]["n_generated_tokens"],
                f"{p['usage']['service']:.0f}",
                f"{p['usage']['cpu_s']:.2f}",
                p["name"],
            )
            for p in await client.ps()
        ]
        table(
            rows,
            *("PID", "PPID", "STATE", "TENANT", "PRIO"),
            *("WAITS FOR", "AGE", "PAGES", "TOKENS", "SERVICE", "CPU", "NAME"),
        )

    with_kernel(ctx, show)


@app.command()
def kill(ctx: typer.Context, pid: int) -> None:
    """End a program."""
    with_kernel(ctx, lambda client: client.kill(pid))


@app.command()
def top(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="print one frame")] = False,
    json: Annotated[bool, typer.Option("--json", help="print one frame as JSON")] = False,
) -> None:
    """Show live what the kernel, workers and programs are doing.

    Twice a second, programs by service; `q` ends it."""
    with_kernel(ctx, lambda client: watch(client, once=once, as_json=json))


@app.command()
def trace(
    ctx: typer.Context,
    pid: Annotated[int | None, typer.Argument(help="record this program and what it starts")] = None,
    everything: Annotated[bool, typer.Option("--all", help="record all programs")] = False,
    seconds: Annotated[float, typer.Option(help="for so long; Ctrl-C ends it earlier")] = 10.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="default: trace-PID.json")] = None,
) -> None:
    """Record what programs and workers do, for ui.perfetto.dev."""
    with_kernel(ctx, lambda client: record(client, pid=pid, everything=everything, seconds=seconds, output=output))


@app.command()
def programs(ctx: typer.Context) -> None:
    """List installed programs."""

    async def show(client: Client) -> None:
        table([(p["name"], p["doc"]) for p in await client.programs()], "NAME", "WHAT IT DOES")

    with_kernel(ctx, show)


@worker.command("list")
def worker_list(ctx: typer.Context) -> None:
    """List attached workers."""

    async def show(client: Client) -> None:
        rows = [
            (
                w["name"],
                w["state"],
                w.get("device", "-"),
                w.get("model", "-"),
                w.get("n_free", "-"),
                w.get("n_pages", "-"),
                w["n_batches"],
                w["n_tokens"],
            )
            for w in await client.workers()
        ]
        table(rows, "ADDRESS", "STATE", "DEVICE", "MODEL", "FREE PAGES", "PAGES", "BATCHES", "TOKENS")

    with_kernel(ctx, show)


@worker.command("attach")
def worker_attach(ctx: typer.Context, address: str) -> None:
    """Attach the worker that listens at ADDRESS (tcp://HOST:PORT)."""

    async def attach(client: Client) -> None:
        found = await client.attach(address)
        print(f"{found['name']} serves {found['model']} on {found['device']}")

    with_kernel(ctx, attach)


@worker.command("detach")
def worker_detach(
    ctx: typer.Context,
    address: str,
    drain: Annotated[bool, typer.Option("--drain", help="move what is on it to the other workers first")] = False,
) -> None:
    """Let the worker at ADDRESS go. Programs go on: what was on it is computed again elsewhere, or moved (--drain)."""
    with_kernel(ctx, lambda client: client.detach(address, drain=drain))
