"""Mistral's forward pass on a CPU: weights stay packed, and the arithmetic is in the kernels.

Shapes: T tokens of a batch, E hidden_size, H heads, K KV heads, D head_dim, F intermediate_size.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ventoux import batch as seam
from ventoux import mapped
from ventoux.batch import Batch, Description, Float32, Int32
from ventoux.checkpoint.adapter import Adapter
from ventoux.checkpoint.adapters import Adapters
from ventoux.checkpoint.tensor import Tensor
from ventoux.config import ModelConfig
from ventoux.cpu import _kernels
from ventoux.cpu.adapters import DOWN, GATE_UP, OUT, QKV, Adapted, Pair, packed
from ventoux.cpu.cache import Cache
from ventoux.cpu.machine import isa, physical_cores
from ventoux.cpu.packing import weights_of
from ventoux.errors import VentouxError

Compute = Literal["auto", "mixed", "int16", "f32"]
KvCacheDtype = Literal["auto", "f32", "f16", "int8"]
KV_ITEMSIZE = {"f32": 4, "f16": 2, "int8": 1}

# Tokens of a batch whose arrays are kept for the next one: a decode step. Those of a prompt are many times larger, and
# to make them anew takes little of its time.
KEPT = 64

# Rows of the embedding that are looked up before the file's pages are given back: with each, the system maps 64 KB.
LOOKED_UP = 64


class Arrays(NamedTuple):
    """What the layers work in, float32."""

    x: Float32  # [T, E], the residual stream
    normed: Float32  # [T, E]
    q: Float32  # [T, H*D]
    k: Float32  # [T, K*D]
    v: Float32  # [T, K*D]
    attended: Float32  # [T, H*D]
    gate: Float32  # [T, F]
    up: Float32  # [T, F]

    @classmethod
    def make(cls, config: ModelConfig, T: int) -> "Arrays":
        """Of one block of memory, which the system has back with the last of them."""
        E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * D, config.num_kv_heads * D
        widths = (E, E, queries, keys, keys, queries, F, F)
        ends = T * np.cumsum(widths)
        prompt = T > KEPT  # all of its rows are used; of what is kept, a step uses some
        numbers = _kernels.pages(4 * int(ends[-1]), prompt).view(np.float32)
        return cls(*(part.reshape(T, -1) for part in np.split(numbers, ends[:-1])))


class Backend:
    """A model whose weights are packed for this machine.

    `compute` says how block formats are multiplied: "mixed" rounds activations to 8 bits in groups of 32, to 16 (to 12
    beside Q4_0 and Q4_1 on AVX-512) where one stands out of its row, and to 16 before the output head (fastest, and
    within 0.0001 nats of exact), or to 14 in super-blocks of 256 where that is faster (Q4_K, Q5_K and Q6_K on AVX2 and
    on AMD's AVX-512), "int16" rounds all to 16 bits (within a millionth), "f32" does not round. Weights in bf16 are
    multiplied with activations in bf16 where the machine has such products and "mixed" is asked for, which is as exact.
    "auto" is mixed for a checkpoint with weights of which one of this is true, and f32 for others.

    `kv_cache_dtype` says how keys and values are kept: "f16", "f32", "int8" with a scale for each token's value in each
    head and a scale and a middle for each 16 components of its key, and "auto", which is f16 where activations are
    rounded and f32 where they are not.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        *,
        threads: int | None = None,
        compute: Compute = "auto",
        kv_cache_dtype: KvCacheDtype = "auto",
    ) -> None:
        if threads is not None and threads < 1:
            raise VentouxError(f"threads must be at least 1, found {threads}")
        if kv_cache_dtype not in ("auto", *KV_ITEMSIZE):
            raise VentouxError(f"kv_cache_dtype must be auto, {', '.join(KV_ITEMSIZE)}, found {kv_cache_dtype!r}")
        self.config = config
        self._pool = _kernels.Pool(threads or physical_cores(), isa())
        rounds = any(self._pool.activations(t.format) != "fp32" for t in tensors.values() if len(t.shape) == 2)
        self.compute: Literal["mixed", "int16", "f32"] = compute if compute != "auto" else "mixed" if rounds else "f32"
        self.kv_dtype: Literal["f32", "f16", "int8"] = (
            kv_cache_dtype if kv_cache_dtype != "auto" else "f32" if self.compute == "f32" else "f16"
        )
        self._lock = threading.Lock()  # kernels share the pool's memory: one forward at a time
        self._embedding = tensors["embed_tokens.weight"]  # rows are looked up in its file
        assert self._embedding.row_order is None, "only rows of q_proj and k_proj stand in another order"
        self._norm = tensors["norm.weight"].float32()
        head = "embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        matrices = [t for name, t in tensors.items() if len(t.shape) == 2 and (name == head or "layers." in name)]
        self._weights = weights = weights_of(self._pool, matrices)
        self._head = weights[head]
        self._layers = [self._layer(tensors, weights, i) for i in range(config.num_layers)]
        self.step_bytes = sum(weight.nbytes for weight in weights.values())  # the embedding's rows come from its file
        self._products = self._products_of([t.format for t in matrices])
        # "mixed" alone is not the same on all machines of one instruction set
        self._rounded = sorted({self._pool.activations(t.format) for t in matrices}) if self.compute == "mixed" else []
        self._inverse_frequencies = inverse_frequencies(config)
        self._kept = Arrays.make(config, KEPT)
        self._looked_up = 0
        self._adapters = Adapters(config, self._pack)
        mapped.release_files(tensor.data for tensor in tensors.values())

    same_bits = True

    @property
    def threads(self) -> int:
        return self._pool.threads

    @property
    def isa(self) -> str:
        return self._pool.isa

    @property
    def description(self) -> Description:
        return Description(
            backend="cpu",
            device="cpu",
            isa=self.isa,
            threads=self.threads,
            compute=self.compute,
            kv_dtype=self.kv_dtype,
            kv_itemsize=KV_ITEMSIZE[self.kv_dtype],
            products=self._products,
            kv_scales=4 + 4 * -(-self.config.head_dim // 16) if self.kv_dtype == "int8" else 0,
        )

    def _products_of(self, formats: Sequence[str]) -> Literal["int8", "bf16", "fp32"]:
        """What the commonest of the matrices' formats is multiplied in."""
        activations = self._pool.activations(max(set(formats), key=formats.count))
        if self.compute == "f32" or activations == "fp32" or (self.compute == "int16" and activations == "bf16"):
            return "fp32"
        return "bf16" if activations == "bf16" else "int8"

    @cached_property
    def fingerprint(self) -> str:
        spread = np.linspace(0, self.config.vocab_size - 1, 64, dtype=np.int32)
        embedding = np.ascontiguousarray(self._embedding.rows(spread)).view(np.uint8).reshape(-1)
        about = self.config, "cpu", self.isa, self.compute, self._rounded, _kernels.LAYOUT_VERSION
        return seam.fingerprint(about, [embedding, *(weight.packed for weight in self._weights.values())])

    def new_cache(self) -> Cache:
        c = self.config
        return Cache(c.num_kv_heads, c.head_dim, c.windows, self.kv_dtype)

    def forward(self, batch: Batch, cache: seam.Cache) -> Float32:
        """Run the batch, advance the cache -> logits [rows asked for, vocab_size] float32.

        Raises RequestError for an adapter that is not there.
        """
        assert isinstance(cache, Cache), "a cache of this backend's new_cache()"
        with self._lock:
            logits = self._logits(self._layers_over(batch, cache, batch.logit_rows))
            if len(batch) > KEPT:
                self._pool.drop_shared()  # behind the head, which fills it too where many rows want logits
            return logits

    def hidden(self, batch: Batch, cache: seam.Cache) -> Float32:
        """Run the batch, advance the cache -> hidden states after the last norm, [T, hidden_size] float32."""
        assert isinstance(cache, Cache), "a cache of this backend's new_cache()"
        with self._lock:
            x = self._layers_over(batch, cache)
            states = np.empty_like(x)
            _kernels.rms_norm(self._pool, x, self._norm, self.config.rms_norm_eps, states)
            if len(batch) > KEPT:
                self._pool.drop_shared()
            return states

    @property
    def adapters(self) -> Collection[str]:
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read and pack a LoRA adapter in PEFT's layout. Raises CheckpointError, RequestError or OutOfMemoryError."""
        self._adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; raises RequestError when there is none of that name."""
        self._adapters.unload(name)

    def _pack(self, adapter: Adapter) -> dict[str, Pair]:
        with self._lock:
            return packed(self._pool, adapter)

    def not_finite(self) -> str:
        return "its weights are damaged, or it overflows"

    def _layers_over(self, batch: Batch, cache: Cache, rows: Int32 | None = None) -> Float32:
        """The residual stream behind the last layer, of some rows or all, [N, E], in memory that the next pass uses.

        Of rows that nobody asks for the last layer makes keys and values alone.
        """
        adapted = [Adapted(self._pool, pairs, rows) for pairs, rows in self._adapters.of(batch)]
        c, T = self.config, len(batch)
        arrays = Arrays(*(array[:T] for array in self._kept)) if T <= KEPT else Arrays.make(c, T)
        self._embed(batch.ids, arrays.x)
        cos, sin = rotary(self._inverse_frequencies, batch.positions)
        cache.write(batch)
        on_its_way = _kernels.Pass(self._pool, cache, *arrays, cos, sin, batch.slots, batch.starts, batch.counts)
        if adapted:
            for index, layer in enumerate(self._layers):
                run_adapted(layer, index, on_its_way, arrays, adapted)
            return arrays.x if rows is None else np.ascontiguousarray(arrays.x[rows])
        *before, last = self._layers
        for layer in before:
            layer.run(on_its_way)
        if rows is None or len(rows) == T:
            last.run(on_its_way)
            return arrays.x
        last.run_asked(on_its_way, rows)
        return arrays.x[: len(rows)]

    def _logits(self, x: Float32) -> Float32:
        """The head over rows of the residual stream [N, E], which are normed in place -> [N, vocab_size]."""
        _kernels.rms_norm(self._pool, x, self._norm, self.config.rms_norm_eps, x)
        logits = np.empty((len(x), self.config.vocab_size), np.float32)
        # A third of what one rounding to 8 bits costs is in the head: never there.
        head_compute = "int16" if self.compute == "mixed" else self.compute
        _kernels.linear(self._pool, x, [self._head], [logits], False, head_compute)
        return logits

    def _embed(self, ids: Int32, x: Float32) -> None:
        """Look up the ids' rows, into x [T, E]; a few at a time, since their neighbours are mapped with them."""
        for start in range(0, len(ids), LOOKED_UP):
            some = ids[start : start + LOOKED_UP]
            _kernels.dequantize(self._embedding.format, self._embedding.data, some, x[start : start + len(some)])
            self._looked_up += len(some)
            if self._looked_up >= LOOKED_UP:
                mapped.release_files([self._embedding.data])
                self._looked_up = 0

    def _layer(
        self, tensors: Mapping[str, Tensor], weights: Mapping[str, _kernels.Weight], index: int
    ) -> _kernels.Layer:
        prefix = f"layers.{index}"
        q, k, v, o = (weights[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkvo")
        gate, up, down = (weights[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        before, behind = (
            tensors[f"{prefix}.{name}_layernorm.weight"].float32() for name in ("input", "post_attention")
        )
        eps = self.config.rms_norm_eps
        return _kernels.Layer(index, before, q, k, v, o, behind, gate, up, down, eps, self.compute)


def run_adapted(
    layer: _kernels.Layer, index: int, batch: _kernels.Pass, arrays: Arrays, adapted: Sequence[Adapted]
) -> None:
    """A layer's parts, and what adapters add to the products of each."""
    a = arrays
    layer.project_qkv(batch)
    for each in adapted:
        each.add(index, QKV, a.normed, [a.q, a.k, a.v])
    layer.attend(batch)
    layer.project_o(batch)
    for each in adapted:
        each.add(index, OUT, a.attended, [a.x])
    layer.project_gate_up(batch)
    for each in adapted:
        each.add(index, GATE_UP, a.normed, [a.gate, a.up])
    layer.project_down(batch)  # SwiGLU's result stands in gate
    for each in adapted:
        each.add(index, DOWN, a.gate, [a.x])


def inverse_frequencies(config: ModelConfig) -> Float32:
    """theta^(-2i/D) for i in [0, D/2) -> float32 [D/2]; https://arxiv.org/abs/2104.09864"""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    return (np.float32(1.0) / np.float32(config.rope_theta) ** exponents).astype(np.float32)


def rotary(frequencies: Float32, positions: Int32) -> tuple[Float32, Float32]:
    """Cosines and sines [T, D/2] of each position's angles, in fp32 as the models were trained."""
    angles = positions.astype(np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
