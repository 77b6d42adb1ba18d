"""LoRA in torch: what an adapter adds to the rows of a batch that asked for it, by hooks on the linear layers.

The hooks are there for one forward pass, so that a batch without adapters runs the modules alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ventoux.batch import Int32
from ventoux.checkpoint.adapter import Adapter


@dataclass(frozen=True)
class Pair:
    """scale * B (A x) for A [r, in] and B [out, r], in fp32 on the model's device."""

    a: Tensor
    b: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]"""
        return (x.float() @ self.a.T * self.scale) @ self.b.T


def placed(adapter: Adapter, device: torch.device) -> dict[str, Pair]:
    """An adapter's matrices on the device, by the names of the layers that they are for."""
    return {
        name: Pair(
            torch.from_numpy(pair.a.float32()).to(device), torch.from_numpy(pair.b.float32()).to(device), pair.scale
        )
        for name, pair in adapter.pairs.items()
    }


@contextmanager
def adapted(model: nn.Module, adapters: Sequence[tuple[dict[str, Pair], slice | Int32]]) -> Iterator[None]:
    """Within it, the model's linear layers add each adapter's part to its rows of a batch [1, T, E]."""
    with ExitStack() as hooks:
        for pairs, rows in adapters:
            where = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(next(model.parameters()).device)
            for name, pair in pairs.items():
                hooks.enter_context(model.get_submodule(name).register_forward_hook(_adds(pair, where)))
        yield


def _adds(pair: Pair, rows: slice | Tensor) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output[0, rows] = (output[0, rows].float() + pair(inputs[0][0, rows])).to(output.dtype)

    return add
