"""Mistral's forward pass on a CPU: weights stay packed, and the arithmetic is in the kernels.

Shapes: T tokens of a batch, E hidden_size, H heads, K KV heads, D head_dim, F intermediate_size.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ventoux import batch as seam
from ventoux.batch import Batch, Description, Float32, Int32
from ventoux.checkpoint.tensor import Tensor
from ventoux.config import ModelConfig
from ventoux.cpu import _kernels
from ventoux.cpu.cache import Cache
from ventoux.cpu.machine import isa, physical_cores
from ventoux.cpu.packing import weights_of
from ventoux.errors import VentouxError

Compute = Literal["auto", "mixed", "int16", "f32"]
KvCacheDtype = Literal["auto", "f32", "f16", "int8"]
KV_ITEMSIZE = {"f32": 4, "f16": 2, "int8": 1}

# Formats whose weights are numbers, not blocks: they are always multiplied in fp32.
FLOAT_FORMATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Layer:
    """One decoder layer's weights."""

    input_norm: Float32  # [E]
    qkv: list[_kernels.Weight]  # [H*D, E], [K*D, E], [K*D, E]
    o: _kernels.Weight  # [E, H*D]
    post_norm: Float32  # [E]
    gate_up: list[_kernels.Weight]  # [F, E] twice
    down: _kernels.Weight  # [E, F]


class Backend:
    """A model whose weights are packed for this machine.

    `compute` says how block formats are multiplied: "mixed" rounds activations to 8 bits in groups of 32, to 16 where
    one stands out of its row and before the output head (fastest, and within 0.0001 nats of exact), "int16"
    rounds all to 16 bits (within a millionth), "f32" does not round. "auto" is mixed for a checkpoint that has block
    formats and f32 for one that has none.

    `kv_cache_dtype` says how keys and values are kept: "f16", "f32", "int8" with a scale for each token's key and value
    in each head, and "auto", which is f16 where activations are rounded and f32 where they are not.
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
        blocks = any(t.format not in FLOAT_FORMATS for t in tensors.values())
        self.config = config
        self.compute: Literal["mixed", "int16", "f32"] = compute if compute != "auto" else "mixed" if blocks else "f32"
        self.kv_dtype: Literal["f32", "f16", "int8"] = (
            kv_cache_dtype if kv_cache_dtype != "auto" else "f32" if self.compute == "f32" else "f16"
        )
        self._pool = _kernels.Pool(threads or physical_cores(), isa())
        self._lock = threading.Lock()  # kernels share the pool's memory: one forward at a time
        self._embedding = tensors["embed_tokens.weight"]  # rows are looked up in its file
        self._norm = tensors["norm.weight"].float32()
        head = "embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        matrices = [t for name, t in tensors.items() if len(t.shape) == 2 and (name == head or "layers." in name)]
        self._weights = weights = weights_of(self._pool, matrices)
        self._head = weights[head]
        self._layers = [layer_of(tensors, weights, f"layers.{i}.") for i in range(config.num_layers)]
        self._inverse_frequencies = inverse_frequencies(config)
        self._scratch: dict[str, Float32] = {}

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
            kv_scale=4 if self.kv_dtype == "int8" else 0,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        layers = [w for layer in self._layers for w in (*layer.qkv, layer.o, *layer.gate_up, layer.down)]
        return self._head.nbytes + sum(w.nbytes for w in layers)

    @property
    def step_bytes(self) -> int:
        return self.nbytes  # the embedding's rows are taken from the checkpoint

    @cached_property
    def fingerprint(self) -> str:
        spread = np.linspace(0, self.config.vocab_size - 1, 64, dtype=np.int32)
        embedding = np.ascontiguousarray(self._embedding.rows(spread)).view(np.uint8).reshape(-1)
        about = self.config, "cpu", self.isa, self.compute, _kernels.LAYOUT_VERSION
        return seam.fingerprint(about, [embedding, *(weight.packed for weight in self._weights.values())])

    def new_cache(self) -> Cache:
        c = self.config
        return Cache(c.num_kv_heads, c.head_dim, c.windows, self.kv_dtype)

    def forward(self, batch: Batch, cache: seam.Cache) -> Float32:
        """Run the batch, advance the cache -> logits [rows asked for, vocab_size] float32."""
        assert isinstance(cache, Cache), "a cache of this backend's new_cache()"
        with self._lock:
            return self._forward(batch, cache)

    def not_finite(self) -> str:
        return "its weights are damaged, or it overflows"

    def _forward(self, batch: Batch, cache: Cache) -> Float32:
        c, T = self.config, len(batch)
        x = np.ascontiguousarray(self._embedding.rows(batch.ids))  # [T, E], the residual stream
        normed = self._array("normed", T, c.hidden_size)
        q = self._array("q", T, c.num_heads * c.head_dim)
        k, v = (self._array(name, T, c.num_kv_heads * c.head_dim) for name in "kv")
        attended = self._array("attended", T, c.num_heads * c.head_dim)
        gate, up = (self._array(name, T, c.intermediate_size) for name in ("gate", "up"))
        cos, sin = rotary(self._inverse_frequencies, batch.positions)
        slots, starts, counts = cache.write(batch)
        for index, layer in enumerate(self._layers):
            self._rms_norm(x, layer.input_norm, normed)
            self._linear(normed, layer.qkv, [q, k, v])
            _kernels.attention(
                self._pool, cache, index, c.head_dim, q, k, v, cos, sin, slots, starts, counts, attended
            )  # fmt: skip
            self._linear(attended, [layer.o], [x], add=True)
            self._rms_norm(x, layer.post_norm, normed)
            self._linear(normed, layer.gate_up, [gate, up])
            _kernels.swiglu(self._pool, gate, up)
            self._linear(gate, [layer.down], [x], add=True)
        last = np.ascontiguousarray(x[batch.logit_rows])  # [N, E]
        self._rms_norm(last, self._norm, last)
        logits = np.empty((len(last), c.vocab_size), np.float32)
        # A third of what one rounding to 8 bits costs is in the head: never there.
        head_compute = "int16" if self.compute == "mixed" else self.compute
        _kernels.linear(self._pool, last, [self._head], [logits], False, head_compute)
        return logits

    def _rms_norm(self, x: Float32, weight: Float32, out: Float32) -> None:
        _kernels.rms_norm(self._pool, x, weight, self.config.rms_norm_eps, out)

    def _linear(self, x: Float32, weights: list[_kernels.Weight], outs: list[Float32], *, add: bool = False) -> None:
        _kernels.linear(self._pool, x, weights, outs, add, self.compute)

    def _array(self, name: str, rows: int, columns: int) -> Float32:
        """Memory that is kept from step to step: fresh pages would be zeroed by the kernel each time."""
        if name not in self._scratch or len(self._scratch[name]) < rows:
            self._scratch[name] = np.empty((rows, columns), np.float32)
        return self._scratch[name][:rows]


def layer_of(tensors: Mapping[str, Tensor], weights: Mapping[str, _kernels.Weight], prefix: str) -> Layer:
    def weight(name: str) -> _kernels.Weight:
        return weights[f"{prefix}{name}.weight"]

    return Layer(
        input_norm=tensors[f"{prefix}input_layernorm.weight"].float32(),
        qkv=[weight(f"self_attn.{name}_proj") for name in "qkv"],
        o=weight("self_attn.o_proj"),
        post_norm=tensors[f"{prefix}post_attention_layernorm.weight"].float32(),
        gate_up=[weight("mlp.gate_proj"), weight("mlp.up_proj")],
        down=weight("mlp.down_proj"),
    )


def inverse_frequencies(config: ModelConfig) -> Float32:
    """theta^(-2i/D) for i in [0, D/2) -> float32 [D/2]; https://arxiv.org/abs/2104.09864"""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    return (np.float32(1.0) / np.float32(config.rope_theta) ** exponents).astype(np.float32)


def rotary(frequencies: Float32, positions: Int32) -> tuple[Float32, Float32]:
    """Cosines and sines [T, D/2] of each position's angles, in fp32 as the models were trained."""
    angles = positions.astype(np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
