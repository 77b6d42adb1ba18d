"""What this machine can do at most: bytes read and numbers multiplied a second."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ventoux.cpu import _kernels
from ventoux.cpu.machine import isa

READ_BYTES = 256 << 20  # far more than caches hold
SECONDS = 0.01  # of one measurement of a multiplying loop
TURNS = 6


@dataclass(frozen=True)
class Limits:
    """Speeds of all threads together, each the best of a few turns: a limit is what nothing disturbed.

    int8_gmac_s  products of int8 with the instructions of the kernels' instruction set, 10^9 multiply-adds a second
    fp32_gmac_s  the same for fp32
    bf16_gmac_s  the same for bf16, 0 where the kernels do not multiply that
    """

    int8_gmac_s: float
    fp32_gmac_s: float
    bf16_gmac_s: float


class Memory:
    """Memory that all threads together read in order, by a loop that does nothing else."""

    def __init__(self, threads: int) -> None:
        self._pool = _kernels.Pool(threads, isa())
        self._words = np.ones(READ_BYTES // 8, np.uint64)  # written, so that pages are there
        self.nbytes: int = self._words.nbytes

    def read(self) -> int:
        """Read all of it once -> the sum of its words."""
        return _kernels.read_memory(self._pool, self._words)


def measure_limits(threads: int) -> Limits:
    """In a fifth of a second."""
    pool = _kernels.Pool(threads, isa())
    return Limits(
        int8_gmac_s=multiplied(pool, _kernels.multiply_int8),
        fp32_gmac_s=multiplied(pool, _kernels.multiply_fp32),
        bf16_gmac_s=multiplied(pool, _kernels.multiply_bf16) if _kernels.multiply_bf16(pool, 1) else 0.0,
    )


def multiplied(pool: _kernels.Pool, loop: Callable[[_kernels.Pool, int], int]) -> float:
    """10^9 products a second of a loop, with as many blocks as take about `SECONDS`."""
    begun = perf_counter()
    loop(pool, 10)
    blocks = max(1, int(10 * SECONDS / (perf_counter() - begun)))
    return fastest(lambda: loop(pool, blocks)) / 1e9


def fastest(work: Callable[[], int]) -> float:
    """What `work` does in a second, by the number that it returns, in the best of `TURNS` calls."""
    best = 0.0
    for _ in range(TURNS):
        begun = perf_counter()
        done = work()
        best = max(best, done / (perf_counter() - begun))
    return best
