"""What was computed for one text is taken over by the next that begins alike: shared prompts, turns of a chat."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ventoux.batch import Cache, Int32, Snapshot
from ventoux.engine.generation import Generation

_Taken = TypeVar("_Taken")
_LEAST = 16  # positions: fewer are read about as fast as they are copied


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence that nobody runs: `slot` holds the keys and values of all its ids, as far as the window goes."""

    slot: int
    ids: Int32
    space: Hashable
    nbytes: int


class PrefixCache:
    """Keeps the sequences of requests that have ended, `budget` bytes of them, and lets new ones begin with copies.

    Texts share within one space only (the request's salt), so that nobody can learn from timings what another has
    asked. Who was used longest ago goes first, and all go before a request finds no memory. With budget 0 nothing is
    kept and nothing is shared.
    """

    def __init__(self, cache: Cache, budget: int) -> None:
        self._cache = cache
        self._budget = budget
        self._kept: dict[Kept, None] = {}  # used longest ago first
        self._alike: dict[Hashable, list[Kept]] = {}  # by space and first ids: short texts may be thousands
        self.nbytes = 0  # of what is kept

    def expected(self, generation: Generation, running: Iterable[Generation]) -> int:
        """How many positions `start` would take over, unless their keys have left the window."""
        return max((position for position, _ in self._sources(generation, running)), default=0)

    def start(self, generation: Generation, running: Iterable[Generation], lookahead: int) -> tuple[int, int]:
        """A place in the cache -> its slot, and how many positions it holds already. Raises MemoryError.

        They are those of the longest common prefix with a text that is kept or running; the prompt's last id is always
        run anew, for its logits.
        """
        for position, source in sorted(self._sources(generation, running), key=lambda match: -match[0]):
            if isinstance(source, Kept) and source not in self._kept:
                continue  # given up for want of memory, a moment ago
            slot = self._fork(source, position, generation.length, lookahead)
            if slot is not None:
                if isinstance(source, Kept):
                    if position == len(source.ids):  # superseded: all of it stands in the new sequence
                        self._drop(source)
                    else:
                        self._kept[source] = self._kept.pop(source)
                return slot, position
        return self._making_room(lambda: self._cache.allocate(generation.length, lookahead)), 0

    def keep(self, generation: Generation) -> None:
        """Take over a text that has ended: its slot is given back, and a copy without room for more is kept."""
        assert generation.slot is not None
        try:
            if self._budget and generation.done >= _LEAST:
                self._copy(generation, generation.slot)
        finally:
            self._cache.free(generation.slot)

    def add(self, slot: int, ids: Int32, space: Hashable, nbytes: int) -> None:
        """Keep a sequence of `nbytes`, and no more than the budget allows, itself included."""
        alike = self._alike.get(_start(ids, space), [])
        for same in [kept for kept in alike if np.array_equal(kept.ids, ids)]:
            self._drop(same)
        kept = Kept(slot, ids, space, nbytes)
        self._kept[kept] = None
        self._alike.setdefault(_start(ids, space), []).append(kept)
        self.nbytes += nbytes
        while self.nbytes > self._budget:
            self._drop(next(iter(self._kept)))

    def export(self, ids: Int32, space: Hashable, running: Iterable[Generation]) -> Snapshot | None:
        """As many of the ids as a text that is kept or running begins with; None when there are too few."""
        for position, source in sorted(self._matches(ids, space, running), key=lambda match: -match[0]):
            assert source.slot is not None
            if snapshot := self._cache.export(source.slot, position):
                return snapshot
        return None

    def restore(self, snapshot: Snapshot, ids: Int32, space: Hashable) -> bool:
        """Keep what was exported; False when it is larger than the budget. Raises ValueError and MemoryError."""

        def restore() -> tuple[int, int]:
            before = self._cache.nbytes
            return self._cache.restore(snapshot), self._cache.nbytes - before

        slot, nbytes = self._making_room(restore)
        if nbytes > self._budget:
            self._cache.free(slot)
            return False
        self.add(slot, ids, space, nbytes)
        return True

    def clear(self) -> None:
        """Keep nothing of what is kept."""
        for kept in list(self._kept):
            self._drop(kept)

    def _copy(self, generation: Generation, slot: int) -> None:
        def fork() -> tuple[int | None, int]:
            before = self._cache.nbytes
            return self._cache.fork(slot, generation.done, generation.done), self._cache.nbytes - before

        try:
            copy, nbytes = self._making_room(fork)
        except Exception:  # it was only to save time; the text is complete
            return
        if copy is not None:
            self.add(copy, np.array(generation.ids[: generation.done], np.int32), generation.space, nbytes)

    def _sources(
        self, generation: Generation, running: Iterable[Generation]
    ) -> Iterable[tuple[int, Kept | Generation]]:
        if not self._budget or generation.scores_prompt:  # of positions that are not run there are no logits
            return ()
        return self._matches(generation.prompt[:-1], generation.space, running)

    def _matches(
        self, prompt: Int32, space: Hashable, running: Iterable[Generation]
    ) -> Iterator[tuple[int, Kept | Generation]]:
        """Texts of a space that begin as the prompt does, each with how far."""
        sources: list[Kept | Generation] = [*self._alike.get(_start(prompt, space), ())]
        sources += (each for each in running if each.space == space)
        for source in sources:
            ids = source.ids if isinstance(source, Kept) else source.prompt[: source.done]
            if (position := _common(prompt, ids)) >= _LEAST:
                yield position, source

    def _fork(self, source: Kept | Generation, position: int, length: int, lookahead: int) -> int | None:
        """None where the source has lost keys, or was given up for want of memory."""
        slot = source.slot
        assert slot is not None
        try:
            return self._making_room(lambda: self._cache.fork(slot, position, length, lookahead), spare=source)
        except MemoryError:
            return None

    def _making_room(self, take: Callable[[], _Taken], spare: object = None) -> _Taken:
        """What `take` gives, if need be after all that is kept, but `spare`, was given up. Raises MemoryError."""
        while True:
            try:
                return take()
            except MemoryError:
                oldest = next((kept for kept in self._kept if kept is not spare), None)
                if oldest is None:
                    raise
                self._drop(oldest)

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept]
        alike = self._alike[_start(kept.ids, kept.space)]
        alike.remove(kept)
        if not alike:
            del self._alike[_start(kept.ids, kept.space)]
        self.nbytes -= kept.nbytes
        self._cache.free(kept.slot)


def _start(ids: Int32, space: Hashable) -> Hashable:
    """Equal for texts that one can take over from the other."""
    return space, ids[:_LEAST].tobytes()


def _common(a: Int32, b: Int32) -> int:
    """How many ids two texts begin with in common."""
    n = min(len(a), len(b))
    if n == 0 or not np.array_equal(a[: min(n, _LEAST)], b[: min(n, _LEAST)]):
        return 0
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n
