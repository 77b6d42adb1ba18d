"""Attention within a window: every way of computing it equals the dense formula, and none makes a T x T tensor."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

import ventoux.pytorch
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
    @settings(max_examples=60, deadline=None)
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


@given(st.integers(2, 60), st.integers(0, 60), st.one_of(st.none(), st.integers(1, 70)), st.sampled_from(sorted(SEGMENTS)))
@settings(max_examples=100, deadline=None)
def test_the_plan_visits_each_visible_key_once_and_no_other(T, past, W, kind):
    S = T + past
    numbers = SEGMENTS[kind](S) or [0] * S
    runs = runs_of(torch.tensor(numbers), S)
    assert [n for n, begin, end in runs for _ in range(begin, end)] == numbers
    visits = torch.zeros(S, S, dtype=torch.int64)
    for block in plan(runs, offset=past, window=W or S):
        for piece in block:
            n, m = piece.last - piece.first, piece.high - piece.low
            if piece.kind == "masked":
                continue
            shape = {"all": torch.ones(n, m), "causal": torch.ones(n, m).tril()}
            shape["reversed"] = torch.ones(n, m).tril().flip(0, 1)
            visits[piece.first : piece.last, piece.low : piece.high] += shape[piece.kind].long()
    if any(piece.kind == "masked" for block in plan(runs, offset=past, window=W or S) for piece in block):
        return
    at, keys, number = torch.arange(S)[:, None], torch.arange(S), torch.tensor(numbers)
    seen = (keys <= at) & (keys > at - (W or S)) & (number[:, None] == number) & (at >= past)
    assert torch.equal(visits, seen.long())
