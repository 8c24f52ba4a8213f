"""The GGUF container, read: key-value metadata and where each tensor's bytes lie.

Follows the specification of ggml's docs/gguf.md, versions 2 and 3, little-endian. Invariant: whatever the file holds,
`read` returns a `Gguf` whose tensors lie inside the file, or raises WeightsError; every length is checked before it is
used. Knows nothing of models. The `gguf` package has a reader too: it trusts the file, and takes 20 times as long over
a vocabulary. Called by gguf_file.py.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from gpuworker.weights.errors import WeightsError

SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS


class GgufTensor(NamedTuple):
    """One stored tensor. `shape` has the slowest dimension first, as torch has it (the file stores it reversed)."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    raw: npt.NDArray[np.uint8]  # [n_bytes], a read-only view of the file


class Gguf(NamedTuple):
    """A parsed file."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class Cursor:
    """A position in the file that only moves forward. Raises WeightsError where the file ends too early."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self.data) - self.at:
            raise WeightsError(f"truncated: {n_bytes} bytes wanted at offset {self.at} of {len(self.data)}")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        start = self.at
        try:
            return str(self.take(self.scalar("<Q")), "utf-8")
        except UnicodeDecodeError:
            raise WeightsError(f"the string at offset {start} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A metadata value: a Python scalar, a string, or a list of either."""
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self.array(self.scalar("<I"), self.scalar("<Q"))
        return self.scalar(scalar_code(kind))

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return [self.string() for _ in range(count)]
        code = scalar_code(kind)
        raw = self.take(count * struct.calcsize(code))
        values: list[Any] = np.frombuffer(raw, dtype=np.dtype(code)).tolist()
        return values


def scalar_code(kind: int) -> str:
    """The struct code of a scalar value type. Arrays of arrays, which no model has, are refused here too."""
    for known, code in SCALARS.items():
        if kind == known:
            return code
    raise WeightsError(f"unknown metadata value type {kind}")


def read(path: Path) -> Gguf:
    """Parse the file at `path`, mapping it into memory. Raises WeightsError with the path in front."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        return parse(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: not a valid GGUF: {error}") from None


def parse(data: npt.NDArray[np.uint8]) -> Gguf:
    """Parse a whole file's bytes. Raises WeightsError."""
    cursor = Cursor(data.data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise WeightsError("the magic number is wrong")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise WeightsError(f"version {version} is not supported (known: 2 and 3, little-endian)")
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.string()
        if key in metadata:
            raise WeightsError(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.scalar("<I"))
    infos = [tensor_info(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise WeightsError(f"alignment {alignment!r} makes no sense")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise WeightsError(f"tensor {name!r} occurs twice")
        end = start + offset + n_bytes(name, shape, kind)
        if end > len(data):
            raise WeightsError(f"truncated: tensor {name!r} ends at byte {end} of {len(data)}")
        tensors[name] = GgufTensor(shape, kind, data[start + offset : end])
    return Gguf(metadata, tensors)


def tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    """Name, shape, type, and offset from the start of the data section."""
    name = cursor.string()
    n_dimensions = cursor.scalar("<I")
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise WeightsError(f"tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(reversed([cursor.scalar("<Q") for _ in range(n_dimensions)]))
    kind = cursor.scalar("<I")
    try:
        return name, shape, GGMLQuantizationType(kind), cursor.scalar("<Q")
    except ValueError:
        raise WeightsError(f"tensor {name!r} has unknown type {kind}") from None


def n_bytes(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor's data: its rows are made of whole quantization blocks."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise WeightsError(f"tensor {name!r} of shape {list(shape)} is not made of {kind.name} blocks of {block}")
    return math.prod(shape) // block * block_bytes
