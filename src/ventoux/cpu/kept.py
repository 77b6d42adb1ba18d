"""Packed weights kept in a file, which the next start maps in place of packing the weights anew.

    0      MAGIC
    16     the boot in which the weights' sums were last found right, 32 characters; see `_check`
    48     BLAKE2 of the description, 16 bytes
    64     length of the description, 8 bytes, little-endian
    72     the description: JSON, the fields of `Description`, `nbytes` of all pages of weights, and the weights' sums
    page   each weight's memory, at a multiple of PAGE, in order

A file is taken when its description is what this process would write, so that it holds what the packed bytes depend on:
the layout's version, the instruction set, the names, formats, shapes and places of the tensors, and the files that
they come from. Nothing in it is believed beyond that: sizes and places of the weights follow from the tensors.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ventoux import mapped
from ventoux.checkpoint.tensor import Tensor
from ventoux.cpu import _kernels
from ventoux.errors import CheckpointError

MAGIC = b"ventoux packed 1"
BOOT, DIGEST, LENGTH, TEXT = 16, 48, 64, 72
PAGE = 4096
END = 1 << 16  # bytes at both ends of a source
LONGEST = 1 << 24  # bytes of a description
CHUNK = 1 << 22

Stopped = Callable[[], bool]


class NotKept(Exception):  # noqa: N818, it is no error: the weights are packed
    """Why weights are not taken from a file, or not kept in one."""


@dataclass(frozen=True)
class Description:
    """What packed weights depend on.

    version  of the layout
    isa      the instruction set that they were packed for
    table    digest of the tensors: name, format, shape, order of rows, file and place in the file
    sources  the tensors' files: `mapped.MappedFile.identity`, and `ends`, a digest of the first and the last 64 KiB.
             Size, times and inode tell when a file was written to; where a file system does not keep them, the ends
             hold the directory of tensors (zip: last, with a checksum of each; others: first) and some weights.
    """

    version: int
    isa: str
    table: str
    sources: list[dict[str, str | int]]

    @property
    def file_name(self) -> str:
        """Of the same sources by path, whatever is in them: one that has changed takes the place of what it was."""
        paths = [str(source["path"]) for source in self.sources]
        key = json.dumps([self.version, self.isa, paths]).encode()
        first = Path(paths[0])
        stem = first.stem if first.suffix == ".gguf" else first.parent.name  # others are called model.safetensors
        return f"{stem[:40]}-{blake2b(key, digest_size=8).hexdigest()}.packed"


def describe(tensors: Sequence[Tensor], isa: str) -> Description:
    """Raises NotKept for tensors that are not in files: nobody could tell when they have changed."""
    table = blake2b(digest_size=16)
    files: dict[str | int, mapped.MappedFile] = {}
    for tensor in tensors:
        found = mapped.file_of(tensor.data)
        if found is None:
            raise NotKept(f"{tensor.name} is no part of a file")
        file, offset = found
        path = file.identity["path"]
        files[path] = file
        table.update(json.dumps([tensor.name, tensor.format, tensor.shape, path, offset]).encode())
        if tensor.row_order is not None:
            table.update(tensor.row_order.tobytes())
    sources = [{**file.identity, "ends": _ends(file)} for file in files.values()]
    return Description(_kernels.LAYOUT_VERSION, isa, table.hexdigest(), sources)


def _ends(file: mapped.MappedFile) -> str:
    return blake2b(file[:END] + file[-END:], digest_size=16).hexdigest()


def places(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Offset and length of each weight's memory, counted from the first one's.

    Two weights of 5,000 bytes: (0, 5000), (8192, 5000).
    """
    found, at = [], 0
    for tensor in tensors:
        size = _kernels.packed_bytes(tensor.format, *tensor.shape)
        found.append((at, size))
        at += _pages(size)
    return found


def take(path: Path, tensors: Sequence[Tensor], description: Description) -> list[NDArray[np.uint8]]:
    """The tensors' packed weights, mapped; raises NotKept when there is no file, or it is not theirs, or damaged."""
    try:
        data = mapped.map_file(path, whole=True)
    except CheckpointError as error:
        raise NotKept(str(error)) from error
    found, sums, end = read(data)
    if found != asdict(description):
        differing = ", ".join(key for key, value in asdict(description).items() if found.get(key) != value)
        raise NotKept(f"it is of other {differing}")
    begin = _pages(end)
    parts = [data[begin + offset : begin + offset + size] for offset, size in places(tensors)]
    if len(data) != begin + sum(_pages(len(part)) for part in parts):
        raise NotKept("it is of other sizes")
    _check(path, data, parts, sums)
    with suppress(OSError):  # a folder that we may not write
        os.utime(path)  # when it was last used
    return parts


def read(data: NDArray[np.uint8]) -> tuple[dict[str, Any], str, int]:
    """A file's description, the sums of its weights and where its header ends; NotKept when it is damaged."""
    head = data[:TEXT].tobytes()
    length = int.from_bytes(head[LENGTH:], "little")
    if len(head) < TEXT or not head.startswith(MAGIC) or length > min(LONGEST, len(data) - TEXT):
        raise NotKept("it has no header")
    text = data[TEXT : TEXT + length].tobytes()
    if blake2b(text, digest_size=16).digest() != head[DIGEST:LENGTH]:
        raise NotKept("its header is damaged")
    found: dict[str, Any] = json.loads(text)
    sums, nbytes = found.pop("sums"), found.pop("nbytes")
    if len(data) != _pages(TEXT + length) + nbytes:
        raise NotKept("it was cut off")
    return found, sums, TEXT + length


def _check(path: Path, data: NDArray[np.uint8], parts: list[NDArray[np.uint8]], sums: str) -> None:
    """Once in each boot the weights themselves are looked at; raises NotKept when they are damaged.

    Files are not synced to the disk, which can take longer than packing: what a running system has in its page cache is
    right, and after a crash of the machine, when parts may be missing, the boot is another one.
    """
    boot = _boot()
    if boot and data[BOOT:DIGEST].tobytes() == boot:
        return
    if _spelled(map(_sum, parts)) != sums:
        raise NotKept("its weights are damaged")
    with suppress(OSError), path.open("r+b") as file:  # in a folder that we may not write, it is done each time
        file.seek(BOOT)
        file.write(boot)


def write(path: Path, description: Description, weights: Sequence[_kernels.Weight], *, stopped: Stopped) -> None:
    """Write the file at `path`, looking every few milliseconds whether it is to stop: NotKept then, or OSError."""
    nbytes = sum(_pages(len(weight.packed)) for weight in weights)
    begin = _pages(TEXT + len(_described(description, nbytes, [0] * len(weights))))
    sums = []
    with path.open("wb") as file:
        file.seek(begin)
        for weight in weights:
            sums.append(_sum(weight.packed))
            memory = weight.packed.data
            for start in range(0, len(memory), CHUNK):
                if stopped():
                    raise NotKept("writing was interrupted")
                file.write(memory[start : start + CHUNK])
            file.write(bytes(_pages(len(memory)) - len(memory)))
        text = _described(description, nbytes, sums)
        file.seek(0)
        digest = blake2b(text, digest_size=16).digest()
        file.write(MAGIC + _boot().ljust(DIGEST - BOOT, b"-") + digest + len(text).to_bytes(8, "little") + text)


def _described(description: Description, nbytes: int, sums: list[int]) -> bytes:
    """As long with any sums."""
    return json.dumps({**asdict(description), "nbytes": nbytes, "sums": _spelled(sums)}).encode()


def _spelled(sums: Iterable[int]) -> str:
    return "".join(f"{number:016x}" for number in sums)


def _boot() -> bytes:
    """What the kernel calls the time since it was started, 32 characters; b"" where it does not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip().replace(b"-", b"")[: DIGEST - BOOT]
    except OSError:
        return b""


def _sum(part: NDArray[np.uint8]) -> int:
    """A weight's bytes as 64-bit numbers, added up: as fast as memory, and what was not written does not pass."""
    return int(np.add.reduce(part.view("<u8")))


def _pages(size: int) -> int:
    """Bytes rounded up to whole pages: 5000 -> 8192."""
    return -(-size // PAGE) * PAGE
