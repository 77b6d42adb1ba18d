"""All that decides one sequence's tokens: its parameters, its random numbers, and what it holds so far."""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ventoux.decoding.params import SamplingParams
from ventoux.decoding.sampling import Float32, History, Sampled, sample


class Chooser:
    """Chooses token after token. The random numbers are the sequence's own, so that its neighbours do not matter."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int] = ()) -> None:
        self._params = params
        self._rng = np.random.Generator(np.random.PCG64(params.seed)) if params.temperature else None
        self._history = History(prompt)

    def choose(self, logits: Float32) -> Sampled:
        """The next token by logits [V] float32, which is then part of the sequence. Raises as `sample` does."""
        sampled = sample(logits, self._params, rng=self._rng, history=self._history)
        self._history.add(sampled.id)
        return sampled

    def rehearsal(self) -> "Chooser":
        """A copy that chooses as this one will, with the same random numbers, and leaves this one as it is.

        By equal logits it chooses equal tokens, by similar ones mostly. It reports no log-probabilities.
        """
        twin = copy.copy(self)
        twin._params = self._params if self._params.logprobs is None else replace(self._params, logprobs=None)
        twin._history = self._history.copy()
        if self._rng is not None:
            twin._rng = np.random.Generator(np.random.PCG64())
            twin._rng.bit_generator.state = self._rng.bit_generator.state
        return twin
