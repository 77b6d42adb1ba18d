"""Writing safetensors files, to the byte as the format's own library lays them out.

Format: https://github.com/huggingface/safetensors#format. The tensors stand by the width of their numbers and then by
name, so a file depends on nothing but what is in it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from ventoux.checkpoint.outgoing import Outgoing, Piece

ORDER = {"F32": 0, "BF16": 1, "F16": 2}  # the widest first, so that each is aligned; of one width as the library has it


def pieces(tensors: Sequence[Outgoing], *, metadata: Mapping[str, str] | None = None) -> Iterator[Piece]:
    """The bytes of a file, in order; of formats F32, F16 and BF16."""
    yield _header(tensors, metadata)
    for tensor in _ordered(tensors):
        yield from tensor.pieces()


def size(tensors: Sequence[Outgoing], *, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the file."""
    return len(_header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors)


def _ordered(tensors: Sequence[Outgoing]) -> list[Outgoing]:
    return sorted(tensors, key=lambda tensor: (ORDER[tensor.format], tensor.name))


def _header(tensors: Sequence[Outgoing], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for tensor in _ordered(tensors):
        end = at + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.format, "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
