"""Logits -> the next token.

The order, as transformers' and vLLM's: bias and penalties, what a grammar forbids, temperature, top_k, top_p, min_p,
and one draw from what is left. Equally likely tokens stay or go together, so that what survives does not depend on how
a sort breaks ties.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ventoux.cpu._kernels import draw, kth_largest, nucleus_floor, weigh
from ventoux.cpu.machine import isa
from ventoux.decoding.params import SamplingParams
from ventoux.errors import GenerationError

if TYPE_CHECKING:
    from numpy.random import Generator  # 12 ms of a start that does not need it

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_isa = cache(isa)
_COLDEST, _HOTTEST = 2.0**-126, 2.0**127  # as float32 a temperature beyond these would be 0 or infinite


@dataclass(frozen=True)
class Sampled:
    """One chosen token.

    logprob is its log-probability and `top` the (id, log-probability) of the likeliest tokens, best first, both by the
    model's own distribution: the log-softmax of the raw logits, before bias, penalties, temperature and filters. They
    are None and () when the request does not ask for them.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class History:
    """What a sequence holds so far, as penalties want it: the ids seen, and how often each was generated."""

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self._seen = set(prompt)
        self._generated: Counter[int] = Counter()

    def add(self, token_id: int) -> None:
        self._seen.add(token_id)
        self._generated[token_id] += 1

    def copy(self) -> "History":
        twin = History(self._seen)
        twin._generated = self._generated.copy()
        return twin

    def seen(self) -> Int64:
        """Ids of the prompt and of the answer, each once."""
        return np.fromiter(self._seen, np.int64, len(self._seen))

    def generated(self) -> tuple[Int64, Float32]:
        """Ids of the answer, each once, and how often each was generated."""
        n = len(self._generated)
        return np.fromiter(self._generated, np.int64, n), np.fromiter(self._generated.values(), np.float32, n)


def sample(
    logits: Float32,
    params: SamplingParams,
    *,
    rng: "Generator | None",
    history: History,
    allowed: NDArray[np.bool_] | None = None,
) -> Sampled:
    """Choose the next token from logits [V] float32, which stay unchanged; `allowed` [V] says among which.

    Draws exactly one number from `rng` a token, none at temperature 0, which needs no `rng`. A token of probability
    zero is never chosen. Raises GenerationError when a logit is not a number or becomes none, or when every token is
    forbidden.
    """
    likeliest = int(np.argmax(logits))  # the first NaN, if there is one
    if not isfinite(logits[likeliest]):
        raise GenerationError(
            "the model returned logits that are not finite numbers; its weights are damaged, or it overflows"
        )
    scores = _adjust(logits, params, history)  # [V]
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    if scores is not logits:
        likeliest = int(np.argmax(scores))
        if scores[likeliest] == -np.inf:
            forbidding = "logit_bias forbids every one" + ("" if allowed is None else " that the grammar allows")
            raise GenerationError(f"no token is left to choose from: {forbidding}; forbid fewer")
        if not isfinite(scores[likeliest]):
            raise GenerationError("bias and penalties take a logit beyond what float32 holds; use weaker ones")
    token_id = likeliest if params.temperature == 0 else _draw(scores, float(scores[likeliest]), params, rng)
    if params.logprobs is None:
        return Sampled(token_id)
    return with_logprobs(token_id, logits, params.logprobs)


def _adjust(logits: Float32, params: SamplingParams, history: History) -> Float32:
    """Logits after bias and penalties: a copy where anything changes, else the very same array."""
    scores = logits
    if params.logit_bias:
        scores = scores.copy()
        scores[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    if params.repetition_penalty != 1:
        scores = scores.copy()
        ids = history.seen()
        found = scores[ids]
        scores[ids] = np.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        scores = scores.copy()
        ids, counts = history.generated()
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return scores


def candidates(scores: Float32, highest: float, params: SamplingParams) -> tuple[Int64 | None, Float32]:
    """What temperature, top_k, top_p and min_p leave of scores [V]: ids [C] ascending, None for all, and weights [C].

    `highest` is the largest score. A weight is a probability up to a common factor: 1 for the likeliest token, 0 for
    one that is out.
    """
    ids, inside = None, None
    if 0 < params.top_k < len(scores):
        inside = scores >= kth_largest(scores, params.top_k)
        # else many are equal, and it is faster to leave them where they are
        if np.count_nonzero(inside) < len(scores) // 8:
            ids = np.flatnonzero(inside)
            scores, inside = scores[ids], None
    weights = np.empty_like(scores)
    weigh(_isa(), scores, highest, min(max(params.temperature, _COLDEST), _HOTTEST), weights)
    if inside is not None:
        weights *= inside
    floor = max(params.min_p, nucleus_floor(weights, params.top_p) if params.top_p < 1 else 0.0)
    if floor > 0:
        weights *= weights >= floor
    return ids, weights


def _draw(scores: Float32, highest: float, params: SamplingParams, rng: "Generator | None") -> int:
    assert rng is not None, "a temperature above 0 needs random numbers"
    ids, weights = candidates(scores, highest, params)
    at = draw(weights, rng.random())
    return at if ids is None else int(ids[at])


def with_logprobs(token_id: int, logits: Float32, k: int) -> Sampled:
    """A token with what logits [V] say of it and of the k likeliest."""
    best = logits.max()
    log_total = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    k = min(k, len(logits))
    kth = np.partition(logits, -k)[-k] if k else np.inf
    ids = np.flatnonzero(logits >= kth)
    ranked = ids[np.argsort(-logits[ids], kind="stable")][:k]  # the lowest id first among equals
    top = tuple((int(i), float(logits[i]) - log_total) for i in ranked)
    return Sampled(token_id, float(logits[token_id]) - log_total, top)
