"""Types of the C++ kernels (kernels/module.cpp). Arrays are C-contiguous; T tokens, H heads, K KV heads, D head_dim."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

LAYOUT_VERSION: int

def instruction_sets() -> list[str]: ...
def packed_bytes(format: str, rows: int, columns: int) -> int: ...

class Pool:
    def __init__(self, threads: int, isa: str) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def drop_shared(self) -> None: ...

class Weight:
    def __init__(
        self, pool: Pool, format: str, columns: int, data: NDArray[np.uint8], order: Int32 | None = None
    ) -> None: ...
    @staticmethod
    def mapped(format: str, rows: int, columns: int, packed: NDArray[np.uint8]) -> Weight: ...
    @property
    def packed(self) -> NDArray[np.uint8]: ...
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

class Pass:
    def __init__(
        self,
        pool: Pool,
        cache: Cache,
        x: Float32,
        normed: Float32,
        q: Float32,
        k: Float32,
        v: Float32,
        attended: Float32,
        gate: Float32,
        up: Float32,
        cos: Float32,
        sin: Float32,
        slots: Int32,
        starts: Int32,
        counts: Int32,
    ) -> None: ...

class Layer:
    def __init__(
        self,
        index: int,
        input_norm: Float32,
        q: Weight,
        k: Weight,
        v: Weight,
        o: Weight,
        post_norm: Float32,
        gate: Weight,
        up: Weight,
        down: Weight,
        eps: float,
        compute: str,
    ) -> None: ...
    def project_qkv(self, batch: Pass) -> None: ...
    def attend(self, batch: Pass) -> None: ...
    def project_o(self, batch: Pass) -> None: ...
    def project_gate_up(self, batch: Pass) -> None: ...
    def project_down(self, batch: Pass) -> None: ...
    def run(self, batch: Pass) -> None: ...

def pages(bytes: int) -> NDArray[np.uint8]: ...
def linear(
    pool: Pool, x: Float32, weights: Sequence[Weight], outs: Sequence[Float32], add: bool, compute: str
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
def read_memory(pool: Pool, words: NDArray[np.uint64]) -> int: ...
def multiply_int8(pool: Pool, blocks: int) -> int: ...
def multiply_fp32(pool: Pool, blocks: int) -> int: ...
