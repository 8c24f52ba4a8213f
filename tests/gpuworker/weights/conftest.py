"""A tiny Llama and its GGUF, written with the `gguf` package as llama.cpp's converter would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType, TokenType
from gguf.quants import quantize

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 32, 64, 2, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + unprintable.index(byte)) for byte in range(256)]


MERGES = ["t h", "th e", "i n", "a n", "an d", "Ġ the", "Ġ and", "Ġ a", "o f", "Ġ of", "e r", "1 2", "Ã ©"]
TOKENS = [*SPECIAL, *byte_symbols(), *(merge.replace(" ", "") for merge in MERGES)]


def interleave(w: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to the rows of q and k."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


@pytest.fixture(scope="session")
def tiny_tokens() -> tuple[list[str], list[str], list[str]]:
    """Tokens, merges, and which tokens are special."""
    return TOKENS, MERGES, SPECIAL


@pytest.fixture(scope="session")
def tiny_tensors() -> dict[str, np.ndarray]:
    """Random weights under GGUF's names, q and k not yet interleaved."""
    rng = np.random.default_rng(0)
    head_dim = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN)}
        block |= {"attn_k": (KV_HEADS * head_dim, HIDDEN), "attn_v": (KV_HEADS * head_dim, HIDDEN)}
        block |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        block |= {"ffn_down": (HIDDEN, INNER)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def write_gguf(tiny_tensors: dict[str, np.ndarray]) -> Any:
    """Writes a GGUF. `metadata` and `tensors` add to the model's own or replace them; None leaves a key out."""

    def write(
        path: Path,
        quantization: str = "F32",
        tensors: dict[str, np.ndarray] | None = None,
        without: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> Path:
        values: dict[str, Any] = {
            "llama.block_count": LAYERS,
            "llama.context_length": 128,
            "llama.embedding_length": HIDDEN,
            "llama.feed_forward_length": INNER,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 10000.0,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [
                int(TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL) for token in TOKENS
            ],
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.chat_template": "{{ messages }}",
        } | (metadata or {})
        writer = GGUFWriter(path, values.pop("general.architecture", "llama"))
        for key, value in values.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, value)
        for name, w in (tiny_tensors | (tensors or {})).items():
            if name == without:
                continue
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
            w = w if heads is None else interleave(w, heads)
            kind = GGMLQuantizationType["F32" if w.ndim == 1 else quantization]
            writer.add_tensor(name, quantize(w, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def tiny_gguf(write_gguf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in one F32 file."""
    path: Path = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return path
