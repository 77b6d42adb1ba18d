"""Byte-pair merges in Python, for the texts of a start.

The library's model of 49,152 tokens takes 40 ms to build, more than any other step of a start, and a short prompt takes
one to cut without it. So texts are cut here until there are enough of them; the ids are the same.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

ENOUGH = 10_000  # characters, over all texts
LONG = 64  # characters of a word, whose pairs are all looked at for each merge
NEVER = sys.maxsize  # the rank of a pair that has no merge

Rank = Callable[[str, str], int]


class Merges:
    """Text -> ids, by the library's rule: of all pairs in a word, merge the one of the lowest rank, the first of these.

    Merges "a b", "b c", "ab c" cut "abc" into "abc", and "bc" alone into "bc".
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        rank: Rank,
        *,
        splitter: "PreTokenizer",
        whole_words: bool,
        build: Callable[[], "tokenizers.Tokenizer"],
    ) -> None:
        self._vocab = vocab
        self._rank = rank
        self._splitter = splitter
        self._whole_words = whole_words
        self._build = build
        self._left = ENOUGH
        self._library: tokenizers.Tokenizer | None = None

    def encode(self, text: str) -> list[int]:
        self._left -= len(text)
        if self._library is None and self._left >= 0 and (ids := self._cut(text)) is not None:
            return ids
        if self._library is None:
            self._library = self._build()
        found: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return found

    def _cut(self, text: str) -> list[int] | None:
        """None for what is the library's business: long words, and bytes that the vocabulary has no piece for."""
        ids = []
        for word, _ in self._splitter.pre_tokenize_str(text):
            if len(word) > LONG or not all(character in self._vocab for character in word):
                return None
            whole = self._whole_words and word in self._vocab
            ids += [self._vocab[part] for part in ([word] if whole else self._merged(word))]
        return ids

    def _merged(self, word: str) -> list[str]:
        parts = list(word)
        while len(parts) > 1:
            ranks = [self._rank(left, right) for left, right in pairwise(parts)]
            lowest = min(ranks)
            if lowest == NEVER:
                break
            at = ranks.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def ranks_of(vocab: Mapping[str, int], merges: Sequence[str]) -> Rank | None:
    """What tells a pair's merge, its place among all of them or NEVER; None if the library would refuse these merges.

    It takes text, one space in each, and what they make has to be in the vocabulary. What they are made of is not
    looked up: a merge of parts that are no pieces never happens.
    """
    try:
        "".join(vocab).encode()
        if (first := first_made(vocab, merges)) is not None:
            return partial(rank_in_order, vocab, merges, first)
        made = map(str.replace, merges, repeat(" "), repeat(""))
        if set(map(str.count, merges, repeat(" "))) != {1} or not all(map(vocab.__contains__, made)):
            return None
    except (TypeError, UnicodeEncodeError):
        return None
    ranks = dict(zip(merges, range(len(merges)), strict=True))
    return lambda left, right: ranks.get(f"{left} {right}", NEVER)


def rank_in_order(vocab: Mapping[str, int], merges: Sequence[str], first: int, left: str, right: str) -> int:
    rank = vocab.get(left + right, -1) - first
    return rank if 0 <= rank < len(merges) and merges[rank] == f"{left} {right}" else NEVER


def first_made(vocab: Mapping[str, int], merges: Sequence[str]) -> int | None:
    """The id of what the first merge makes, where the vocabulary ends with what merges make, in order.

    The default model's does. Such merges are sound, and what a pair makes tells its merge, without a table of them.
    """
    lines, count, before = "\n".join(merges), len(merges), len(vocab) - len(merges)
    marks = np.frombuffer(lines.encode("utf-8", "surrogateescape"), np.uint8)
    marks = marks[(marks == ord(" ")) | (marks == ord("\n"))]
    each_one = len(marks) == 2 * count - 1 and (marks[::2] == ord(" ")).all() and (marks[1::2] == ord("\n")).all()
    if not each_one or before < 0 or lines.replace(" ", "") != "\n".join(islice(vocab, before, None)):
        return None
    ids = list(islice(vocab.values(), before, None))
    return ids[0] if ids == list(range(ids[0], ids[0] + count)) else None
