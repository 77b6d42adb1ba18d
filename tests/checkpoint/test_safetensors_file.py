"""The safetensors reader: equal to the library, and as strict."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ventoux import quant
from ventoux.checkpoint import safetensors
from ventoux.errors import CheckpointError

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def write(path: Path, header: Any, body: bytes = bytes(16), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_equals_the_library(shapes: list[list[int]], dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({f"t{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}, path, {"format": "pt"})
    theirs = load_file(path)
    ours = {tensor.name: tensor for tensor in safetensors.read(path)}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        numbers = quant.dequantize(tensor.data, tensor.format).reshape(tensor.shape)
        np.testing.assert_array_equal(numbers, theirs[name].float().numpy())


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": GOOD["a"] | changes}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"[" * 100_000, "nested too deep|not valid JSON"),
        (b'{"a":' * 100_000, "nested too deep|not valid JSON"),
        (b'{"a": {}, "a": {}}', "a key stands twice"),
        ({"a": 1}, "expected dtype, shape and data_offsets"),
        (entry(extra=1), "expected dtype, shape and data_offsets"),
        (entry(dtype="I64"), "found 'I64'"),
        (entry(dtype=["F32"]), "found a list"),
        (entry(shape=[2, -2]), "shape is not a short list of sizes"),
        (entry(shape=[2, True]), "shape is not a short list of sizes"),
        (entry(shape=[2.0, 2]), "shape is not a short list of sizes"),
        (entry(shape=[1] * 9), "shape is not a short list of sizes"),
        (entry(shape="22"), "shape is not a short list of sizes"),
        (entry(shape=[0, 4]), "impossible shape"),
        (entry(shape=[1 << 40, 1 << 40]), "takes .* bytes, not 16"),
        (entry(shape=[2, 3]), "takes 24 bytes, not 16"),
        (entry(data_offsets=[0, 16, 32]), "3 numbers, not 2"),
        (entry(data_offsets=[16, 0]), "takes 16 bytes, not -16"),
        (entry(data_offsets=[8, 24]), "it needs bytes 8 to 24, but there are 16"),
        (GOOD | {"b": {"dtype": "F16", "shape": [4], "data_offsets": [8, 16]}}, "'b': it overlaps 'a'"),
        ({"b": {"dtype": "F16", "shape": [4], "data_offsets": [8, 16]}}, "belong to no tensor"),
        ({}, "belong to no tensor"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(65537)) + b"}", "65537 tensors"),
    ],
)
def test_a_bad_header_names_its_fault(header: Any, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", header)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors: .*({reason})"):
        safetensors.read(path)


def test_lengths_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in (1 << 63, len(json.dumps(GOOD)) + 17, (1 << 64) - 1):
        with pytest.raises(CheckpointError, match="header's length"):
            safetensors.read(write(path, GOOD, length=length))
    with pytest.raises(CheckpointError, match=r"'a': .*cut off"):
        safetensors.read(write(path, GOOD, bytes(15)))
    with pytest.raises(CheckpointError, match="belong to no tensor"):
        safetensors.read(write(path, GOOD, bytes(17)))
    path.write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="4 bytes"):
        safetensors.read(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        safetensors.read(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        safetensors.read(tmp_path / "absent.safetensors")
