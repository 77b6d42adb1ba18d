"""A weight on its way into a file: under the file's name, in the file's number format and order of rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from ventoux import quant
from ventoux.checkpoint import names
from ventoux.checkpoint.tensor import Tensor
from ventoux.config import ModelConfig
from ventoux.errors import ConversionError, shown

Piece = bytes | NDArray[np.uint8]

PIECE = 1 << 21  # weights at once: 8 MB as float32, whatever the size of the tensor

# The first magnitude that rounds to infinity: 65520 in fp16, 127 and 8 times that where fp16 is the scale of a block.
OVERFLOW = {"F16": 65520.0, "BF16": 2.0**128 * (1 - 2.0**-9), "Q8_0": 127 * 65520.0, "Q4_0": 8 * 65520.0}


@dataclass(frozen=True)
class Outgoing:
    """name and format as they will stand in the file; order: row i of the file is tensor.data[order[i]], None as is."""

    name: str
    format: str
    tensor: Tensor
    order: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @cached_property
    def nbytes(self) -> int:
        *leading, columns = self.shape
        return prod(leading) * quant.row_bytes(columns, self.format)

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """The tensor's bytes in the file's order, a few MB at a time. Equal formats keep their bytes as they are.

        Raises ConversionError that names the tensor when the format cannot hold one of its numbers.
        """
        data, step = self.tensor.data, max(1, PIECE // self.shape[-1])
        for start in range(0, len(data), step):
            rows = data[start : start + step] if self.order is None else data[self.order[start : start + step]]
            yield rows if self.format == self.tensor.format else self._repacked(rows)
        self.tensor.release()

    def _repacked(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        numbers = quant.dequantize(rows, self.tensor.format)
        limit = OVERFLOW.get(self.format)
        largest = np.abs(numbers).max()
        if limit is not None and not largest < limit:
            finite = np.isfinite(numbers)
            if quant.FORMATS[self.format].block > 1 and not finite.all():
                self._refuse("it has numbers that are infinite or none at all")
            largest = np.abs(numbers[finite]).max(initial=0)
            if largest >= limit:
                self._refuse(f"its largest number is {largest:g}")
        return quant.quantize(numbers, self.format)

    def _refuse(self, reason: str) -> None:
        raise ConversionError(
            f"tensor {shown(self.tensor.name)}: {reason}, which {self.format.lower()} cannot hold; use bf16 or f32"
        )


def outgoing(tensor: Tensor, name: str, format: str, *, config: ModelConfig, kind: str) -> Outgoing:
    """A tensor for a file of a kind ("raw", "huggingface", "gguf"), its rows in the order of such files.

    Rows that stand in the file's order already are not moved: raw and GGUF agree.
    """
    source, target = tensor.row_order, names.row_order(tensor.name, config, kind)
    if source is None and target is None:
        return Outgoing(name, format, tensor)
    logical = np.arange(len(tensor.data), dtype=np.int32)
    order = (logical if source is None else source)[logical if target is None else np.argsort(target)]
    return Outgoing(name, format, tensor, None if np.array_equal(order, logical) else order.astype(np.int32))
