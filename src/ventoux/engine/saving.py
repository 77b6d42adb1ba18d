"""A text's keys and values in a file, so that a conversation goes on where it ended, after a restart too.

magic (8 bytes), the header's length (uint32), the header (JSON), ids (int32 each), the layers' bytes one after the
other, and the BLAKE2b of all that (32 bytes); numbers are little endian. The file is private: it holds what was said.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ventoux.batch import Backend, Int32, Snapshot
from ventoux.errors import OutOfMemoryError, PrefixFileError, RequestError, shown

_MAGIC = b"VTXKV\x00\x01\n"
_LARGEST_HEADER = 1 << 20  # bytes
_DIGEST = 32  # bytes


@dataclass(frozen=True)
class Origin:
    """What a file's keys and values are of: they mean nothing to another model, or in another number format."""

    fingerprint: str
    kv_dtype: str

    @classmethod
    def of(cls, backend: Backend) -> "Origin":
        return cls(backend.fingerprint, backend.description.kv_dtype)


def save(path: Path, backend: Backend, ids: Sequence[int], export: Callable[[Int32], Snapshot | None]) -> int:
    """Write what `export` has of the ids -> how many. Raises RequestError when it has nothing, PrefixFileError."""
    text = np.array(ids, np.int32)
    try:
        snapshot = export(text)
    except MemoryError as error:
        raise OutOfMemoryError(f"a copy of {len(ids)} positions does not fit into memory") from error
    if snapshot is None:
        raise RequestError(f"nothing is kept of a text that begins as these {len(ids)} ids do; run them first")
    write(path, Origin.of(backend), text[: snapshot.length], snapshot)
    return snapshot.length


def load(path: Path, backend: Backend, restore: Callable[[Int32, Snapshot], bool]) -> list[int]:
    """Hand what a file holds to `restore` -> its ids. Raises PrefixFileError, OutOfMemoryError."""
    config = backend.config
    ids, snapshot = read(path, Origin.of(backend), context_length=config.context_length)
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise PrefixFileError(f"{path} is damaged: it holds ids that are not in the vocabulary; remove it")
    try:
        fits = restore(ids, snapshot)
    except ValueError as error:
        raise PrefixFileError(f"{path} is damaged: {error}; remove it") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"the {len(ids)} positions of {path} do not fit into memory") from error
    if not fits:
        raise PrefixFileError(f"{path} holds {len(ids)} positions, which are more than prefix_bytes allow")
    found: list[int] = ids.tolist()
    return found


def write(path: Path, origin: Origin, ids: Int32, snapshot: Snapshot) -> None:
    """Write beside `path` and rename, so that nobody finds half a file. Raises PrefixFileError."""
    assert len(ids) == snapshot.length
    header = {
        "fingerprint": origin.fingerprint,
        "kv_dtype": origin.kv_dtype,
        "length": snapshot.length,
        "firsts": snapshot.firsts,
        "layers": [len(layer) for layer in snapshot.layers],
    }
    text = json.dumps(header).encode()
    assert len(text) <= _LARGEST_HEADER
    parts: list[bytes | memoryview] = [_MAGIC, len(text).to_bytes(4, "little"), text, ids.astype("<i4").tobytes()]
    parts += [layer.data for layer in snapshot.layers]
    try:
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        beside.unlink(missing_ok=True)
        try:
            _put(beside, parts)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise PrefixFileError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _put(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read(path: Path, origin: Origin, *, context_length: int) -> tuple[Int32, Snapshot]:
    """Ids and their keys and values. Raises PrefixFileError for a file that is damaged, or of another model."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise PrefixFileError(f"{path} is not a file")
        with path.open("rb") as file:
            return _read(path, file, origin, context_length)
    except (OSError, ValueError) as error:
        raise PrefixFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read(path: Path, file: BinaryIO, origin: Origin, context_length: int) -> tuple[Int32, Snapshot]:
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.blake2b(digest_size=_DIGEST)

    def take(count: int) -> bytes:
        if count > size - file.tell() or len(data := file.read(count)) != count:
            raise PrefixFileError(f"{path} is damaged: it ends too early; remove it")
        digest.update(data)
        return data

    if size < len(_MAGIC) or take(len(_MAGIC)) != _MAGIC:
        raise PrefixFileError(f"{path} holds no saved conversation that this version of ventoux can read")
    length = int.from_bytes(take(4), "little")
    if length > _LARGEST_HEADER:
        raise PrefixFileError(f"{path} is damaged: its header has {length} bytes; remove it")
    n, firsts, layers = _checked(path, take(length), origin, context_length)
    if file.tell() + 4 * n + sum(layers) + _DIGEST != size:
        raise PrefixFileError(f"{path} is damaged: it has {size} bytes, which is not what its header says; remove it")
    ids = np.frombuffer(take(4 * n), "<i4").astype(np.int32)
    arrays = tuple(np.frombuffer(take(count), np.uint8) for count in layers)
    if digest.digest() != file.read(_DIGEST):
        raise PrefixFileError(f"{path} is damaged: its checksum is wrong; remove it")
    return ids, Snapshot(n, tuple(firsts), arrays)


def _checked(path: Path, text: bytes, origin: Origin, context_length: int) -> tuple[int, list[int], list[int]]:
    """The header's length, firsts and layers. Whose file it is comes first: that is what a user can get wrong."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    found = header if isinstance(header, dict) else {}
    if found.keys() != {"fingerprint", "kv_dtype", "length", "firsts", "layers"}:
        raise PrefixFileError(f"{path} is damaged: its header is not as it should be; remove it")
    if found["kv_dtype"] != origin.kv_dtype:
        kept = shown(found["kv_dtype"])
        raise PrefixFileError(f"{path} holds keys and values in {kept}, and this model keeps them in {origin.kv_dtype}")
    if found["fingerprint"] != origin.fingerprint:
        raise PrefixFileError(
            f"{path} was saved by another model, or by one that computes otherwise (window, arithmetic, processor);"
            " load it where it was saved"
        )
    n = found["length"]
    if not _whole([n], 1, context_length):
        raise PrefixFileError(f"{path} is damaged: {shown(n)} positions, and the context holds {context_length}")
    for name, most in (("firsts", n), ("layers", 1 << 62)):
        if not isinstance(found[name], list) or not _whole(found[name], 0, most):
            raise PrefixFileError(f"{path} is damaged: {name} in its header is not as it should be; remove it")
    return n, found["firsts"], found["layers"]


def _whole(numbers: Iterable[Any], low: int, high: int) -> bool:
    return all(type(number) is int and low <= number <= high for number in numbers)
