"""Both kinds of product against the definition, and the choice between them."""

from typing import Any

import pytest
import torch

from gpuworker.models.linear import Packed, Plain, linear


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("kind", [Plain, linear])
def test_products(kind: Any, rows: int, dtype: torch.dtype, biased: bool) -> None:
    weight, x = torch.randn(48, 32, dtype=dtype), torch.randn(rows, 32, dtype=dtype)
    bias = torch.randn(48, dtype=dtype) if biased else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    with torch.inference_mode():
        y = kind(weight, bias)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


def test_other_devices_keep_their_weights_plain() -> None:
    assert isinstance(linear(torch.empty(4, 4, device="meta")), Plain)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_weights_on_a_cpu_are_packed() -> None:
    assert isinstance(linear(torch.empty(4, 4)), Packed)
