"""Windowed attention over ring and chunk against a plain fp64 one that keeps every key."""

import time
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windowed import plain

from ventoux.cpu import _kernels, instruction_sets

H, K = 8, 2


def in_chunks(isa, q, k, v, window, chunks, *, dtype="f32", length=None):
    """The same through the cache, the sequence cut into chunks of the given sizes; no rotation (cos 1, sin 0)."""
    T, D = len(q), q.shape[-1]
    pool, cache = _kernels.Pool(2, isa), _kernels.Cache(K, D, [None, window], dtype=dtype)
    slot = cache.allocate(length or T)
    out, start = np.empty((T, H * D), np.float32), 0
    for count in chunks:
        part = slice(start, start + count)
        rows = [np.ascontiguousarray(x[part].reshape(count, -1), np.float32) for x in (q, k, v)]
        cos, sin = np.ones((count, D // 2), np.float32), np.zeros((count, D // 2), np.float32)
        at = [np.array([x], np.int32) for x in (slot, start, count)]
        _kernels.attention(pool, cache, 1, D, *rows, cos, sin, *at, out[part])
        start += count
    assert start == T
    return out.reshape(T, H, D)


def random_qkv(T, D, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((T, heads, D)).astype(np.float32) for heads in (H, K, K))


@pytest.mark.parametrize("D", [16, 64, 6])
@pytest.mark.parametrize("window", [1, 3, 4, 16, 20, None])
def test_facts_1_every_query_sees_exactly_its_window(isa, window, D):
    q, k, v = random_qkv(50, D)
    expected = plain(q, k, v, window)
    for chunks in ([50], [1] * 50, [7, 30, 13]):
        np.testing.assert_allclose(in_chunks(isa, q, k, v, window, chunks), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("window", [3, 16, 20, None])
def test_facts_10_chunk_sizes_do_not_matter_to_the_last_bit(isa, window, dtype):
    q, k, v = random_qkv(90, 32)
    W = window or 24
    once = in_chunks(isa, q, k, v, window, [90], dtype=dtype)
    for size in (1, W - 1, W, W + 1, 2 * W):
        chunks = [size] * (90 // size) + [90 % size] * (90 % size > 0)
        np.testing.assert_array_equal(in_chunks(isa, q, k, v, window, chunks, dtype=dtype), once)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_facts_10_ragged_chunks(data):
    T = data.draw(st.integers(1, 70))
    window = data.draw(st.sampled_from([None, 1, 2, 5, 16, 17, 48]))
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=8))) if T > 1 else []
    chunks = np.diff([0, *cuts, T]).tolist()
    q, k, v = random_qkv(T, 16, seed=T)
    isa = data.draw(st.sampled_from(instruction_sets()))
    result = in_chunks(isa, q, k, v, window, chunks, length=T + data.draw(st.integers(0, 20)))
    np.testing.assert_allclose(result, plain(q, k, v, window), atol=2e-6)


def test_facts_9_a_prompt_longer_than_the_ring_never_sees_the_future(isa):
    """One chunk of five windows: what is written last must not be what the first queries read."""
    q, k, v = random_qkv(20, 16)
    first = in_chunks(isa, q, k, v, 4, [20])
    k[12:], v[12:] = 1e3, -1e3
    np.testing.assert_array_equal(in_chunks(isa, q, k, v, 4, [20])[:12], first[:12])


def test_facts_16_the_cache_levels_off_at_the_window():
    cache = _kernels.Cache(K, 32, [16, 16], dtype="f16")
    per_position = 2 * 2 * K * 32 * 2  # layers, keys and values, heads, head_dim, fp16
    for length, kept in ((16, 16), (17, 16), (4096, 16), (10**9, 16)):
        slot = cache.allocate(length)
        assert cache.nbytes == kept * per_position
        cache.free(slot)
    assert (cache.nbytes, cache.sequences) == (0, 0)


def test_facts_15_without_a_window_the_cache_is_as_long_as_the_sequence():
    cache = _kernels.Cache(K, 32, [None, 16], dtype="f32")
    cache.allocate(4096)
    assert cache.nbytes == (4096 + 16) * 2 * K * 32 * 4


def test_heads_that_fill_no_group_of_four_and_many_sequences_at_once(isa):
    """Seven heads a KV head (four are scored together), 70 sequences of several lengths; a ring of one."""
    rng = np.random.default_rng(0)
    lengths = [1 + i % 5 for i in range(70)]
    T, D = sum(lengths), 16
    q, k, v = (rng.standard_normal((T, heads, D)).astype(np.float32) for heads in (14, 2, 2))
    cos, sin = np.ones((T, D // 2), np.float32), np.zeros((T, D // 2), np.float32)
    for window in (1, 3, None):
        cache = _kernels.Cache(2, D, [window], dtype="f32")
        slots = [cache.allocate(n) for n in lengths]
        out = np.empty((T, 14 * D), np.float32)
        rows = [x.reshape(T, -1).copy() for x in (q, k, v)]
        spans = [np.array(x, np.int32) for x in (slots, [0] * 70, lengths)]
        _kernels.attention(_kernels.Pool(2, isa), cache, 0, D, *rows, cos, sin, *spans, out)
        for end, n in zip(np.cumsum(lengths), lengths, strict=True):
            one = slice(end - n, end)
            expected = plain(q[one], k[one], v[one], window)
            np.testing.assert_allclose(out[one].reshape(n, 14, D), expected, atol=2e-6)


def test_a_sequence_may_be_freed_while_a_kernel_reads_it():
    """The GIL is released meanwhile: the memory must stay until the kernel is done with it."""
    T, D = 1500, 64
    q, k, v = random_qkv(T, D)
    pool, cache = _kernels.Pool(1, "portable"), _kernels.Cache(K, D, [None], dtype="f32")
    slot, out = cache.allocate(T), np.empty((T, H * D), np.float32)
    rows = [x.reshape(T, -1).copy() for x in (q, k, v)]
    cos, sin = np.ones((T, D // 2), np.float32), np.zeros((T, D // 2), np.float32)
    at = [np.array([x], np.int32) for x in (slot, 0, T)]
    thread = Thread(target=_kernels.attention, args=(pool, cache, 0, D, *rows, cos, sin, *at, out))
    thread.start()
    time.sleep(0.02)
    cache.free(slot)
    assert thread.is_alive()
    thread.join()
    np.testing.assert_allclose(out.reshape(T, H, D), plain(q, k, v, None), atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    cache = _kernels.Cache(2, 16, [4], dtype="f32")
    slot = cache.allocate(8)

    def attend(*, layer=0, head_dim=16, heads=4, out=None):
        x = [np.ones((4, n), np.float32) for n in (16 * heads, 32, 32, 8, 8)]
        at = [np.array([n], np.int32) for n in (slot, 0, 4)]
        out = np.empty((4, 16 * heads), np.float32) if out is None else out
        _kernels.attention(_kernels.Pool(1, "portable"), cache, layer, head_dim, *x, *at, out)

    attend()
    for layer in (-1, 1, 10**9):
        with pytest.raises(IndexError):
            attend(layer=layer)
    with pytest.raises(ValueError, match="another model"):
        attend(head_dim=0)
    with pytest.raises(ValueError, match="shared evenly"):
        attend(heads=3)
    with pytest.raises(TypeError):
        attend(out=np.empty((4, 64), np.float64))
    with pytest.raises(ValueError, match="positions can count"):
        cache.allocate(2**31 - 1)


def test_slots_are_used_again_and_bad_ones_refused():
    cache = _kernels.Cache(K, 32, [16], dtype="f16")
    first, second = cache.allocate(8), cache.allocate(8)
    cache.free(first)
    assert cache.allocate(8) == first != second
    for slot in (-1, 2, 99):
        with pytest.raises(IndexError, match="not allocated"):
            cache.free(slot)
    q, k, v = random_qkv(9, 32)
    with pytest.raises(ValueError, match="longer than"):
        in_chunks("portable", q, k, v, 16, [9], length=8)
