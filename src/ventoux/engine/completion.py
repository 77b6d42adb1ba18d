"""All events of a request, as the text that they make."""

from collections.abc import Sequence
from typing import Any, Self

from ventoux.engine.request import Event, Finished, Guesses, PromptLogprobs, Reason, Timings, Token, Usage


class Completion(str):
    """A generated text, which is a string, with what is known of how it came to be.

    tokens are those it was made of; finished is the last event: reason, usage and timings. prompt_logprobs is None
    unless the request asked for it.
    """

    tokens: tuple[Token, ...]
    prompt_logprobs: PromptLogprobs | None
    finished: Finished

    def __new__(cls, events: Sequence[Event]) -> Self:
        """Of all events of a request."""
        *others, finished = events
        assert isinstance(finished, Finished)
        completion = super().__new__(cls, "".join(event.text for event in events))
        completion.tokens = tuple(event for event in others if isinstance(event, Token))
        completion.prompt_logprobs = next((event for event in others if isinstance(event, PromptLogprobs)), None)
        completion.finished = finished
        return completion

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What copies and pickles are made from."""
        asked = [] if self.prompt_logprobs is None else [self.prompt_logprobs]
        return ([*asked, *self.tokens, self.finished],)

    @property
    def text(self) -> str:
        """The text as a plain string."""
        return str(self)

    @property
    def ids(self) -> list[int]:
        """Ids of the answer, without the one that ended it."""
        return [token.id for token in self.tokens]

    @property
    def logprobs(self) -> list[float | None]:
        """Log-probability of each token, None where the request did not ask for them."""
        return [token.logprob for token in self.tokens]

    @property
    def reason(self) -> Reason:
        """Why it ended: "stop" or "length"."""
        return self.finished.reason

    @property
    def usage(self) -> Usage:
        return self.finished.usage

    @property
    def timings(self) -> Timings:
        return self.finished.timings

    @property
    def guesses(self) -> Guesses:
        return self.finished.guesses
