"""How the next token is chosen and when generation ends, checked once, when it is written down."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from ventoux.errors import RequestError

MAX_LOGPROBS = 20  # as the OpenAI API; unbounded, one request could ask for the vocabulary with every token


@dataclass(frozen=True)
class SamplingParams:
    """The choices of one request. The defaults sample from the model's distribution at temperature 0.7.

    temperature         0 is greedy: the likeliest token, the lowest id among equals
    top_p               keep the smallest set of tokens that holds this much probability; 1 keeps all
    top_k               keep the k likeliest tokens; 0 keeps all
    min_p               keep tokens at least this fraction as likely as the likeliest; 0 keeps all
    repetition_penalty  divide positive logits (multiply negative ones) of every token seen, the prompt's included
    presence_penalty    subtract from the logit of every token generated before
    frequency_penalty   subtract from it as often as it was generated
    logit_bias          -100 to 100, added to the logits of these ids; -inf forbids a token
    seed                same seed, same tokens, alone or in a batch; None is different each time
    max_tokens          how many tokens at most; None is up to the end of the context; 0 is for
                        requests that ask for their prompt's log-probabilities
    stop                generation ends before any of these strings, which are not part of the text
    stop_ids            generation ends before any of these ids, beside the model's own end-of-sequence ids
    ignore_eos          generate past the model's own end-of-sequence ids
    logprobs            None is off; k reports the log-probability of each token and of the k likeliest

    Raises RequestError for a value that is out of range.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, low=0)
        _check_real("top_p", self.top_p, low=0, high=1, above=True)
        _check_integer("top_k", self.top_k, low=0)
        _check_real("min_p", self.min_p, low=0, high=1)
        _check_real("repetition_penalty", self.repetition_penalty, low=0.01, high=100)
        _check_real("presence_penalty", self.presence_penalty, low=-2, high=2)
        _check_real("frequency_penalty", self.frequency_penalty, low=-2, high=2)
        if self.seed is not None:
            _check_integer("seed", self.seed, low=0)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, low=0)  # whether 0 makes sense, the request knows
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos must be true or false, found {self.ignore_eos!r}")
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_ids", _ids(self.stop_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


def _check_real(name: str, value: Any, *, low: float, high: float = math.inf, above: bool = False) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (real and low <= value <= high) or (above and value == low):
        span = f"above {low}" if above else f"at least {low}"
        raise RequestError(f"{name} must be a number {span}{_at_most(high)}, found {value!r}")


def _check_integer(name: str, value: Any, *, low: int, high: float = math.inf) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise RequestError(f"{name} must be a whole number of at least {low}{_at_most(high)}, found {value!r}")


def _at_most(high: float) -> str:
    return "" if math.isinf(high) else f" and at most {high}"


def _strings(stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in stops:
        if not isinstance(string, str) or not string:
            raise RequestError(f"stop must be non-empty strings, found {string!r}")
    return stops


def _ids(stop_ids: Any) -> tuple[int, ...]:
    if not isinstance(stop_ids, Iterable):
        raise RequestError(f"stop_ids must be a list of token ids, found {stop_ids!r}")
    ids = tuple(stop_ids)
    for token_id in ids:
        _check_integer("each of stop_ids", token_id, low=0)
    return ids


def _biases(logit_bias: Any) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise RequestError(f"logit_bias must map token ids to numbers, found {logit_bias!r}")
    for token_id, bias in logit_bias.items():
        _check_integer("each id of logit_bias", token_id, low=0)
        if bias != -math.inf:
            _check_real(f"logit_bias[{token_id}]", bias, low=-100, high=100)
    return dict(logit_bias)
