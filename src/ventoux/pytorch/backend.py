"""The engine's second backend: our PyTorch modules on any device that torch has, in fp32, bf16 or fp16.

The tokens of a batch run end to end as one row, without padding; only attention looks at each sequence by itself.
T tokens of a batch, H heads, K KV heads, D head_dim, W window.
"""

import threading
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ventoux import batch as seam
from ventoux import checkpoint
from ventoux.batch import Batch, Description, Float32, Int32
from ventoux.checkpoint.adapter import Adapter
from ventoux.checkpoint.adapters import Adapters
from ventoux.config import ModelConfig
from ventoux.errors import RequestError
from ventoux.pytorch.adapters import Pair, adapted, placed
from ventoux.pytorch.attention import attend
from ventoux.pytorch.loading import DTYPES, build, dtype_named, memory_errors, usable_device
from ventoux.pytorch.modules import ATTENTION, MistralAttention, rotation
from ventoux.pytorch.rings import Cache, Part

_BY_SEQUENCE = "ventoux_by_sequence"  # in our modules' own table of implementations; transformers does not know it


def choose(
    device: str | torch.device, dtype: str | torch.dtype | None, threads: int | None
) -> tuple[torch.device, torch.dtype]:
    """What a Backend will compute with. Raises RequestError, which is cheaper to know before a model is fetched."""
    chosen = usable_device(device)
    if threads is not None and chosen.type != "cpu":
        raise RequestError(f"threads are a CPU's, and the device is {chosen}; leave them out")
    if dtype is None:
        dtype = torch.float32 if chosen.type == "cpu" else torch.bfloat16
    return chosen, dtype_named(dtype)


class Backend:
    """A model whose weights are dequantized into one dtype on one device.

    device   as torch names it: "cpu", "cuda", "cuda:1", "mps"
    dtype    "fp32", "bf16" or "fp16" (or torch's own); None is fp32 on a CPU and bf16 elsewhere
    threads  of a CPU: torch.set_num_threads, which counts for the whole process; None leaves them as they are

    Raises RequestError, CheckpointError or OutOfMemoryError.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, checkpoint.Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        threads: int | None = None,
    ) -> None:
        self.config = config
        self.device, self.dtype = choose(device, dtype, threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self._lock = threading.Lock()  # a cache must not be written by two passes at once
        # the modules know one window, the rings one for each layer: it is the rings that count here
        self._model = build(config.with_window(config.window), tensors, dtype=self.dtype, device=self.device)
        self._adapters = Adapters(config, self._place)

    same_bits = False  # matrix products of one row and of several are summed in other orders

    @property
    def description(self) -> Description:
        cpu = self.device.type == "cpu"
        names = {dtype: name for name, dtype in DTYPES.items()}
        return Description(
            backend="pytorch",
            device=str(self.device),
            isa=None,
            threads=torch.get_num_threads() if cpu else None,
            compute=names.get(self.dtype, str(self.dtype)),
            kv_dtype=names.get(self.dtype, str(self.dtype)),
            kv_itemsize=self.dtype.itemsize,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.nbytes for weight in self._model.parameters())

    @property
    def step_bytes(self) -> int:
        embedding, head = self._model.model.embed_tokens.weight, self._model.lm_head.weight
        return sum(w.nbytes for w in self._model.parameters() if w is head or w is not embedding)

    @cached_property
    def fingerprint(self) -> str:
        weights = (weight.detach().flatten() for weight in self._model.parameters())
        spread = (weight[:: len(weight) // 4096 | 1].cpu().view(torch.uint8).numpy() for weight in weights)
        return seam.fingerprint((self.config, "pytorch", self.device.type, self.dtype), spread)

    def new_cache(self) -> Cache:
        return Cache(self.config, dtype=self.dtype, device=self.device)

    def forward(self, batch: Batch, cache: seam.Cache) -> Float32:
        """Run the batch, advance the cache -> logits [rows asked for, vocab_size] float32.

        Raises OutOfMemoryError, and RequestError for an adapter that is not there.
        """
        return self._run(batch, cache, self._model.lm_head, width=self.config.vocab_size, rows=batch.logit_rows)

    def hidden(self, batch: Batch, cache: seam.Cache) -> Float32:
        """Run the batch, advance the cache -> hidden states after the last norm, [T, hidden_size] float32."""
        every = np.arange(len(batch), dtype=np.int32)
        return self._run(batch, cache, torch.nn.Identity(), width=self.config.hidden_size, rows=every)

    @property
    def adapters(self) -> Collection[str]:
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read a LoRA adapter in PEFT's layout. Raises CheckpointError, RequestError or OutOfMemoryError."""
        self._adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; raises RequestError when there is none of that name."""
        self._adapters.unload(name)

    def _place(self, adapter: Adapter) -> dict[str, Pair]:
        with memory_errors(f"the adapter {adapter.path} does not fit into the memory of {self.device}"):
            return placed(adapter, self.device)

    def _run(self, batch: Batch, cache: seam.Cache, head: torch.nn.Module, *, width: int, rows: Int32) -> Float32:
        """What the head makes of some rows, [len(rows), width]."""
        assert isinstance(cache, Cache), "a cache of this backend's new_cache()"
        adapters = self._adapters.of(batch)
        if not len(batch):
            return np.empty((0, width), np.float32)
        with (
            self._lock,
            memory_errors(f"a batch of {len(batch)} tokens does not fit into the memory of {self.device}"),
            adapted(self._model.model, adapters),
        ):
            return self._forward(batch, cache, head, rows)

    @torch.inference_mode()
    def _forward(self, batch: Batch, cache: Cache, head: torch.nn.Module, wanted: Int32) -> Float32:
        model = self._model.model
        ids, positions, rows = (torch.from_numpy(each).to(self.device) for each in (batch.ids, batch.positions, wanted))
        x = model.embed_tokens(ids)[None]  # [1, T, E], the residual stream
        turn = rotation(model.config, positions[None], dtype=x.dtype)
        parts = cache.parts(batch)
        # fp16 alone is narrower than what happens in models: who is still finite?
        finite = torch.ones(len(batch), dtype=torch.bool, device=self.device) if x.dtype == torch.float16 else None
        for layer in model.layers:
            x, _ = layer(x, position_embeddings=turn, implementation=_BY_SEQUENCE, parts=parts, finite=finite)
        found: Float32 = head(model.norm(x[0, rows])).float().cpu().numpy()  # [N, vocab], or [N, E]
        if finite is not None:
            overflown = ~(finite & x[0].isfinite().all(-1)).cpu().numpy()  # [T]
            for part in parts:
                part.spread(overflown, batch.positions)
            found[overflown[wanted]] = np.nan
        return found

    def not_finite(self) -> str:
        if self.dtype == torch.float16:
            return "fp16 overflowed, a number grew beyond 65504 on its way through the model; use bf16 or fp32"
        return f"its weights are numbers, but {self.description.compute} overflows on the way through the model"


def _attention_by_sequence(
    module: MistralAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    parts: list[Part],
    finite: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each sequence's queries over its own ring: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    A loop also where all of them decode: their rings differ in length, and lie where they lie. `finite` [T] loses the
    tokens whose numbers are not.
    """
    if finite is not None:
        for each in (query, key, value):
            finite &= each.isfinite().all(-1).all(1)[0]
    attended = []
    for part in parts:
        ring, rows = part.sequence.rings[module.layer_idx], slice(part.begin, part.end)
        alone = part.end - part.begin == 1  # a single query sees the whole ring, whatever its order
        keys, values = ring.update(key[:, :, rows], value[:, :, rows], in_order=not alone)
        queries = query[:, :, rows]
        offset = keys.shape[2] - queries.shape[2]
        attended.append(attend(queries, keys, values, window=ring.window, offset=offset, scale=scaling))
    return torch.cat(attended, 2).transpose(1, 2), None


ATTENTION[_BY_SEQUENCE] = _attention_by_sequence
