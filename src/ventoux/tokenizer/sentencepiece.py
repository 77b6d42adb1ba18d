"""tokenizer.model files, and the same vocabulary when a GGUF file carries it."""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.tokenizer.specials import Specials, gguf_specials
from ventoux.tokenizer.stream import PieceTokenizer, reading
from ventoux.tokenizer.version import GGUF_KEY, mistral_version, stated_version

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_UNKNOWN = " \u2047 ".encode()  # what sentencepiece shows for <unk>
_BYTE_TYPE = 6
_SPECIAL = ("unknown", "bos", "eos", "padding")  # fields 40 to 43 of the trainer's message hold ids, 45 to 48 names


class SentencePieceTokenizer(PieceTokenizer):
    """BPE over pieces with `▁` for a space, a byte for what has no piece, and a space put before the text."""

    _errors = "surrogateescape"

    def __init__(self, model: "SentencePieceProcessor", specials: Specials) -> None:
        super().__init__(model.get_piece_size(), specials)
        self._model = model
        # The space that encoding puts before the text is taken off again, unless the model says that it puts none.
        self._strips = model.decode([model.piece_to_id("▁")]) == ""

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text)
        return ids

    def _surface(self, token_id: int, first: bool) -> bytes:
        if self._model.is_unknown(token_id):
            return _UNKNOWN
        piece: str = self._model.id_to_piece(token_id)
        if self._model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        if first and self._strips:
            piece = piece.removeprefix("▁")
        return piece.replace("▁", " ").encode()


def load_model(path: Path) -> SentencePieceTokenizer:
    """A tokenizer.model file. `.v3` at the end of its name tells the version, otherwise the pieces do."""
    with reading(path):
        model, pieces = _processor(path.read_bytes())
        suffix = re.fullmatch(r"\.(v\d+)(m\d+)?", path.suffix)
        specials = Specials(
            control=_control(model, pieces),
            bos_id=_present(model.bos_id()),
            eos_id=_present(model.eos_id()),
            adds_bos=True,
            version=suffix[1] if suffix else mistral_version(pieces),
        )
        return SentencePieceTokenizer(model, specials)


def from_gguf(metadata: Mapping[str, Any], source: str | Path) -> SentencePieceTokenizer:
    """The vocabulary of a GGUF file whose `tokenizer.ggml.model` is "llama"."""
    with reading(source):
        model, pieces = _processor(_model_proto(metadata))
        by_name = {"bos": _present(model.bos_id()), "eos": _present(model.eos_id())}  # for files that do not say
        specials = gguf_specials(
            {**{f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in by_name.items()}, **metadata},
            source,
            control=_control(model, pieces),
            vocab_size=len(pieces),
            adds_bos=True,
            version=stated_version(metadata, GGUF_KEY, pieces),
        )
        return SentencePieceTokenizer(model, specials)


def _processor(proto: bytes) -> tuple["SentencePieceProcessor", list[str]]:
    """The library's model, and its pieces in order of id."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    model.load_from_serialized_proto(proto)
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    if not pieces:
        raise ValueError("it has no pieces")
    return model, pieces


def _control(model: "SentencePieceProcessor", pieces: Sequence[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces) if model.is_control(i)}


def _present(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


def _model_proto(metadata: Mapping[str, Any]) -> bytes:
    """Write GGUF's three lists as the protobuf message that the sentencepiece library reads.

    Field numbers are those of sentencepiece_model.proto; GGUF's token types are that file's `Type` already.
    """
    pieces: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    scores: Sequence[float] = metadata["tokenizer.ggml.scores"]
    types: Sequence[int] = metadata["tokenizer.ggml.token_type"]
    trainer = b"".join(
        [
            _number(3, 2),  # model_type = BPE
            _number(4, len(pieces)),  # vocab_size
            _number(35, int(_BYTE_TYPE in types)),  # byte_fallback
        ]
    )
    normalizer = b"".join(
        [
            _message(1, b"identity"),  # name
            _number(3, int(metadata.get("tokenizer.ggml.add_space_prefix", True))),  # add_dummy_prefix
            _number(4, int(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))),
            _number(5, 1),  # escape_whitespaces
        ]
    )
    return b"".join([*_piece_messages(pieces, scores, types), _message(2, trainer), _message(3, normalizer)])


def model_file(metadata: Mapping[str, Any]) -> bytes:
    """The same with the ids and names of special tokens, for readers of tokenizer.model that look there."""
    trainer = b""  # a message that stands twice is one message
    for place, name in enumerate(_SPECIAL):
        if (token_id := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            piece = metadata["tokenizer.ggml.tokens"][token_id]
            trainer += _number(40 + place, token_id) + _message(45 + place, piece.encode())
    return _model_proto(metadata) + _message(2, trainer)


def _piece_messages(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> Iterator[bytes]:
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        yield _message(1, _message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first: 300 is AC 02."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
