"""Files as read-only memory maps: weights are used where they lie on the disk, and never copied to be read."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ventoux.errors import CheckpointError


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, uint8 [size], read-only. The map lives as long as any view of it."""
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # what mmap says of an empty file
        raise CheckpointError(f"{path}: the file is empty; fetch it again") from error


def release(view: NDArray[np.uint8]) -> None:
    """Give the memory of a mapped view back to the system; the next access reads the file again. Else a no-op.

    A loader that has packed a weight calls this, so that the process does not hold the file and its copy at once.
    """
    root: object = view
    while isinstance(root, np.ndarray) and root.base is not None:
        inner, root = root, root.base
    if isinstance(root, memoryview):
        root = root.obj
    if not isinstance(root, mmap.mmap) or not hasattr(root, "madvise"):
        return
    start = view.ctypes.data - inner.ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # only whole pages: the outer ones hold neighbours
    last = (start + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        root.madvise(mmap.MADV_DONTNEED, first, last - first)
