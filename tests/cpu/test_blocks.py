"""Rows of files as the kernels read them, against quant's own, which is tested against the formats' reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux import quant
from ventoux.cpu import _kernels


@pytest.mark.parametrize("format", quant.FORMATS)
@settings(deadline=None)
@given(data=st.binary(min_size=840, max_size=840), index=st.lists(st.integers(0, 1), max_size=3))
def test_any_bytes_mean_what_quant_says(format: str, data: bytes, index: list[int]) -> None:
    nbytes = quant.FORMATS[format].nbytes
    rows = np.frombuffer(data, np.uint8)[: 840 // (2 * nbytes) * 2 * nbytes].reshape(2, -1)
    expected = quant.dequantize(rows, format)[index]
    found = np.full_like(expected, 7)
    _kernels.dequantize(format, rows, np.array(index, np.int32), found)
    np.testing.assert_array_equal(found, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(expected[zero]))


def test_every_half_is_read() -> None:
    rows = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(1, -1)
    found = np.empty((1, 1 << 16), np.float32)
    _kernels.dequantize("F16", rows, np.zeros(1, np.int32), found)
    np.testing.assert_array_equal(found, np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float32)[None])


@pytest.mark.parametrize(
    ("format", "shape", "index", "out", "match"),
    [
        ("Q8_0", (2, 34), [0, 2], (2, 32), "no such row"),
        ("Q8_0", (2, 34), [-1], (1, 32), "no such row"),
        ("Q8_0", (2, 34), [0], (1, 33), "another number of bytes"),
        ("Q8_0", (2, 34), [0], (1, 64), "another number of bytes"),
        ("Q8_0", (2, 34), [0, 1], (1, 32), "one row of the output"),
        ("Q9_9", (2, 34), [0], (1, 32), "no kernel for the number format"),
    ],
)
def test_what_does_not_fit_is_an_error(
    format: str, shape: tuple[int, int], index: list[int], out: tuple[int, int], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        _kernels.dequantize(format, np.zeros(shape, np.uint8), np.array(index, np.int32), np.empty(out, np.float32))
