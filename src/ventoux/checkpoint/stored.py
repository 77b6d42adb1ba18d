"""A tensor as a container file holds it: under the file's own name, not yet understood."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ventoux.errors import CheckpointError, shown
from ventoux.quant import FORMATS, row_bytes


@dataclass(frozen=True)
class Stored:
    """What every container reader gives: data is uint8 [rows, bytes of a row], a view of the mapped file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    format: str
    data: NDArray[np.uint8]


def damaged(file: Path, name: str, reason: str) -> CheckpointError:
    """The error that names file, tensor and reason."""
    return CheckpointError(f"{file}: tensor {shown(name)}: {reason}")


def view(file: Path, name: str, data: NDArray[np.uint8], *, offset: int, shape: tuple[int, ...], format: str) -> Stored:
    """The tensor that begins at byte `offset` of `data`; raises CheckpointError when it does not fit in there."""
    *leading, columns = shape or (1,)
    if columns % FORMATS[format].block:
        raise damaged(file, name, f"rows of {columns} weights do not fill {format}'s blocks of {FORMATS[format].block}")
    rows, width = prod(leading), row_bytes(columns, format)
    if offset < 0 or offset + rows * width > len(data):
        raise damaged(
            file,
            name,
            f"it needs bytes {offset} to {offset + rows * width}, but there are {len(data)};"
            " the file is cut off or damaged, fetch it again",
        )
    return Stored(file, name, shape, format, data[offset : offset + rows * width].reshape(rows, width))


def refuse_overlaps(file: Path, extents: list[tuple[int, int, str]]) -> None:
    """Pieces of a file, as (begin, end, name), must not share a byte."""
    extents = sorted(extents)
    for (_, end, first), (begin, _, second) in pairwise(extents):
        if begin < end:
            raise damaged(file, second, f"it overlaps {shown(first)}")
