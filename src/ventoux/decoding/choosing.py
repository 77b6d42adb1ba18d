"""All that decides one sequence's tokens: its parameters, its random numbers, and what it holds so far."""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ventoux.decoding.grammar import Constraint
from ventoux.decoding.params import SamplingParams
from ventoux.decoding.sampling import Float32, History, Sampled, sample


class Chooser:
    """Chooses token after token. The random numbers are the sequence's own, so that its neighbours do not matter."""

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int] = (), *, constraint: Constraint | None = None
    ) -> None:
        """`constraint` is this sequence's own, and goes along with it."""
        self._params = params
        self._constraint = constraint
        self._rng = np.random.Generator(np.random.PCG64(params.seed)) if params.temperature else None
        self._history = History(prompt)

    def choose(self, logits: Float32) -> Sampled:
        """The next token by logits [V] float32, which is then part of the sequence. Raises as `sample` does."""
        allowed = self._constraint.allowed(len(logits)) if self._constraint else None
        sampled = sample(logits, self._params, rng=self._rng, history=self._history, allowed=allowed)
        self._history.add(sampled.id)
        if self._constraint:
            self._constraint.take(sampled.id)
        return sampled

    @property
    def complete(self) -> bool:
        """Whether a constraint has the sequence end here."""
        return self._constraint is not None and self._constraint.complete

    def rehearsal(self) -> "Chooser":
        """A copy that chooses as this one will, with the same random numbers, and leaves this one as it is.

        By equal logits it chooses equal tokens, by similar ones mostly. It reports no log-probabilities.
        """
        twin = copy.copy(self)
        twin._params = self._params if self._params.logprobs is None else replace(self._params, logprobs=None)
        twin._history = self._history.copy()
        twin._constraint = self._constraint and self._constraint.copy()
        if self._rng is not None:
            twin._rng = np.random.Generator(np.random.PCG64())
            twin._rng.bit_generator.state = self._rng.bit_generator.state
        return twin
