"""The Llama architecture (Touvron et al., 2023): pre-norm, rotary embeddings, grouped-query attention, SwiGLU.

Owns everything but attention's memory: `forward` calls `attend` once per layer with rotated K, so pages, masks and
sequences never enter this file. Plain torch on [T, ...] tensors of a flattened batch; a decode step on a CPU spends
its time in the matrix products, so weights that share an input are fused and the operations between are few.

In half precision two things stay in fp32: the residual stream, and on a CPU the output head, whose rounded logits tie.
With bf16 products alone 97.3 % of the default model's likeliest tokens are those of fp32, with both it is 99.2 %.
Called by the engine, through models/registry.py.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gpuworker.models import rope
from gpuworker.models.config import ModelConfig
from gpuworker.models.linear import Linear, linear
from gpuworker.models.registry import Attend


class Llama:
    """Weights of one model on one device. See models/registry.py for the interface."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        def fetch(name: str) -> Tensor:
            return tensors[name].to(device=device, dtype=dtype)

        self.config = config
        self.embedding = fetch("model.embed_tokens.weight")
        head = self.embedding if config.tie_word_embeddings else fetch("lm_head.weight")
        self.head_dtype = torch.float32 if head.device.type == "cpu" else dtype
        self.head = linear(head.to(self.head_dtype))
        self.norm = fetch("model.norm.weight").float()
        self.layers = [Layer(config, tensors, index, dtype, device) for index in range(config.num_hidden_layers)]
        self.rope = rope.table(config, device)

    @staticmethod
    def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Every tensor that `__init__` takes, by Hugging Face's name, with its shape."""
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (config.vocab_size, hidden),
            "model.norm.weight": (hidden,),
        }
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, hidden)
        for layer in (f"model.layers.{index}" for index in range(config.num_hidden_layers)):
            shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
            for part, products, biased in (
                ("self_attn", attention, config.attention_bias),
                ("mlp", mlp, config.mlp_bias),
            ):
                for name, shape in products.items():
                    shapes[f"{layer}.{part}.{name}.weight"] = shape
                    if biased:
                        shapes[f"{layer}.{part}.{name}.bias"] = shape[:1]
        return shapes

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, hidden_size] after the final norm, of tokens `ids` [T] at `positions` [T] (int64)."""
        x = self.embedding[ids].float()
        cos, sin = rope.gather(self.rope, positions)
        for layer in self.layers:
            layer(x, cos, sin, attend)
        return F.rms_norm(x, self.norm.shape, self.norm, self.config.rms_norm_eps).to(self.embedding.dtype)

    def turn(self, keys: Tensor, deltas: Tensor) -> Tensor:
        """Stored keys [T, Hkv, D], moved by `deltas` [T] (int64) positions."""
        return rope.turn(self.rope, keys, deltas)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, vocab_size] in fp32 of hidden states [N, hidden_size]."""
        return self.head(hidden.to(self.head_dtype)).float()


class Layer:
    """One decoder layer."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        index: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        def fetch(name: str) -> Tensor:
            return tensors[f"model.layers.{index}.{name}"].to(device=device, dtype=dtype)

        def product(*names: str, biased: bool) -> Linear:
            bias = torch.cat([fetch(f"{name}.bias") for name in names]) if biased else None
            return linear(torch.cat([fetch(f"{name}.weight") for name in names]), bias)

        attention, mlp = config.attention_bias, config.mlp_bias
        self.index = index
        self.q_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.dtype = dtype
        self.attention_norm = fetch("input_layernorm.weight").float()
        self.qkv = product("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", biased=attention)
        self.o = product("self_attn.o_proj", biased=attention)
        self.mlp_norm = fetch("post_attention_layernorm.weight").float()
        self.gate_up = product("mlp.gate_proj", "mlp.up_proj", biased=mlp)
        self.down = product("mlp.down_proj", biased=mlp)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> None:
        """Add this layer's contribution to x [T, hidden_size] in fp32, in place."""
        qkv = self.qkv(F.rms_norm(x, self.attention_norm.shape, self.attention_norm, self.eps).to(self.dtype))
        heads = qkv.view(len(x), -1, self.head_dim)
        qk = rope.rotate(heads[:, : -self.kv_heads], cos, sin)
        out = attend(self.index, qk[:, : self.q_heads], qk[:, self.q_heads :], heads[:, -self.kv_heads :])
        x += self.o(out.reshape(len(x), -1))
        normed = F.rms_norm(x, self.mlp_norm.shape, self.mlp_norm, self.eps).to(self.dtype)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        x += self.down(F.silu(gate).mul_(up))
