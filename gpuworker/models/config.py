"""What a decoder-only transformer is made of: sizes and constants, whatever file they came from.

Owns `ModelConfig` and the reading of Hugging Face's config.json. Invariant: a `ModelConfig` that exists is one the
models can run; everything else was refused with a `ConfigError`. Called by weights/ and by the models. No torch, no
tensors and no file access in here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**24)]
Count = Annotated[int, Meta(ge=1, le=2**12)]
Context = Annotated[int, Meta(ge=1, le=2**22)]  # positions; a table of this length is built at load time
Token = Annotated[int, Meta(ge=0, lt=2**32)]
Positive = Annotated[float, Meta(gt=0, lt=1e30)]  # so neither NaN nor infinity


class ConfigError(ValueError):
    """The configuration is malformed, or describes a model that cannot be run. One line of text."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of one model. Field names are those of Hugging Face's config.json.

    `rope_scaling` is None or one of
      {"rope_type": "linear", "factor"}                        (Chen et al., 2023, "position interpolation")
      {"rope_type": "llama3", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
      {"rope_type": "factors", "factors": [head_dim / 2 divisors of the frequencies]}   (as GGUF stores llama3's)
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    bos_token: int | None
    eos_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads do not divide over {self.num_key_value_heads} KV heads"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        for token in (*self.eos_tokens, *(() if self.bos_token is None else (self.bos_token,))):
            if token >= self.vocab_size:
                raise ConfigError(f"special token {token} lies outside the vocabulary of {self.vocab_size} tokens")

    def canonical(self) -> bytes:
        """The same bytes for the same configuration: JSON with sorted keys and no spaces."""
        return msgspec.json.encode(asdict(self), order="sorted")

    @staticmethod
    def from_hf(config_json: dict[str, Any], generation_config: dict[str, Any] | None = None) -> "ModelConfig":
        """Read a config.json and, when there is one, the generation_config.json beside it.

        Understands the spelling of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Raises
        ConfigError for missing or malformed fields and for what we do not run.
        """
        raw = convert(config_json, HfConfig, "config.json")
        if raw.quantization_config is not None:
            raise ConfigError("config.json: pre-quantized checkpoints are not supported; use the original or a GGUF")
        rope = raw.rope_parameters or {}
        if raw.hidden_act != "silu" or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError("config.json: only hidden_act 'silu' and full rotary embeddings are supported")
        generation = convert(generation_config or {}, HfTokenIds, "generation_config.json")
        bos = raw.bos_token_id if generation.bos_token_id is None else generation.bos_token_id
        return ModelConfig(
            architecture=raw.model_type,
            vocab_size=raw.vocab_size,
            hidden_size=raw.hidden_size,
            intermediate_size=raw.intermediate_size,
            num_hidden_layers=raw.num_hidden_layers,
            num_attention_heads=raw.num_attention_heads,
            num_key_value_heads=raw.num_key_value_heads or raw.num_attention_heads,
            head_dim=raw.head_dim or raw.hidden_size // raw.num_attention_heads,
            rms_norm_eps=raw.rms_norm_eps,
            rope_theta=convert(rope.get("rope_theta", raw.rope_theta), Positive, "config.json: rope_theta"),
            rope_scaling=rope_scaling(raw.rope_scaling or raw.rope_parameters),
            max_position_embeddings=raw.max_position_embeddings,
            tie_word_embeddings=raw.tie_word_embeddings,
            attention_bias=raw.attention_bias,
            mlp_bias=raw.mlp_bias,
            bos_token=bos,
            eos_tokens=unique(*token_ids(generation.eos_token_id), *token_ids(raw.eos_token_id)),
        )


class HfTokenIds(msgspec.Struct):
    """The part that config.json and generation_config.json share."""

    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None


class HfConfig(HfTokenIds, kw_only=True):
    """config.json as transformers writes it; other fields are ignored. Defaults are LlamaConfig's."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: Context = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    quantization_config: dict[str, Any] | None = None


class LinearScaling(msgspec.Struct):
    factor: Positive
    rope_type: Literal["linear"] = "linear"


class Llama3Scaling(msgspec.Struct):
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Context
    rope_type: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be larger than low_freq_factor")


SCALINGS: dict[str, type[LinearScaling | Llama3Scaling]] = {"linear": LinearScaling, "llama3": Llama3Scaling}


def rope_scaling(raw: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Normalize Hugging Face's `rope_scaling`, or the scaling inside `rope_parameters`.

    Raises ConfigError for kinds whose frequencies depend on the length of the sequence (dynamic, longrope) or that
    change attention itself (yarn).
    """
    if raw is None:
        return None
    kind = str(raw.get("rope_type", raw.get("type", "default")))
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise ConfigError(f"rope scaling {kind!r} is not supported (known: default, linear, llama3)")
    scaling = convert({**raw, "rope_type": kind}, SCALINGS[kind], "config.json: rope_scaling")
    fields: dict[str, Any] = msgspec.to_builtins(scaling)
    return fields


def convert(raw: Any, to: Any, where: str) -> Any:
    """msgspec.convert whose complaint is a ConfigError that names `where`."""
    try:
        return msgspec.convert(raw, to, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None


def token_ids(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return [ids] if isinstance(ids, int) else list(ids or [])


def unique(*ids: int) -> tuple[int, ...]:
    """`ids` without repetitions, in order."""
    return tuple(dict.fromkeys(ids))
