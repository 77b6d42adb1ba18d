"""What a model says of whole texts, without choosing anything: their logits, or a vector for each."""

from collections.abc import Iterator, Sequence

import numpy as np

from ventoux.batch import Backend, Batch, Cache, Float32, Segment, check_adapter
from ventoux.engine.request import check_logits, check_prompt
from ventoux.errors import GenerationError, OutOfMemoryError, PromptTooLongError

Piece = tuple[int, int, int]  # a text's index, its first position, the position after the last


def logits(backend: Backend, ids: Sequence[int], *, budget: int) -> Float32:
    """The logits after each of the ids, [len(ids), vocab] float32, in passes of at most `budget` tokens.

    Raises RequestError, PromptTooLongError, GenerationError when they are not numbers, OutOfMemoryError.
    """
    _check(ids, backend)
    n = len(ids)
    try:
        found = np.empty((n, backend.config.vocab_size), np.float32)
        cache = backend.new_cache()
        slot = cache.allocate(n)
    except MemoryError as error:
        raise OutOfMemoryError(f"the logits of {n} tokens do not fit into memory; give fewer at once") from error
    try:
        for start in range(0, n, budget):
            part = ids[start : start + budget]
            rows = backend.forward(Batch.pack([Segment(slot, start, part, logits=len(part))]), cache)
            check_logits(rows, backend)
            found[start : start + len(part)] = rows
    finally:
        cache.free(slot)
    return found


def embed(backend: Backend, texts: Sequence[Sequence[int]], *, budget: int, adapter: str | None = None) -> Float32:
    """The mean of each text's hidden states after the last norm, [len(texts), hidden_size] float32; not normalised.

    Short texts share passes of at most `budget` tokens; a long one is cut at multiples of it, wherever it stands, and
    the means are of float64 sums: where the backend's bits do not depend on the batch, these do not either.
    Raises RequestError, PromptTooLongError, GenerationError when a mean is not of numbers, OutOfMemoryError.
    """
    if adapter is not None:
        check_adapter(adapter, backend.adapters)
    for ids in texts:
        _check(ids, backend)
    cache = backend.new_cache()
    slots: dict[int, int] = {}
    sums = np.zeros((len(texts), backend.config.hidden_size))
    try:
        for pieces in batches([len(ids) for ids in texts], budget):
            for text, begin, _ in pieces:
                if begin == 0:
                    slots[text] = _room(cache, len(texts[text]))
            parts = [
                Segment(slots[text], begin, texts[text][begin:end], adapter=adapter) for text, begin, end in pieces
            ]
            states, row = backend.hidden(Batch.pack(parts), cache), 0
            for text, begin, end in pieces:
                sums[text] += states[row : row + end - begin].sum(0, dtype=np.float64)
                row += end - begin
                if end == len(texts[text]):
                    cache.free(slots.pop(text))
    finally:
        for slot in slots.values():
            cache.free(slot)
    means: Float32 = (sums / np.array([[len(ids)] for ids in texts])).astype(np.float32)
    if not np.isfinite(means).all():
        raise GenerationError(f"the model returned hidden states that are not finite numbers: {backend.not_finite()}")
    return means


def _check(ids: Sequence[int], backend: Backend) -> None:
    check_prompt(ids, backend.config)
    if len(ids) > backend.config.context_length:
        raise PromptTooLongError(len(ids), backend.config.context_length)


def _room(cache: Cache, length: int) -> int:
    try:
        return cache.allocate(length)
    except MemoryError as error:
        raise OutOfMemoryError(f"the keys and values of {length} tokens do not fit into memory") from error


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[Piece]]:
    """Pieces (text, begin, end) of all texts, in passes of at most `budget` tokens; no text is in one pass twice.

    Lengths 3 10 2 1, budget 4: text 0 0..3 | 1 0..4 | 1 4..8 | 1 8..10, 2 0..2 | 3 0..1.
    """
    batch: list[Piece] = []
    room = budget
    for text, length in enumerate(lengths):
        for begin in range(0, length, budget):
            end = min(begin + budget, length)
            if end - begin > room:
                yield batch
                batch, room = [], budget
            batch.append((text, begin, end))
            room -= end - begin
    if batch:
        yield batch
