"""Types of the C++ kernels (kernels/module.cpp). Arrays are C-contiguous; T tokens, H heads, K KV heads, D head_dim."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

def instruction_sets() -> list[str]: ...

class Pool:
    def __init__(self, threads: int, isa: str) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

class Weight:
    def __init__(
        self, pool: Pool, format: str, columns: int, data: NDArray[np.uint8], order: Int32 | None = None
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...

class Cache:
    def __init__(self, kv_heads: int, head_dim: int, windows: Sequence[int | None], dtype: str) -> None: ...
    def allocate(self, length: int, lookahead: int = 0) -> int: ...
    def free(self, slot: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def sequences(self) -> int: ...

def linear(
    pool: Pool, x: Float32, weights: Sequence[Weight], outs: Sequence[Float32], add: bool, quantize: bool
) -> None: ...
def rms_norm(pool: Pool, x: Float32, weight: Float32, eps: float, out: Float32) -> None: ...
def swiglu(pool: Pool, gate: Float32, up: Float32) -> None: ...
def attention(
    pool: Pool,
    cache: Cache,
    layer: int,
    head_dim: int,
    q: Float32,
    k: Float32,
    v: Float32,
    cos: Float32,
    sin: Float32,
    slots: Int32,
    starts: Int32,
    counts: Int32,
    out: Float32,
) -> None: ...
