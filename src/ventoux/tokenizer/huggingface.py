"""tokenizer.json files, and whatever else the `tokenizers` library cuts for us."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.errors import TokenizerError
from ventoux.tokenizer.specials import Specials
from ventoux.tokenizer.stream import PieceTokenizer, reading
from ventoux.tokenizer.version import CONFIG_KEY, stated_version

if TYPE_CHECKING:
    import tokenizers

_MAX_ID = 1 << 22  # the largest vocabularies in use have 262,144 tokens
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level pieces (GPT-2's encoder.py): printable ones for themselves,
    the others, in order, for the characters from 256 on. "Ġ" is a space."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


class _Cut(PieceTokenizer):
    """Cuts as the `tokenizers` library does; `pieces` are the vocabulary in order of id, "" where it leaves an id out.

    `encode` turns text into ids, `literal` are the ids of added tokens that are no control tokens: their names are
    their text. `unknown` is the token for what the vocabulary cannot write, None when there is none.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        specials: Specials,
        *,
        pieces: Sequence[str],
        literal: Collection[int],
        unknown: str | None = None,
    ) -> None:
        super().__init__(len(pieces), specials)
        self._encode = encode
        self._unknown = unknown
        self._pieces = pieces
        self._literal = literal

    def _cut(self, text: str) -> list[int]:
        ids = self._encode(text)
        met = {self._pieces[i] for i in self._control_ids.intersection(ids)} - {self._unknown}
        if met:
            raise TokenizerError(
                f"this tokenizer turns plain text into the control tokens {sorted(met)}; take them out of the text"
            )
        return ids

    def _piece(self, token_id: int) -> str:
        if piece := self._pieces[token_id]:
            return piece
        raise TokenizerError(f"expected an id that names a token, found {token_id}, which this vocabulary leaves out")


class ByteLevelTokenizer(_Cut):
    """BPE whose pieces spell bytes."""

    def _surface(self, token_id: int, first: bool) -> bytes:
        piece = self._piece(token_id)
        if token_id in self._literal:
            return piece.encode()
        try:
            return bytes([BYTE_OF[character] for character in piece])
        except KeyError:  # a piece outside the alphabet stands for itself, as in the library's own decoder
            return piece.encode()


class ByteFallbackTokenizer(_Cut):
    """sentencepiece's BPE as tokenizer.json writes it: `▁` for a space, `<0x0A>` for a byte without a piece."""

    _errors = "surrogateescape"
    strips = False  # whether the space that encoding puts before the text is taken off again

    def _surface(self, token_id: int, first: bool) -> bytes:
        piece = self._piece(token_id)
        if byte := BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if first and self.strips:
            piece = piece.removeprefix("▁")
        return piece.replace("▁", " ").encode()


def load_json(path: Path) -> PieceTokenizer:
    """A tokenizer.json file; names of BOS and EOS come from the tokenizer_config.json beside it."""
    with reading(path):
        text = path.read_text("utf-8")
    return from_text(text, _beside(path), source=path)


def from_text(text: str, config: Mapping[str, Any], *, source: str | Path) -> PieceTokenizer:
    """What a tokenizer.json says, with the values of its tokenizer_config.json."""
    from tokenizers import Tokenizer

    with reading(source):
        model = Tokenizer.from_str(text)
        kind = type(model.model).__name__
        if kind != "BPE":
            raise TokenizerError(
                f"{source}: expected a tokenizer of type BPE, found {kind}, which Ventoux does not read"
            )
        model.encode_special_tokens = True
        model.no_truncation()
        model.no_padding()
        pieces = _pieces(model, source)
        added = model.get_added_tokens_decoder()
        control = {token.content: token_id for token_id, token in added.items() if token.special}
        literal = {token_id for token_id, token in added.items() if not token.special}
        specials = _specials(model, control, stated_version(config, CONFIG_KEY, pieces), config)
        parts, encode, unknown = _decoder_parts(model), encoder(model), model.model.unk_token
        if "ByteLevel" in parts:
            return ByteLevelTokenizer(encode, specials, pieces=pieces, literal=literal, unknown=unknown)
        if parts & {"ByteFallback", "Metaspace"}:
            found = ByteFallbackTokenizer(encode, specials, pieces=pieces, literal=literal, unknown=unknown)
            space = model.token_to_id("▁")
            found.strips = space is not None and model.decode([space]) == ""
            return found
        raise TokenizerError(
            f"{source}: expected a decoder of type ByteLevel, ByteFallback or Metaspace, found"
            f" {sorted(parts) or 'none'}, which Ventoux does not read"
        )


def encoder(model: "tokenizers.Tokenizer") -> Callable[[str], list[int]]:
    """Text -> ids of a model of the library."""

    def encode(text: str) -> list[int]:
        ids: list[int] = model.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _pieces(model: "tokenizers.Tokenizer", path: str | Path) -> list[str]:
    vocab: dict[str, int] = model.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    if size > _MAX_ID:
        raise TokenizerError(f"{path}: expected ids below {_MAX_ID}, found {size - 1}")
    pieces = [""] * size
    for piece, token_id in vocab.items():
        pieces[token_id] = piece
    return pieces


def _decoder_parts(model: "tokenizers.Tokenizer") -> set[str]:
    if model.decoder is None:
        return set()
    state = json.loads(model.decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}


def _specials(
    model: "tokenizers.Tokenizer", control: dict[str, int], version: str | None, config: Mapping[str, Any]
) -> Specials:
    put_first = model.encode("", add_special_tokens=True).ids[:1]  # what the file's post-processor puts before a text
    bos_id = control.get(_name(config.get("bos_token")) or "<s>")
    if bos_id is None and put_first:
        bos_id = put_first[0]
    return Specials(
        control=control,
        bos_id=bos_id,
        eos_id=control.get(_name(config.get("eos_token")) or "</s>"),
        adds_bos=bool(config.get("add_bos_token", put_first == [bos_id])),
        version=version,
    )


def _beside(path: Path) -> dict[str, Any]:
    config = path.with_name("tokenizer_config.json")
    if not config.is_file():
        return {}
    with reading(config):
        found = json.loads(config.read_bytes())
        if not isinstance(found, dict):
            raise TokenizerError(f"{config}: expected a JSON object, found {type(found).__name__}")
    return found


def _name(token: Any) -> str | None:
    """A special token's name, which transformers writes as a string or as an object with `content`."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None
