"""The machine's limits: loops that count what they multiplied by adding it up, and a sum of all that was read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux.cpu import _kernels
from ventoux.cpu.limits import measure_limits


@pytest.mark.parametrize("threads", [1, 3])
def test_every_thread_multiplies_every_round(isa, threads):
    pool = _kernels.Pool(threads, isa)
    for multiply in (_kernels.multiply_int8, _kernels.multiply_fp32, _kernels.multiply_bf16):
        once = multiply(pool, 1)
        if multiply is _kernels.multiply_bf16 and pool.activations("BF16") != "bf16":
            assert once == 0
            continue
        assert once % (threads * 4096) == 0
        assert multiply(pool, 5) == 5 * once > 0


def test_a_lane_adds_two_products_of_bf16(isa):
    pool = _kernels.Pool(1, isa)
    assert _kernels.multiply_bf16(pool, 3) == (3 * 4096 * 12 * 32 if pool.activations("BF16") == "bf16" else 0)


def test_wider_instructions_multiply_more_a_round(isa):
    sums = {"portable": 8, "avx2": 12, "avx512": 12}
    lanes = {"portable": (8, 4), "avx2": (32, 8), "avx512": (64, 16)}
    pool = _kernels.Pool(1, isa)
    found = _kernels.multiply_int8(pool, 1), _kernels.multiply_fp32(pool, 1)
    emulated = lanes["avx2"] if isa == "avx512" else lanes[isa]  # AVX-512 in emulation multiplies as the machine can
    assert found in [tuple(4096 * sums[isa] * n for n in numbers) for numbers in (lanes[isa], emulated)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 3))
def test_all_words_are_read(extra, threads):
    pool = _kernels.Pool(threads, "portable")
    words = np.random.default_rng(extra).integers(0, 2**64, (1 << 19) + extra - 20, np.uint64)  # around one piece
    assert _kernels.read_memory(pool, words) == int(words.sum(dtype=np.uint64))
    assert _kernels.read_memory(pool, words[:extra]) == int(words[:extra].sum(dtype=np.uint64))


def test_limits_are_speeds():
    limits = measure_limits(1)
    assert min(limits.int8_gmac_s, limits.fp32_gmac_s) > 0
