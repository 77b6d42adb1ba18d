"""Files as read-only memory maps: weights are used where they lie on the disk, and never copied to be read."""

import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ventoux.errors import CheckpointError


class MappedFile(mmap.mmap):
    """A read-only map that knows what it maps.

    identity  {"path", "size", "mtime_ns", "ctime_ns", "inode"} of the file when it was opened, the path without
              symbolic links: whatever writes to the file changes one of them
    """

    identity: dict[str, str | int]


def map_file(path: Path, *, whole: bool = False) -> NDArray[np.uint8]:
    """The bytes of a file, uint8 [size], read-only. The map lives as long as any view of it.

    `whole`: all of it will be read, over and over, so huge pages are asked for. The system has them where its file
    system keeps files in large folios (https://docs.kernel.org/admin-guide/mm/transhuge.html), and elsewhere does not
    mind.
    """
    try:
        with path.open("rb") as file:
            mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.identity = identity(os.path.realpath(path), os.fstat(file.fileno()))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # what mmap says of an empty file
        raise CheckpointError(f"{path}: the file is empty; fetch it again") from error
    if whole and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without any
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def identity(path: str, stat: os.stat_result) -> dict[str, str | int]:
    """What tells a file from others, and from what it was before: see MappedFile."""
    return {
        "path": path,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def file_of(view: NDArray[np.uint8]) -> tuple[MappedFile, int] | None:
    """The file that a view shows, and the view's first byte in it; None for an array in memory."""
    root: object = view
    while isinstance(root, np.ndarray) and root.base is not None:
        inner, root = root, root.base
    if isinstance(root, memoryview):
        root = root.obj
    return (root, view.ctypes.data - inner.ctypes.data) if isinstance(root, MappedFile) else None


def huge_bytes(view: NDArray[np.uint8]) -> int:
    """Bytes of a mapped view's file that this process sees in huge pages by now; 0 where the system does not say."""
    address, inside = view.ctypes.data, False
    with suppress(OSError, ValueError), open("/proc/self/smaps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            name, *rest = line.split(maxsplit=2)
            if not name.endswith(":"):  # what follows is of this range
                first, last = (int(end, 16) for end in name.split("-"))
                inside = first <= address < last
            elif inside and name == "FilePmdMapped:":
                return int(rest[0]) * 1024
    return 0


def release(view: NDArray[np.uint8]) -> None:
    """Give the memory of a mapped view back to the system; the next access reads the file again. Else a no-op.

    A loader that has packed a weight calls this, so that the process does not hold the file and its copy at once.
    """
    if (found := file_of(view)) is None or not hasattr(found[0], "madvise"):
        return
    file, start = found
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # only whole pages: the outer ones hold neighbours
    last = (start + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        file.madvise(mmap.MADV_DONTNEED, first, last - first)


def release_files(views: Iterable[NDArray[np.uint8]]) -> None:
    """Give the memory of all of the views' files back, as `release` does: what was read in passing, and around it.

    Reading one page of a file in memory shows the process fifteen of its neighbours, too.
    """
    found = [file_of(view) for view in views]
    for file in {id(each[0]): each[0] for each in found if each is not None}.values():
        if hasattr(file, "madvise"):
            file.madvise(mmap.MADV_DONTNEED)
