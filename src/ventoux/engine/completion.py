"""All events of a request, as the text that they make."""

from collections.abc import Sequence
from typing import Any, Self

from ventoux.engine.request import Event, Finished, Guesses, Reason, Timings, Token, Usage


class Completion(str):
    """A generated text, which is a string, with what is known of how it came to be.

    tokens are those it was made of; finished is the last event: reason, usage and timings.
    """

    tokens: tuple[Token, ...]
    finished: Finished

    def __new__(cls, events: Sequence[Event]) -> Self:
        """Of all events of a request."""
        *tokens, finished = events
        assert isinstance(finished, Finished)
        completion = super().__new__(cls, "".join(event.text for event in events))
        completion.tokens = tuple(token for token in tokens if isinstance(token, Token))
        completion.finished = finished
        return completion

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What copies and pickles are made from."""
        return ([*self.tokens, self.finished],)

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
