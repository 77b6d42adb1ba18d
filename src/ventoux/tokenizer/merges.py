"""Byte-pair merges in Python, for the texts of a start.

The library's model of 49,152 tokens takes 40 ms to build, more than any other step of a start, and a short prompt takes
one to cut without it. So texts are cut here until there are enough of them; the ids are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

ENOUGH = 10_000  # characters, over all texts
LONG = 64  # characters of a word, whose pairs are all looked at for each merge


class Merges:
    """Text -> ids, by the library's rule: of all pairs in a word, merge the one of the lowest rank, the first of these.

    Merges "a b", "b c", "ab c" cut "abc" into "abc", and "bc" alone into "bc".
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[str],
        *,
        splitter: "PreTokenizer",
        whole_words: bool,
        build: Callable[[], "tokenizers.Tokenizer"],
    ) -> None:
        self._vocab = vocab
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._none = len(merges)
        self._none = len(merges)
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
            ranks = [self._ranks.get(f"{left} {right}", self._none) for left, right in pairwise(parts)]
            lowest = min(ranks)
            if lowest == self._none:
                break
            at = ranks.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def are_sound(vocab: Mapping[str, int], merges: Sequence[str]) -> bool:
    """Whether the library would take them: text, one space in each merge, and what merges make is in the vocabulary.

    What they are made of is not looked up: a merge of parts that are no pieces never happens.
    """
    try:
        "".join(vocab).encode()
        made = map(str.replace, merges, repeat(" "), repeat(""))
        return set(map(str.count, merges, repeat(" "))) == {1} and all(map(vocab.__contains__, made))
    except (TypeError, UnicodeEncodeError):
        return False
