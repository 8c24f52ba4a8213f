"""From an architecture's name to its class. The next architecture is a file beside this one and a line below.

Called by weights/ (which tensors does the model need?) and by the engine. A class is imported when it is asked for.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor

from gpuworker.models.config import ConfigError, ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q, k, v)`: stores k and v [T, Hkv, D] and returns what q [T, Hq, D] reads: [T, Hq, D].

K comes rotated (post-RoPE). The T tokens are those of all sequences of the batch, flattened; which token may see which
is the callback's affair. q, k and v are views that the callback must not write to nor keep.
"""

ARCHITECTURES = {"llama": "gpuworker.models.llama:Llama"}  # the name is Hugging Face's model_type, and GGUF's


class Model(Protocol):
    """What an architecture provides. Inference only: the caller holds `torch.inference_mode()`."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
    ) -> None: ...

    @staticmethod
    def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Every tensor that `__init__` takes from the checkpoint, by Hugging Face's name, with its shape."""
        ...

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, hidden_size] after the final norm, of tokens `ids` [T] at `positions` [T] (int64)."""
        ...

    def turn(self, keys: Tensor, deltas: Tensor) -> Tensor:
        """Stored keys [T, Hkv, D], moved by `deltas` [T] (int64) positions: a new tensor of their dtype."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, vocab_size] in fp32 of hidden states [N, hidden_size]."""
        ...


def model_class(architecture: str) -> type[Model]:
    """The class that runs `architecture`; raises ConfigError for one we do not know."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r} is not supported (known: {', '.join(ARCHITECTURES)})")
    module, name = ARCHITECTURES[architecture].split(":")
    return cast(type[Model], getattr(importlib.import_module(module), name))
