"""The ring of W positions against a plain list of everything that was ever written."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pairs import close, ours, padded, positions, theirs, tokens
from tiny import tiny_config

from ventoux.pytorch import RollingCache
from ventoux.pytorch.cache import RollingLayer

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 9)),
        st.tuples(st.just("write"), st.just(1)),
        st.tuples(st.just("write"), st.integers(60, 140)),  # past the ring's first size
        st.tuples(st.just("crop"), st.integers(0, 12)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("copy"), st.just(0)),
    ),
    max_size=12,
)


@given(window=st.integers(1, 12) | st.sampled_from([64, 65, 130]), steps=STEPS, records=st.booleans())
@settings(max_examples=250, deadline=None)
def test_a_ring_equals_a_list(window, steps, records):
    """Whatever is written, taken back and chosen, the keys handed out are the last W - 1 and the new ones, in order."""
    layer = RollingLayer(window)
    if records:
        layer.activate_past_recording()
    written = torch.zeros(2, 1, 0, 2)  # all that a full cache would hold
    kept = 0  # positions that may be taken back past the window: those since the last crop
    counter = 0
    for step, n in steps:
        if step == "write":
            new = torch.arange(counter, counter + 4 * n).view(2, 1, n, 2).float()
            counter += 4 * n
            promised, first = layer.get_mask_sizes(n)
            written = torch.cat((written, new), 2)
            expected = written[:, :, -(min(written.shape[2] - n, window - 1) + n) :]
            in_order = n > 1 or counter % 3 > 0
            keys, values = layer.update(new, -new, in_order=in_order)
            if not in_order:  # the same pairs as they lie; what is written grows, so they can be sorted
                order = keys[0, 0, :, 0].argsort()
                keys, values = keys[:, :, order], values[:, :, order]
            assert keys.shape[2] == promised == written.shape[2] - first
            assert torch.equal(keys, expected)
            assert torch.equal(values, -expected)
            kept += n
        elif step == "crop":
            n = min(n, written.shape[2])
            impossible = n and written.shape[2] > window and n > (kept if records else 0) and written.shape[2] > n
            if impossible:
                continue
            layer.crop(-n)
            written = written[:, :, : written.shape[2] - n]
            kept = 0
        elif step == "select" and layer.is_initialized:
            layer.batch_select_indices(torch.tensor(n))
            written = written[n]
        elif step == "reset":
            layer.reset()
            written, kept = written[:, :, :0], 0
        elif step == "copy":
            layer = copy.deepcopy(layer)
        assert layer.get_seq_length() == written.shape[2]
        assert not layer.is_initialized or layer.keys.shape[2] <= window


@given(
    window=st.integers(1, 9),
    before=st.integers(0, 30),
    drafts=st.lists(st.tuples(st.integers(1, 14), st.integers(0, 14))),
)
@settings(max_examples=100, deadline=None)
def test_facts_12_rollback_restores_evicted_keys_and_the_cache_stays_bounded(window, before, drafts):
    """Rounds of speculation: write some, take back some of them, more than the window too."""
    layer = RollingLayer(window)
    layer.activate_past_recording()
    written = torch.arange(before * 2).view(1, 1, before, 2).float()
    if before:
        layer.update(written, written)
        layer.crop(0)
    for n, back in drafts:
        back = min(n, back)
        new = 1000 + torch.rand(1, 1, n, 2)
        layer.update(new, new)
        layer.crop(-back)
        written = torch.cat((written, new), 2)[:, :, : written.shape[2] + n - back]
        held = min(written.shape[2], window)
        assert torch.equal(layer._last(held)[0], written[:, :, written.shape[2] - held :])
        assert layer._evicted is None
        assert layer.nbytes == 2 * layer.keys.nbytes <= 2 * window * 2 * 4


def test_facts_16_half_the_bytes_of_a_full_cache_at_8k_and_level_after():
    config = tiny_config(sliding_window=4096, num_hidden_layers=1)
    ring, full = RollingCache(config), RollingCache(tiny_config(sliding_window=None, num_hidden_layers=1))
    sizes = []
    for _ in range(12):
        new = torch.zeros(1, 2, 1024, 16)
        for cache in (ring, full):
            cache.update(new, new, 0)
        sizes.append((ring.nbytes, full.nbytes))
    assert sizes[7][0] * 2 == sizes[7][1] == 8192 * 2 * 2 * 16 * 4
    assert sizes[3][0] == sizes[-1][0]
    short = RollingCache(config)
    short.update(new[:, :, :5], new[:, :, :5], 0)
    assert short.nbytes == 64 * 2 * 2 * 16 * 4  # a short text has a short ring


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])  # its flex does not decode on a CPU
def test_transformers_own_model_takes_the_ring(implementation):
    model = theirs(ours(), implementation=implementation)
    ids, mask = padded([tokens(20), tokens(11, seed=1)])
    cache, parts = RollingCache(model.config), []
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        for a, b in ((0, 9), (9, 10), (10, 11), (11, 20)):
            out = model(
                ids[:, a:b],
                attention_mask=mask[:, :b],
                position_ids=positions(mask)[:, a:b],
                past_key_values=cache,
            )
            parts.append(out.logits)
    close(torch.cat(parts, 1)[mask.bool()], expected[mask.bool()])
    settings = {"attention_mask": mask, "max_new_tokens": 9, "pad_token_id": 0}
    found = model.generate(ids, past_key_values=RollingCache(model.config), **settings)
    assert found.tolist() == model.generate(ids, **settings).tolist()


def test_the_face_that_transformers_uses():
    """Sizes, initialization ahead of time, reset for another batch, beams, copies, offloading to the CPU."""
    model = ours()
    cache = RollingCache(model.config)
    assert cache.get_seq_length() == 0
    assert cache.nbytes == 0
    assert cache.is_sliding == [True, True]
    assert cache.get_max_length() == 4
    assert cache.is_croppable
    assert not cache.is_compileable
    cache.early_initialization(batch_size=1, num_heads=2, head_dim=16, dtype=torch.float32, device=torch.device("cpu"))
    assert cache.is_initialized
    ids = tokens(1, 11)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        close(model(ids[:, :7], past_key_values=cache).logits, expected[:, :7])
        twin = copy.deepcopy(cache)
        close(model(ids[:, 7:], past_key_values=cache).logits, expected[:, 7:])
        assert (cache.get_seq_length(), twin.get_seq_length()) == (11, 7)
        for layer in twin.layers:
            layer.offload()
            layer.prefetch()
        close(model(ids[:, 7:], past_key_values=twin).logits, expected[:, 7:])
        cache.activate_past_recording()
        assert cache.is_recording_past(0)
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.reorder_cache(torch.tensor([1, 0]))
        more = tokens(1, 2, seed=5)
        found = model(more.expand(2, -1), past_key_values=cache).logits
        close(found[1:], model(torch.cat((ids, more), 1), use_cache=False).logits[:, -2:])
        cache.reset()
        assert cache.nbytes == 0
        close(model(ids.expand(3, -1), past_key_values=cache).logits[2:], expected)


def test_what_a_ring_cannot_do_is_refused():
    with pytest.raises(ValueError, match="a window is at least 1 position, found 0"):
        RollingLayer(0)
    layer = RollingLayer(4)
    new = torch.zeros(1, 1, 9, 2)
    layer.update(new, new)
    with pytest.raises(ValueError, match="minus the number of positions to remove, found 3"):
        layer.crop(3)
    with pytest.raises(ValueError, match="cannot remove 10 positions from a cache that has seen 9"):
        layer.crop(-10)
    with pytest.raises(RuntimeError, match=r"2 evicted positions were not kept; call activate_past_recording"):
        layer.crop(-2)
    assert layer.get_seq_length() == 9
    layer.crop(-9)  # of nothing there is nothing to bring back
    assert layer.get_seq_length() == 0


def test_without_a_window_the_cache_grows():
    cache = RollingCache(tiny_config(sliding_window=None))
    model = ours(sliding_window=None)
    with torch.no_grad():
        model(tokens(1, 9), past_key_values=cache)
        cache.crop(-3)
        close(model(tokens(1, 9)[:, 6:], past_key_values=cache).logits, model(tokens(1, 9)).logits[:, 6:])
    assert cache.get_seq_length() == 9
