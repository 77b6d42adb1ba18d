"""The K-quants: super-blocks of 256 weights, with scales of their own quantized inside.

Layouts: block_q4_K, block_q5_K and block_q6_K of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]


def unpack_q4_k(blocks: Bytes) -> Float32:
    """d, dmin fp16; 12 bytes of scales and minima; 128 bytes of nibbles -> [blocks, 256]."""
    return _scaled(blocks, _nibbles(blocks[:, 16:144]))


def unpack_q5_k(blocks: Bytes) -> Float32:
    """d, dmin fp16; 12 bytes of scales and minima; 32 bytes of fifth bits; 128 bytes of nibbles -> [blocks, 256]."""
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = blocks[:, None, 16:48] >> shifts & np.uint8(1)  # [blocks, 8, 32]: bit s of byte i is weight 32 s + i's
    return _scaled(blocks, _nibbles(blocks[:, 48:176]) | fifth << np.uint8(4))


def unpack_q6_k(blocks: Bytes) -> Float32:
    """128 bytes of low nibbles; 64 of the two bits above; 16 signed scales; d fp16 -> [blocks, 256]."""
    count = len(blocks)
    low = blocks[:, :128].reshape(count, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[:, 128:192].reshape(count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    numbers = low.reshape(count, 16, 16) | high.reshape(count, 16, 16) << np.uint8(4)
    scales = blocks[:, 208:210].view("<f2").astype(np.float32) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    weights: Float32 = scales[:, :, None] * (numbers.astype(np.float32) - 32)
    return weights.reshape(count, 256)


def _nibbles(packed: Bytes) -> Bytes:
    """128 bytes -> [blocks, 8, 32] numbers 0..15: of every 32 bytes first the low halves, then the high ones."""
    halves = packed.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    return (halves & np.uint8(15)).reshape(-1, 8, 32)


def _scaled(blocks: Bytes, numbers: Bytes) -> Float32:
    """d * scale * number - dmin * minimum, with eight scales and minima of six bits each in bytes 4..15.

    Bytes a[4] b[4] c[4]: scales 0..3 are the low six bits of a, minima 0..3 those of b; scale 4+i is the low nibble
    of c[i] under the top two bits of a[i], minimum 4+i the high nibble of c[i] under the top two bits of b[i].
    """
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((a & 63, c & 15 | a >> 2 & 48), axis=1).astype(np.float32)
    minima = np.concatenate((b & 63, c >> 4 | b >> 2 & 48), axis=1).astype(np.float32)
    d, dmin = np.split(blocks[:, :4].view("<f2").astype(np.float32), 2, axis=1)
    weights: Float32 = (d * scales)[:, :, None] * numbers.astype(np.float32) - (dmin * minima)[:, :, None]
    return weights.reshape(len(blocks), 256)
