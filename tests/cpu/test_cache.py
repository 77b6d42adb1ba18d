"""Forks and snapshots of sequences: what goes on from them has the bits of what was read from the start, or None."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux import checkpoint
from ventoux.batch import Batch, Segment, Snapshot
from ventoux.cpu import Backend

IDS = np.random.default_rng(5).integers(3, 96, 90).tolist()
WINDOWS = [(3, 3), (4, 4), (16, 16), (None, None), (None, 4), (20, 40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = checkpoint.read(tiny.save_hf(tiny.tiny_model(2), tmp_path_factory.mktemp("cache")))

    @cache
    def make(windows, kv_dtype):
        return Backend(replace(found.config, windows=windows), found.tensors, threads=1, kv_cache_dtype=kv_dtype)

    @cache
    def expected(windows, kv_dtype):
        backend = make(windows, kv_dtype)
        rings = backend.new_cache()
        return run(backend, rings, rings.allocate(90), 0, IDS)

    return make, expected


def run(backend, rings, slot, start, ids):
    """Logits [len(ids), vocab] of ids at positions start, start + 1, ..."""
    return backend.forward(Batch.pack([Segment(slot, start, ids, len(ids))]), rings)


chunks = st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda counts: sum(counts) <= 70)
kinds = {"windows": st.sampled_from(WINDOWS), "kv_dtype": st.sampled_from(["f32", "f16", "int8"])}


@settings(deadline=None, max_examples=120)
@given(chunks=chunks, lookahead=st.sampled_from([0, 0, 5, 15]), data=st.data(), **kinds)
def test_forks_at_every_position_go_on_with_the_same_bits_or_are_refused(
    made, chunks, lookahead, windows, kv_dtype, data
):
    make, expected = made
    backend, logits = make(windows, kv_dtype), expected(windows, kv_dtype)
    rings = backend.new_cache()
    slot, written = rings.allocate(90, lookahead), 0
    for count in chunks:
        run(backend, rings, slot, written, IDS[written : written + count])
        written += count
    position = data.draw(st.integers(1, written) | st.integers(max(1, written - 20), written))
    rest = data.draw(st.integers(0, 90 - written))
    fork = rings.fork(slot, position, position + rest, data.draw(st.sampled_from([0, 15])))
    lost = any(
        window is not None and max(0, position - window + 1) < written - -(-min(window + lookahead, 90) // 16) * 16
        for window in windows
    )
    assert (fork is None) == lost
    end = written + min(rest, 20)
    if fork is not None and rest:
        again = rings.fork(fork, position, position + rest)  # of a fork that has not gone on
        for each in (fork, again):
            ids = IDS[position : min(position + rest, 90)]
            np.testing.assert_array_equal(run(backend, rings, each, position, ids), logits[position:][: len(ids)])
            rings.free(each)
    if end > written:  # and the source is as it was
        np.testing.assert_array_equal(run(backend, rings, slot, written, IDS[written:end]), logits[written:end])


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("windows", WINDOWS)
def test_what_was_exported_goes_on_with_the_same_bits(made, windows, kv_dtype):
    make, expected = made
    backend, logits = make(windows, kv_dtype), expected(windows, kv_dtype)
    rings, others = backend.new_cache(), backend.new_cache()
    slot = rings.allocate(90)
    run(backend, rings, slot, 0, IDS[:50])
    for position in (50, 49):
        snapshot = rings.export(slot, position)
        assert snapshot is not None
        assert rings.sequences == 1
        restored = others.restore(Snapshot(position, snapshot.firsts, tuple(each.copy() for each in snapshot.layers)))
        fork = others.fork(restored, position, 90)
        np.testing.assert_array_equal(run(backend, others, fork, position, IDS[position:]), logits[position:])
    assert (rings.export(slot, 10) is None) == any(windows)


def test_a_snapshot_of_another_shape_is_refused_and_leaves_nothing(made):
    make, _ = made
    rings = make((4, 4), "f16").new_cache()
    slot = rings.allocate(20)
    run(make((4, 4), "f16"), rings, slot, 0, IDS[:20])
    snapshot = rings.export(slot, 20)
    for other, message in (
        (replace(snapshot, layers=snapshot.layers[:1]), "it has 1 layers, and the model has 2"),
        (replace(snapshot, layers=(snapshot.layers[0], snapshot.layers[1][1:])), r"layer 1 has 2047 bytes, .* 2048"),
    ):
        with pytest.raises(ValueError, match=message):
            rings.restore(other)
    with pytest.raises(ValueError, match="layer 0 has 2048 bytes, and should have 4096"):
        make((4, 4), "f32").new_cache().restore(snapshot)
    assert rings.sequences == 1
    rings.free(slot)
    assert rings.nbytes == 0
