"""From options to an engine: the order in which a worker comes up.

    device -> dtype -> weights -> model -> attention -> pages -> Engine

Called by __main__.py, once. Whatever a user can get wrong is an OptionError of one line; anything else is a bug.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpuworker import device as devices
from gpuworker.attention.backend import AttentionBackend
from gpuworker.attention.select import AttentionUnavailable, select_backend
from gpuworker.backend import Facts
from gpuworker.engine import Engine, lack_of_memory
from gpuworker.models.config import ConfigError
from gpuworker.models.registry import Model, model_class
from gpuworker.options import DEFAULT_MODEL, OptionError, Options
from gpuworker.pagepool import PagePool
from gpuworker.weights import checkpoint
from gpuworker.weights.checkpoint import Checkpoint
from gpuworker.weights.dtype import choose as choose_dtype
from gpuworker.weights.errors import WeightsError
from gpuworker.wire import Ask, Assets, Batch, BatchHead, Draw, Row
from sdk.abi.values import ModelInfo, Sampling


def load(options: Options, log: Callable[[str], None]) -> Engine:
    """An engine that is ready for its first batch. Raises OptionError."""
    try:
        return _load(options, log)
    except (WeightsError, ConfigError, AttentionUnavailable) as e:
        raise OptionError(str(e)) from None
    except (RuntimeError, MemoryError) as e:
        if (lack := lack_of_memory(e)) is None:
            raise
        raise OptionError(f"the model and its pages do not fit into memory: {lack}") from None


def _load(options: Options, log: Callable[[str], None]) -> Engine:
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    dtype = choose_dtype(options.dtype, str(device))
    name = options.model or DEFAULT_MODEL
    log(f"loading {name} ({_name(dtype)}) …")
    found = checkpoint.load(name, load_format=options.load_format, dtype=dtype, tokenizer=options.tokenizer)
    context = found.config.max_position_embeddings
    if (options.max_model_len or 0) > context:
        raise OptionError(f"--max-model-len {options.max_model_len}: {found.name} was made for {context} tokens")
    attention = select_backend(
        options.attention, device, dtype, found.config.head_dim, group_prefixes=options.group_prefixes
    )
    with torch.inference_mode():
        model = model_class(found.config.architecture)(found.config, found.tensors, dtype, device)
    return _with_pages(Loaded(found, model, attention, dtype, device), options, log)


@dataclass(frozen=True, slots=True)
class Loaded:
    """All of an engine but its pages."""

    found: Checkpoint
    model: Model
    attention: AttentionBackend[Any]
    dtype: torch.dtype
    device: torch.device

    def bytes_per_page(self) -> int:
        return PagePool.bytes_per_page(*self._shape(), self.dtype)

    def engine(self, n_pages: int, n_host_pages: int, max_model_len: int, options: Options) -> Engine:
        facts = Facts(
            device=devices.describe(self.device),
            attention=self.attention.caps.name,
            model=self._info(max_model_len),
            n_pages=n_pages,
            n_host_pages=n_host_pages,
            page_bytes=self.bytes_per_page(),
            max_rows=options.max_num_seqs,
            max_batch_tokens=options.max_num_batched_tokens,
        )
        pool = PagePool(n_pages, *self._shape(), self.dtype, self.device)
        return Engine(self.model, pool, self.attention, facts, self._assets())

    def _shape(self) -> tuple[int, int, int, int, int]:
        c = self.found.config
        return c.num_hidden_layers, self.page_size, c.num_key_value_heads, c.head_dim, c.hidden_size

    @property
    def page_size(self) -> int:
        return self.attention.caps.default_page_size

    def _info(self, max_model_len: int) -> ModelInfo:
        found = self.found
        return ModelInfo(
            name=found.name,
            fingerprint=found.fingerprint,
            architecture=found.config.architecture,
            n_parameters=found.n_parameters,
            dtype=_name(self.dtype),
            vocab_size=found.config.vocab_size,
            max_model_len=max_model_len,
            page_size=self.page_size,
            bos_token=found.assets.bos_token,
            eos_tokens=list(found.assets.eos_tokens),
            has_chat_template=found.assets.chat_template is not None,
        )

    def _assets(self) -> Assets:
        a = self.found.assets
        texts = {"bos_token": a.bos_text, "eos_token": a.eos_text, "pad_token": a.pad_text, "unk_token": a.unk_text}
        special_tokens = {name: text for name, text in texts.items() if text is not None}
        return Assets(a.tokenizer_json, a.chat_template, special_tokens, a.add_bos)


def _with_pages(loaded: Loaded, options: Options, log: Callable[[str], None]) -> Engine:
    """Gives the engine as many pages as there is memory for, and its files the length that these can hold."""
    wanted = options.max_model_len or loaded.found.config.max_position_embeddings

    def largest_step() -> None:
        length = min(wanted, options.max_num_batched_tokens)
        n_rows = -(-options.max_num_batched_tokens // length)
        trial = loaded.engine(n_rows * -(-length // loaded.page_size), 0, length, options)
        trial.run(largest_batch(trial.info()))

    n_pages = devices.count_pages(options, loaded.device, loaded.bytes_per_page(), largest_step)
    holds = n_pages * loaded.page_size
    if holds < wanted and options.max_model_len is not None:
        raise OptionError(f"{n_pages} pages hold {holds} tokens: lower --max-model-len or give the pages more memory")
    if holds < wanted:
        log(f"files will hold {holds} tokens at most, not the model's {wanted}: more pages do not fit")
    n_host_pages = devices.count_host_pages(options, n_pages, loaded.bytes_per_page())
    return loaded.engine(n_pages, n_host_pages, min(holds, wanted), options)


def largest_batch(facts: Facts) -> Batch:
    """As many new tokens as a batch may have, in rows of the longest, and as many draws of the dearest kind."""
    model = facts.model
    rows: list[Row] = []
    n_left = facts.max_batch_tokens
    draw = Draw(Sampling(temperature=1.0, top_p=1 - 1e-6), seed=0, position=0)
    while n_left and len(rows) < facts.max_rows:
        n = min(n_left, model.max_model_len)
        n_asks = min(n, facts.max_rows) if not rows else 0
        rows.append(Row(len(rows), 0, n, -(-n // model.page_size), [Ask(i, draw) for i in range(n_asks)]))
        n_left -= n
    positions = array("I", [i for row in rows for i in range(row.n_new)])
    pages = array("I", range(sum(row.n_pages for row in rows)))
    return Batch(BatchHead(0, [], rows), array("I", bytes(4 * len(positions))), positions, pages, array("I"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
