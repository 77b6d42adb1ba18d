"""Who runs in the next step, and how many of their tokens. Knows numbers only: no tensors, no text, no model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """A request's state: of `known` ids (its prompt and what it generated), the first `done` are in the cache.

    A later request has a larger key. `draft` is how many guesses of what comes next it would like to have checked with
    its next token.
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
    stalls while a long prompt is read. Of what is left, half is the oldest prompt's, so that none starves, and the
    other half goes to the prompts that need least, so that a short one does not wait behind long ones. At most
    min(budget, max_sequences) requests run at once: each that decodes has its token in every step, and at least one
    token is left for the oldest prompt. Guesses get what nobody else needs.

    budget=7, A decodes at 9, B has 2 of 9 prompt ids done, C waits with 3: A 9..9, B 2..4, C 0..2.
    """
    free = min(budget, max_sequences) - len(running)
    candidates = [*running, *waiting[: max(0, free)]]
    candidates.sort(key=lambda each: each.known - each.done > 1)  # stable
    need = {each.key: each.known - each.done for each in candidates}
    shares = dict.fromkeys(need, 0)

    def give(key: int, most: int) -> None:
        nonlocal budget
        share = min(need[key] - shares[key], most)
        shares[key] += share
        budget -= share

    reading = sorted(key for key, count in need.items() if count > 1)  # by age: a later request has a larger key
    for key, count in need.items():
        if count == 1:
            give(key, budget)
    if reading:
        give(reading[0], (budget + 1) // 2)
    for key in sorted(reading, key=lambda key: need[key] - shares[key]):  # stable: the oldest first among equals
        give(key, budget)
    chunks = [
        Chunk(each.key, each.done, shares[each.key], last=shares[each.key] == need[each.key])
        for each in candidates
        if shares[each.key]
    ]
    wanted = {each.key: each.draft for each in candidates}
    for i, chunk in enumerate(chunks):
        if chunk.last and (draft := min(budget, wanted[chunk.key])):
            chunks[i] = replace(chunk, draft=draft)
            budget -= draft
    return chunks
