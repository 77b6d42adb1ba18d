"""The number formats of weights: how many bytes a block of them takes, and what the bytes mean.

A row is cut into blocks of `block` weights; each block takes `nbytes` bytes: its scale (and minimum) in fp16, then the
weights in few bits. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ventoux.quant import kquants

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class BlockFormat:
    """A number format: its name, its number in GGUF files, weights a block, bytes a block."""

    name: str
    ggml_type: int
    block: int
    nbytes: int


FORMATS: dict[str, BlockFormat] = {
    name: BlockFormat(name, ggml_type, block, nbytes)
    for name, ggml_type, block, nbytes in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("BF16", 30, 1, 2),
        ("Q8_0", 8, 32, 34),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
    )
}


def row_bytes(columns: int, format: str) -> int:
    """Bytes of a row of `columns` weights, which fill whole blocks: 64 columns of Q4_0 are 2 blocks, 36 bytes."""
    layout = FORMATS[format]
    assert columns % layout.block == 0, f"{columns} columns do not fill blocks of {layout.block}"
    return columns // layout.block * layout.nbytes


def dequantize(data: Bytes, format: str) -> Float32:
    """Packed rows uint8 [..., bytes] -> float32 [..., columns], exactly the numbers that the format means."""
    blocks = np.ascontiguousarray(data).reshape(-1, FORMATS[format].nbytes)  # [blocks, bytes of a block]
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite in a damaged file
        weights = _UNPACK[format](blocks)  # [blocks, weights of a block]
    return weights.reshape(*data.shape[:-1], data.shape[-1] // FORMATS[format].nbytes * FORMATS[format].block)


def quantize(weights: Float32, format: str) -> Bytes:
    """float32 [..., columns] -> packed rows uint8 [..., bytes], rounded as llama.cpp rounds.

    Formats: F32, F16, BF16, Q8_0, Q4_0. Columns fill whole blocks.
    """
    shape = (*weights.shape[:-1], row_bytes(weights.shape[-1], format))
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, FORMATS[format].block)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _PACK[format](blocks).reshape(shape)


def _half(blocks: Bytes, at: int) -> Float32:
    """The fp16 number at byte `at` of each block, float32 [blocks, 1]."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """16 bytes -> 32 numbers 0..15: first the low halves of all bytes, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """4 bytes -> the 32 bits in them, each as 0 or 16: the bit that a five-bit number has beyond its nibble."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _unpack_q4_0(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _unpack_q4_1(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _unpack_q5_0(blocks: Bytes) -> Float32:
    numbers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (numbers.astype(np.float32) - 16)


def _unpack_q5_1(blocks: Bytes) -> Float32:
    numbers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * numbers.astype(np.float32) + _half(blocks, 2)


def _unpack_q8_0(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _unpack_bf16(blocks: Bytes) -> Float32:
    """The upper halves of float32 numbers."""
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _pack_bf16(blocks: Float32) -> Bytes:
    import ml_dtypes  # here, for a start has no use for it

    return blocks.astype(ml_dtypes.bfloat16).view(np.uint8)


def _pack_q8_0(blocks: Float32) -> Bytes:
    """The largest weight becomes 127 or -127; halves round away from zero."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * np.where(scale == 0, np.float32(0), 1 / scale)
    numbers = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate((scale.astype("<f2").view(np.uint8), numbers.view(np.uint8)), axis=1)


def _pack_q4_0(blocks: Float32) -> Bytes:
    """The weight of the largest magnitude becomes -8, whatever its sign: the scale bears the sign."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    scaled = blocks * np.where(scale == 0, np.float32(0), 1 / scale)
    numbers = np.trunc(scaled + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    packed = numbers[:, :16] | numbers[:, 16:] << np.uint8(4)
    return np.concatenate((scale.astype("<f2").view(np.uint8), packed), axis=1)


_UNPACK: dict[str, Callable[[Bytes], Float32]] = {
    "F32": lambda blocks: blocks.view("<f4").astype(np.float32),
    "F16": lambda blocks: blocks.view("<f2").astype(np.float32),
    "BF16": _unpack_bf16,
    "Q8_0": _unpack_q8_0,
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q4_K": kquants.unpack_q4_k,
    "Q5_K": kquants.unpack_q5_k,
    "Q6_K": kquants.unpack_q6_k,
}
_PACK: dict[str, Callable[[Float32], Bytes]] = {
    "F32": lambda blocks: blocks.astype("<f4").view(np.uint8),
    "F16": lambda blocks: blocks.astype("<f2").view(np.uint8),
    "BF16": _pack_bf16,
    "Q8_0": _pack_q8_0,
    "Q4_0": _pack_q4_0,
}
