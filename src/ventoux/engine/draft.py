"""Guesses of a draft model: a second, smaller model of the same vocabulary, which writes ahead token by token."""

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ventoux.batch import Backend, Batch, Float32, Segment
from ventoux.decoding import MAX_DRAFT, Chooser, Ledger, Pace
from ventoux.engine.generation import Generation
from ventoux.engine.request import check_logits
from ventoux.errors import GenerationError, VentouxWarning

_FEW = 16  # ids that one pass reads beside guessing
_LARGEST = 512  # ids of one pass
_POOR = 0.4  # guesses that are less often right are not good enough while a text's beginning is not known


@dataclass
class _Reader:
    """How far the draft model is in one text: its ids from `skip` to before `done` are in the draft's cache, in `slot`.

    Behind them stand `ahead` guesses; those that were right become part of `done`, the others are overwritten.
    skip=40, done=56: the slot holds 16 positions, and id 56 is to be run at position 16.
    """

    slot: int
    skip: int
    end: int  # ids that the slot has room for, the skipped ones included
    done: int
    ahead: int = 0
    pace: Pace = field(default_factory=Pace)


@dataclass
class _Writing:
    """One text's guesses in the making: `ids` are to be run next, the first of them the text's id `at`."""

    generation: Generation
    chooser: Chooser
    at: int
    ids: list[int]
    left: int  # guesses that are still wanted
    guesses: list[int] = field(default_factory=list)

    def take(self, logits: Float32) -> None:
        """Guess by the draft's logits [vocab] of what comes next; what would end the text is no guess."""
        self.at += len(self.ids)
        try:
            guess = self.chooser.choose(logits).id
        except GenerationError:  # the request forbids every token: its own model's row will say so
            self.left = 0
            return
        if guess in self.generation.ends:
            self.left = 0
            return
        self.guesses.append(guess)
        self.ids = [guess]
        self.left -= 1


class DraftModel:
    """Guesses where the text does not repeat itself: one pass of the small model for each guess, of all texts together.

    It chooses as the request does, with the same parameters and the same random numbers, so that what it finds likely
    is guessed as it will be drawn. A text is read when it is first asked about, in passes that take about as long as a
    step without guesses; in such a step nothing is guessed. While reading it whole would cost more than the ledger has
    for it, its end has to do, as for a text that outgrows the draft's context or its narrowest window. Where guesses
    from the end are poor, no more are made until the whole can be afforded, unless the text ends before that.

    A draft that cannot compute says so once, as a warning, and guesses no more: it is there for speed, and the texts
    are the same without it.
    """

    def __init__(self, backend: Backend, *, share: float, clock: Callable[[], float]) -> None:
        self.ledger = Ledger(share)
        self._backend = backend
        self._clock = clock
        self._cache = backend.new_cache()
        widths = (window for window in backend.config.windows if window is not None)
        self._room = min(backend.config.context_length, *widths, sys.maxsize)  # positions that can be taken back
        self._readers: dict[Generation, _Reader] = {}
        self._per_token: float | None = None  # seconds to read one id, by the last pass over many
        self._broken = False

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that the draft holds."""
        return self._cache.nbytes

    def guess(self, running: Mapping[int, Generation], streams: int) -> dict[int, list[int]]:
        """What comes next in texts of `running`, by key; {} in a step that only read."""
        if self._broken:
            return {}
        try:
            step = self.ledger.step(streams)
            readers = {each: reader for each in running.values() if (reader := self._reader(each, step))}
            lag = {each: reader for each, reader in readers.items() if len(each.ids) - reader.done > _FEW}
            if lag:
                self._read(lag, seconds=step)
                return {}
            guesses = self._write(readers)
        except Exception as error:
            self._stop(error)
            return {}
        return {key: guesses[each] for key, each in running.items() if guesses.get(each)}

    def tell(self, generation: Generation, guessed: int, right: int) -> None:
        """Of a text's guesses so many were checked, and right: they are part of its ids now."""
        reader = self._readers[generation]
        reader.done += min(reader.ahead, right)
        reader.ahead = 0
        reader.pace.tell(guessed, right)

    def forget(self, generation: Generation) -> None:
        """Free what was kept of a text that has ended, or outgrown the draft."""
        if reader := self._readers.pop(generation, None):
            self._cache.free(reader.slot)

    def _reader(self, generation: Generation, step: float) -> _Reader | None:
        """None for a text that is not to be guessed at in this step, which takes so long without."""
        reader, n = self._readers.get(generation), len(generation.ids)
        if reader and (n >= reader.end or (reader.skip and self._affords(n))):
            self.forget(generation)
            reader = None
        if reader is None:
            tail = min(_FEW, self._room // 2)
            if tail == 0:
                return None
            skip = 0 if n <= tail or self._affords(n) else n - tail
            length = min(generation.length - skip, self._room)
            try:
                reader = _Reader(self._cache.allocate(length, MAX_DRAFT), skip, end=skip + length, done=skip)
            except MemoryError:  # the text itself needs none of this
                return None
            self._readers[generation] = reader
        if reader.skip and reader.pace.likely < _POOR and self._saves(n, generation.length, step):
            return None
        return None if reader.pace.rests() else reader

    def _affords(self, tokens: int) -> bool:
        """Whether so many ids, from a text's beginning, fit into the draft, and may be read by the ledger."""
        if self._per_token is None or tokens >= self._room:
            return False
        return tokens * self._per_token <= self.ledger.allowance

    def _saves(self, tokens: int, length: int, step: float) -> bool:
        """Whether reading a text from its beginning, which cannot be afforded yet, can be before it has so many ids.

        The ledger has more for it with each step, and each adds an id.
        """
        end = min(length, self._room)
        if self._per_token is None or tokens >= end:
            return False
        return self._per_token * end <= self.ledger.allowance + self.ledger.share * step * (end - tokens)

    def _read(self, lag: Mapping[Generation, _Reader], *, seconds: float) -> None:
        """Read on in texts that the draft is behind in, the oldest first, for about so many seconds."""
        budget = _FEW if self._per_token is None else _LARGEST
        if self._per_token:
            budget = min(_LARGEST, max(_FEW, int(seconds / self._per_token)))
        parts: list[tuple[_Reader, list[int]]] = []
        for each, reader in lag.items():
            part = each.ids[reader.done : -1][:budget]  # the last one is run when there is a guess to make
            budget -= len(part)
            if part:
                parts.append((reader, part))
        batch = Batch.pack([Segment(reader.slot, reader.done - reader.skip, ids) for reader, ids in parts])
        self._forward(batch)
        for reader, ids in parts:
            reader.done += len(ids)

    def _write(self, readers: Mapping[Generation, _Reader]) -> dict[Generation, list[int]]:
        """Guesses in each text, as many as are likely worth their price, perhaps none."""
        texts = []
        for each, reader in readers.items():
            end = len(each.ids)
            limit = min(each.length - 1, reader.end) - end  # nothing follows a guess in the last place
            if limit > 0:
                at = min(reader.done, end - 1)
                left = reader.pace.width(limit, self.ledger.price)
                try:
                    chooser = each.rehearsal()
                except Exception:  # what its own next token will say too: no reason to guess no more for the others
                    continue
                texts.append(_Writing(each, chooser, at, each.ids[at:], left))
        while wanting := [text for text in texts if text.left]:
            segments = []
            for text in wanting:
                reader = readers[text.generation]
                segments.append(Segment(reader.slot, text.at - reader.skip, text.ids, logits=1))
            rows = self._forward(Batch.pack(segments))
            check_logits(rows, self._backend)
            for text, row in zip(wanting, rows, strict=True):
                text.take(row)
        for text in texts:  # not before: an interrupted pass is run again
            reader, end = readers[text.generation], len(text.generation.ids)
            reader.done, reader.ahead = end, text.at - end
        return {text.generation: text.guesses for text in texts}

    def _forward(self, batch: Batch) -> Float32:
        begun = self._clock()
        logits = self._backend.forward(batch, self._cache)
        if len(batch) >= _FEW:  # a pass over few ids says what the weights take, and not what an id does
            self._per_token = (self._clock() - begun) / len(batch)
        return logits

    def _stop(self, error: Exception) -> None:
        self._broken = True
        for generation in list(self._readers):
            self.forget(generation)
        message = f"the draft model guesses no more, which changes speed and not the text: {error}"
        warnings.warn(message, VentouxWarning, stacklevel=2)
