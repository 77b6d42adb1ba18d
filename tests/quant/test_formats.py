"""Block formats against the gguf package, the formats' own reference."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import random_blocks

from ventoux import quant

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def oracle(format: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[format]


def test_the_table_equals_ggmls() -> None:
    for name, format in quant.FORMATS.items():
        assert name == format.name
        assert format.ggml_type == oracle(name)
        assert (format.block, format.nbytes) == gguf.GGML_QUANT_SIZES[oracle(name)]


@pytest.mark.parametrize("format", quant.FORMATS)
@given(data=st.binary(min_size=210, max_size=210))
def test_any_bytes_mean_what_ggml_says(format: str, data: bytes) -> None:
    nbytes = quant.FORMATS[format].nbytes
    rows = np.frombuffer(data, np.uint8)[: 210 // nbytes * nbytes].reshape(1, -1)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(rows, oracle(format))
    np.testing.assert_array_equal(quant.dequantize(rows, format), expected)


@pytest.mark.parametrize("format", [name for name in quant.FORMATS if quant.FORMATS[name].block > 1])
def test_rows_of_many_blocks_and_any_leading_shape(format: str) -> None:
    rows = random_blocks(np.random.default_rng(1), 6, 1024, format=format)
    expected = gguf.quants.dequantize(rows, oracle(format))
    assert np.isfinite(expected).all()
    found = quant.dequantize(rows.reshape(2, 3, -1), format)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.reshape(2, 3, 1024))
    np.testing.assert_array_equal(quant.dequantize(rows[::2], format), expected[::2])
    assert quant.dequantize(rows[:0], format).shape == (0, 1024)
    assert quant.row_bytes(1024, format) == rows.shape[1]


@pytest.mark.parametrize("format", WRITTEN)
@given(weights=arrays(np.float32, (1, 32), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False)))
def test_written_bytes_are_those_of_ggml(format: str, weights: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(weights, oracle(format)).view(np.uint8)
    np.testing.assert_array_equal(quant.quantize(weights, format), expected)


@pytest.mark.parametrize("format", WRITTEN)
def test_a_round_trip_stays_within_half_a_step(format: str) -> None:
    weights = np.random.default_rng(2).normal(size=(8, 256)).astype(np.float32)
    step = np.abs(weights).reshape(-1, 32).max(1, keepdims=True) * {"Q8_0": 1 / 127, "Q4_0": 1 / 8}.get(format, 1 / 128)
    error = np.abs(quant.dequantize(quant.quantize(weights, format), format) - weights).reshape(-1, 32)
    # beside half a step, the scale is rounded to fp16; Q4_0 reaches from -8 to 7, and clips 8 by a whole step
    assert (error <= step * (1.01 if format == "Q4_0" else 0.57)).all()
    assert format != "F32" or not error.any()
