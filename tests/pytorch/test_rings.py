"""Forks and snapshots of the PyTorch backend's sequences: what goes on is as read from the start, or refused."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux import checkpoint
from ventoux.batch import Batch, Segment
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Request
from ventoux.pytorch.backend import Backend

IDS = np.random.default_rng(5).integers(3, 96, 90).tolist()
WINDOWS = [(3, 3), (4, 4), (16, 16), (None, None), (None, 4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = checkpoint.read(tiny.save_hf(tiny.tiny_model(2), tmp_path_factory.mktemp("rings")))

    @cache
    def make(windows, dtype="fp32"):
        return Backend(replace(found.config, windows=windows), found.tensors, dtype=dtype)

    @cache
    def expected(windows):
        backend = make(windows)
        rings = backend.new_cache()
        return run(backend, rings, rings.allocate(90), 0, IDS)

    return make, expected


def run(backend, rings, slot, start, ids):
    return backend.forward(Batch.pack([Segment(slot, start, ids, len(ids))]), rings)


@settings(deadline=None, max_examples=40)
@given(
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda counts: sum(counts) <= 70),
    windows=st.sampled_from(WINDOWS),
    lookahead=st.sampled_from([0, 6]),
    data=st.data(),
)
def test_forks_at_every_position_go_on_alike_or_are_refused(made, chunks, windows, lookahead, data):
    make, expected = made
    backend, logits = make(windows), expected(windows)
    rings = backend.new_cache()
    slot, written = rings.allocate(90, lookahead), 0
    for count in chunks:
        run(backend, rings, slot, written, IDS[written : written + count])
        written += count
    position = data.draw(st.integers(1, written) | st.integers(max(1, written - 8), written))
    rest = data.draw(st.integers(1, 90 - written))
    fork = rings.fork(slot, position, position + rest)
    behind = chunks[-1] if lookahead else 0  # what the last chunk pushed out can be taken back, and copied
    lost = any(w is not None and max(0, position - w + 1) < written - w - behind for w in windows)
    assert (fork is None) == lost
    snapshot = rings.export(slot, position)
    assert (snapshot is None) == lost
    if fork is not None:
        held = rings.restore(snapshot)
        others = [rings.fork(each, position, 90, 6) for each in (fork, held)]
        for each, end in ((fork, position + rest), (others[0], 90), (others[1], 90)):
            found = run(backend, rings, each, position, IDS[position:end])
            np.testing.assert_allclose(found, logits[position:end], atol=1e-4)
    np.testing.assert_allclose(run(backend, rings, slot, written, IDS[written:90]), logits[written:], atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_snapshots_keep_every_bit_and_are_refused_where_they_do_not_fit(made, dtype):
    make, _ = made
    backend = make((None, 4), dtype)
    rings = backend.new_cache()
    slot = rings.allocate(30)
    run(backend, rings, slot, 0, IDS[:20])
    snapshot = rings.export(slot, 20)
    twin = rings.fork(rings.restore(snapshot), 20, 30)
    fresh = rings.fork(slot, 20, 30)
    np.testing.assert_array_equal(*(run(backend, rings, each, 20, IDS[20:30]) for each in (twin, fresh)))
    before = rings.nbytes
    for other, message in (
        (replace(snapshot, layers=snapshot.layers[:1]), "1 layers, and the model has 2"),
        (replace(snapshot, layers=(snapshot.layers[0][4:], snapshot.layers[1])), "layer 0 has .* bytes, and should"),
        (replace(snapshot, firsts=(0, 0), layers=snapshot.layers[:1] * 2), "layer 1 has more positions than its wind"),
    ):
        with pytest.raises(ValueError, match=message):
            rings.restore(other)
    assert rings.nbytes == before


@pytest.mark.parametrize("windows", WINDOWS)
def test_facts_13_a_chats_turns_are_as_without_prefixes(made, windows):
    backend = made[0](windows)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

    def ask(engine, ids):
        events = []
        engine.add(Request(ids, params))
        while engine.busy:
            events += [event for _, event in engine.step()]
        return Completion(events)

    kept, fresh, ids = Engine(backend, prefix_bytes=1 << 20), Engine(backend), IDS[:30]
    for turn in range(3):
        answer = ask(kept, ids)
        assert answer.ids == ask(fresh, ids).ids
        assert answer.usage.cached_tokens == (len(ids) - 4 if turn else 0)
        ids = [*ids, *answer.ids, *IDS[:3]]
    assert kept.kv_bytes == 0
