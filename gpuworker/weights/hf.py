"""A model as a Hugging Face directory: config.json, *.safetensors, and the tokenizer's files.

Invariant: an `HfDirectory` that exists has a valid configuration. Weights are opened by `open_weights` only, so that
a directory without any serves for `--load-format dummy`; a tensor is read when it is asked for. Called by
checkpoint.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpuworker.models.config import ConfigError, ModelConfig, unique
from gpuworker.models.registry import model_class
from gpuworker.weights.assets import Assets, first_line, parse_tokenizer
from gpuworker.weights.errors import WeightsError

FLOATS = ("F32", "F16", "BF16")


T = TypeVar("T")


class ShardIndex(msgspec.Struct):
    """model.safetensors.index.json: which file has which tensor."""

    weight_map: dict[str, str]


class AddedToken(msgspec.Struct):
    """How tokenizer_config.json may spell a special token."""

    content: str


class NamedTemplate(msgspec.Struct):
    """One of several chat templates."""

    name: str
    template: str


class TokenizerConfig(msgspec.Struct):
    """tokenizer_config.json as transformers writes it; other fields are ignored."""

    bos_token: str | AddedToken | None = None
    eos_token: str | AddedToken | None = None
    pad_token: str | AddedToken | None = None
    unk_token: str | AddedToken | None = None
    add_bos_token: bool | None = None
    chat_template: str | list[NamedTemplate] | None = None


class HfDirectory:
    """One directory, with its configuration read. Raises WeightsError when that is missing or cannot be run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = read_json(path / "config.json", dict[str, Any])
        generation = read_json(path / "generation_config.json", dict[str, Any], {})
        try:
            model_class(str(raw.get("model_type")))
            self.config = ModelConfig.from_hf(raw, generation)
        except ConfigError as error:
            raise WeightsError(f"{path}: {error}") from None
        self.has_tokenizer = (path / "tokenizer.json").is_file()
        self.files: dict[str, Any] = {}  # tensor name to the open file that has it

    def open_weights(self) -> None:
        """Open every *.safetensors file of the directory. Raises WeightsError when there is none, or one is corrupt."""
        index = read_json(self.path / "model.safetensors.index.json", ShardIndex, ShardIndex({}))
        listed = {self.path / Path(name).name for name in index.weight_map.values()}
        paths = sorted(listed or self.path.glob("*.safetensors"))
        if not paths:
            raise WeightsError(f"{self.path}: no *.safetensors files; other formats of weights are not read")
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path}: cannot be read: {first_line(error)}") from None
            for name in file.keys():  # noqa: SIM118 (not a dict)
                kind = file.get_slice(name).get_dtype()
                if kind not in FLOATS:
                    raise WeightsError(f"{path}: tensor {name!r} has type {kind} (known: {', '.join(FLOATS)})")
                if name in self.files:
                    raise WeightsError(f"{path}: tensor {name!r} is in another file as well")
                self.files[name] = file

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self.files.items()}

    def stored_bytes(self, name: str) -> tuple[str, memoryview]:
        """The tensor's type and its bytes as they lie in the file."""
        tensor = self.tensor(name)
        return str(tensor.dtype), tensor.flatten().view(torch.uint8).numpy().data

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored type."""
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor

    def assets(self) -> Assets:
        """The tokenizer and its company. Raises WeightsError when they are missing or corrupt."""
        found = read_assets(self.path)
        return replace(
            found,
            bos_token=self.config.bos_token if found.bos_token is None else found.bos_token,
            eos_tokens=unique(*self.config.eos_tokens, *found.eos_tokens),
        )


def read_assets(path: Path) -> Assets:
    """What the tokenizer's own files say: tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise WeightsError(f"{path}: no tokenizer.json; pass one with --tokenizer PATH")
    tokenizer_json = read_text(file)
    tokenizer = parse_tokenizer(tokenizer_json, str(file))
    config = read_json(path / "tokenizer_config.json", TokenizerConfig, TokenizerConfig())
    bos, eos = text(config.bos_token), text(config.eos_token)
    bos_token = None if bos is None else tokenizer.token_to_id(bos)
    eos_token = None if eos is None else tokenizer.token_to_id(eos)
    begins = bos_token is not None and tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos_token]
    return Assets(
        tokenizer_json=tokenizer_json,
        chat_template=chat_template(path, config),
        bos_token=bos_token,
        eos_tokens=() if eos_token is None else (eos_token,),
        bos_text=bos,
        eos_text=eos,
        pad_text=text(config.pad_token),
        unk_text=text(config.unk_token),
        add_bos=begins if config.add_bos_token is None else config.add_bos_token,
        n_tokens=max(tokenizer.get_vocab().values(), default=-1) + 1,
    )


def chat_template(path: Path, config: TokenizerConfig) -> str | None:
    """The template in a file of its own, or the (default) one in tokenizer_config.json."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    if isinstance(config.chat_template, list):
        return next((each.template for each in config.chat_template if each.name == "default"), None)
    return config.chat_template


def text(token: str | AddedToken | None) -> str | None:
    """A special token's string."""
    return token.content if isinstance(token, AddedToken) else token


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises WeightsError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read: {first_line(error)}") from None


def read_json(path: Path, kind: type[T], default: T | None = None) -> T:
    """A file of JSON as a `kind`, or `default`, if there is one, where there is no file. Raises WeightsError."""
    if default is not None and not path.is_file():
        return default
    try:
        return msgspec.json.decode(read_text(path), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
