"""A model without weights and a tokenizer of bytes, for tests of everything above the backend.

The toy reads the ids that its cache holds, and complains of what a real cache would silently get wrong.
"""

import codecs
from collections.abc import Callable, Sequence

import numpy as np

from ventoux.batch import Batch, Description, Float32, Snapshot
from ventoux.config import ModelConfig

BOS, EOS, VOCAB = 256, 257, 258
Row = Callable[[list[int]], Float32]  # all ids of a sequence so far -> its next logits [VOCAB]


def config(context_length: int = 64) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        context_length=context_length,
        windows=(None,),
        bos_id=BOS,
        eos_ids=(EOS,),
    )


def hashed(ids: list[int]) -> Float32:
    """Letters and sometimes the end, by the last three ids and the position."""
    rng = np.random.default_rng([len(ids), *ids[-3:]])
    row = np.full(VOCAB, -20, np.float32)
    row[ord("a") : ord("f")] = rng.normal(size=5) * 2
    row[EOS] = rng.normal() * 2 - 1
    return row


def saying(*texts: str) -> Row:
    """Goes on as the text does that the ids begin: byte by byte, then EOS; EOS after ids that begin none of them."""
    scripts = [[*text.encode(), EOS] for text in texts]

    def row(ids: list[int]) -> Float32:
        spoken = ids[1:] if ids[0] == BOS else ids
        script = next((script for script in scripts if script[: len(spoken)] == spoken), [*spoken, EOS])
        logits = np.zeros(VOCAB, np.float32)
        logits[script[len(spoken)]] = 10
        return logits

    return row


class ToyCache:
    def __init__(self) -> None:
        self.sequences: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.lookaheads: dict[int, int] = {}
        self.room = 1 << 30  # positions in all
        self.window: int | None = None  # what is forgotten, for forks; the toy's rows see all ids

    @property
    def nbytes(self) -> int:
        return sum(self.lengths.values())

    def allocate(self, length: int, lookahead: int = 0) -> int:
        if self.nbytes + length > self.room:
            raise MemoryError(f"no room for {length} positions")
        slot = next(slot for slot in range(1000) if slot not in self.sequences)
        self.sequences[slot], self.lengths[slot], self.lookaheads[slot] = [], length, lookahead
        return slot

    def fork(self, slot: int, position: int, length: int, lookahead: int = 0) -> int | None:
        source = self.sequences[slot]
        assert position <= min(len(source), length)
        if self.window is not None and len(source) > position + 1 and len(source) > self.window:
            return None  # the query at `position` would miss keys
        new = self.allocate(length, lookahead)
        self.sequences[new] = source[:position]
        return new

    def export(self, slot: int, position: int) -> Snapshot | None:
        twin = self.fork(slot, position, position)
        if twin is None:
            return None
        snapshot = Snapshot(position, (0,), (np.array(self.sequences[twin], np.int32).view(np.uint8),))
        self.free(twin)
        return snapshot

    def restore(self, snapshot: Snapshot) -> int:
        snapshot.check_size(0, 4 * snapshot.length)
        slot = self.allocate(snapshot.length)
        self.sequences[slot] = snapshot.arrays(1)[0].view(np.int32).tolist()
        return slot

    def free(self, slot: int) -> None:
        del self.sequences[slot], self.lengths[slot], self.lookaheads[slot]


class ToyBackend:
    fingerprint = "a toy"
    description = Description("toy", "cpu", None, None, "none", "none", 4)
    adapters: tuple[str, ...] = ()
    same_bits = False  # no guesses, which a clock decides on; tests of guesses say otherwise

    def __init__(self, row: Row = hashed, *, context_length: int = 64) -> None:
        self.config = config(context_length)
        self.row = row
        self.cache = ToyCache()
        self.batches: list[Batch] = []

    def new_cache(self) -> ToyCache:
        return self.cache

    def not_finite(self) -> str:
        return "it is a toy"

    def forward(self, batch: Batch, cache: ToyCache) -> Float32:
        self.batches.append(batch)
        rows = {}
        slots = np.repeat(batch.slots, batch.counts)
        for i, (token_id, position, slot) in enumerate(zip(batch.ids, batch.positions, slots, strict=True)):
            ids = cache.sequences[slot]
            begins = i == 0 or slots[i - 1] != slot
            if begins and len(ids) - cache.lookaheads[slot] <= position < len(ids):
                del ids[position:]  # a draft that was not what the text went on with
            assert position == len(ids), f"slot {slot} holds {len(ids)} positions, but position {position} came"
            assert position < cache.lengths[slot], f"slot {slot} was promised {cache.lengths[slot]} positions"
            ids.append(int(token_id))
            if i in batch.logit_rows:
                rows[i] = self.row(ids)
        return np.array([rows[int(i)] for i in batch.logit_rows], np.float32).reshape(-1, VOCAB)


class ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]) if token_id < BOS else b"")

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """One id a byte, and two control ids."""

    vocab_size, bos_id, eos_id, version = VOCAB, BOS, EOS, None
    end_ids = frozenset({EOS})

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [BOS] * bos + list(text.encode()) + [EOS] * eos

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < BOS).decode("utf-8", "replace")

    def stream(self, after: Sequence[int] = ()) -> ByteStream:
        stream = ByteStream()
        for token_id in after:
            stream.push(token_id)
        return stream

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < BOS else b""

    def control_id(self, piece: str) -> int | None:
        return self.control_tokens().get(piece)

    def control_tokens(self) -> dict[str, int]:
        return {"<s>": BOS, "</s>": EOS}
