"""Files that we write are, to the byte, what the formats' own libraries write of the same."""

from pathlib import Path
from typing import Any

import gguf as ggml
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux import gguf
from ventoux.checkpoint import gguf_writer, safetensors_writer
from ventoux.checkpoint.outgoing import OVERFLOW, Outgoing
from ventoux.checkpoint.tensor import Tensor
from ventoux.errors import ConversionError
from ventoux.quant import quantize

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = ["a", "b.weight", "layers.10.x", "layers.2.x", "é", "z" * 40]


def tensor(name: str, numbers: np.ndarray, format: str) -> Outgoing:
    data = quantize(numbers.reshape(-1, numbers.shape[-1]), format)
    return Outgoing(name, format, Tensor(name, numbers.shape, format, data))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_safetensors_are_the_librarys_to_the_byte(data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    ours, theirs = [], {}
    for name in names:
        format = data.draw(st.sampled_from(list(TORCH)))
        numbers = rng.normal(size=data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))).astype(np.float32)
        ours.append(tensor(name, numbers, format))
        theirs[name] = torch.from_numpy(numbers).to(TORCH[format])
    metadata = data.draw(st.none() | st.just({"format": "pt"}))
    written = b"".join(bytes(piece) for piece in safetensors_writer.pieces(ours, metadata=metadata))
    assert written == safetensors.torch.save(theirs, metadata=metadata)
    assert len(written) == safetensors_writer.size(ours, metadata=metadata)


METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.number": 7,
    "a.float": 0.5,
    "a.flag": True,
    "a.text": "é\n",
    "a.list": [1, -2, 3],
    "a.floats": [0.5, -1.0],
    "a.texts": ["x", "", "日本"],
}


def test_gguf_is_ggmls_to_the_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = {"m": rng.normal(size=(3, 32)), "n": rng.normal(size=(5,)), "q": rng.normal(size=(2, 64))}
    floats = {name: weight.astype(np.float32) for name, weight in weights.items()}
    ours = [tensor("m", floats["m"], "F32"), tensor("n", floats["n"], "F32"), tensor("q", floats["q"], "Q4_0")]
    written = b"".join(bytes(piece) for piece in gguf_writer.pieces(METADATA, ours))
    assert len(written) == gguf_writer.size(METADATA, ours)
    writer = ggml.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for key, value in list(METADATA.items())[1:]:
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(value)](key, value)
    writer.add_tensor("m", floats["m"])
    writer.add_tensor("n", floats["n"])
    writer.add_tensor("q", quantize(floats["q"], "Q4_0"), raw_dtype=ggml.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert written == (tmp_path / "theirs.gguf").read_bytes()


def test_metadata_keep_the_types_that_they_had(tmp_path: Path) -> None:
    writer = ggml.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint64("u64", 1 << 40)
    writer.add_int8("i8", -3)
    writer.add_float64("f64", 0.1)
    writer.add_array("bytes", b"\x01\x02")
    writer.add_array("bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.read(tmp_path / "a.gguf")
    again = b"".join(bytes(piece) for piece in gguf_writer.pieces(found.metadata, [], kinds=found.kinds))
    (tmp_path / "b.gguf").write_bytes(again)
    assert gguf.read(tmp_path / "b.gguf").metadata == found.metadata
    assert gguf.read(tmp_path / "b.gguf").kinds == found.kinds
    assert (tmp_path / "a.gguf").read_bytes().rstrip(b"\0") == again.rstrip(b"\0")


def repacked(numbers: np.ndarray, format: str) -> np.ndarray:
    source = Tensor("loud", numbers.shape, "F32", quantize(numbers, "F32"))
    return np.concatenate(list(Outgoing("loud", format, source).pieces()))


@pytest.mark.parametrize("format", OVERFLOW)
def test_numbers_are_refused_exactly_from_where_they_would_be_infinite(format: str) -> None:
    limit = np.float32(OVERFLOW[format])
    numbers = np.zeros((2, 32), np.float32)
    numbers[1, 5] = -np.nextafter(limit, np.float32(0))
    packed = repacked(numbers, format)
    kind = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(format)
    scale = packed.view(kind) if kind else packed[:, :2].copy().view(np.float16)
    assert np.isfinite(scale.astype(np.float32)).all()
    numbers[1, 5] = limit
    if np.isfinite(limit):
        with pytest.raises(ConversionError, match=f"'loud': its largest number is .*, which {format.lower()} cannot"):
            repacked(numbers, format)


def test_what_is_infinite_stays_so_in_floats_and_is_refused_in_blocks() -> None:
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, :3] = np.inf, -np.inf, np.nan
    np.testing.assert_array_equal(repacked(numbers, "F16").view(np.float16), numbers.astype(np.float16))
    with pytest.raises(ConversionError, match="infinite or none at all"):
        repacked(numbers, "Q8_0")


def test_a_large_tensor_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.arange(40, dtype=np.float32).reshape(10, 4)
    whole = repacked(numbers, "F16")
    monkeypatch.setattr("ventoux.checkpoint.outgoing.PIECE", 12)
    source = Tensor("t", (10, 4), "F32", quantize(numbers, "F32"))
    pieces = list(Outgoing("t", "F16", source).pieces())
    assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    order = np.array([9, 0, 5, 5, 1, 2, 3, 4, 7, 6], np.int32)
    moved = np.concatenate(list(Outgoing("t", "F16", source, order).pieces()))
    np.testing.assert_array_equal(moved, whole[order])
