"""Matrix products with constant weights: the seam where a weight's storage is chosen.

Owns the choice between plain and prepacked weights. A `Linear` is any callable from x [M, in] to [M, out]; a quantized
one would be a third class here. Called by the models.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


class Plain:
    """x @ weight.T + bias with the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Packed:
    """The same on a CPU, with the weight reordered once into oneDNN's blocked layout.

    F.linear would reorder a bf16 weight at every call and take a slower library for fp32: over all the products of a
    135M model on two Zen 5 cores, for M = 1 to 64, the packed layout takes 0.4x the time in fp32 and 0.7x to 0.8x in
    bf16. oneDNN compiles code for each new M (3 ms for bf16, 12 ms for fp32) and keeps about 200 of them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest product with `weight` [out, in] and `bias` [out] on the device they are on."""
    return Packed(weight, bias) if packable(weight) else Plain(weight, bias)


def packable(weight: Tensor) -> bool:
    """Whether oneDNN is there and runs this dtype on this CPU."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
