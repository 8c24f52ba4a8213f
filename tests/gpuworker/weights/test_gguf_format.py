"""The container against files written by the `gguf` package, and against lies about lengths."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from gpuworker.weights import gguf_format
from gpuworker.weights.errors import WeightsError


def test_every_kind_of_value(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    scalars = {"uint8": 255, "int8": -1, "uint16": 65535, "int16": -2, "uint32": 2**32 - 1, "int32": -3}
    scalars |= {"uint64": 2**64 - 1, "int64": -(2**63)}
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_float32("k.float32", 0.5)
    writer.add_float64("k.float64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "ü東🎼")
    writer.add_array("k.numbers", [1, -2, 3])
    writer.add_array("k.words", ["a", "", "東"])
    writer.add_array("k.flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = {key.removeprefix("k."): value for key, value in gguf_format.read(tmp_path / "m.gguf").metadata.items()}
    expected = scalars | {"float32": 0.5, "float64": 0.1, "bool": True, "string": "ü東🎼", "numbers": [1, -2, 3]}
    expected |= {"words": ["a", "", "東"], "flags": [True, False], "general.architecture": "llama"}
    assert found == expected


def test_the_packages_reader_agrees(tiny_gguf: Path) -> None:
    ours, theirs = gguf_format.read(tiny_gguf), GGUFReader(tiny_gguf)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.type, mine.shape) == (tensor.tensor_type, tuple(int(n) for n in reversed(tensor.shape)))
        assert np.array_equal(mine.raw, tensor.data.reshape(-1).view(np.uint8))
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value, key


def header(n_tensors: int, n_values: int, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_values) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


KEY = text(b"k")
ARRAY, STRING, UINT32 = 9, 8, 4


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "cannot be read"),
        (b"GG", "truncated"),
        (header(0, 0, magic=b"GGML"), "magic"),
        (header(0, 0, version=1), "version 1 is not supported"),
        (header(0, 0, version=3 << 24), "little-endian"),
        (header(0, 2**63), "truncated"),
        (header(2**63, 0), "truncated"),
        (header(0, 1, text(b"k", 2**64 - 1)), "truncated"),
        (header(0, 1, text(b"\xff")), "not UTF-8"),
        (header(0, 1, KEY + struct.pack("<I", 13)), "unknown metadata value type 13"),
        (header(0, 1, KEY + struct.pack("<IIQ", ARRAY, UINT32, 2**62)), "truncated"),
        (header(0, 1, KEY + struct.pack("<IIQ", ARRAY, STRING, 2**62)), "truncated"),
        (header(0, 1, KEY + struct.pack("<IIQ", ARRAY, ARRAY, 1)), "unknown metadata value type 9"),
        (header(0, 2, 2 * (KEY + struct.pack("<II", UINT32, 0))), "occurs twice"),
        (header(0, 1, text(b"general.alignment") + struct.pack("<II", UINT32, 0)), "alignment 0"),
        (header(1, 0, tensor(b"t", [], 0, 0)), "0 dimensions"),
        (header(1, 0, tensor(b"t", [1] * 5, 0, 0)), "5 dimensions"),
        (header(1, 0, tensor(b"t", [0], 0, 0)), "not made of"),
        (header(1, 0, tensor(b"t", [33], 8, 0)), "not made of Q8_0 blocks of 32"),
        (header(1, 0, tensor(b"t", [1], 4, 0)), "unknown type 4"),
        (header(1, 0, tensor(b"t", [2**32, 2**32], 0, 0)), "truncated: tensor 't'"),
        (header(1, 0, tensor(b"t", [1], 0, 2**64 - 1)), "truncated: tensor 't'"),
        (header(2, 0, 2 * tensor(b"t", [1], 0, 0) + bytes(64)), "'t' occurs twice"),
    ],
)
def test_lies(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=complaint) as caught:
        gguf_format.read(path)
    assert str(caught.value).startswith(str(path))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        gguf_format.read(tmp_path)
