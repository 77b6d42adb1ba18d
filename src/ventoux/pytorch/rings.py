"""The PyTorch backend's cache: a ring for each layer of each sequence, all of whose memory is taken at once."""

import math
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ventoux.batch import Batch, Int32, Snapshot
from ventoux.config import ModelConfig
from ventoux.pytorch.cache import RollingLayer
from ventoux.pytorch.loading import memory_errors


class Ring(RollingLayer):
    """One layer's keys and values of one sequence; all of its memory is taken at once, so no step moves anything."""

    def __init__(self, positions: int, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(positions)
        shape = (1, config.num_kv_heads, positions, config.head_dim)
        self.dtype, self.device = dtype, device
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.is_initialized = True
        self._first = 0  # what is before it was not there when this ring was made from another

    @property
    def first(self) -> int:
        """The first position that is still held, in the ring or beside it."""
        beside = self._evicted[0].shape[2] if self._evicted is not None else 0
        return max(self._first, self.seen - min(self.seen, self.window) - beside)

    def held(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions first .. end - 1, [1, K, end - first, D] each, in order."""
        assert self.first <= first <= end <= self.seen
        keys, values = self._last(min(self.seen, self.window))
        if self._evicted is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(self._evicted, (keys, values), strict=True))
        last = keys.shape[2] - (self.seen - end)
        rows = slice(last - (end - first), last)
        return keys[:, :, rows], values[:, :, rows]

    def fill(self, keys: Tensor, values: Tensor, *, end: int) -> None:
        """Hold n <= W positions [1, K, n, D], the last of them end - 1, and no others."""
        self._put(keys, values, end=end)
        self.seen, self._first = end, end - keys.shape[2]

    def begin(self, start: int) -> None:
        """Positions from `start` on come next: what stands there already is taken back.

        What it had pushed out of the window comes back too where that is recorded. Where it is not, the keys before
        `start` are those of later positions, which is what `bench` wants: the same work again.
        """
        assert start <= self.seen, f"position {start} comes after {self.seen}"
        if self.record_past:
            self.crop(start - self.seen)
        else:
            self.seen = start


@dataclass
class Sequence:
    """A ring for each layer, and the first position at which fp16 overflowed, if it did."""

    rings: list[Ring]
    overflow: float = math.inf

    def begin(self, start: int) -> None:
        """Positions from `start` on come next."""
        for ring in self.rings:
            ring.begin(start)
        if start <= self.overflow:  # it is taken back
            self.overflow = math.inf


@dataclass(frozen=True)
class Part:
    """The rows of a batch that are a sequence's, `begin` to `end`."""

    begin: int
    end: int
    sequence: Sequence

    def spread(self, overflown: NDArray[np.bool_], positions: Int32) -> None:
        """Of all rows [T] of a batch, mark those of this part that come after an overflow: they may have seen it.

        They can look well, since attention may make zeros or a mean of what is infinite.
        """
        rows, sequence = slice(self.begin, self.end), self.sequence
        sequence.overflow = min([sequence.overflow, *positions[rows][overflown[rows]].tolist()])
        overflown[rows] = positions[rows] >= sequence.overflow


class Cache:
    """Rings of min(W, length) positions, one for each layer of each sequence."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._sequences: dict[int, Sequence] = {}
        self._slots = count()

    @property
    def nbytes(self) -> int:
        """Bytes that the allocated sequences hold."""
        return sum(ring.nbytes for sequence in self._sequences.values() for ring in sequence.rings)

    def allocate(self, length: int, lookahead: int = 0) -> int:
        """Room for at most `length` positions of a new sequence -> its slot. Raises OutOfMemoryError.

        A segment may begin up to `lookahead` positions before the end of the last one, and takes back what stood there.
        """
        config = self._config
        with memory_errors(f"the keys and values of {length} positions do not fit into the memory of {self._device}"):
            rings = [
                Ring(min(length if window is None else window, length), config, dtype=self._dtype, device=self._device)
                for window in config.windows
            ]
        for ring in rings if lookahead else ():
            ring.activate_past_recording()
        slot = next(self._slots)
        self._sequences[slot] = Sequence(rings)
        return slot

    def free(self, slot: int) -> None:
        del self._sequences[slot]

    @torch.inference_mode()
    def fork(self, slot: int, position: int, length: int, lookahead: int = 0) -> int | None:
        """A new sequence that begins with the first `position` positions of `slot`; None where keys are gone.

        Raises OutOfMemoryError.
        """
        source = self._sequences[slot]
        if not self._holds(source, position):
            return None
        new = self.allocate(length, lookahead)
        twin = self._sequences[new]
        for old, ring in zip(source.rings, twin.rings, strict=True):
            ring.fill(*old.held(max(old.first, position - ring.window), position), end=position)
        if source.overflow < position:
            twin.overflow = source.overflow
        return new

    @torch.inference_mode()
    def export(self, slot: int, position: int) -> Snapshot | None:
        """The first `position` positions of `slot` as bytes; None where keys are gone."""
        source = self._sequences[slot]
        if not self._holds(source, position):
            return None
        windows = (min(window or position, position) for window in self._config.windows)
        firsts = [max(ring.first, position - window) for ring, window in zip(source.rings, windows, strict=True)]
        layers = (_bytes_of(ring.held(first, position)) for ring, first in zip(source.rings, firsts, strict=True))
        return Snapshot(position, tuple(firsts), tuple(layers))

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> int:
        """A new sequence of what was exported -> its slot. Raises ValueError when it does not fit this cache."""
        arrays = snapshot.arrays(len(self._config.windows))
        slot, end = self.allocate(snapshot.length), snapshot.length
        try:
            for layer, ring in enumerate(self._sequences[slot].rings):
                shape = (2, 1, self._config.num_kv_heads, end - snapshot.firsts[layer], self._config.head_dim)
                snapshot.check_size(layer, math.prod(shape) * self._dtype.itemsize)
                if end - snapshot.firsts[layer] > ring.window:
                    raise ValueError(f"layer {layer} has more positions than its window")
                ring.fill(*torch.from_numpy(arrays[layer].copy()).view(self._dtype).view(shape), end=end)
        except BaseException:
            self.free(slot)
            raise
        return slot

    def _holds(self, sequence: Sequence, position: int) -> bool:
        """Whether what the query at `position` sees is still there."""
        windows = (position + 1 if window is None else window for window in self._config.windows)
        assert all(position <= ring.seen for ring in sequence.rings), "positions that were not written"
        return all(
            ring.first <= max(0, position - window + 1) for ring, window in zip(sequence.rings, windows, strict=True)
        )

    def parts(self, batch: Batch) -> list[Part]:
        """A batch sequence by sequence, with rings that are ready for what comes next."""
        parts, begin = [], 0
        for slot, start, length in zip(batch.slots.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True):
            self._sequences[slot].begin(start)
            parts.append(Part(begin, begin + length, self._sequences[slot]))
            begin += length
        return parts


def _bytes_of(tensors: Several[Tensor]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = torch.stack(tuple(tensors)).cpu().contiguous().view(torch.uint8).flatten().numpy()
    return found
