"""Writing GGUF files, version 3: key/value metadata, the directory of tensors, then their bytes, each aligned.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ventoux.checkpoint.outgoing import Outgoing, Piece
from ventoux.gguf import ARRAY, BOOL, NUMBERS, STRING, Kind
from ventoux.quant import FORMATS

UINT32, INT32, FLOAT32 = 4, 5, 6
ALIGNMENT = 32


def pieces(
    metadata: Mapping[str, Any], tensors: Sequence[Outgoing], *, kinds: Mapping[str, Kind] | None = None
) -> Iterator[Piece]:
    """The bytes of a file, in order: keys and tensors stand in the order in which they are given.

    Whole numbers are written as uint32, in lists as int32, others as float32, unless `kinds` says otherwise for a key.
    """
    alignment = metadata.get("general.alignment", ALIGNMENT)
    yield _header(metadata, tensors, kinds or {})
    for tensor in tensors:
        yield from tensor.pieces()
        yield bytes(-tensor.nbytes % alignment)


def size(metadata: Mapping[str, Any], tensors: Sequence[Outgoing], *, kinds: Mapping[str, Kind] | None = None) -> int:
    """Bytes of the file."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    return len(_header(metadata, tensors, kinds or {})) + sum(_padded(tensor.nbytes, alignment) for tensor in tensors)


def _header(metadata: Mapping[str, Any], tensors: Sequence[Outgoing], kinds: Mapping[str, Kind]) -> bytes:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _typed(value, kinds.get(key))]
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        numbers = (len(shape), *shape, FORMATS[tensor.format].ggml_type, offset)
        parts += [_string(tensor.name), struct.pack(f"<I{len(shape)}QIQ", *numbers)]
        offset += _padded(tensor.nbytes, alignment)
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)


def _padded(nbytes: int, alignment: int) -> int:
    return nbytes + -nbytes % alignment


def _typed(value: Any, kind: Kind | None) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, list):
        item = kind[1] if isinstance(kind, tuple) else _kind_of(value[0], INT32) if value else INT32
        return struct.pack("<IIQ", ARRAY, item, len(value)) + _items(value, item)
    kind = kind if isinstance(kind, int) else _kind_of(value, UINT32)
    return struct.pack("<I", kind) + _items([value], kind)


def _kind_of(value: Any, whole: int) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str):
        return STRING
    return FLOAT32 if isinstance(value, float) else whole


def _items(values: Sequence[Any], kind: int) -> bytes:
    if kind == STRING:
        return b"".join([_string(value) for value in values])
    return struct.pack(f"<{len(values)}{'?' if kind == BOOL else NUMBERS[kind]}", *values)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data
