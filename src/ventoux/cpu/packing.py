"""Weights for the kernels: mapped from the file that keeps them, or else packed now, and kept for the next start."""

import atexit
import threading
from collections.abc import Sequence

from ventoux.checkpoint.tensor import Tensor
from ventoux.cpu import _kernels, kept, store
from ventoux.cpu.kept import Description, NotKept

SMALLEST = 16 << 20  # bytes of weights that are worth a file: packing fewer takes 20 ms
PAUSE = 1.0  # seconds between loading and writing: the first answer goes first


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
        found = kept.take(store.folder() / description.file_name, tensors, description)
        return {tensor.name: weight for tensor, weight in zip(tensors, found, strict=True)}
    except NotKept as reason:
        tell(reason)
    weights = _packed(pool, tensors)
    Writer(description, list(weights.values()))
    return weights


def _packed(pool: _kernels.Pool, tensors: Sequence[Tensor]) -> dict[str, _kernels.Weight]:
    packed = {}
    for tensor in tensors:
        packed[tensor.name] = _kernels.Weight(pool, tensor.format, tensor.shape[1], tensor.data, tensor.row_order)
        tensor.release()
    return packed


class Writer:
    """Writes weights to their file while the model runs; the process waits for it at its end, unless interrupted."""

    def __init__(self, description: Description, weights: Sequence[_kernels.Weight]) -> None:
        self._work = description, weights
        self._at_once, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="ventoux-keep", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def _write(self) -> None:
        self._at_once.wait(PAUSE)
        try:
            store.save(*self._work, stopped=self._stopped.is_set)
        except (NotKept, OSError, MemoryError) as reason:
            tell(reason)
        finally:
            del self._work
            atexit.unregister(self._finish)

    def _finish(self) -> None:
        self._at_once.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self._stopped.set()
            self._thread.join()


def tell(reason: Exception) -> None:
    """For `--debug`: why weights were packed, or not kept."""
    import logging

    logging.getLogger("ventoux").debug("packed weights: %s", reason)
