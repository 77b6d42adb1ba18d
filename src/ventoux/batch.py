"""The seam between engine and backend: what goes in (a Batch), what keeps state (a Cache), what computes (a Backend).

Nothing above this seam knows what a tensor framework is; nothing below it knows what a request is.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ventoux.config import ModelConfig
from ventoux.errors import RequestError, shown

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence, to be run in this step.

    `slot` names the sequence's cache; `start` is the position of the first id; `logits` is how many of the last
    tokens want logits (0 in the middle of a prompt, 1 when the next token is to be sampled, all for evaluation).
    `adapter` names the LoRA adapter that its tokens go through.
    """

    slot: int
    start: int
    ids: Sequence[int]
    logits: int = 0
    adapter: str | None = None


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward pass, T in all, flat and ragged: no padding anywhere.

    ids and positions are int32 [T]; logit_rows is int32 [N], the rows that want logits, ascending. A sequence's tokens
    stand together, at consecutive positions: slots, starts and counts are int32 [S], and say of each that has tokens
    its slot, the position of the first, and how many. adapters holds the name, the first row and the row after the
    last of each segment that has an adapter, in order.
    """

    ids: Int32
    positions: Int32
    logit_rows: Int32
    slots: Int32
    starts: Int32
    counts: Int32
    adapters: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def pack(cls, segments: Sequence[Segment]) -> "Batch":
        """Lay segments end to end.

        Two segments (slot 0, start 5, ids a b c, logits 1) and (slot 2, start 0, ids d e, logits 0) give
        positions 5 6 7 0 1, logit_rows 2, slots 0 2, starts 5 0, counts 3 2.
        """
        assert len({s.slot for s in segments}) == len(segments), "a slot may stand only once in a batch"
        assert all(0 <= s.logits <= len(s.ids) for s in segments), "logits counts tokens of its own segment"
        # lists, of which arrays are made at the end: a decode step has a token or two, and waits for this
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        adapters = []
        segments = [s for s in segments if len(s.ids)]
        for s in segments:
            begin = len(ids)
            ids.extend(s.ids)  # also of an array, which += would add to
            end = len(ids)
            positions += range(s.start, s.start + end - begin)
            rows += range(end - s.logits, end)
            if s.adapter is not None:
                adapters.append((s.adapter, begin, end))
        return cls(
            ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            logit_rows=np.array(rows, np.int32),
            slots=np.array([s.slot for s in segments], np.int32),
            starts=np.array([s.start for s in segments], np.int32),
            counts=np.array([len(s.ids) for s in segments], np.int32),
            adapters=tuple(adapters),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def adapter_rows(self) -> dict[str, slice | Int32]:
        """The rows of each adapter that any have: a slice where they stand together, as all do for one adapter alone.

        adapters ("a", 0, 2) ("b", 3, 4) ("b", 4, 6) ("a", 6, 7) -> {"a": rows 0 1 6, "b": slice(3, 6)}.
        """
        spans: dict[str, list[tuple[int, int]]] = {}
        for name, begin, end in self.adapters:
            spans.setdefault(name, []).append((begin, end))
        rows: dict[str, slice | Int32] = {}
        for name, parts in spans.items():
            first, last = parts[0][0], parts[-1][1]
            together = last - first == sum(end - begin for begin, end in parts)
            rows[name] = (
                slice(first, last) if together else np.concatenate([np.arange(*p, dtype=np.int32) for p in parts])
            )
        return rows


@dataclass(frozen=True)
class Description:
    """How a backend computes, for people to read.

    backend      "cpu" or "pytorch"
    device       "cpu", or an accelerator as its framework names it: "cuda:0"
    isa          the kernels' instruction set, None where the kernels are not ours
    threads      of the CPU, None where something else computes
    compute      the arithmetic: "mixed", "int16" or "f32" of our kernels, "fp32", "bf16" or "fp16" of torch's
    products     what our kernels multiply most weights in: "int8", "bf16" or "fp32"
    kv_dtype     of the cache: "f32", "f16" or "int8" of our kernels, torch's as in compute
    kv_itemsize  bytes of a number in the cache
    kv_scales    bytes that stand beside each head's key and value of a token
    """

    backend: str
    device: str
    isa: str | None
    threads: int | None
    compute: str
    kv_dtype: str
    kv_itemsize: int
    kv_scales: int = 0
    products: str = "fp32"

    def __str__(self) -> str:
        """int16 on avx2, 4 threads; bf16 on pytorch cuda:0"""
        threads = "" if self.threads is None else f", {self.threads} threads"
        return f"{self.compute} on {self.isa or f'{self.backend} {self.device}'}{threads}"


@dataclass(frozen=True)
class Snapshot:
    """A sequence's keys and values as bytes, which a cache of the same model and number format takes back.

    length  positions, from 0; all that the sequence has room for
    firsts  of each layer, the first position that is held: those before it have left the window
    layers  of each layer, uint8 [bytes]
    """

    length: int
    firsts: tuple[int, ...]
    layers: tuple[NDArray[np.uint8], ...]

    def arrays(self, layers: int) -> tuple[NDArray[np.uint8], ...]:
        """The bytes of all layers. Raises ValueError when there are not so many of them."""
        if len(self.layers) != layers or len(self.firsts) != layers:
            raise ValueError(f"it has {len(self.layers)} layers, and the model has {layers}")
        return self.layers

    def check_size(self, layer: int, expected: int) -> None:
        """Raises ValueError when a layer is not of so many bytes."""
        if len(self.layers[layer]) != expected:
            raise ValueError(f"layer {layer} has {len(self.layers[layer])} bytes, and should have {expected}")


def fingerprint(about: object, weights: Iterable[NDArray[np.uint8]]) -> str:
    """A name for what computes: what `about` says, and some 4,096 bytes of each weight's [n], evenly spread.

    Tells models from each other that differ in their weights' values; not one that was made to deceive.
    """
    import hashlib  # here: it brings OpenSSL, 3.5 MB that a decoding process can do without

    digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
    for weight in weights:
        digest.update(f"{len(weight)} ".encode() + weight[:: len(weight) // 4096 | 1].tobytes())
    return digest.hexdigest()


class Cache(Protocol):
    """Keys and values of many sequences, each bounded by the window. The engine decides, the backend stores."""

    @property
    def nbytes(self) -> int:
        """Bytes that the allocated sequences hold."""
        ...

    def allocate(self, length: int, lookahead: int = 0) -> int:
        """Make room for at most `length` positions of a new sequence -> its slot.

        A layer with window W keeps min(W + lookahead, length) of them: a segment may begin up to `lookahead` positions
        before the end of the last one, and takes back what stood there (speculation).
        """
        ...

    def free(self, slot: int) -> None:
        """Give a sequence's memory back at once."""
        ...

    def fork(self, slot: int, position: int, length: int, lookahead: int = 0) -> int | None:
        """A new sequence, as `allocate` makes one, that begins with the first `position` positions of `slot`, copied.

        None where the ring no longer holds every key that a query at `position` sees: exact, or refused. W=4, 0..9
        written and 6..9 held: forks at 9 and 10 (which sees 7..10), not at 8. Raises MemoryError.
        """
        ...

    def export(self, slot: int, position: int) -> Snapshot | None:
        """The first `position` positions of `slot` as bytes; None where `fork` refuses. Raises MemoryError."""
        ...

    def restore(self, snapshot: Snapshot) -> int:
        """A new sequence of what was exported -> its slot. Raises ValueError when it does not fit; MemoryError."""
        ...


class Backend(Protocol):
    """A model that computes: `cpu` is numpy and our own kernels, `pytorch` our modules in torch."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def description(self) -> Description: ...

    @property
    def step_bytes(self) -> int:
        """Bytes of the weights that every step reads: all but an embedding of its own, of which a step takes rows."""
        ...

    @property
    def same_bits(self) -> bool:
        """Whether logits do not depend, to the last bit, on what else is in the batch, or on how a text was cut into
        batches. Guesses are checked only then: checked together, they must say what they would say one by one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for backends whose keys and values mean the same: config, weights and arithmetic."""
        ...

    def new_cache(self) -> Cache: ...

    def forward(self, batch: Batch, cache: Cache) -> Float32:
        """Run the batch, advance the cache -> logits [len(batch.logit_rows), vocab_size] float32.

        Raises RequestError for an adapter that is not there, before anything runs.
        """
        ...

    def hidden(self, batch: Batch, cache: Cache) -> Float32:
        """Run the batch, advance the cache -> what the head would get: every token's hidden state after the last norm,
        [len(batch), hidden_size] float32. Raises as `forward` does."""
        ...

    @property
    def adapters(self) -> Collection[str]:
        """Names of the LoRA adapters that segments may have."""
        ...

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read a LoRA adapter in PEFT's layout. Raises CheckpointError, or RequestError for a name that is taken."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter, which no sequence may use any more. Raises RequestError when there is none of the name."""
        ...

    def not_finite(self) -> str:
        """Why logits may not be finite numbers, and what to do: half of what a GenerationError says."""
        ...


def check_adapter(name: str, loaded: Collection[str]) -> None:
    """Raises RequestError when an adapter is not among those that are loaded."""
    if name not in loaded:
        listing = f"loaded are {', '.join(map(shown, loaded))}" if loaded else "none is loaded"
        raise RequestError(f"there is no adapter {shown(name)}; {listing}")
