"""The GGUF container, versions 2 and 3: key/value metadata, the directory of tensors, and the mapped bytes.

Only the container is read here. What the keys mean is the business of `config` and `tokenizer`, what the tensors hold
that of `checkpoint`. Every count, length and offset is checked against the file before it is used, so that the time
and memory that a hostile file can cost are bounded by LIMITS below.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ventoux.errors import CheckpointError, shown
from ventoux.mapped import map_file

# LIMITS: Mistral's largest vocabulary has 131,072 tokens and twice as many merges, 8 MB in all
HEADER_BYTES = 1 << 24
ARRAY_ITEMS = 1 << 22  # over all arrays of a file
KEYS = 1 << 12
TENSORS = 1 << 16
DIMENSIONS = 4
ELEMENTS = 1 << 48  # of one tensor: products stay far from any overflow

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
Kind = int | tuple[int, int]  # the number of a value's type; of an array's, and of its items
BYTES_EACH = 32  # of a vocabulary's strings, for which there is a fast way; the default model's take 16
_unpack_length = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor stands: shape (rows, columns), the file's order reversed; offset in bytes from its start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """A parsed file. Strings of metadata that are not UTF-8 carry their stray bytes as surrogates (surrogateescape).

    kinds are the types that the values of the metadata have in the file, so that they can be written as they were.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data: NDArray[np.uint8]  # the whole file, mapped
    kinds: dict[str, Kind] = field(default_factory=dict)


def read(path: str | Path) -> GGUFFile:
    """Parse a GGUF file's header and map its data; raises CheckpointError that names what is wrong."""
    path = Path(path)
    data = map_file(path)
    cursor = _Cursor(path, data)
    cursor.check_magic()
    n_tensors, n_keys = cursor.count("tensors", TENSORS), cursor.count("metadata keys", KEYS)
    metadata: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    for _ in range(n_keys):
        cursor.where = "a metadata key"
        key = cursor.string()
        if key in metadata:
            cursor.fail("it stands twice", where=f"metadata key {shown(key)}")
        cursor.where = f"metadata key {shown(key)}"
        kind = cursor.number("I")
        metadata[key] = cursor.value(kind)
        kinds[key] = (kind, cursor.items) if kind == ARRAY else kind
    directory = [cursor.tensor() for _ in range(n_tensors)]
    if len({tensor.name for tensor in directory}) != n_tensors:
        cursor.fail("a tensor stands twice", where="the directory of tensors")
    start = _aligned(cursor, metadata)
    placed = tuple(_placed(cursor, tensor, start) for tensor in directory)
    return GGUFFile(path, metadata, placed, data, kinds)


def begins(path: Path) -> bool:
    """Whether a file begins as GGUF files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _aligned(cursor: "_Cursor", metadata: dict[str, Any]) -> int:
    """Where the tensors' bytes begin: the directory's end, rounded up to the file's alignment."""
    alignment = metadata.get("general.alignment", 32)
    cursor.where = "metadata key 'general.alignment'"
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        cursor.fail(f"expected a power of two from 8 to 65536, found {shown(alignment)}")
    cursor.alignment = alignment
    return (cursor.position + alignment - 1) // alignment * alignment


def _placed(cursor: "_Cursor", tensor: TensorInfo, start: int) -> TensorInfo:
    """The tensor with its offset counted from the file's start instead of the data's."""
    offset = start + tensor.offset
    cursor.where = f"tensor {shown(tensor.name)}"
    if tensor.offset % cursor.alignment:
        cursor.fail(f"its offset {tensor.offset} is not a multiple of the alignment {cursor.alignment}")
    if offset > cursor.size:
        cursor.fail(f"it begins at byte {offset}, but the file ends at {cursor.size}; fetch the file again")
    return TensorInfo(tensor.name, tensor.shape, tensor.ggml_type, offset)


class _Cursor:
    """Reads little-endian values from the front of the file, none of them past its end or HEADER_BYTES."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.size = len(data)
        self.header = data[:HEADER_BYTES].data
        self.position = 0
        self.items_left = ARRAY_ITEMS
        self.items = 0  # the type of the items of the last array
        self.alignment = 32
        self.where = "the header"

    def fail(self, reason: str, *, where: str | None = None) -> NoReturn:
        raise CheckpointError(f"{self.path}: {where or self.where}: {reason}")

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.header):
            self.fail(
                f"{length} bytes are needed at {self.position}, but the header ends at {len(self.header)}; the file is"
                " cut off or damaged, fetch it again"
            )
        self.position, start = end, self.position
        return bytes(self.header[start:end])

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def check_magic(self) -> None:
        if (magic := bytes(self.header[:4])) != b"GGUF":
            self.fail(f"not a GGUF file: expected it to begin with 'GGUF', found {shown(magic.decode('latin-1'))}")
        self.take(4)
        version = self.number("I")
        if version & 0xFFFF == 0:
            self.fail("a big-endian GGUF file; convert it to little-endian")
        if version not in (2, 3):
            self.fail(f"GGUF version {version} is not supported, only 2 and 3 are; convert the model again")

    def count(self, what: str, limit: int) -> int:
        count: int = self.number("Q")
        if count > limit:
            self.fail(f"it announces {count} {what}, more than the {limit} that are allowed")
        return count

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def truth(self, byte: int) -> bool:
        if byte > 1:
            self.fail(f"expected a boolean (0 or 1), found {byte}")
        return byte == 1

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind == BOOL:
            return self.truth(self.number("B"))
        if kind not in NUMBERS:
            self.fail(f"unknown value type {kind}")
        return self.number(NUMBERS[kind])

    def array(self) -> list[Any]:
        kind = self.items = self.number("I")
        count = self.count("array items", self.items_left)
        self.items_left -= count
        if kind == STRING:
            return self.strings(count)
        if kind == BOOL:
            return [self.truth(byte) for byte in self.take(count)]
        if kind not in NUMBERS:
            self.fail(f"unknown or nested array type {kind}")
        dtype = np.dtype("<" + NUMBERS[kind])
        numbers: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return numbers

    def strings(self, count: int) -> list[str]:
        """`count` strings. The loop is written out because a vocabulary and its merges are 100,000 of them."""
        if (short := self.short_strings(count)) is not None:
            return short
        header = bytes(self.header)  # 100,000 slices of a map take twice the time
        position, end = self.position, len(header)
        found = []
        for _ in range(count):
            start = position + 8
            if start > end:
                self.fail("a string begins past the header's end; the file is cut off or damaged, fetch it again")
            position = start + _unpack_length(header, position)[0]
            if position > end:
                self.fail("a string ends past the header's end; the file is cut off or damaged, fetch it again")
            found.append(header[start:position].decode("utf-8", "surrogateescape"))
        self.position = position
        return found

    def short_strings(self, count: int) -> list[str] | None:
        """All of them at once, in less than half of the time: None unless each has 1 to 255 bytes, and no NUL.

        They take at most BYTES_EACH on average, lengths included: to look at more takes time.

        Of the length of a short string, 8 bytes, all but the first are NUL, and none of its own: so each length is a
        byte that is not NUL, with 7 NULs behind it. If they lie as far apart as they say, with no NUL in between, the
        loop would find the same ones.
        """
        stored = np.frombuffer(self.header, np.uint8)[self.position :][: BYTES_EACH * count + 4096]
        filled = np.flatnonzero(stored)
        lengths = np.flatnonzero(np.diff(filled) == 8)[:count]  # where in `filled`
        at = filled[lengths]
        if not count or len(at) < count or at[0] != 0:
            return None
        sizes = stored[at].astype(np.int64)
        last, rest = int(at[-1] + 8 + sizes[-1]), int(lengths[-1] + 1 + sizes[-1])  # the ends in `stored` and `filled`
        apart = (np.diff(at) == sizes[:-1] + 8).all() and (np.diff(lengths) == sizes[:-1] + 1).all()
        if not apart or last > len(stored) or not stored[last - sizes[-1] : last].all():
            return None
        text = stored[filled[:rest]]
        text[lengths] = 0
        found: list[str] = text.tobytes().decode("utf-8", "surrogateescape").split("\0")[1:]
        self.position += last
        return found

    def tensor(self) -> TensorInfo:
        self.where = "the name of a tensor"
        name = self.string()
        self.where = f"tensor {shown(name)}"
        dimensions = self.number("I")
        if not 1 <= dimensions <= DIMENSIONS:
            self.fail(f"expected 1 to {DIMENSIONS} dimensions, found {dimensions}")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape or prod(shape) > ELEMENTS:
            self.fail(f"impossible shape {shape}")
        return TensorInfo(name, shape, self.number("I"), self.number("Q"))
