"""Mapped weights move into huge pages of the process's own, where the system maps their file in small ones.

Each small page costs the cores a walk through tables: decoding is 5% slower from them where memory is slow, and 16%
where it is fast (docs/performance.md). Most file systems know no other, so a process that goes on copies its weights
once, after its first answer. Where memory is short, or the file is in huge pages as it is, weights stay where they are,
shared with other processes.
"""

import atexit
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ventoux import mapped
from ventoux.cpu import _kernels
from ventoux.cpu.machine import spare_memory

PAUSE = 1.0  # seconds between loading and moving: the first answer goes first
ENOUGH = 0.9  # of a file in huge pages
ROOM = 2  # times the weights' size that has to be free: what is a cache of files now serves the next start
NICE = 10  # a tenth of a core beside a kernel: new memory may come slowly, from a virtual machine's host
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Settler(threading.Thread):
    """Moves weights, one after the other, while the model runs; the process does not wait for it at its end."""

    def __init__(self, weights: Sequence[_kernels.Weight], parts: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__(daemon=True)
        self._weights, self._parts = weights, parts
        self._stopped = threading.Event()
        atexit.register(self.stop)
        self.start()

    def run(self) -> None:
        if not self._stopped.wait(PAUSE) and worth_it(self._parts):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            with suppress(MemoryError):
                self._move()
        del self._weights, self._parts
        atexit.unregister(self.stop)

    def _move(self) -> None:
        # One piece for all: small weights would lie in small pages again.
        memory, at = _kernels.pages(sum(part.nbytes for part in self._parts), True), 0
        for weight, part in zip(self._weights, self._parts, strict=True):
            if self._stopped.is_set():
                break
            weight.settle(memory[at : at + part.nbytes])
            mapped.release(part)
            at += part.nbytes

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def worth_it(parts: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether moving weights gives huge pages in place of small ones, and there is memory for it."""
    nbytes = sum(part.nbytes for part in parts)
    try:
        offered = "[never]" not in HUGE_PAGES.read_text()
    except OSError:  # another system
        return False
    return offered and spare_memory() >= ROOM * nbytes and mapped.huge_bytes(parts[0]) < ENOUGH * nbytes
