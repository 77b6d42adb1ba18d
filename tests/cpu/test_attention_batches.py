"""The same bits for a query whatever surrounds it: chunks, other sequences, threads, guesses that were taken back."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windowed import plain

from ventoux.cpu import _kernels, instruction_sets

LOOKAHEAD = 15  # positions that a sequence may take back


@dataclass
class Sequence:
    """What one sequence asks, and what it has been answered: q and out [T, H, D], k and v [T, K, D]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray
    slot: int
    at: int = 0  # positions that are done


class Runner:
    """Sequences in one cache, with one pool; no rotation (cos 1, sin 0)."""

    def __init__(self, isa, *, heads, kv_heads, head_dim, window, dtype, threads):
        self.shape = heads, kv_heads, head_dim
        self.pool = _kernels.Pool(threads, isa)
        self.cache = _kernels.Cache(kv_heads, head_dim, [window], dtype)

    def add(self, length, seed):
        H, K, D = self.shape
        rng = np.random.default_rng(seed)
        q, k, v = (rng.standard_normal((length, n, D)).astype(np.float32) for n in (H, K, K))
        slot = self.cache.allocate(length + LOOKAHEAD, LOOKAHEAD)
        return Sequence(q, k, v, np.full_like(q, np.nan), slot)

    def step(self, parts):
        """parts: (sequence, count, guesses); the guesses stand behind the count and are not numbers."""
        H, K, D = self.shape
        rows = []
        for heads, name in ((H, "q"), (K, "k"), (K, "v")):
            pieces = []
            for s, count, guesses in parts:
                wrong = np.full((guesses, heads, D), np.nan if s.slot % 2 else np.inf, np.float32)
                pieces += [getattr(s, name)[s.at : s.at + count], wrong]
            rows.append(np.concatenate(pieces).reshape(-1, heads * D))
        T = len(rows[0])
        counts = [count + guesses for _, count, guesses in parts]
        spans = [np.array(x, np.int32) for x in ([s.slot for s, _, _ in parts], [s.at for s, _, _ in parts], counts)]
        angles = np.ones((T, D // 2), np.float32), np.zeros((T, D // 2), np.float32)
        out = np.empty((T, H * D), np.float32)
        _kernels.attention(self.pool, self.cache, 0, D, *rows, *angles, *spans, out)
        for row, (s, count, _) in zip(np.cumsum([0, *counts]), parts, strict=False):
            s.out[s.at : s.at + count] = out[row : row + count].reshape(count, H, D)
            s.at += count


def alone(isa, length, seed, **options):
    """The sequence in one chunk, on one thread."""
    runner = Runner(isa, threads=1, **options)
    sequence = runner.add(length, seed)
    runner.step([(sequence, length, 0)])
    return sequence


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_batches_of_all_kinds_give_the_bits_of_a_sequence_alone(data):
    heads, kv_heads = data.draw(st.sampled_from([(2, 2), (4, 2), (3, 1), (8, 2), (9, 1), (7, 1)]))
    options = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": data.draw(st.sampled_from([16, 20, 64])),
        "window": data.draw(st.sampled_from([1, 3, 4, 16, 20, 100, 256, 300, None])),
        "dtype": data.draw(st.sampled_from(["f32", "f16", "int8"])),
    }
    isa = data.draw(st.sampled_from(instruction_sets()))
    lengths = data.draw(st.lists(st.integers(1, 90) | st.integers(200, 560), min_size=1, max_size=3))
    runner = Runner(isa, threads=data.draw(st.integers(1, 3)), **options)
    sequences = [runner.add(length, seed) for seed, length in enumerate(lengths)]
    while waiting := [s for s in sequences if s.at < len(s.q)]:
        parts = []
        for s in waiting:
            count = data.draw(st.sampled_from([1, 2, 13, 14, 16, 17, 33, 250, 400]))
            parts.append((s, min(count, len(s.q) - s.at), data.draw(st.sampled_from([0, 0, 3, LOOKAHEAD]))))
        runner.step(parts)
    for seed, s in enumerate(sequences):
        expected = alone(isa, len(s.q), seed, **options)
        np.testing.assert_array_equal(s.out, expected.out)
        tolerance = 0.05 if options["dtype"] == "int8" else 4e-3 if options["dtype"] == "f16" else 4e-6
        np.testing.assert_allclose(s.out, plain(s.q, s.k, s.v, options["window"]), atol=tolerance)


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("head_dim", [80, 96, 128])
def test_blocks_shared_by_threads_give_the_bits_of_one_chunk(isa, dtype, head_dim):
    """Few queries over many keys: each thread takes some of the blocks of 256 positions."""
    options = {"heads": 8, "kv_heads": 2, "head_dim": head_dim, "window": 700, "dtype": dtype}
    length = 1000 if isa != "portable" else 790
    expected = alone(isa, length, 0, **options)
    for threads in (1, 2, 3):
        runner = Runner(isa, threads=threads, **options)
        sequence = runner.add(length, 0)
        for count in (length - 25, 1, 7, 1, 16):
            runner.step([(sequence, count, 0)])
        np.testing.assert_array_equal(sequence.out, expected.out)


@pytest.mark.parametrize("window", [16, 20, None])
def test_what_overflows_is_not_hidden(isa, window):
    """An infinite value reaches whoever sees it, and nobody else: not even with a weight of 0."""
    for dtype in ("f32", "f16", "int8"):
        runner = Runner(isa, heads=4, kv_heads=2, head_dim=16, window=window, dtype=dtype, threads=1)
        sequence = runner.add(60, 0)
        sequence.v[30] = np.inf
        runner.step([(sequence, 60, 0)])
        finite = np.isfinite(sequence.out).all((1, 2))
        sees = np.arange(60) - 30
        np.testing.assert_array_equal(finite, (sees < 0) | (sees >= (window or 60)))
