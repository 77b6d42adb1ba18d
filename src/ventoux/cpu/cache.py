"""The ring cache, and what it still holds: which positions can be copied to another sequence, or to a file."""

from collections.abc import Sequence
from dataclasses import dataclass

from ventoux.batch import Batch, Snapshot
from ventoux.cpu import _kernels


@dataclass
class _Written:
    """`end` is one past the last position that was ever written; a layer holds nothing before its entry of `firsts`."""

    end: int
    firsts: tuple[int, ...]


class Cache(_kernels.Cache):
    """Rings of min(W + lookahead, length) positions, rounded up to 16, one for each layer of each sequence.

    A ring of C positions holds the last C that were written. W=4, C=16, positions to 19 written: the ring holds 4..19.
    The query at position 8 sees 5..8, so a fork at 8 finds what it needs; at 6 it would need position 3.
    """

    def __init__(self, kv_heads: int, head_dim: int, windows: Sequence[int | None], dtype: str) -> None:
        super().__init__(kv_heads, head_dim, windows, dtype)
        self._windows = tuple(windows)
        self._written: dict[int, _Written] = {}

    def allocate(self, length: int, lookahead: int = 0) -> int:
        """Room for at most `length` positions of a new sequence -> its slot. Raises MemoryError."""
        slot = super().allocate(length, lookahead)
        self._written[slot] = _Written(0, (0,) * len(self._windows))
        return slot

    def free(self, slot: int) -> None:
        super().free(slot)
        del self._written[slot]

    def write(self, batch: Batch) -> None:
        """The batch is about to be run. Not afterwards: a pass that breaks off may have written, too."""
        for slot, end in zip(batch.slots.tolist(), (batch.starts + batch.counts).tolist(), strict=True):
            written = self._written[slot]
            written.end = max(written.end, end)

    def fork(self, slot: int, position: int, length: int, lookahead: int = 0) -> int | None:
        """A new sequence that begins with the first `position` positions of `slot`; None where keys are gone."""
        firsts = self._firsts(slot)
        assert position <= min(self._written[slot].end, length), "positions that were not written, or find no room"
        needed = (0 if window is None else position - window + 1 for window in self._windows)
        if any(first > max(0, need) for first, need in zip(firsts, needed, strict=True)):
            return None
        new = self.allocate(length, lookahead)
        for layer, first in enumerate(firsts):
            self.copy(slot, new, layer, max(first, position - self.capacity(new, layer)), position)
        self._written[new] = _Written(position, firsts)
        return new

    def export(self, slot: int, position: int) -> Snapshot | None:
        """The first `position` positions of `slot` as bytes; None where keys are gone."""
        twin = self.fork(slot, position, position)
        if twin is None:
            return None
        rings = tuple(self.ring(twin, layer) for layer in range(len(self._windows)))  # these bytes outlive the slot
        snapshot = Snapshot(position, self._firsts(twin), rings)
        self.free(twin)
        return snapshot

    def restore(self, snapshot: Snapshot) -> int:
        """A new sequence of what was exported -> its slot. Raises ValueError when it does not fit this cache."""
        slot = self.allocate(snapshot.length)
        try:
            for layer, data in enumerate(snapshot.arrays(len(self._windows))):
                ring = self.ring(slot, layer)
                snapshot.check_size(layer, len(ring))
                ring[:] = data
        except BaseException:
            self.free(slot)
            raise
        self._written[slot] = _Written(snapshot.length, snapshot.firsts)
        return slot

    def _firsts(self, slot: int) -> tuple[int, ...]:
        """The first position that each layer still holds."""
        written = self._written[slot]
        return tuple(max(first, written.end - self.capacity(slot, layer)) for layer, first in enumerate(written.firsts))
