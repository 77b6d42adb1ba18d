"""Sampling against transformers' processors, against the distribution it claims, and at the edges of floats."""

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ventoux.cpu import _kernels
from ventoux.cpu._kernels import kth_largest, nucleus_floor
from ventoux.decoding import History, Sampled, SamplingParams, sample
from ventoux.decoding.sampling import Float32, candidates
from ventoux.errors import GenerationError

# on a grid and unique: transformers breaks ties by the order of its sort, we keep both
logit_arrays = arrays(np.float32, st.integers(1, 40), elements=st.integers(-240, 240).map(lambda n: n / 8), unique=True)


def weights_of(logits: Float32, params: SamplingParams) -> Float32:
    """What may be drawn and how often, up to a common factor: [V], 0 for what is out."""
    ids, weights = candidates(logits, float(logits.max()), params)
    if ids is None:
        return weights
    assert (np.diff(ids) > 0).all()
    dense = np.zeros_like(logits)
    dense[ids] = weights
    return dense


def draw(logits: Any, *, seed: int = 0, history: History | None = None, **params: Any) -> Sampled:
    rng = np.random.Generator(np.random.PCG64(seed))
    return sample(np.asarray(logits, np.float32), SamplingParams(**params), rng=rng, history=history or History())


@settings(deadline=None, max_examples=200)
@given(
    logit_arrays,
    st.floats(0.1, 3),
    st.integers(0, 45),
    st.floats(0.05, 1),
    st.floats(0, 1),
)
def test_what_survives_is_what_transformers_lets_survive(
    logits: Float32, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    import torch
    from transformers.generation import logits_process as hf

    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = hf.TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = hf.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = hf.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = hf.MinPLogitsWarper(min_p)(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    expected[expected < 1e-36] = 0  # as ours are below e^-87 of the likeliest

    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = weights_of(logits, params)
    found /= found.sum()
    found[found < 1e-36] = 0
    # a set may differ by one token where a probability lies on the border itself, within rounding
    differing = np.flatnonzero((found > 0) != (expected > 0))
    if len(differing) == 0:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        assert on_border(logits, params, differing)


def on_border(logits: Float32, params: SamplingParams, differing: np.ndarray) -> bool:
    """Whether the tokens that differ stop differing when a threshold moves by a millionth."""
    borders = []
    for nudge in (-1e-5, 1e-5):
        top_p = min(1.0, params.top_p * (1 + nudge))
        min_p = min(1.0, params.min_p * (1 + nudge))
        nudged = SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=top_p, min_p=min_p)
        borders.append(set(np.flatnonzero(weights_of(logits, nudged))))
    return set(differing) <= borders[0] ^ borders[1]


@settings(deadline=None, max_examples=100)
@given(logit_arrays, st.data(), st.floats(0.5, 2))
def test_repetition_penalty_is_transformers_over_prompt_and_answer(
    logits: Float32, data: st.DataObject, penalty: float
) -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    ids = st.lists(st.integers(0, len(logits) - 1), max_size=6)
    prompt, answer = data.draw(ids), data.draw(ids)
    history = History(prompt)
    for token_id in answer:
        history.add(token_id)
    seen = torch.tensor([prompt + answer], dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, torch.from_numpy(logits.copy())[None])[0].numpy()
    chosen = draw(logits, temperature=0, repetition_penalty=penalty, history=history)
    assert expected[chosen.id] == pytest.approx(expected.max(), rel=1e-6)


def test_presence_and_frequency_count_the_answer_only() -> None:
    history = History([0, 0, 0])
    for token_id in (1, 1, 2):
        history.add(token_id)
    logits = [1.0, 2.0, 1.7]
    assert draw(logits, temperature=0, history=history).id == 1
    assert draw(logits, temperature=0, frequency_penalty=0.4, history=history).id == 2  # 1.0, 2.0 - 0.8, 1.7 - 0.4
    assert draw(logits, temperature=0, presence_penalty=0.9, history=history).id == 1  # 1.0, 2.0 - 0.9, 1.7 - 0.9
    assert draw(logits, temperature=0, presence_penalty=0.5, frequency_penalty=0.4, history=history).id == 0


def test_bias_moves_and_forbids() -> None:
    logits = [0.0, 5.0, 4.0]
    assert draw(logits, temperature=0, logit_bias={0: 6.0}).id == 0
    assert draw(logits, temperature=0, logit_bias={1: -math.inf}).id == 2
    only = Counter(draw(logits, temperature=9, logit_bias={0: -math.inf, 2: -math.inf}, seed=s).id for s in range(50))
    assert only == {1: 50}


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_penalty_beyond_float32_is_an_error(temperature: float) -> None:
    """Not a token that is forbidden: of infinity every weight would be 0."""
    with np.errstate(over="ignore"), pytest.raises(GenerationError, match="beyond what float32 holds"):
        draw([1, 2, 4e37], temperature=temperature, repetition_penalty=0.01, history=History([2]))


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_no_temperature_draws_what_is_forbidden(temperature: float) -> None:
    drawn = {draw([1.0, 1.0, 2.0], temperature=temperature, logit_bias={2: -math.inf}, seed=s).id for s in range(50)}
    assert drawn == {0, 1}


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40_000),
    st.sampled_from([0.0, 0.1, 1.0, 3.0, 8.0]),
    st.sampled_from([None, 1, 8]),
    st.floats(0.01, 0.999),
    st.integers(0, 3_000),
    st.sampled_from([1.0, 0.5, 0.001]),
)
def test_of_a_large_vocabulary_a_plain_sort_keeps_the_same(
    seed: int, size: int, spread: float, grid: int | None, top_p: float, top_k: int, allowed: float
) -> None:
    """Flat, peaked, with many equals, or with few that a grammar allows; top_k before top_p."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * spread).astype(np.float32)
    if grid:
        logits = np.round(logits * grid) / np.float32(grid)
    logits[rng.random(size) > allowed] = -np.inf
    logits[rng.integers(size)] = 0

    exact = weights_of(logits, SamplingParams(temperature=1))
    np.testing.assert_allclose(exact, np.exp(logits - logits.max()), rtol=6e-6, atol=2.0**-125)
    if top_k:
        exact[logits < np.sort(logits)[-min(top_k, size)]] = 0
    np.testing.assert_array_equal(weights_of(logits, SamplingParams(temperature=1, top_k=top_k)), exact)

    descending = np.sort(exact)[::-1]
    mass = np.cumsum(descending, dtype=np.float64)
    floors = [
        descending[min(np.searchsorted(mass, top_p * nudge * mass[-1]), size - 1)] for nudge in (1 - 1e-6, 1 + 1e-6)
    ]
    found = weights_of(logits, SamplingParams(temperature=1, top_k=top_k, top_p=top_p))
    assert any(np.array_equal(found, exact * (exact >= floor)) for floor in floors)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False)), st.data())
def test_the_kth_largest_is_that_of_a_sort_for_any_floats(values: Float32, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    assert kth_largest(values, k) == np.sort(values)[-k]


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(1, 300), elements=st.integers(-149, 20).map(lambda n: 2.0**n) | st.just(0.0)),
    st.floats(1e-9, 1),
)
def test_the_floor_of_a_nucleus_is_exact_where_sums_are(weights: Float32, share: float) -> None:
    """Powers of two: their sums are integers, which a sort and Python add up without rounding."""
    weights[0] = 1
    goal = Fraction(share * float(weights.sum(dtype=np.float64)))
    floor = nucleus_floor(weights, share)
    larger = sum(map(Fraction, weights[weights > floor].tolist()))
    equal = sum(map(Fraction, weights[weights == floor].tolist()))
    tolerance = goal / 10**12
    assert equal > 0
    assert larger < goal + tolerance
    assert larger + equal >= goal - tolerance


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(1, 900), elements=st.integers(-30, 0).map(lambda n: 2.0**n) | st.just(0.0)),
    st.floats(0, 1, exclude_max=True),
    st.data(),
)
def test_a_draw_is_where_the_running_sum_passes_its_share(weights: Float32, share: float, data: st.DataObject) -> None:
    """Powers of two, whose sums are exact, but for the goal's own rounding; weights of 0 are never drawn."""
    weights[data.draw(st.integers(0, len(weights) - 1))] = 1
    at = _kernels.draw(weights, share)
    ends, goal = np.cumsum(weights, dtype=np.float64), share * weights.sum(dtype=np.float64)
    assert weights[at] > 0
    assert ends[at] - weights[at] <= goal * (1 + 1e-12)
    assert ends[at] >= goal * (1 - 1e-12)


def test_a_draw_of_nothing_is_the_first_that_has_a_weight() -> None:
    weights = np.zeros(1000, np.float32)
    weights[[700, 900]] = 2.0**-149  # the smallest float32 there is
    assert _kernels.draw(weights, 0.0) == 700
    assert _kernels.draw(weights, 0.5) == 900
    assert _kernels.draw(weights, math.nextafter(1, 0)) == 900


@settings(deadline=None)
@given(arrays(np.float32, 1100, elements=st.floats(0, 1, width=32)), st.integers(900, 1099))
def test_rounding_takes_the_last_draw_to_the_last_weight(weights: Float32, last: int) -> None:
    weights[last], weights[last + 1 :] = 2.0**-40, 0
    at = _kernels.draw(weights, math.nextafter(1, 0))
    assert weights[at + 1 :].sum(dtype=np.float64) <= 1e-12 * weights.sum(dtype=np.float64)


@pytest.mark.parametrize(("size", "share"), [(0, 0.5), (3, -0.1), (3, 1.0), (3, math.nan)])
def test_a_draw_wants_a_share_below_all(size: int, share: float) -> None:
    with pytest.raises(ValueError, match="a share is at least 0 and below 1"):
        _kernels.draw(np.ones(size, np.float32), share)


@pytest.mark.parametrize("k", [0, 4])
def test_there_is_no_kth_largest_beyond_the_values(k: int) -> None:
    with pytest.raises(ValueError, match="k must be"):
        kth_largest(np.ones(3, np.float32), k)


@pytest.mark.parametrize(("size", "share"), [(0, 0.5), (3, 0.0), (3, 1.1), (3, math.nan)])
def test_a_nucleus_holds_a_share_of_something(size: int, share: float) -> None:
    with pytest.raises(ValueError, match="a share is above 0"):
        nucleus_floor(np.ones(size, np.float32), share)


def test_the_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws of 6 tokens: 5 degrees of freedom, 25.7 is passed once in 10,000 times."""
    logits = np.array([0.0, 1.0, 2.0, -1.0, 0.5, -np.inf], np.float32)
    rng = np.random.Generator(np.random.PCG64(7))
    params, history, n = SamplingParams(temperature=0.8), History(), 20_000
    counts = np.bincount([sample(logits, params, rng=rng, history=history).id for _ in range(n)], minlength=6)
    p = np.exp(logits[:5].astype(np.float64) / 0.8)
    expected = n * p / p.sum()
    assert counts[5] == 0
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 25.7


@settings(deadline=None)
@given(logit_arrays, st.integers(0, 2**32))
def test_temperature_zero_is_the_lowest_of_the_likeliest(logits: Float32, seed: int) -> None:
    twice = np.concatenate([logits, logits])
    assert draw(twice, temperature=0, seed=seed).id == int(np.argmax(logits))
    assert draw(twice, temperature=1e-300, seed=seed).id % len(logits) == int(np.argmax(logits))
    assert draw(logits, top_k=1, seed=seed).id == int(np.argmax(logits))
    assert draw(logits, top_p=1e-9, seed=seed).id == int(np.argmax(logits))


@settings(deadline=None)
@given(
    arrays(np.float32, st.integers(2, 30), elements=st.sampled_from([-np.inf, -3e38, -1.0, 0.0, 1.0, 3e38])),
    st.floats(1e-6, 1e6),
    st.floats(0.01, 1),
    st.integers(0, 2**32),
)
def test_a_token_of_probability_zero_is_never_chosen(
    logits: Float32, temperature: float, top_p: float, seed: int
) -> None:
    if np.isneginf(logits.max()):
        logits[0] = 0
    before = logits.copy()
    chosen = draw(logits, temperature=temperature, top_p=top_p, seed=seed).id
    assert logits[chosen] > -np.inf
    np.testing.assert_array_equal(logits, before)


def test_not_even_when_the_draw_is_zero() -> None:
    class Lowest(np.random.Generator):
        def random(self, *_: Any) -> float:  # type: ignore[override]
            return 0.0

    logits = np.array([-np.inf, 1.0, 2.0], np.float32)
    lowest = Lowest(np.random.PCG64(0))
    assert sample(logits, SamplingParams(), rng=lowest, history=History()).id == 1


@settings(deadline=None)
@given(logit_arrays, st.integers(0, 20))
def test_logprobs_are_the_models_own_whatever_the_filters(logits: Float32, k: int) -> None:
    import torch

    expected = torch.from_numpy(logits.astype(np.float64)).log_softmax(-1)
    result = draw(logits, logprobs=k, temperature=0.3, top_k=2, logit_bias={0: 100})
    assert result.logprob == pytest.approx(float(expected[result.id]), abs=1e-4)
    best = expected.topk(min(k, len(logits)))
    assert [i for i, _ in result.top] == best.indices.tolist()
    np.testing.assert_allclose([p for _, p in result.top], best.values.numpy(), atol=1e-4)


def test_without_logprobs_none_are_made() -> None:
    assert draw([1.0, 2.0], temperature=0) == Sampled(1, None, ())


@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(logits: list[float], temperature: float) -> None:
    with pytest.raises(GenerationError, match="not finite numbers"):
        draw(logits, temperature=temperature)


def test_forbidding_every_token_is_an_error() -> None:
    with pytest.raises(GenerationError, match="logit_bias forbids every one"):
        draw([1.0, 2.0], logit_bias={0: -math.inf, 1: -math.inf})


def test_a_seed_is_one_sequence_of_tokens() -> None:
    def tokens(seed: int) -> list[int]:
        rng = np.random.Generator(np.random.PCG64(seed))
        logits = np.zeros(1000, np.float32)
        return [sample(logits, SamplingParams(temperature=1), rng=rng, history=History()).id for _ in range(20)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
