"""Weights for the kernels: mapped from the file that keeps them, or else packed now, and kept for the next start."""

import atexit
import sys
import threading
from collections.abc import Sequence

from ventoux.checkpoint.tensor import Tensor
from ventoux.cpu import _kernels, kept, store
from ventoux.cpu.kept import Description, NotKept
from ventoux.cpu.settling import Settler

SMALLEST = 16 << 20  # bytes of weights that are worth a file: packing fewer takes 20 ms
PAUSE = 1.0  # seconds between loading and writing: the first answer goes first
PATIENCE = 0.5  # seconds that a process may take to end without saying why


def weights_of(pool: _kernels.Pool, tensors: Sequence[Tensor]) -> dict[str, _kernels.Weight]:
    """Each tensor's weight by its name. What is mapped does not read the tensors' file."""
    try:
        if sum(tensor.nbytes for tensor in tensors) < SMALLEST:
            raise NotKept("small weights are packed sooner than found")
        if not store.limit():
            raise NotKept(f"{store.VARIABLE} is 0")
        description = kept.describe(tensors, pool.isa)
    except NotKept as reason:
        tell(reason)
        return _packed(pool, tensors)
    try:
        parts = kept.take(store.folder() / description.file_name, tensors, description)
    except NotKept as reason:
        tell(reason)
    else:
        mapped = {
            tensor.name: _kernels.Weight.mapped(tensor.format, tensor.shape[0], tensor.shape[1], part)
            for tensor, part in zip(tensors, parts, strict=True)
        }
        Settler(list(mapped.values()), parts)
        return mapped
    weights = _packed(pool, tensors)
    Writer(description, list(weights.values()))
    return weights


def _packed(pool: _kernels.Pool, tensors: Sequence[Tensor]) -> dict[str, _kernels.Weight]:
    packed = {}
    for tensor in tensors:
        packed[tensor.name] = _kernels.Weight(pool, tensor.format, tensor.shape[1], tensor.data, tensor.row_order)
        tensor.release()
    return packed


class Writer(threading.Thread):
    """Writes weights to their file while the model runs; the process waits for it at its end, unless interrupted."""

    def __init__(self, description: Description, weights: Sequence[_kernels.Weight]) -> None:
        super().__init__(daemon=True)
        self._work = description, weights
        self._at_once, self._stopped = threading.Event(), threading.Event()
        atexit.register(self._finish)
        self.start()

    def run(self) -> None:
        self._at_once.wait(PAUSE)
        try:
            store.save(*self._work, stopped=self._stopped.is_set)
        except (NotKept, OSError, MemoryError) as reason:
            tell(reason)
        finally:
            del self._work
            atexit.unregister(self._finish)

    def stop(self) -> None:
        self._stopped.set()
        self._at_once.set()

    def _finish(self) -> None:
        self._at_once.set()
        try:
            self.join(PATIENCE)
            if self.is_alive() and sys.stderr is not None and sys.stderr.isatty():
                print("keeping the packed weights for the next start; Ctrl-C does without", file=sys.stderr)
            self.join()
        except KeyboardInterrupt:
            self.stop()
            self.join()


def stop_writing() -> None:
    """What is being written is given up: for a process that was interrupted, and should end at once."""
    for thread in threading.enumerate():
        if isinstance(thread, Writer):
            thread.stop()


def tell(reason: Exception) -> None:
    """For `--debug`: why weights were packed, or not kept."""
    import logging

    logging.getLogger("ventoux").debug("packed weights: %s", reason)
