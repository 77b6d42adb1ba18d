"""Who runs in the next step, and how many of their tokens. Knows numbers only: no tensors, no text, no model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """A request's state: of `known` ids (its prompt and what it generated), the first `done` are in the cache.

    `draft` is how many guesses of what comes next it would like to have checked with its next token.
    """

    key: int
    done: int
    known: int
    draft: int = 0


@dataclass(frozen=True)
class Chunk:
    """Run `count` ids of a request, from position `start`, and `draft` guesses behind them.

    `last` says that its next token is to be sampled; only then are there guesses.
    """

    key: int
    start: int
    count: int
    last: bool
    draft: int = 0


def schedule(
    waiting: Sequence[Progress], running: Sequence[Progress], *, budget: int, max_sequences: int
) -> list[Chunk]:
    """Chunks of at most `budget` tokens in all; those of a waiting request admit it.

    Requests that need one token only (those that decode, and the ends of prompts) come first, so that nobody's answer
    stalls while a long prompt is read; then prompts share what is left, the oldest first. At most min(budget,
    max_sequences) requests run at once: each that decodes has its token in every step, at least one token is left for
    the oldest prompt, and so none starves. Guesses get what nobody else needs.

    budget=5, A decodes at 9, B has 2 of 7 prompt ids done, C waits with 3: A 9..9, B 2..5, and C stays waiting.
    """
    free = min(budget, max_sequences) - len(running)
    ordered = [*running, *waiting[: max(0, free)]]
    ordered.sort(key=lambda progress: progress.known - progress.done > 1)  # stable: the oldest stay first
    chunks = []
    for progress in ordered:
        count = min(budget, progress.known - progress.done)
        if count:
            chunks.append(Chunk(progress.key, progress.done, count, last=progress.done + count == progress.known))
            budget -= count
    wanted = {progress.key: progress.draft for progress in ordered}
    for i, chunk in enumerate(chunks):
        if chunk.last and (draft := min(budget, wanted[chunk.key])):
            chunks[i] = replace(chunk, draft=draft)
            budget -= draft
    return chunks
