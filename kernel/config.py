"""Every option and limit of the kernel, in one place, with their names, units and defaults.

An option is taken from the command line, else from the environment (`SYMPHONY_` and its name in capitals), else
from the YAML file of `--config`, else from here. Names are vLLM's where it has the same thing. `Config.load`
checks types and relations; everything after may rely on them.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from sdk.abi.paths import socket_path

ENVIRONMENT = "SYMPHONY_"
DEFAULT_MODEL = "smollm2-135m-instruct"

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class ConfigError(Exception):
    """An option is wrong; the text is one line."""


class UserQuota(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may have; None: as much as there is."""

    files: Count | None = None
    pages: Count | None = None  # on devices and in main memory, of all files, each as if it shared none
    kv_byte_s: Annotated[float, Meta(gt=0)] | None = None
    host_pages: Annotated[int, Meta(ge=0)] | None = None  # of those, in main memory; what is beyond is dropped
    disk_bytes: Annotated[int, Meta(ge=0)] | None = None  # of durable files


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this kernel runs."""

    # the model, handed on to the local worker
    model: str = DEFAULT_MODEL  # a known name, a .gguf file, a Hugging Face directory or org/name
    served_model_name: list[str] = []  # names that clients may use; default: the model's own
    tokenizer: str | None = None
    load_format: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    group_prefixes: bool = True  # see docs/adr/0020
    backend: str = "torch"  # or null: a deterministic worker without a model
    max_model_len: Count | None = None  # tokens; default: the model's own
    kv_cache_memory: Annotated[float, Meta(gt=0)] | None = None  # GiB
    num_pages: Annotated[int, Meta(ge=1, le=2**31)] | None = None  # instead of kv_cache_memory
    threads: Count | None = None
    swap_space: Annotated[float, Meta(ge=0)] = 4.0  # GiB of the worker's main memory that pages may move to

    # durable files
    kv_dir: Path | None = None  # where named files are kept; default: nowhere
    kv_dir_size: Annotated[float, Meta(gt=0)] | None = None  # GiB that they may have there
    kv_repair: Literal["recompute", "fail"] = "recompute"  # what becomes of K/V on disk that is damaged

    # workers
    worker: list[str] = []  # addresses of workers to attach
    local_worker: bool = True  # start one here

    # batches
    max_num_seqs: Count = 256  # rows of a batch
    max_num_batched_tokens: Count = 2048  # new tokens of a batch
    batch_policy: Annotated[str, Meta(pattern="^(eager|k|t|k-or-t|adaptive)$")] = "eager"  # see kernel/pacing.py
    batch_k: Count = 16  # rows, of the policies `k` and `k-or-t`
    batch_t_ms: Annotated[float, Meta(gt=0)] = 10.0  # of the policies `t` and `k-or-t`
    preemption_mode: Annotated[str, Meta(pattern="^(auto|swap|recompute)$")] = "auto"  # see kernel/demotion.py

    # programs
    scheduling_policy: Literal["fcfs", "fair", "srpt"] = "fair"  # see kernel/scheduler.py
    tenant_share: dict[str, Annotated[float, Meta(gt=0)]] = {}  # weights by name; 1 for all others
    groups: dict[str, list[str]] = {}  # of users, beside that of their tenant; for the rights on files
    quota: dict[str, UserQuota] = {}  # by user; see kvfs/quota.py
    tenant_cache_s: Annotated[float, Meta(ge=0)] = 600.0  # since its last use a tenant's cache is safe from others
    max_pinned_share: Annotated[float, Meta(ge=0, le=0.9)] = 0.5  # of a device's pages, for all `pin`s together
    ageing_s: Seconds = 2.0  # who waited that long goes up a priority class
    pass_budget_ms: Annotated[float, Meta(gt=0)] = 5.0  # for programs, between two looks at sockets and timers

    # front doors
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    http: bool = True
    socket: Path = msgspec.field(default_factory=socket_path)  # for `lip`; only this user may connect
    api_key: str | None = None
    completions_program: str = "completions"  # who answers /v1/completions: an installed program, or a file
    chat_completions_program: str = "chat_completions"
    max_body_bytes: Count = 8 << 20

    # limits
    max_processes: Count = 20_000
    max_handles: Count = 4096  # open handles of a process
    max_threads: Count = 1024  # tasks that a program has made and that have not ended
    step_soft_ms: Annotated[float, Meta(ge=0)] = 20.0  # a program that holds the kernel for longer is ended; 0: never
    step_hard_ms: Annotated[float, Meta(gt=0)] = 250.0  # from then on in the middle of a library, too
    max_files: Count = 100_000
    max_channels: Count = 10_000
    max_channel_messages: Count = 10_000
    max_client_events: Count = 1024  # emitted and not yet taken by the client

    # times
    attach_timeout_s: Seconds = 10.0  # for a worker to answer the greeting
    proof_timeout_s: Seconds = 60.0  # for a new worker to compute its first token
    heartbeat_s: Seconds = 0.2
    worker_suspect_s: Seconds = 0.7  # a worker that says nothing for that long is lost, if another can go on for it
    worker_silence_s: Seconds = 10.0  # and for that long in any case
    batch_deadline_s: Seconds = 5.0  # for a batch whose time is known, or ten times that time: longer is stuck
    first_batch_deadline_s: Seconds = 120.0  # for a batch of which nothing is known
    rebalance_s: Seconds = 1.0  # how often a look is taken whether one worker has far more to do than another
    no_worker_s: Seconds = 30.0  # calls wait so long for a worker to come, when the last one is gone

    # the supervisor
    supervisor: bool = True  # restart a kernel that hangs or dies; off for debuggers
    supervisor_timeout_s: Seconds = 0.8  # a kernel whose programs get no turn for that long hangs
    run_directory: Path | None = None  # this and the next two: given by the supervisor to its kernel
    beat_fd: int | None = None  # of a pipe; see kernel/heart.py
    stack_fd: int | None = None  # where the kernel's stack is printed; see kernel/child.py

    kernel_name: str | None = None  # how workers know it; one that restarts under its name takes its workers over
    parent: int | None = None  # pid of the process that starts this one: end with it
    seed: int | None = None  # of the processes' dice; default: from the system's

    @staticmethod
    def load(options: Mapping[str, Any], file: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Config":
        """Merge the sources. `options` holds what the command line gave, and nothing for what it did not.

        Raises ConfigError."""
        merged: dict[str, Any] = read_file(file) if file is not None else {}
        for name in Config.__struct_fields__:
            text = environ.get(ENVIRONMENT + name.upper())
            if text is not None:
                merged[name] = read_text(name, text)
        merged |= options
        try:
            config = msgspec.convert(merged, Config, strict=False, dec_hook=as_path)
        except msgspec.ValidationError as e:
            raise ConfigError(f"a wrong option: {e}") from None
        config.check()
        return config

    def check(self) -> None:
        """Relations between options. Raises ConfigError."""
        if self.http and not is_loopback(self.host) and not self.api_key:
            raise ConfigError(f"--host {self.host} opens the port to the network: give an --api-key as well")
        if self.api_key == "":
            raise ConfigError("--api-key is empty: give a secret or leave it out")
        if self.step_hard_ms < self.step_soft_ms:
            raise ConfigError("step_hard_ms must not be less than step_soft_ms")
        if self.kv_dir is None and self.kv_dir_size is not None:
            raise ConfigError("--kv-dir-size without --kv-dir: say where durable files are kept")
        if self.worker_silence_s < 2 * self.heartbeat_s:
            raise ConfigError("worker_silence_s must be at least twice heartbeat_s")

    @property
    def local_model(self) -> str:
        """What the local worker is to serve; a null worker serves nothing unless it is given a name."""
        return "null" if self.backend == "null" and self.model == DEFAULT_MODEL else self.model

    def worker_options(self) -> list[str]:
        """The local worker's command line."""
        given = {
            "--model": self.local_model,
            "--tokenizer": self.tokenizer,
            "--load-format": self.load_format,
            "--dtype": self.dtype,
            "--device": self.device,
            "--attention": self.attention,
            "--backend": self.backend,
            "--max-model-len": self.max_model_len,
            "--kv-cache-memory": self.kv_cache_memory,
            "--num-pages": self.num_pages,
            "--threads": self.threads,
            "--swap-space": self.swap_space,
            "--max-num-seqs": self.max_num_seqs,
            "--max-num-batched-tokens": self.max_num_batched_tokens,
        }
        flags = [] if self.group_prefixes else ["--no-group-prefixes"]
        return [part for name, value in given.items() if value is not None for part in (name, str(value))] + flags


def read_text(name: str, text: str) -> Any:
    """An option's text in the environment; what has no simple type there, as YAML or a list with commas."""
    if name in ("worker", "served_model_name"):
        return text.split(",")
    if name not in ("tenant_share", "groups", "quota"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def as_path(wanted: type, value: Any) -> Any:
    """A path is text in a file and the environment, a Path on the command line. For msgspec, which knows no paths."""
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected {wanted.__name__}, got {type(value).__name__}")


def read_file(path: Path) -> dict[str, Any]:
    """A YAML mapping of options; dashes and underscores are the same. Raises ConfigError."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"cannot read {path}: {' '.join(str(e).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of options, such as `port: 8001`")
    options = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name in ("worker", "served_model_name"):
        if isinstance(options.get(name), str):
            options[name] = [options[name]]
    return options


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
