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


@pytest.mark.parametrize("size", [1, 15, 16, 301, 8000])
def test_weights_over_the_whole_range_of_exp(isa, size):
    scores, temperature = np.linspace(-100, 3, size, dtype=np.float32), 0.7
    scores[0], highest = -np.inf, max(scores[-1], 2)
    found = np.full(size, np.nan, np.float32)
    _kernels.weigh(isa, scores, highest, temperature, found)
    exponents = (scores.astype(np.float64) - highest) / np.float32(temperature)
    np.testing.assert_allclose(
        found, np.exp(exponents), rtol=6e-6, atol=2.0**-125
    )  # exponents to -87 have 2^-18 of error
    assert (found[exponents < -87.5] == 0).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("temperature", [2.0**-126, 1.0, 2.0**127])
def test_the_likeliest_has_weight_one_and_what_is_forbidden_none(isa, temperature):
    scores = np.array([3e38, 2e38, -np.inf, 3e38] * 6, np.float32)
    found = np.empty_like(scores)
    _kernels.weigh(isa, scores, 3e38, temperature, found)
    np.testing.assert_allclose(found, [1, np.exp(-1e38 / temperature), 0, 1] * 6, rtol=1e-6)
    assert (found[[0, 2, 3]] == [1, 0, 1]).all()


def test_weights_want_a_temperature(isa):
    with pytest.raises(ValueError, match="a temperature is above 0"):
        _kernels.weigh(isa, np.zeros(3, np.float32), 0.0, 0.0, np.empty(3, np.float32))
