"""Random weights of a given configuration (`--load-format dummy`): the work of a model without its file.

The same configuration always gives the same weights, in whatever order they are asked for. Values are scaled so that
every product keeps the variance of its input: hidden states stay near 1 and logits have a standard deviation near 1.
Called by checkpoint.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpuworker.models.config import ModelConfig
from gpuworker.models.registry import model_class
from gpuworker.weights import tokenizer
from gpuworker.weights.assets import Assets
from gpuworker.weights.errors import WeightsError


class Dummy:
    """A checkpoint that no file holds."""

    def __init__(self, config: ModelConfig, assets: Callable[[], Assets] | None) -> None:
        """`assets` gives those of the model that lends its configuration, if it has any."""
        self.config = config
        self.borrowed = assets
        self.wanted = model_class(config.architecture).tensor_shapes(config)
        self.seeds = {name: seed for seed, name in enumerate(self.wanted)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return self.wanted

    def stored_bytes(self, name: str) -> tuple[str, memoryview]:
        """Nothing is stored; the type says that the values follow from the name."""
        return "dummy", memoryview(b"")

    def tensor(self, name: str) -> Tensor:
        """fp32: norms are ones, biases zeros, matrices uniform with variance 1 / columns."""
        shape = self.wanted[name]
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
        bound = math.sqrt(3 / shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(self.seeds[name]))

    def assets(self) -> Assets:
        """The borrowed ones, or a tokenizer of bytes. Raises WeightsError for a vocabulary below 257."""
        if self.borrowed is not None:
            return self.borrowed()
        words, end = tokenizer.of_bytes(), tokenizer.N_BYTES
        if self.config.vocab_size <= end:
            raise WeightsError(f"a vocabulary of {self.config.vocab_size} has no room for bytes; pass --tokenizer PATH")
        return Assets(
            tokenizer_json=words.to_str(),
            chat_template=None,
            bos_token=None,
            eos_tokens=(end,),
            bos_text=None,
            eos_text=tokenizer.END_OF_TEXT,
            pad_text=None,
            unk_text=None,
            add_bos=False,
            n_tokens=end + 1,
        )
