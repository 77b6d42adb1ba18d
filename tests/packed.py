"""Models whose weights are packed: what tests of their files and of their memory share."""

import threading

from ventoux import checkpoint
from ventoux.batch import Batch, Segment
from ventoux.cpu import Backend, packing, settling

IDS = [3, 14, 15, 92, 65, 35]


def load(path, **options):
    """A backend, when its weights have been written or moved, if they are."""
    read = checkpoint.read(path)
    backend = Backend(read.config, read.tensors, **options)
    for thread in threading.enumerate():
        if isinstance(thread, packing.Writer | settling.Settler):
            thread.join()
    return backend


def logits(backend):
    cache = backend.new_cache()
    return backend.forward(Batch.pack([Segment(cache.allocate(len(IDS)), 0, IDS, len(IDS))]), cache)
