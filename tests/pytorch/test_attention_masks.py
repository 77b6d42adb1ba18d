"""Who sees whom, on every implementation: exactly W keys, no padding, nothing of a neighbour's."""

import copy

import pytest
import torch
from flash_reference import build, replace_flash
from pairs import IMPLEMENTATIONS, close, ours, padded, theirs, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache, StaticCache

from ventoux.pytorch import RollingCache
from ventoux.pytorch.masks import packed, packed_segments, positions

EVERYWHERE = [*IMPLEMENTATIONS, "flash_attention_2"]


@pytest.fixture
def flash_calls(monkeypatch):
    return replace_flash(monkeypatch)


@torch.no_grad()
def logits(model, ids, mask=None, *, chunks=(), cache=None):
    """[B, T, V], in one pass or chunk by chunk."""
    if not chunks:
        return model(ids, attention_mask=mask, use_cache=False).logits
    cache, parts, seen = RollingCache(model.config) if cache is None else cache, [], 0
    for n in chunks:
        step = None if mask is None else mask[:, : seen + n]
        out = model(ids[:, seen : seen + n], attention_mask=step, past_key_values=cache, use_cache=True)
        parts.append(out.logits)
        seen += n
    return torch.cat(parts, 1)


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("window", [1, 4])
def test_facts_1_4_exactly_w_keys_are_seen(implementation, window, flash_calls):
    """One layer: the key at distance W - 1 matters, that at W does not; in prefill, in chunks, in decoding."""
    model = build(implementation, num_hidden_layers=1, sliding_window=window)
    ids = tokens(1, 12)
    for chunks in ((), (7, 5), (5, *[1] * 7)):
        before = logits(model, ids, chunks=chunks)[0]
        for changed in (3, 7):
            other = ids.clone()
            other[0, changed] = (ids[0, changed] + 1) % 96
            moved = (logits(model, other, chunks=chunks)[0] - before).abs().amax(-1) > 1e-6
            assert moved.nonzero().flatten().tolist() == list(range(changed, min(changed + window, 12)))


@pytest.mark.parametrize("window", [4, None])
def test_facts_2_3_all_implementations_give_equal_logits(window, flash_calls):
    """Prefill, chunks and steps, padded and not; the plain one masks by the window too."""
    models = {name: build(name, sliding_window=window) for name in EVERYWHERE}
    ids, mask = padded([tokens(17), tokens(9, seed=1), tokens(2, seed=2)])
    for chunks in ((), (8, 4, *[1] * 5)):
        found = {name: logits(model, ids, mask, chunks=chunks)[mask.bool()] for name, model in models.items()}
        whole = {name: logits(model, tokens(2, 17), chunks=chunks) for name, model in models.items()}
        for name in EVERYWHERE:
            close(found[name], found["eager"])
            close(whole[name], whole["eager"])
    wider = build("eager", sliding_window=None)
    assert window is None or (logits(wider, ids, mask) - logits(models["eager"], ids, mask)).abs().max() > 0.1


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_facts_7_positions_come_from_the_mask_on_either_side(implementation, flash_calls):
    model = build(implementation)
    rows = [tokens(n, seed=n) for n in (13, 6, 1)]
    alone = [logits(model, row[None])[0] for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side=side)
        for kind in (torch.int64, torch.bool, torch.float32):
            found = logits(model, ids, mask.to(kind))
            for i, expected in enumerate(alone):
                close(found[i][mask[i].bool()], expected)
    assert positions(torch.tensor([[0, 0, 1, 1, 1]]), past=0, length=5, device=ids.device).tolist() == [[0, 0, 0, 1, 2]]
    assert positions(torch.tensor([[1, 1, 1, 0, 0]]), past=0, length=5, device=ids.device).tolist() == [[0, 1, 2, 2, 2]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_facts_20_rows_of_padding_are_finite_in_every_dtype(implementation, dtype):
    """Outputs, and gradients where the implementation has them."""
    model = build(implementation, dtype=dtype)
    with torch.no_grad():
        for layer in model.model.layers:  # scores of a hundred, which fp16's least cannot be added to
            layer.self_attn.q_proj.weight *= 30
    for side in ("left", "right"):
        ids, mask = padded([tokens(12), tokens(3, seed=1), tokens(0)], side=side)
        out = model(ids, attention_mask=mask, use_cache=False, labels=ids.masked_fill(mask == 0, -100))
        assert out.logits.isfinite().all()
        assert out.logits.dtype == dtype
        model.zero_grad()
        out.loss.backward()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())
        assert logits(model, ids, mask, chunks=(5, 6, 1)).isfinite().all() if side == "left" else True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_close_to_fp32(dtype):
    ids, mask = padded([tokens(20), tokens(5, seed=1)])
    exact = logits(build("eager"), ids, mask)[mask.bool()]
    for implementation in IMPLEMENTATIONS:
        found = logits(build(implementation, dtype=dtype), ids, mask)[mask.bool()].float()
        assert (found - exact).pow(2).mean().sqrt() < (0.01 if dtype == torch.float16 else 0.08) * exact.std()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast(implementation):
    """Weights in fp32, products in bf16: as Trainer does with bf16=True."""
    model, ids = build(implementation), tokens(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, labels=ids, use_cache=False)
        steps = logits(model, ids, chunks=(7, 1, 1, 3))
    out.loss.backward()
    exact = logits(model, ids)
    for found in (out.logits, steps):
        assert (found.float() - exact).pow(2).mean().sqrt() < 0.08 * exact.std()


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])
def test_every_cache_fits_every_implementation(implementation):
    """transformers' growing, sliding and static caches and ours, in chunks past the window."""
    model = build(implementation)
    ids, mask = padded([tokens(15), tokens(9, seed=1)])
    expected = logits(model, ids, mask)[mask.bool()]
    makers = (
        lambda: DynamicCache(),
        lambda: DynamicCache(config=model.config),
        lambda: StaticCache(config=model.config, max_cache_len=20),
        lambda: RollingCache(model.config),
    )
    for chunks in ((9, 1, 1, 4), (2, 1, 1, 1, 10), (3, 12)):
        for make in makers:
            close(logits(model, ids, mask, chunks=chunks, cache=make())[mask.bool()], expected)


def test_flash_attention_is_told_w_keys(flash_calls):
    """The reference stands in for FA2, which runs on CUDA only: this is what it would be called with."""
    model = build("flash_attention_2")
    expected = logits(build("eager"), tokens(1, 12))
    close(logits(model, tokens(1, 12), chunks=(7, 1, 4)), expected)
    two = flash_calls[::2]
    assert [call["shape"][1] for call in two] == [7, 4, 7]  # whole, the ring as it lies, three of the ring and four new
    assert two[0]["window_size"] == two[2]["window_size"] == (3, 3)  # left, right; causal makes the right 0
    assert all(call["causal"] for call in two)
    assert two[1]["window_size"] == (-1, -1)  # a full ring is what is seen
    flash_calls.clear()
    ids, mask = padded([tokens(9), tokens(4, seed=1)])
    logits(model, ids, mask)
    assert {call["window_size"] for call in flash_calls} == {(3, 3)}
    assert sorted(call["shape"][1] for call in flash_calls) == [4, 4, 9, 9]  # padding taken out


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])
def test_a_mask_of_the_callers_own(implementation):
    """4D, of booleans or to be added, over all positions, with a ring that has let go of some."""
    model = build(implementation)
    ids = tokens(1, 12)
    distance = torch.arange(12)[:, None] - torch.arange(12)
    seen = (distance >= 0) & (distance < 3)  # narrower than the window
    expected = logits(build("eager", sliding_window=3), ids)
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        for mask in (seen[None, None], added[None, None]):
            close(model(ids, attention_mask=mask).logits, expected)
            cache, found = RollingCache(model.config), []
            for a, b in ((0, 7), (7, 8), (8, 12)):
                step = mask[:, :, a:b, :b]
                found.append(model(ids[:, a:b], attention_mask=step, past_key_values=cache).logits)
            close(torch.cat(found, 1), expected)


@pytest.mark.parametrize("width", [3, 5, 8])
def test_masks_of_another_width_are_refused(width):
    model, ids = ours(), tokens(1, 4)
    with pytest.raises(ValueError, match=f"attention_mask has {width} columns; expected 4: 0 for the tokens in the"):
        model(ids, attention_mask=torch.ones(1, width))
    with torch.no_grad():
        cache = model(ids).past_key_values
        with pytest.raises(ValueError, match=f"attention_mask has {width} columns; expected 6: 4 for .* and 2 for"):
            model(tokens(1, 2), attention_mask=torch.ones(1, width), past_key_values=cache)


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_going_on_over_padding_between_tokens(implementation, flash_calls):
    """Inside the window it is exact, past it refused: real tokens would have been evicted for the padding."""
    model = build(implementation, sliding_window=12)
    rows = [tokens(5), tokens(3, seed=1)]
    ids, mask = padded(rows, side="right")
    more = tokens(2, 4, seed=2)
    seen = torch.cat((mask, torch.ones(2, 4, dtype=torch.int64)), 1)
    with torch.no_grad():
        cache = model(ids, attention_mask=mask).past_key_values
        found = model(more, attention_mask=seen, past_key_values=cache).logits
        for i, row in enumerate(rows):
            close(found[i], logits(model, torch.cat((row, more[i]))[None])[0, -4:])
        trailing = torch.cat((seen, (torch.arange(9) < 5).long().expand(2, -1)), 1)
        trailing[1, 3:] = 0  # nothing comes after it yet, so it does no harm
        trailing[0] = 1
        model(tokens(2, 9), attention_mask=trailing, past_key_values=copy.deepcopy(cache))
        longer = torch.cat((seen, torch.ones(2, 9, dtype=torch.int64)), 1)
        with pytest.raises(ValueError, match="padding between tokens with a cache of 12 positions"):
            model(tokens(2, 9), attention_mask=longer, past_key_values=cache)


@pytest.mark.parametrize("implementation", ["sdpa", "ventoux"])
def test_a_step_of_decoding_copies_no_window(implementation):
    """Without padding the ring is attended as it lies: nothing of a window's size is made."""
    window = 512
    model = build(implementation, sliding_window=window, num_hidden_layers=1)
    with torch.no_grad():
        cache = model(tokens(1, window + 40)).past_key_values
        mask = torch.ones(1, window + 41)
        with Sizes() as sizes:
            model(tokens(1, 1), attention_mask=mask, past_key_values=cache)
            step = max(sizes.made)
            model(tokens(1, 2), attention_mask=torch.ones(1, window + 43), past_key_values=cache)
    keys = window * 2 * 16  # of the two KV heads
    assert step < keys / 4
    assert max(sizes.made) > keys  # two tokens read the ring in order


class Sizes(TorchDispatchMode):
    """The number of elements of each tensor that is made, views not counted."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        held = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in held:
                self.made.append(one.numel())
        return out


def test_segments_of_positions():
    assert packed_segments(torch.tensor([[0, 1, 2, 0, 1]])).tolist() == [[0, 0, 0, 1, 1]]
    assert packed_segments(torch.tensor([[0, 0, 0]])).tolist() == [[0, 1, 2]]
    assert packed_segments(torch.tensor([[5, 6, 7]])) is None
    where, segments = packed(None, torch.tensor([0, 3, 5]), shape=(1, 5), device=torch.device("cpu"))
    assert where.tolist() == [[0, 1, 2, 0, 1]]
    assert segments.tolist() == [[0, 0, 0, 1, 1]]


def test_transformers_models_take_our_implementation():
    """`attn_implementation="ventoux"` in transformers' own class equals its eager one."""
    model = ours()
    ids, mask = padded([tokens(20), tokens(7, seed=1)])
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = theirs(model, implementation="ventoux")(ids, attention_mask=mask, position_ids=where).logits
    close(found[mask.bool()], logits(build("eager"), ids, mask)[mask.bool()])
