"""Guessing the next tokens from what the text holds already: what an answer copies, it copies in runs.

Guesses cost a little and change nothing: the engine checks them all in one pass over the weights, and keeps those that
are what the model would have chosen. https://github.com/apoorvumang/prompt-lookup-decoding
"""

from collections.abc import Iterable

from ventoux.decoding.ledger import MAX_DRAFT

_LENGTHS = (4, 3, 2)  # tokens that must have stood together before, the longest first
# Guesses at once: with the token before them 2, 4, 8, 12 or 16 rows, which are whole tiles of the kernels.
_WIDTHS = (1, 3, 7, 11, MAX_DRAFT)
_REST = 32  # tokens without a guess at most, after guesses that were wrong
_FORESEEN = 4  # tokens that would have been guessed right, one behind the other, end a rest


class PromptLookup:
    """The ids of one sequence, and where each run of 2 to 4 of them stood last.

    ids a b c d a b: the run a b stood before, and c d a b followed it: that is the guess.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # a run of ids -> where the id after it stands
        self._rung = 1  # of the widths: one higher after a draft that was right, the lowest after one that was not
        self._wrong = 0  # drafts in a row of which nothing was right
        self._rest = 0
        self._foreseen = 0  # of the last tokens, in a rest
        for token_id in ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """One more id at the end."""
        if self._rest:
            at = self._followed()
            self._foreseen = self._foreseen + 1 if at is not None and self._ids[at] == token_id else 0
            self._rest = 0 if self._foreseen == _FORESEEN else self._rest - 1
        end = len(self._ids)
        for n in _LENGTHS:
            if n <= end:
                self._next[tuple(self._ids[end - n :])] = end
        self._ids.append(token_id)

    def draft(self, limit: int) -> list[int]:
        """What followed the longest run that the sequence ends in, where it stood last: up to `limit` guesses.

        A run that reaches to the end repeats itself: a b a b is guessed to go on a b a b ...
        """
        end = len(self._ids)
        wanted = min(limit, _WIDTHS[self._rung])
        if self._rest or wanted < 1 or (at := self._followed()) is None:
            return []
        return [self._ids[at + i % (end - at)] for i in range(wanted)]

    def tell(self, drafted: int, right: int) -> None:
        """How many of the guesses were right: more of them next time, fewer, or none for a while."""
        if not drafted:
            return
        self._rung = min(self._rung + 1, len(_WIDTHS) - 1) if right == drafted else 0
        self._wrong = 0 if right else self._wrong + 1
        self._rest = min(_REST, 2 ** max(0, self._wrong - 1) - 1)
        self._foreseen = 0

    def _followed(self) -> int | None:
        """Where what followed the longest run that the sequence ends in stands."""
        end = len(self._ids)
        runs = (self._next.get(tuple(self._ids[end - n :])) for n in _LENGTHS if n <= end)
        return next((at for at in runs if at is not None), None)
