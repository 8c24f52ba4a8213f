"""A model as the engine takes it: configuration, tensors, tokenizer and fingerprint, whatever the format.

Invariant: a `Checkpoint` has every tensor that its architecture needs in the right shape, and no other. Tensors are
read, converted and handed out one at a time; nothing here keeps them. Called by the engine.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gpuworker.models.config import ModelConfig, unique
from gpuworker.models.registry import model_class
from gpuworker.weights import hf
from gpuworker.weights.assets import Assets
from gpuworker.weights.dummy import Dummy
from gpuworker.weights.errors import WeightsError
from gpuworker.weights.gguf_file import GgufFile
from gpuworker.weights.hf import HfDirectory
from gpuworker.weights.resolve import resolve


class Reader(Protocol):
    """What a format provides: stored tensors under Hugging Face's names."""

    config: ModelConfig

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor."""
        ...

    def stored_bytes(self, name: str) -> tuple[str, memoryview]:
        """The name of the tensor's stored type, and its bytes as they lie in the file."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The tensor in some float dtype, read now. Only after its shape was found right."""
        ...

    def assets(self) -> Assets:
        """The tokenizer and its company. Raises WeightsError."""
        ...


class Tensors(Mapping[str, Tensor]):
    """The tensors of a reader in one dtype. Each access reads anew."""

    def __init__(self, reader: Reader, names: list[str], dtype: torch.dtype) -> None:
        self.reader = reader
        self.names = dict.fromkeys(names)
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.reader.tensor(name).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model, ready to be put on a device."""

    name: str  # to serve it as
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    assets: Assets
    fingerprint: str  # BLAKE2b, 128 bits in hex, of configuration and stored weights: not of the dtype it runs in
    n_parameters: int


def load(model: str, *, load_format: str = "auto", dtype: torch.dtype, tokenizer: str | None = None) -> Checkpoint:
    """Open `model` (see resolve.py) with `load_format` "auto" or "dummy"; `tokenizer` overrides the model's own.

    Raises WeightsError for anything that is missing, corrupt or not supported.
    """
    name, reader = open_reader(model, load_format, weights=True)
    names = verify(reader, model)
    shapes = reader.shapes()
    return Checkpoint(
        name=name,
        config=reader.config,
        tensors=Tensors(reader, names, dtype),
        assets=choose_assets(reader, tokenizer),
        fingerprint=fingerprint(reader, names),
        n_parameters=sum(torch.Size(shapes[name]).numel() for name in names),
    )


def load_assets(model: str, *, load_format: str = "auto", tokenizer: str | None = None) -> Assets:
    """The assets that `load` would give, without opening any weights. Raises WeightsError."""
    _, reader = open_reader(model, load_format, weights=False)
    return choose_assets(reader, tokenizer)


def open_reader(model: str, load_format: str, weights: bool) -> tuple[str, Reader]:
    """The served name and the reader of `model`'s format."""
    if load_format not in ("auto", "dummy"):
        raise WeightsError(f"load format {load_format!r} is not known (known: auto, dummy)")
    weights = weights and load_format == "auto"
    source = resolve(model, weights=weights)
    if source.format == "gguf":
        file = GgufFile(source.path)
        return source.name, Dummy(file.config, file.assets) if load_format == "dummy" else file
    directory = HfDirectory(source.path)
    if load_format == "dummy":
        return source.name, Dummy(directory.config, directory.assets if directory.has_tokenizer else None)
    if weights:
        directory.open_weights()
    return source.name, directory


def verify(reader: Reader, model: str) -> list[str]:
    """Names of the tensors the architecture needs. Raises WeightsError unless the reader has just these."""
    wanted = model_class(reader.config.architecture).tensor_shapes(reader.config)
    stored = reader.shapes()
    for name, shape in wanted.items():
        if name not in stored:
            raise WeightsError(f"{model}: the tensor {name!r} is missing")
        if stored[name] != shape:
            raise WeightsError(f"{model}: the tensor {name!r} is {list(stored[name])} and must be {list(shape)}")
    for name in stored.keys() - wanted.keys():
        tied = name == "lm_head.weight" and reader.config.tie_word_embeddings
        if not tied and not name.endswith(".rotary_emb.inv_freq"):  # what old checkpoints repeat
            raise WeightsError(f"{model}: the tensor {name!r} has no place in a {reader.config.architecture} model")
    return list(wanted)


def fingerprint(reader: Reader, names: list[str]) -> str:
    """BLAKE2b over the configuration and each tensor's name, shape, stored type and stored bytes."""
    shapes = reader.shapes()

    def digest(name: str) -> bytes:
        kind, raw = reader.stored_bytes(name)
        label = f"{name} {list(shapes[name])} {kind}\n".encode()
        return label + hashlib.blake2b(raw, digest_size=32).digest()

    total = hashlib.blake2b(reader.config.canonical(), digest_size=16)
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter
        for each in threads.map(digest, sorted(names)):
            total.update(each)
    return total.hexdigest()


def choose_assets(reader: Reader, tokenizer: str | None) -> Assets:
    """The model's own assets, or those at `tokenizer`; either must fit the vocabulary."""
    found = reader.assets() if tokenizer is None else assets_at(tokenizer)
    found = replace(found, eos_tokens=unique(*reader.config.eos_tokens, *found.eos_tokens))
    if found.n_tokens > reader.config.vocab_size:
        raise WeightsError(f"the tokenizer has {found.n_tokens} tokens, but the model {reader.config.vocab_size}")
    return found


def assets_at(tokenizer: str) -> Assets:
    """Assets of a tokenizer.json or the directory it is in, of a GGUF, or of another model."""
    path = Path(os.path.expanduser(tokenizer))
    directory = path.parent if path.name == "tokenizer.json" else path
    if os.path.isfile(directory / "tokenizer.json"):
        return hf.read_assets(directory)
    return load_assets(tokenizer)
