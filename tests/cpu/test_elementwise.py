"""Norm and activation kernels against numpy, over sizes that do and do not fill a register."""

import numpy as np
import pytest

from ventoux.cpu import _kernels


@pytest.mark.parametrize("columns", [1, 15, 16, 64, 100])
def test_rms_norm(isa, columns):
    rng = np.random.default_rng(columns)
    x, weight = rng.standard_normal((9, columns)).astype(np.float32), rng.standard_normal(columns).astype(np.float32)
    out = np.empty_like(x)
    _kernels.rms_norm(_kernels.Pool(2, isa), x, weight, 1e-5, out)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_swiglu_over_the_whole_range_of_exp(isa):
    gate = np.linspace(-120, 120, 24 * 301, dtype=np.float32).reshape(24, 301)
    up = np.random.default_rng(0).standard_normal(gate.shape).astype(np.float32)
    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    _kernels.swiglu(_kernels.Pool(2, isa), gate, up)
    np.testing.assert_allclose(gate, expected, rtol=2e-6, atol=1e-30)


def test_swiglu_of_a_row_does_not_depend_on_the_rows_behind_it(isa):
    """To the last bit, also where a row's end fills no register."""
    gate, up = np.random.default_rng(0).standard_normal((2, 24, 301)).astype(np.float32)
    pool, alone = _kernels.Pool(2, isa), gate.copy()
    for row in range(24):
        _kernels.swiglu(pool, alone[row : row + 1], up[row : row + 1])
    _kernels.swiglu(pool, gate, up)
    np.testing.assert_array_equal(gate, alone)


def test_swiglu_keeps_nan(isa):
    gate, up = np.zeros((1, 32), np.float32), np.ones((1, 32), np.float32)
    gate[0, 3] = np.nan
    _kernels.swiglu(_kernels.Pool(1, isa), gate, up)
    assert np.flatnonzero(np.isnan(gate)).tolist() == [3]
