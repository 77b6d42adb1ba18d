"""One request on its way through the engine: its ids, its text, and what decides its next token."""

from collections.abc import Collection
from time import perf_counter

import numpy as np

from ventoux.batch import Float32
from ventoux.decoding import Chooser, PromptLookup, StopStrings, with_logprobs
from ventoux.engine.request import Event, Finished, Guesses, PromptLogprobs, Reason, Request, Timings, Token, Usage
from ventoux.tokenizer.base import Tokenizer


class Generation:
    """The state between two steps.

    ids are the prompt and what was generated, of which the first `done` are in the cache; slot is the cache's, None
    while waiting. The random numbers are the request's own, so that its neighbours in a batch do not change its text.
    """

    def __init__(
        self,
        request: Request,
        *,
        limit: int,
        eos_ids: Collection[int],
        tokenizer: Tokenizer | None = None,
        guesses: bool = False,
    ) -> None:
        params = request.params
        self.ids = [int(i) for i in request.prompt]
        self.prompt = np.array(self.ids, np.int32)
        self.space = request.space
        self.done = self.cached = 0  # cached: positions that were there when it began
        self.slot: int | None = None
        self.adapter = request.adapter
        self.length = len(self.ids) + limit  # positions at most
        self._top = request.prompt_logprobs
        self._scored: list[tuple[float | None, tuple[tuple[int, float], ...]]] = [(None, ())]
        self.ends = {*params.stop_ids, *(() if params.ignore_eos else eos_ids)}
        constraint = request.constraint and request.constraint.begin(continues=request.continues)
        self._chooser = Chooser(params, self.ids, constraint=constraint)
        self.guesses = guesses
        self.guessed = self.right = 0  # guesses that were checked, and that were followed up
        self._lookup = PromptLookup(self.ids) if guesses else None
        self._stream = tokenizer.stream(after=self.ids if request.continues else ()) if tokenizer else None
        self._stops = StopStrings(params.stop)
        self._added_at = perf_counter()
        self._started_at: float | None = None
        self._first_at: float | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own log-probabilities are asked for."""
        return self._top is not None

    def start(self, slot: int, cached: int) -> None:
        """Leave the queue, with a place in the cache that holds so many positions already."""
        self.slot = slot
        self.done = self.cached = cached
        self._started_at = perf_counter()

    def looked_up(self) -> list[int]:
        """Guesses of what comes after ids, by what they hold, as many as could still be part of the answer."""
        return self._lookup.draft(self.length - len(self.ids) - 1) if self._lookup else []

    def tell_lookup(self, guessed: int, right: int) -> None:
        """How many of those that were checked were right."""
        if self._lookup:
            self._lookup.tell(guessed, right)

    def rehearsal(self) -> Chooser:
        """What chooses as this generation is going to, and leaves it as it is."""
        return self._chooser.rehearsal()

    def score(self, logits: Float32) -> list[Event]:
        """Logits [n, vocab] of the prompt's next n tokens -> PromptLogprobs when they were the last."""
        assert self._top is not None
        for row in logits[: len(self.prompt) - len(self._scored)]:
            said = with_logprobs(int(self.prompt[len(self._scored)]), row, self._top)
            self._scored.append((said.logprob, said.top))
        if self.done < len(self.prompt):
            return []
        logprobs, tops = zip(*self._scored, strict=True)
        return [PromptLogprobs(logprobs, tops)]

    def accept(self, logits: Float32) -> list[Event]:
        """Choose the next token from logits [vocab]: its events, the last of which may be Finished.

        An id that ends the text is no event of its own. Raises what sampling and decoding raise.
        """
        sampled = self._chooser.choose(logits)
        self._first_at = self._first_at or perf_counter()
        if sampled.id in self.ends:
            return [self.finish("stop")]
        self.ids.append(sampled.id)
        if self._lookup:
            self._lookup.add(sampled.id)
        text = self._stops.push(self._stream.push(sampled.id)) if self._stream else ""
        token = Token(sampled.id, text, sampled.logprob, sampled.top)
        if self._stops.stopped or self._chooser.complete:
            return [token, self.finish("stop")]
        if len(self.ids) == self.length:
            return [token, self.finish("length")]
        return [token]

    def finish(self, reason: Reason, error: Exception | None = None) -> Finished:
        """The last event, with the text that was held back. Raises nothing: an error within becomes the reason."""
        try:
            text = self._stops.push(self._stream.finish()) if self._stream else ""
        except Exception as broken:
            text, reason, error = "", "error", error or broken
        if self._stops.stopped and reason == "length":  # bytes that never became a character can complete a stop string
            reason = "stop"
        n = len(self.prompt)
        usage = Usage(n, len(self.ids) - n, self.cached)
        guesses = Guesses(self.guessed, self.right)
        return Finished(reason, usage, self._timings(), text + self._stops.finish(), error, guesses)

    def _timings(self) -> Timings:
        """A request that ends early spent nothing in the phases that it did not reach."""
        now = perf_counter()
        started = self._started_at or now
        first = self._first_at or now
        return Timings(started - self._added_at, first - started, now - first)
