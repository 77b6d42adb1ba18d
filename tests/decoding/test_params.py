"""Parameters are checked when they are written down, and the message names the parameter and what was found."""

import math

import pytest

from ventoux.decoding import SamplingParams
from ventoux.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("seed", -1),
        ("seed", 0.5),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("logprobs", -1),
        ("logprobs", 1_000_000),
        ("ignore_eos", 1),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", 3),
        ("stop_ids", (-1,)),
        ("stop_ids", 2),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: 101}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", [1]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_in() -> None:
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0, seed=0, max_tokens=1, logprobs=0)
    SamplingParams(temperature=1e-300, top_p=1e-300, min_p=1, presence_penalty=-2, logprobs=20, seed=2**64)
    SamplingParams(logit_bias={0: -math.inf, 1: -100, 2: 100.0})


def test_one_stop_string_is_a_string() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "bc"]).stop == ("a", "bc")  # type: ignore[arg-type]
