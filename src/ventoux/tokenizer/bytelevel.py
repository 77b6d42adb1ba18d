"""Byte-level BPE out of a GGUF file: `tokenizer.ggml.model` "gpt2", cut as `tokenizer.ggml.pre` says."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.errors import TokenizerError
from ventoux.tokenizer.huggingface import ByteLevelTokenizer, encoder
from ventoux.tokenizer.merges import Merges, ranks_of
from ventoux.tokenizer.specials import gguf_specials
from ventoux.tokenizer.stream import reading
from ventoux.tokenizer.version import GGUF_KEY, stated_version

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.pre_tokenizers import PreTokenizer

CONTROL, USER_DEFINED = 3, 4  # of GGUF's token types

# How text is split into words before any merge: each pattern splits what the one before it left in one piece.
# Source: llama.cpp, src/llama-vocab.cpp; tekken's is that of tekken.json, which llama.cpp rewrites for its engine.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
PATTERNS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "tekken": (_TEKKEN,),
}
# Where a word that is a token stays whole whatever the merges say, and prompts begin with a BOS.
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "tekken"}


def from_gguf(metadata: Mapping[str, Any], source: str | Path) -> ByteLevelTokenizer:
    """The vocabulary of a GGUF file; a pre-tokenizer that is not in PATTERNS is refused, since ids would be wrong."""
    with reading(source):
        encode = _encoder(metadata, source)
        pieces: list[str] = metadata["tokenizer.ggml.tokens"]
        control = {piece: i for i, piece in _special(metadata, CONTROL)}
        literal = {i for i, _ in _special(metadata, USER_DEFINED)}
    specials = gguf_specials(
        metadata,
        source,
        control=control,
        vocab_size=len(pieces),
        adds_bos=metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS,
        version=stated_version(metadata, GGUF_KEY, pieces),
    )
    return ByteLevelTokenizer(encode, specials, pieces=pieces, literal=literal)


def _encoder(metadata: Mapping[str, Any], source: str | Path) -> Callable[[str], list[int]]:
    """Text -> ids. The library's model is built when there is text enough, or something that only it can tell."""
    pre, merges = _pre(metadata, source), metadata["tokenizer.ggml.merges"]
    vocab = _vocab(metadata, control=False)
    if _special(metadata, USER_DEFINED) or (rank := ranks_of(vocab, merges)) is None:
        return encoder(model_of(metadata, source))
    build = partial(model_of, metadata, source)
    return Merges(vocab, rank, splitter=splitter(pre), whole_words=pre in WHOLE_WORDS, build=build).encode


def model_of(metadata: Mapping[str, Any], source: str | Path, *, control: bool = False) -> "tokenizers.Tokenizer":
    """How a GGUF file's text is cut; with `control`, control tokens are in the vocabulary, and still no text's."""
    pre, vocab = _pre(metadata, source), _vocab(metadata, control=control)
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in metadata["tokenizer.ggml.merges"])]
    return _model(vocab, merges, pre=pre, literal=[piece for _, piece in _special(metadata, USER_DEFINED)])


def _pre(metadata: Mapping[str, Any], source: str | Path) -> str:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PATTERNS:
        raise TokenizerError(f"{source}: tokenizer.ggml.pre: expected one of {sorted(PATTERNS)}, found {pre!r}")
    return pre


def _vocab(metadata: Mapping[str, Any], *, control: bool) -> dict[str, int]:
    pieces = metadata["tokenizer.ggml.tokens"]
    vocab = dict(zip(pieces, range(len(pieces)), strict=True))
    if not control:  # what is not in the vocabulary cannot be cut out of a text
        for _, piece in _special(metadata, CONTROL):
            vocab.pop(piece, None)
    return vocab


def _special(metadata: Mapping[str, Any], kind: int) -> list[tuple[int, str]]:
    pieces, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    if len(types) != len(pieces):
        raise ValueError(f"there are {len(pieces)} tokens and {len(types)} types of tokens")
    found, i = [], -1
    for _ in range(types.count(kind)):  # few among 100,000: searching for them is faster than going through all
        i = types.index(kind, i + 1)
        found.append((i, pieces[i]))
    return found


def splitter(pre: str) -> "PreTokenizer":
    """How text is cut into words, in the characters that stand for bytes; `pre` is a key of PATTERNS."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    words: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    return Sequence([*words, ByteLevel(add_prefix_space=False, use_regex=False)])


def _model(
    vocab: dict[str, int], merges: list[tuple[str, str]], *, pre: str, literal: Iterable[str]
) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    model = Tokenizer(BPE(vocab, merges, ignore_merges=pre in WHOLE_WORDS))
    model.pre_tokenizer = splitter(pre)
    model.add_tokens([AddedToken(piece, normalized=False) for piece in literal])
    return model
