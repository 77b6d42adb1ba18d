"""Where guesses come from, and which source may guess in the next step."""

from collections.abc import Callable, Mapping
from typing import Protocol

from ventoux.batch import Backend
from ventoux.decoding import Ledger
from ventoux.engine.draft import DraftModel
from ventoux.engine.generation import Generation


class Guesser(Protocol):
    """A source of guesses. What it costs and saves stands in a ledger of its own."""

    @property
    def ledger(self) -> Ledger: ...

    def guess(self, running: Mapping[int, Generation], streams: int) -> dict[int, list[int]]:
        """Guesses of what comes next in texts of `running`, by key, in a step of `streams` sequences."""
        ...

    def tell(self, generation: Generation, guessed: int, right: int) -> None:
        """So many of a text's guesses were checked, and so many were right; the text goes on."""
        ...

    def forget(self, generation: Generation) -> None:
        """The text has ended; it may never have been asked about."""
        ...


class Lookup:
    """What the texts hold already: each generation looks it up in its own ids."""

    def __init__(self, share: float) -> None:
        self.ledger = Ledger(share)

    def guess(self, running: Mapping[int, Generation], streams: int) -> dict[int, list[int]]:
        return {key: found for key, each in running.items() if (found := each.looked_up())}

    def tell(self, generation: Generation, guessed: int, right: int) -> None:
        generation.tell_lookup(guessed, right)

    def forget(self, generation: Generation) -> None:
        """It goes with the generation."""


class Speculation:
    """Guesses for one step after the other, the text's own first, each step's from one source, while that pays."""

    def __init__(self, draft: Backend | None, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        # of the time, guessing may cost 3% and 2%: 5% in all
        self._draft = DraftModel(draft, share=0.02, clock=clock) if draft else None
        self._guessers: list[Guesser] = [Lookup(share=0.03), *([self._draft] if self._draft else [])]
        self._source = self._guessers[0]  # of this step's guesses
        self._making = 0.0  # seconds that they took

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that guessing holds."""
        return self._draft.kv_bytes if self._draft else 0

    def guess(self, running: Mapping[int, Generation], streams: int) -> dict[int, list[int]]:
        """Guesses for texts of `running` that want them, by key, to be checked in a step of `streams` sequences."""
        for guesser in self._guessers:
            if guesser.ledger.allows(streams):
                begun = self._clock()
                guesses = guesser.guess(running, streams)
                seconds = self._clock() - begun
                if guesses:
                    self._source, self._making = guesser, seconds
                    return guesses
                guesser.ledger.spent(seconds)
                self._passed(seconds, but=guesser)
        return {}

    def tell(self, generation: Generation, guessed: int, right: int) -> None:
        """What became of this step's guesses for a text that goes on."""
        self._source.tell(generation, guessed, right)

    def forget(self, generation: Generation) -> None:
        for guesser in self._guessers:
            guesser.forget(generation)

    def checked(self, streams: int, seconds: float, *, guessed: int, right: int) -> None:
        """The model's pass over this step's guesses took so long."""
        seconds += self._making
        self._source.ledger.checked(streams, seconds, right, guessed=guessed)
        self._passed(seconds, but=self._source)

    def _passed(self, seconds: float, *, but: Guesser) -> None:
        """Time of one source's, of which the other has its share, too: it may try again the sooner."""
        for guesser in self._guessers:
            if guesser is not but:
                guesser.ledger.other(seconds)

    def plain(self, streams: int, seconds: float) -> None:
        """A pass of as many sequences, each with one token."""
        for guesser in self._guessers:
            guesser.ledger.plain(streams, seconds)

    def read(self, seconds: float) -> None:
        """A pass that read prompts. A draft model reads them too, and that is measured by this."""
        if self._draft:
            self._draft.ledger.other(seconds)
