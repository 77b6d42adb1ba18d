"""One weight of a checkpoint, still packed as the file has it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ventoux import mapped, quant


@dataclass(frozen=True)
class Tensor:
    """A weight under its Hugging Face name, memory-mapped and in the file's own number format.

    name      `layers.0.self_attn.q_proj.weight`: Hugging Face's, without the `model.` prefix
    shape     logical shape, (rows, columns) or (n,)
    format    a key of `ventoux.quant.FORMATS`: "F32", "BF16", "Q4_0", ...
    data      uint8, [rows, bytes of a row], C-contiguous, a view of the mapped file ([1, bytes] for vectors)
    row_order None, or int32 [rows]: logical row i stands in data[row_order[i]]. This is how the q/k permutation of
              raw and GGUF files is undone without copying a byte.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: NDArray[np.uint8]
    row_order: NDArray[np.int32] | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def float32(self) -> NDArray[np.float32]:
        """The whole tensor as float32 of its logical shape, rows in logical order. Copies: for vectors and tests."""
        rows = self.data if self.row_order is None else self.data[self.row_order]
        return quant.dequantize(rows, self.format).reshape(self.shape)

    def rows(self, index: NDArray[np.int32]) -> NDArray[np.float32]:
        """Chosen logical rows as float32 [len(index), columns], of which alone the file is read."""
        if self.row_order is not None:
            index = self.row_order[index]
        return quant.dequantize(self.data[index], self.format)

    def release(self) -> None:
        """Give the pages of the mapped file back; they are read again when they are needed."""
        mapped.release(self.data)
