"""LoRA on packed weights: what an adapter adds to the rows of a batch that asked for it, in fp32.

The weights stay as they are, so one batch may hold rows of several adapters and rows of none, which are left alone.
A row's sums do not depend on who else is there: in the kernels' products they never do, and nothing else is summed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ventoux.batch import Float32, Int32
from ventoux.checkpoint.adapter import Adapter
from ventoux.checkpoint.tensor import Tensor
from ventoux.cpu import _kernels

# The products of one input, in the order of their outputs.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT = ("self_attn.o_proj",)
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)


@dataclass(frozen=True)
class Pair:
    """scale * B (A x): A [r, in] and B [out, r], packed in the number format of their file."""

    a: _kernels.Weight
    b: _kernels.Weight
    scale: np.float32


@dataclass(frozen=True)
class Adapted:
    """The rows of a batch that go through one adapter."""

    pool: _kernels.Pool
    pairs: Mapping[str, Pair]
    rows: slice | Int32

    def add(self, layer: int, names: Sequence[str], x: Float32, outs: Sequence[Float32]) -> None:
        """outs[i][rows] += scale * B (A x[rows]) for the i-th of a layer's products of x [T, in], outs[i] [T, out]."""
        found = [(self.pairs.get(f"layers.{layer}.{name}"), out) for name, out in zip(names, outs, strict=True)]
        pairs = [(pair, out) for pair, out in found if pair]
        if not pairs:
            return
        x = x[self.rows]  # no copy of rows that stand together, here and below
        narrow = [np.empty((len(x), pair.a.rows), np.float32) for pair, _ in pairs]
        _kernels.linear(self.pool, x, [pair.a for pair, _ in pairs], narrow, False, "f32")
        for (pair, out), z in zip(pairs, narrow, strict=True):
            z *= pair.scale
            wide = out[self.rows]
            _kernels.linear(self.pool, z, [pair.b], [wide], True, "f32")
            if not isinstance(self.rows, slice):
                out[self.rows] = wide


def packed(pool: _kernels.Pool, adapter: Adapter) -> dict[str, Pair]:
    """An adapter's matrices for the kernels, by the names of the layers that they are for."""
    return {
        name: Pair(_packed(pool, pair.a), _packed(pool, pair.b), np.float32(pair.scale))
        for name, pair in adapter.pairs.items()
    }


def _packed(pool: _kernels.Pool, tensor: Tensor) -> _kernels.Weight:
    return _kernels.Weight(pool, tensor.format, tensor.shape[1], tensor.data)
