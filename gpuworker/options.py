"""What a worker can be told: one field for each option of `python -m gpuworker`, and the complaint about them.

Names are vLLM's where it has the option. No torch: these are read before anything heavy is imported.
"""

from dataclasses import dataclass
from typing import Literal

DEFAULT_MODEL = "smollm2-135m-instruct"


class OptionError(Exception):
    """An option makes no sense, here or at all. One line that says what to write."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run one model on one device."""

    backend: Literal["torch", "null"] = "torch"
    model: str | None = None  # a name, a path or a repository: see weights/resolve.py; of a null worker, its name
    device: str = "auto"
    dtype: str = "auto"
    load_format: str = "auto"
    tokenizer: str | None = None
    max_model_len: int | None = None  # tokens
    attention: str = "auto"
    group_prefixes: bool = True  # read what rows share once, where the attention can
    threads: int | None = None
    kv_cache_memory: float | None = None  # GiB
    gpu_memory_utilization: float = 0.9  # of the device's memory, for weights, one step and pages together
    num_pages: int | None = None  # in place of kv_cache_memory
    swap_space: float = 4.0  # GiB of main memory, at most, that pages may move to; 0: none
    num_host_pages: int | None = None  # in place of swap_space
    max_num_seqs: int = 128  # rows a batch may have
    max_num_batched_tokens: int = 2048  # new tokens a batch may have
    step_time_us: float = 0.0  # of a null worker: see stepcost.py, for this and the next three
    row_time_us: float = 0.0
    token_time_us: float = 0.0
    context_time_us: float = 0.0
