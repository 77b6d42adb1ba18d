"""Packed products against fp64 arithmetic on weights that the gguf package dequantized."""

import gguf
import ml_dtypes
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ventoux.cpu import _kernels
from ventoux.quant import FORMATS

ROWS, COLUMNS = 75, 1536  # five panels, the last one with 11 rows; a strip and a half of the unpacking kernels
BLOCKS = [name for name in FORMATS if name not in ("F32", "F16", "BF16")]


def weights(format: str) -> tuple[np.ndarray, np.ndarray]:
    """Random packed rows and the fp64 matrix that they stand for."""
    if format == "F32":
        exact = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
        return exact.view(np.uint8), exact.astype(np.float64)
    if format == "BF16":  # of usual sizes: products of bf16 count those below 1e-38 as zero
        exact = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(ml_dtypes.bfloat16)
        return exact.view(np.uint8), exact.astype(np.float64)
    packed = tiny.random_blocks(np.random.default_rng(0), ROWS, COLUMNS, format=format)
    kind = gguf.GGMLQuantizationType[format]
    exact = gguf.dequantize(packed.view(np.float16 if format == "F16" else np.uint8), kind)
    return packed, exact.reshape(ROWS, COLUMNS).astype(np.float64)


def product(pool, weight, x, *, compute, start=0.0):
    y = np.full((len(x), ROWS), start, np.float32)
    _kernels.linear(pool, x, [weight], [y], start != 0, compute)
    return y


@pytest.mark.parametrize("compute", ["f32", "int16", "mixed"])
@pytest.mark.parametrize("format", FORMATS)
def test_products_equal_fp64(isa, format, compute):
    packed, exact = weights(format)
    order = np.random.default_rng(1).permutation(ROWS).astype(np.int32)
    pool = _kernels.Pool(2, isa)
    weight = _kernels.Weight(pool, format, COLUMNS, packed, order)
    x = np.random.default_rng(2).standard_normal((67, COLUMNS)).astype(np.float32)
    expected = x @ exact[order].T
    rounded = compute == "mixed" and pool.activations(format) != "fp32"  # weights in bf16 too, on some machines
    rounding = 0.02 if rounded else 3e-4 if compute == "int16" and format in BLOCKS else 3e-5
    tolerance = rounding * expected.std()
    assert np.abs(product(pool, weight, x, compute=compute) - expected).max() < tolerance


@pytest.mark.parametrize("compute", ["f32", "int16", "mixed"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(isa, format, compute):
    """To the last bit: this is what makes a seed give the same text inside a batch."""
    packed, _ = weights(format)
    pool, alone = _kernels.Pool(2, isa), _kernels.Pool(1, isa)
    weight = _kernels.Weight(pool, format, COLUMNS, packed)
    x = np.random.default_rng(2).standard_normal((31, COLUMNS)).astype(np.float32)
    x[::2, :32] *= 30  # beside this the rest of a row is ordinary: 8 bits, in tiles where a neighbour needs 16
    together = product(pool, weight, x, compute=compute)
    for count in (1, 2, 3, 6, 13, 30):
        np.testing.assert_array_equal(product(alone, weight, x[:count].copy(), compute=compute), together[:count])


@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize(("rows", "columns", "tokens"), [(16, 256, 17), (50, 768, 265), (129, 256, 530)])
def test_many_tokens_equal_few(isa, format, rows, columns, tokens):
    """Of shapes that fill no block: an odd number of panels, groups behind the last strip, tokens behind a tile."""
    rng = np.random.default_rng(5)
    pool = _kernels.Pool(2, isa)
    weight = _kernels.Weight(pool, format, columns, tiny.random_blocks(rng, rows, columns, format=format))
    x = (rng.standard_normal((tokens, columns)) ** 3).astype(np.float32)
    many = np.full((tokens, rows), 1, np.float32)
    _kernels.linear(pool, x, [weight], [many], True, "mixed")
    for first in range(0, tokens, 16):
        few = np.full((min(16, tokens - first), rows), 1, np.float32)
        _kernels.linear(pool, x[first : first + 16].copy(), [weight], [few], True, "mixed")
        np.testing.assert_array_equal(many[first : first + 16], few)


@pytest.mark.parametrize("format", ["BF16", "Q8_0"])
@pytest.mark.parametrize("tokens", [1_100, 1_285])
def test_more_tokens_than_caches_hold_equal_few(isa, format, tokens):
    """They pass in lots, of which the last one is shorter, where weights are read anew for each."""
    rng = np.random.default_rng(6)
    if format == "BF16":
        packed = rng.standard_normal((ROWS, 8_192)).astype(ml_dtypes.bfloat16).view(np.uint8)
    else:
        packed = tiny.random_blocks(rng, ROWS, 8_192, format=format)
    pool = _kernels.Pool(2, isa)
    weight = _kernels.Weight(pool, format, 8_192, packed)
    x = rng.standard_normal((tokens, 8_192)).astype(np.float32)
    many = product(pool, weight, x, compute="mixed")
    for first in range(0, tokens, 300):
        few = product(pool, weight, x[first : first + 300].copy(), compute="mixed")
        np.testing.assert_array_equal(many[first : first + 300], few)


@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("rows", [14, 33])  # few and many tokens go different ways
def test_what_stands_out_is_counted_where_it_stands(isa, format, share, rows):
    """High parts are multiplied token by token or tile by tile: each counts once, in its own row and group."""
    packed, exact = weights(format)
    pool, rng = _kernels.Pool(2, isa), np.random.default_rng(3)
    weight = _kernels.Weight(pool, format, COLUMNS, packed)
    x = rng.choice(np.float32([-1, 1]), (rows, COLUMNS))
    groups = x.reshape(rows, -1, 32)
    out = rng.random(groups.shape[:2]) < share
    out[:, ::7] |= rng.random((rows, 1)) < 0.5  # groups in which most rows of a tile stand out
    groups[out, 5] *= 100
    together, expected = product(pool, weight, x, compute="mixed"), x @ exact.T
    # Of what stands out in so many steps, or in 14 bits with a whole super-block; a part lost or counted twice: 1.
    activations = pool.activations(format)
    rounding = 17.9 / LEVELS[activations][1] if activations in LEVELS else 1e-2
    assert np.abs(together - expected).max() < rounding * expected.std()
    for row in range(rows):
        np.testing.assert_array_equal(product(pool, weight, x[row : row + 1].copy(), compute="mixed")[0], together[row])


# The largest magnitude of an activation in 8 bits, and in more where it stands out, in steps: the nearest one is taken.
LEVELS = {"int8": (127, 32_639), "int11": (127, 8 * 119), "int12": (120, 16 * 112), "int16": (32_639, 32_639)}


@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q8_0"])
@given(
    x=arrays(np.float32, 64, elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, -1.0, 7.0])),
    largest=st.sampled_from([1e-20, 1e-3, 1.0, 300.0]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_activation_is_rounded_to_the_nearest_step(isa, format, x, largest):
    """Seen through an identity matrix, one by one: where a group's largest one stands out in finer steps."""
    pool = _kernels.Pool(1, isa)
    weight = _kernels.Weight(pool, format, 64, identity(format))
    x = x * np.float32(largest / max(np.abs(x).max(), 1e-30))
    x[32:] *= np.float32(0.5)
    rows = np.stack([np.roll(x, i) for i in range(20)])
    few, many = (np.empty((n, 64), np.float32) for n in (2, 20))
    _kernels.linear(pool, rows[:2], [weight], [few], False, "mixed")
    _kernels.linear(pool, rows, [weight], [many], False, "mixed")
    np.testing.assert_array_equal(many[:2], few)
    most = np.abs(rows.reshape(20, 2, 32)).max(-1)
    coarse, fine = LEVELS[pool.activations(format)]
    stands_out = (
        most > 1.76 * np.sqrt(np.square(rows, dtype=np.float64).mean(-1))[:, None]
    )  # of every kernel's threshold
    step = most / np.where(stands_out, fine, coarse)
    error = np.abs(many.reshape(20, 2, 32) - rows.reshape(20, 2, 32)).max(-1)
    ends = most / fine if fine == 32_639 else 0  # are cut, of 16 bits
    assert (error <= step * 0.501 + ends + 1e-26).all()  # what is smaller counts as 0


def identity(format: str) -> np.ndarray:
    """64 rows whose weights are 1 where row and column are the same, and 0 elsewhere."""
    quants = np.eye(64, dtype=np.uint8) + (8 if format == "Q4_0" else 0)
    blocks = quants.reshape(64, 2, 32)
    scales = np.frombuffer(np.float16([1, 0] if format == "Q4_1" else [1]).tobytes(), np.uint8)
    packed = blocks if format == "Q8_0" else blocks[..., :16] | blocks[..., 16:] << 4
    return np.concatenate([np.broadcast_to(scales, (64, 2, len(scales))), packed], -1).reshape(64, -1)


@pytest.mark.parametrize("rows", [1, 2, 12, 18, 30])
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1"])
def test_the_largest_sums_of_nibbles_are_exact(isa, format, rows):
    """Of activations in 11 or 12 bits whose every part is at an end of what it can be, and all ends of quants.

    In n = 8 or 16 steps column i + 16's is n (s + u) + v, and column i's n (q + u / 16) + v / 16: its last bits are the
    other's.
    """
    rng = np.random.default_rng(4)
    pool = _kernels.Pool(2, isa)
    quants = np.stack(
        [rng.choice(values, (16, COLUMNS // 32, 16)) for values in ([0x00], [0xFF], [0xF0, 0x0F], range(256))]
    )
    quants = quants.astype(np.uint8).reshape(64, COLUMNS // 32, 16)
    scales = np.frombuffer(np.float16([1] if format == "Q4_0" else [1, -8]).tobytes(), np.uint8)
    packed = np.concatenate([np.broadcast_to(scales, (64, COLUMNS // 32, len(scales))), quants], -1).reshape(64, -1)
    exact = gguf.dequantize(packed, gguf.GGMLQuantizationType[format]).astype(np.float64)
    steps, limit = (8, 119) if pool.activations(format) == "int11" else (16, 112)
    most = steps * limit
    ends = ([1 - limit, 0, limit - 1], [9 - limit, limit - 8], [-8, 0, 7], [0, 1, steps - 1])
    q, s, u, v = (rng.choice(values, (rows, 16)) for values in ends)
    x = np.zeros((rows, COLUMNS), np.float32)
    x[:, 64:80], x[:, 80:96] = steps * q + (steps * u + v) / 16, steps * (s + u) + v
    x[:, [64, 80, 81]] = most
    x[:, 65] = -steps / 2  # u = -8, so s is 8 more than the limit
    x[1::2, [65, 81]] = [steps * 7 / 16, -most]  # and 7 less than the least
    y = np.empty((rows, 64), np.float32)
    _kernels.linear(pool, x, [_kernels.Weight(pool, format, COLUMNS, packed)], [y], False, "mixed")
    if pool.activations(format) in ("int11", "int12"):
        np.testing.assert_array_equal(y, x @ exact.T)
    else:
        np.testing.assert_allclose(y, x @ exact.T, atol=32 * 8 * most / 32_639)


def filled(format: str, quants: int, scales: int, d: float, dmin: float) -> np.ndarray:
    """A row whose super-blocks have one byte for all quants, one for all scales (and minima)."""
    two = np.float16([d, dmin]).tobytes()
    if format == "Q6_K":
        block = bytes([quants]) * 192 + bytes([scales]) * 16 + two[:2]
    else:
        block = two + bytes([scales]) * 12 + bytes([quants]) * (128 if format == "Q4_K" else 160)
    return np.frombuffer(block * (COLUMNS // 256), np.uint8)


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize(
    ("format", "fillings"),
    [
        ("Q4_K", [(0xFF, 0xFF, 1, 0), (0xFF, 0xFF, 1, 1), (0, 0xFF, -1, 1)]),
        ("Q5_K", [(0xFF, 0xFF, 1, 0), (0xFF, 0xFF, 1, -1), (0, 0xFF, -1, 1)]),
        ("Q6_K", [(0, 0x80, 1, 0), (0, 0x7F, 1, 0), (0xFF, 0x80, -1, 0)]),
    ],
)
def test_the_largest_sums_of_super_blocks_are_exact(isa, format, fillings, alternating, rows):
    """All that a super-block's integers can be: the largest quants, scales, minima and activations, of either sign."""
    packed = np.stack([filled(format, *f) for f in fillings for _ in range(16)])
    exact = gguf.dequantize(packed, gguf.GGMLQuantizationType[format]).astype(np.float64)
    pool = _kernels.Pool(2, isa)
    x = np.repeat(np.float32([[1], [-1]]), COLUMNS, 1)[np.arange(rows) % 2]
    if alternating:
        x[:, ::2] *= -1
        x[:, 1::64] *= -1  # not all of it cancels
    y = np.empty((rows, len(packed)), np.float32)
    _kernels.linear(pool, x, [_kernels.Weight(pool, format, COLUMNS, packed)], [y], False, "mixed")
    np.testing.assert_allclose(y, x @ exact.T, rtol=2e-5)


@pytest.mark.parametrize("format", ["Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("mean", [0, 2])
def test_super_blocks_are_more_exact_than_groups(isa, format, mean):
    """14 bits in 256 columns, next to 8 or 16 in 32."""
    if _kernels.Pool(1, isa).activations(format) != "int14":
        pytest.skip("super-blocks are multiplied as a whole on AVX2 and on AMD's AVX-512")
    packed, exact = weights(format)
    x = (np.random.default_rng(2).standard_normal((20, COLUMNS)) + mean).astype(np.float32)
    errors = {}
    for each in (isa, "portable"):
        pool = _kernels.Pool(2, each)
        weight = _kernels.Weight(pool, format, COLUMNS, packed)
        errors[each] = (product(pool, weight, x, compute="mixed") - x @ exact.T).std()
    assert errors[isa] < 0.2 * errors["portable"]


def test_adding_and_several_weights_at_once(isa):
    pool = _kernels.Pool(2, isa)
    x = np.random.default_rng(2).standard_normal((5, COLUMNS)).astype(np.float32)
    formats = ["Q6_K", "F16", "Q4_0"]  # three groupings of the activations in one call
    packed = [_kernels.Weight(pool, f, COLUMNS, weights(f)[0]) for f in formats]
    outs = [np.ones((5, ROWS), np.float32) for _ in formats]
    _kernels.linear(pool, x, packed, outs, True, "int16")
    for weight, out in zip(packed, outs, strict=True):
        np.testing.assert_allclose(out, 1 + product(pool, weight, x, compute="int16"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17])
@pytest.mark.parametrize("format", ["Q4_0", "Q5_K"])
@pytest.mark.parametrize(("rows", "compute"), [(2, "int16"), (2, "mixed"), (20, "mixed")])
def test_facts_20_what_is_not_a_number_is_not_lost(isa, bad, at, format, rows, compute):
    """A maximum may drop NaN; the logits must show it, so that it can be reported."""
    packed, _ = weights(format)
    pool = _kernels.Pool(1, isa)
    x = np.ones((rows, COLUMNS), np.float32)
    x[1, at] = bad
    y = product(pool, _kernels.Weight(pool, format, COLUMNS, packed), x, compute=compute)
    assert np.isfinite(np.delete(y, 1, 0)).all()
    assert not np.isfinite(y[1]).any()


@pytest.mark.parametrize(("format", "compute"), [("Q4_0", "int16"), ("Q6_K", "mixed")])
def test_activations_too_small_to_invert_count_as_zero(isa, format, compute):
    packed, exact = weights(format)
    pool = _kernels.Pool(1, isa)
    x = np.full((1, COLUMNS), 1e-36, np.float32)
    y = product(pool, _kernels.Weight(pool, format, COLUMNS, packed), x, compute=compute)
    expected = x @ exact.T
    assert (np.abs(y - expected) <= 1.01 * np.abs(expected)).all()  # garbage would have signs of its own


@pytest.mark.parametrize("columns", [1, 33])
@pytest.mark.parametrize("compute", ["f32", "mixed"])
def test_half_a_pair_of_bf16_is_a_column_of_its_own(isa, columns, compute):
    """As an adapter of odd rank has it."""
    pool, rng = _kernels.Pool(2, isa), np.random.default_rng(0)
    exact = rng.standard_normal((ROWS, columns)).astype(ml_dtypes.bfloat16)
    x = rng.standard_normal((14, columns)).astype(ml_dtypes.bfloat16).astype(np.float32)
    weight = _kernels.Weight(pool, "BF16", columns, exact.view(np.uint8))
    expected = x @ exact.astype(np.float32).T
    np.testing.assert_allclose(product(pool, weight, x, compute=compute), expected, rtol=1e-4, atol=1e-4)


def test_weights_keep_their_own_bit_width():
    pool = _kernels.Pool(1, "portable")
    for name, format in FORMATS.items():
        packed = tiny.random_blocks(np.random.default_rng(0), 32, 512, format=name)
        file_bytes = 32 * 512 // format.block * format.nbytes
        assert file_bytes <= _kernels.Weight(pool, name, 512, packed).nbytes <= file_bytes * 1.03


def test_bad_arguments_are_refused():
    pool = _kernels.Pool(1, "portable")
    packed, _ = weights("Q4_0")
    with pytest.raises(ValueError, match="number of bytes"):
        _kernels.Weight(pool, "Q4_0", COLUMNS + 32, packed)
    with pytest.raises(ValueError, match="not there"):
        _kernels.Weight(pool, "Q4_0", COLUMNS, packed, np.full(ROWS, ROWS, np.int32))
    with pytest.raises(ValueError, match="number format"):
        _kernels.Weight(pool, "IQ2_XXS", COLUMNS, packed)
    weight = _kernels.Weight(pool, "Q4_0", COLUMNS, packed)
    with pytest.raises(ValueError, match="columns"):
        product(pool, weight, np.ones((1, 32), np.float32), compute="int16")
    with pytest.raises(ValueError, match="None"):
        _kernels.linear(pool, np.ones((1, COLUMNS), np.float32), [None], [np.ones((1, ROWS), np.float32)], False, "f32")
    with pytest.raises(ValueError, match="mixed"):
        product(pool, weight, np.ones((1, COLUMNS), np.float32), compute="int8")


def test_results_are_never_written_to_a_converted_copy():
    pool = _kernels.Pool(1, "portable")
    x, y = np.ones((4, 32), np.float32), np.ones((4, 64), np.float32)
    with pytest.raises(TypeError):
        _kernels.rms_norm(pool, x, x[0], 1e-5, y[:, ::2])
    with pytest.raises(TypeError):
        _kernels.swiglu(pool, y[:, ::2], x)
    weight = _kernels.Weight(pool, "F32", 32, np.ones((16, 32), np.float32).view(np.uint8))
    with pytest.raises(TypeError):
        _kernels.linear(pool, x, [weight], [np.ones((4, 16), np.float64)], False, "f32")
