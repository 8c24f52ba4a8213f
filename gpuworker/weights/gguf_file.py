"""A model in one GGUF file: its configuration, its tensors under Hugging Face's names, and its tokenizer.

Owns the two maps of names. Invariant: a `GgufFile` that exists has a valid configuration; its tensors are checked by
the caller against what the model needs. Tensors are dequantized when they are asked for, so only the file's own bytes
stay mapped. Called by checkpoint.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from msgspec import Struct, field
from torch import Tensor

from gpuworker.models.config import (
    ConfigError,
    Context,
    Count,
    ModelConfig,
    Positive,
    Size,
    convert,
    rope_scaling,
    unique,
)
from gpuworker.models.registry import model_class
from gpuworker.weights import gguf_format, tokenizer
from gpuworker.weights.assets import Assets, end_of_turn
from gpuworker.weights.errors import WeightsError

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQUENCIES = "rope_freqs.weight"  # in the configuration, not among the tensors


class GgufConfig(Struct):
    """The metadata under `<architecture>.`, without that prefix."""

    block_count: Count
    context_length: Context
    embedding_length: Size
    feed_forward_length: Size
    head_count: Count = field(name="attention.head_count")
    rms_norm_eps: Positive = field(name="attention.layer_norm_rms_epsilon")
    head_count_kv: Count | None = field(name="attention.head_count_kv", default=None)
    key_length: Count | None = field(name="attention.key_length", default=None)
    rope_dimensions: Count | None = field(name="rope.dimension_count", default=None)
    rope_theta: Positive = field(name="rope.freq_base", default=10000.0)
    scaling_type: str = field(name="rope.scaling.type", default="none")
    scaling_factor: Positive = field(name="rope.scaling.factor", default=1.0)
    expert_count: int = 0


class GgufFile:
    """One file, opened. Raises WeightsError when it is corrupt or of a model that cannot be run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata, stored = gguf_format.read(path)
        try:
            self.vocabulary = convert(prefixed(self.metadata, "tokenizer.ggml."), tokenizer.Vocabulary, "tokenizer")
            self.config = self._config(stored)
            self.stored = {hf_name(name): readable(name, stored[name]) for name in stored if name != ROPE_FREQUENCIES}
        except (ConfigError, WeightsError) as error:
            raise WeightsError(f"{path}: {error}") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor, by Hugging Face's name."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def stored_bytes(self, name: str) -> tuple[str, memoryview]:
        """The tensor's type and its bytes as they lie in the file."""
        tensor = self.stored[name]
        return tensor.type.name, tensor.raw.data

    def tensor(self, name: str) -> Tensor:
        """The tensor in fp32, dequantized now into memory of its own."""
        tensor = self.stored[name]
        rows = tensor.raw.reshape(tensor.shape[0], -1)
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        if (part := name.split(".")[-2]) in heads:
            rows = halves_apart(rows, heads[part])
        with np.errstate(all="ignore"):  # the file may hold any scale, also infinity
            values = dequantize(rows, tensor.type).reshape(tensor.shape)
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def assets(self) -> Assets:
        """The tokenizer and its company, rebuilt. Raises WeightsError for tokenizers we do not know."""
        words = self.vocabulary
        try:
            rebuilt = tokenizer.rebuild(words)
        except WeightsError as error:
            raise WeightsError(f"{self.path}: {error}") from None
        template = self.metadata.get("tokenizer.chat_template")
        return Assets(
            tokenizer_json=rebuilt.to_str(),
            chat_template=template if isinstance(template, str) else None,
            bos_token=self.config.bos_token,
            eos_tokens=self.config.eos_tokens,
            bos_text=words.text(words.bos_token_id),
            eos_text=words.text(words.eos_token_id),
            pad_text=words.text(words.padding_token_id),
            unk_text=words.text(words.unknown_token_id),
            add_bos=words.adds_bos(),
            n_tokens=len(words.tokens),
        )

    def _config(self, stored: dict[str, gguf_format.GgufTensor]) -> ModelConfig:
        """The configuration, from the metadata and from which tensors there are."""
        architecture = str(self.metadata.get("general.architecture"))
        model_class(architecture)
        raw: GgufConfig = convert(prefixed(self.metadata, f"{architecture}."), GgufConfig, architecture)
        head_dim = raw.key_length or raw.embedding_length // raw.head_count
        if raw.expert_count or (raw.rope_dimensions or head_dim) != head_dim:
            raise ConfigError("mixtures of experts and partial rotary embeddings are not supported")
        if "token_embd.weight" not in stored:
            raise WeightsError("the tensor 'token_embd.weight' is missing")
        words = self.vocabulary
        ends = [words.eos_token_id, words.eot_token_id, words.eom_token_id]
        ends += [words.tokens.index(text) for text in end_of_turn(words.of_type(tokenizer.CONTROL))]
        return ModelConfig(
            architecture=architecture,
            vocab_size=stored["token_embd.weight"].shape[0],
            hidden_size=raw.embedding_length,
            intermediate_size=raw.feed_forward_length,
            num_hidden_layers=raw.block_count,
            num_attention_heads=raw.head_count,
            num_key_value_heads=raw.head_count_kv or raw.head_count,
            head_dim=head_dim,
            rms_norm_eps=float(str(np.float32(raw.rms_norm_eps))),  # 1e-05, not the fp32 number nearest to it
            rope_theta=raw.rope_theta,
            rope_scaling=rope_scaling_of(raw, stored, head_dim),
            max_position_embeddings=raw.context_length,
            tie_word_embeddings="output.weight" not in stored,
            attention_bias="blk.0.attn_q.bias" in stored,
            mlp_bias="blk.0.ffn_gate.bias" in stored,
            bos_token=words.bos_token_id,
            eos_tokens=unique(*(end for end in ends if end is not None)),
        )


def rope_scaling_of(raw: GgufConfig, stored: dict[str, gguf_format.GgufTensor], head_dim: int) -> dict[str, Any] | None:
    """Llama 3's scaling comes as a tensor of divisors, the others as metadata."""
    if ROPE_FREQUENCIES in stored:
        tensor = stored[ROPE_FREQUENCIES]
        factors = tensor.raw.view(np.float32) if tensor.type == GGMLQuantizationType.F32 else np.zeros(0)
        if factors.shape != (head_dim // 2,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise WeightsError(f"the tensor {ROPE_FREQUENCIES!r} does not hold one positive factor a frequency")
        return {"rope_type": "factors", "factors": factors.tolist()}
    kind = "default" if raw.scaling_type == "none" else raw.scaling_type
    return rope_scaling({"rope_type": kind, "factor": raw.scaling_factor})


def prefixed(metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The keys that begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor; names we do not know stay as they are, for the caller to refuse."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in NAMES:
        return f"{NAMES[parts[0]]}.{parts[1]}"
    return name


def readable(name: str, tensor: gguf_format.GgufTensor) -> gguf_format.GgufTensor:
    """`tensor`, if its type can be dequantized; raises WeightsError."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.type]
    try:
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), tensor.type)
    except NotImplementedError:
        raise WeightsError(f"tensor {name!r} has type {tensor.type.name}, which cannot be dequantized") from None
    if len(tensor.shape) == 1 and block > 1:
        raise WeightsError(f"tensor {name!r} is a vector of type {tensor.type.name}; vectors are not quantized")
    return tensor


def halves_apart(rows: npt.NDArray[np.uint8], heads: int) -> npt.NDArray[np.uint8]:
    """Undo the order of the rows of q and k in a GGUF, [n, bytes of a row].

    llama.cpp rotates neighbouring elements of a head, so its converter interleaves the two halves of each.
    """
    n, row_bytes = rows.shape
    return rows.reshape(heads, n // heads // 2, 2, row_bytes).swapaxes(1, 2).reshape(n, row_bytes)
