"""Attention within a window: every way of computing it equals the dense formula, and none makes a T x T tensor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)
from transformers.masking_utils import create_chunked_causal_mask

from ventoux.pytorch import attention, window
from ventoux.pytorch.attention import Bands, attend, ventoux_attention
from ventoux.pytorch.window import plan, runs_of


@pytest.fixture
def cut_up(monkeypatch):
    """Lengths of tests are cut into pieces as thousands of tokens are."""

    def sizes(*, short: int = 2, masked: int = 8, small: int = 0, run: int = 0) -> None:
        monkeypatch.setattr(attention, "SHORT", short)
        monkeypatch.setattr(window, "_MASKED", masked)
        monkeypatch.setattr(window, "_SMALL", small)
        monkeypatch.setattr(window, "_RUN", run)

    sizes()
    return sizes


def dense(query, key, value, *, window: int | None, offset: int, scale: float, segments: Tensor | None = None):
    """The formula: all scores of all keys, those that are not seen at minus infinity."""
    T, S = query.shape[2], offset + query.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = (x[:, :, :S].repeat_interleave(groups, 1) for x in (key, value))
    at, keys = torch.arange(offset, S)[:, None], torch.arange(S)
    seen = (keys <= at) & (keys > at - (window or S))
    if segments is not None:
        seen = seen & (segments[:, offset:S, None] == segments[:, None, :S])[:, None]
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, -math.inf)
    assert scores.shape[2] == T
    return scores.softmax(-1) @ value


def tensors(B: int, H: int, K: int, T: int, S: int, D: int, dtype=torch.float64, seed: int = 0):
    """As projections give them: [B, T, heads, D] in memory."""
    torch.manual_seed(seed)
    make = lambda heads, n: torch.randn(B, n, heads, D, dtype=torch.float64).to(dtype).transpose(1, 2)  # noqa: E731
    return make(H, T), make(K, S), make(K, S)


SEGMENTS = {
    "none": lambda S: None,
    "left": lambda S: [-1] * (S // 3) + [0] * (S - S // 3),
    "right": lambda S: [0] * (S - S // 3) + [-1] * (S // 3),
    "packed": lambda S: [i // 7 for i in range(S)],
    "hole": lambda S: [-1 if S // 3 <= i < S // 2 else 0 for i in range(S)],
    "comb": lambda S: [-(i % 2) for i in range(S)],
    "all": lambda S: [-1] * S,
}


@st.composite
def cases(draw):
    T, past, B = draw(st.integers(2, 40)), draw(st.integers(0, 30)), draw(st.integers(1, 3))
    kinds = draw(st.lists(st.sampled_from(sorted(SEGMENTS)), min_size=B, max_size=B))
    S = T + past
    rows = [SEGMENTS[kind](S) for kind in kinds]
    segments = None if None in rows else torch.tensor(rows, dtype=torch.int32)
    heads = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2)]))
    W = draw(st.one_of(st.none(), st.integers(1, 45)))
    spare = draw(st.integers(0, 3))  # keys of a static cache that are not written yet
    return *tensors(B, *heads, T, S + spare, 8, seed=draw(st.integers(0, 99))), W, past, segments


@pytest.mark.parametrize("way", ["pieces", "masked pieces", "public"])
def test_every_way_equals_the_formula_and_so_do_its_gradients(cut_up, way, monkeypatch):
    if way == "masked pieces":
        cut_up(small=1000)
    if way == "public":
        monkeypatch.setattr("ventoux.pytorch.blocks._BLOCK", 8)
        monkeypatch.setattr(attention, "fits", lambda *_: False)

    @given(cases())
    @settings(max_examples=40, deadline=None)
    def check(case):
        *qkv, W, past, segments = case
        results = []
        for compute in (attend, dense):
            inputs = [x.detach().clone().requires_grad_() for x in qkv]
            out = compute(*inputs, window=W, offset=past, scale=0.3, segments=segments)
            grads = torch.autograd.grad((out * out.cos()).sum(), inputs)
            results.append((out, *grads))
        for ours, formula in zip(*results, strict=True):
            torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-9)

    check()


def test_the_plan_visits_each_visible_key_once_and_no_other(cut_up):
    @given(
        st.integers(2, 60),
        st.integers(0, 60),
        st.one_of(st.none(), st.integers(1, 70)),
        st.sampled_from(list(SEGMENTS)),
    )
    @settings(max_examples=100, deadline=None)
    def check(T, past, W, kind):
        S = T + past
        numbers = SEGMENTS[kind](S) or [0] * S
        runs = runs_of(torch.tensor(numbers), S)
        assert [n for n, begin, end in runs for _ in range(begin, end)] == numbers
        visits = torch.zeros(S, S, dtype=torch.int64)
        for block in plan(runs, offset=past, window=W or S):
            assert all((block[0].first, block[0].last) == (p.first, max(p.last, block[0].last)) for p in block)
            for piece in block:
                n, m = piece.last - piece.first, piece.high - piece.low
                triangle = torch.ones(n, m, dtype=torch.int64).tril()
                shapes = {"all": torch.ones_like(triangle), "causal": triangle, "reversed": triangle.flip(0, 1)}
                visits[piece.first : piece.last, piece.low : piece.high] += shapes[piece.kind]
        at, keys, number = torch.arange(S)[:, None], torch.arange(S), torch.tensor(numbers)
        seen = (keys <= at) & (keys > at - (W or S)) & (number[:, None] == number) & (at >= past)
        assert torch.equal(visits, seen.long())

    check()


@pytest.mark.parametrize("W", [300, window._SMALL - 1, window._SMALL, 1100, None])
@pytest.mark.parametrize("T", [window.SHORT - 1, window.SHORT, 257, 1100, 1101])
@pytest.mark.parametrize("past", [0, 1500])
def test_sizes_at_which_the_way_of_computing_changes(T, W, past):
    qkv = tensors(1, 2, 1, T, past + T, 8, seed=T)
    settings = {"window": W, "offset": past, "scale": 0.3}
    torch.testing.assert_close(attend(*qkv, **settings), dense(*qkv, **settings), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["pieces", "masked pieces", "public"])
def test_in_every_dtype_and_finite_where_all_is_padding(cut_up, dtype, way, monkeypatch):
    cut_up(small=1000 if way == "masked pieces" else 0)
    if way == "public":
        monkeypatch.setattr(attention, "fits", lambda *_: False)
    inputs = [x.requires_grad_() for x in tensors(3, 4, 2, 60, 60, 16, dtype=dtype)]
    segments = torch.tensor([[-1] * 60, [-1] * 20 + [0] * 40, [0] * 60], dtype=torch.int32)
    settings = {"window": 25, "offset": 0, "scale": 0.3, "segments": segments}
    out = attend(*inputs, **settings)
    grads = torch.autograd.grad(out.sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    formula = dense(*exact, **settings)
    expected = torch.autograd.grad(formula.sum(), exact)
    tolerance = {torch.float32: 2e-6}.get(dtype, 4 * torch.finfo(dtype).eps)  # torch's own exponential in fp32
    for ours, right in zip((out, *grads), (formula, *expected), strict=True):
        assert ours.dtype == dtype
        assert ours.isfinite().all()
        assert (ours.double() - right).abs().max() <= tolerance * right.abs().max().clamp(min=1)


def most_at_once(run) -> int:
    """Bytes of the largest tensor that is made, inside of operators too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize(("W", "packed"), [(1024, False), (256, False), (1024, True)])
def test_memory_does_not_grow_with_the_square_of_the_length(W, packed):
    def run(T: int) -> int:
        inputs = [x.requires_grad_() for x in tensors(1, 2, 1, T, T, 8, dtype=torch.float32)]
        segments = (torch.arange(T) // 700)[None].int() if packed else None
        run = lambda: attend(*inputs, window=W, offset=0, scale=0.3, segments=segments).sum().backward()  # noqa: E731
        return most_at_once(run)

    square = 4096 * 4096  # bytes of a bool mask
    assert most_at_once(lambda: torch.ones(4096, 4096, dtype=torch.bool)) >= square  # what is counted, is counted
    assert run(4096) == run(2048) < square / 4


def test_a_step_of_decoding_copies_no_keys():
    query, key, value = (x.contiguous() for x in tensors(2, 4, 2, 1, 4096, 64, dtype=torch.float32))
    segments = torch.zeros(2, 4096, dtype=torch.int32)
    for given_segments in (None, segments):
        run = lambda s=given_segments: attend(query, key, value, window=4000, offset=4095, scale=0.1, segments=s)  # noqa: E731
        assert most_at_once(run) < key.nbytes / 16


def test_one_operator_to_autograd_and_to_compilers(cut_up):
    inputs = [x.requires_grad_() for x in tensors(2, 4, 2, 30, 30, 8)]
    segments = torch.tensor([SEGMENTS["left"](30), SEGMENTS["hole"](30)], dtype=torch.int32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(window.window_attention, (*inputs, segments, 11, 0, 0.3), test_utils=checks)
    torch.library.opcheck(window.window_attention, (*inputs, None, 11, 0, 0.3), test_utils=checks)


@pytest.mark.parametrize("lengths", [(300, 301), (200,)])  # cut up, and too short for that
def test_compiled_as_one_graph(lengths):
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for T in lengths:
        results = []
        for compute in (compiled, dense):
            inputs = [x.requires_grad_() for x in tensors(1, 2, 1, T, T, 8)]
            out = compute(*inputs, window=90, offset=0, scale=0.3)
            results.append((out, *torch.autograd.grad(out.sum(), inputs)))
        for ours, formula in zip(*results, strict=True):
            torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-9)


def test_values_of_another_size_than_keys_and_dropout_take_public_functions(cut_up):
    query, key, value = tensors(2, 4, 2, 30, 30, 8)
    settings = {"window": 11, "offset": 0, "scale": 0.3}
    torch.testing.assert_close(
        attend(query, key, value[..., :5], **settings), dense(query, key, value[..., :5], **settings)
    )
    dropped = attend(query, key, torch.ones_like(value), dropout=0.5, **settings)
    assert dropped.std() > 0.1
    assert 0.9 < dropped.mean() < 1.1


def test_autocast_computes_in_its_dtype(cut_up):
    query, key, value = tensors(1, 2, 1, 30, 30, 8, dtype=torch.float32)
    settings = {"window": 11, "offset": 0, "scale": 0.3}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(query, key, value.bfloat16(), **settings)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), dense(query, key, value, **settings), rtol=0.02, atol=0.02)


TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MODELS = {
    MistralForCausalLM: MistralConfig(**TINY),
    Qwen2ForCausalLM: Qwen2Config(**TINY, use_sliding_window=True, max_window_layers=1),
    Gemma2ForCausalLM: Gemma2Config(**TINY, attn_logit_softcapping=None),
}


@pytest.mark.parametrize("model", MODELS)
def test_in_transformers_own_models(cut_up, model):
    torch.manual_seed(0)
    theirs = model(MODELS[model]).eval()
    ids, mask = torch.randint(3, 97, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :7] = 0

    def chunks(cache):
        cuts = [(0, 9), (9, 10), (10, 20)]
        parts = [theirs(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits for a, b in cuts]
        return torch.cat(parts, 1)[mask.bool()]

    results = {}
    for implementation in ("eager", "ventoux"):
        theirs.set_attn_implementation(implementation)
        settings = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
        packed = torch.cat((torch.arange(8), torch.arange(12)))[None]
        with torch.no_grad():
            results[implementation] = (
                theirs(ids).logits,
                theirs(ids, attention_mask=mask).logits[mask.bool()],
                theirs(ids[:1], position_ids=packed, use_cache=False).logits,
                chunks(DynamicCache(config=theirs.config)),
                chunks(StaticCache(config=theirs.config, max_cache_len=32)),
                theirs.generate(ids, **settings),
                theirs.generate(ids, **settings, cache_implementation="static", disable_compile=True),
            )
    for ours, eager in zip(results["ventoux"], results["eager"], strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-6)


def test_what_changes_scores_is_refused():
    config = Gemma2Config(**TINY)  # its default has a soft cap
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation("ventoux")
    with pytest.raises(ValueError, match='no softcap, which this model needs; use "eager"'):
        model(torch.tensor([[3, 4, 5]]))


def test_a_module_that_is_not_causal_sees_all(cut_up):
    query, key, value = tensors(1, 4, 2, 9, 12, 8)
    module = torch.nn.Module()
    everywhere = torch.ones(1, 1, 9, 12, dtype=torch.bool)
    without, _ = ventoux_attention(module, query, key, value, None, is_causal=False, sliding_window=4)
    masked, _ = ventoux_attention(module, query, key, value, everywhere, sliding_window=4)
    module.is_causal = False
    by_module, _ = ventoux_attention(module, query, key, value, None)
    torch.testing.assert_close(without, masked)
    torch.testing.assert_close(by_module, masked)


def test_chunked_patterns_get_a_dense_mask():
    config = Llama4TextConfig(attention_chunk_size=4)
    config._attn_implementation = "ventoux"
    mask = create_chunked_causal_mask(config, torch.zeros(1, 10, 8), None, None)
    at = torch.arange(10)
    assert torch.equal(mask[0, 0], (at[:, None] // 4 == at // 4) & (at[:, None] >= at))


def test_a_model_that_does_not_name_its_window_gets_it_from_the_mask(cut_up):
    query, key, value = tensors(1, 4, 2, 20, 20, 8)
    mask = attention.ventoux_mask(1, 20, 20, local_size=6)
    out, _ = ventoux_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    expected = dense(query, key, value, window=6, offset=0, scale=0.3)
    torch.testing.assert_close(out.transpose(1, 2), expected)


def test_bands_move_as_tensors_do():
    assert Bands(3).to("meta") == Bands(3)
    moved = Bands(3, torch.zeros(1, 4, dtype=torch.int32), 5).to("meta")
    assert (moved.segments.device.type, moved.offset, moved.window) == ("meta", 3, 5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"window": 0}, "at least 1 key"),
        ({"offset": 1}, "30 queries at an offset of 1 do not stand among 30 keys"),
        ({"offset": -1}, "do not stand among"),
        ({"segments": torch.zeros(2, 29)}, r"\[2, 30\] of them; found \[2, 29\]"),
        ({"segments": torch.zeros(1, 30)}, r"found \[1, 30\]"),
        ({"heads": (3, 2)}, "K divides H; found"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong, says):
    wrong = dict(wrong)
    qkv = tensors(2, *wrong.pop("heads", (4, 2)), 30, 30, 8)
    with pytest.raises(ValueError, match=says):
        attend(*qkv, **{"window": 4, "offset": 0, "scale": 0.3, **wrong})


def test_meta_tensors_and_function_transforms_take_public_functions(cut_up):
    query, key, value = tensors(1, 4, 2, 30, 30, 8)
    settings = {"window": 11, "offset": 0, "scale": 0.3}
    assert attend(*(x.to("meta") for x in (query, key, value)), **settings).shape == query.shape
    ours, formula = (
        torch.func.grad(lambda q, compute=compute: compute(q, key, value, **settings).sum())(query)
        for compute in (attend, dense)
    )
    torch.testing.assert_close(ours, formula)
