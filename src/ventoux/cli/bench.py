"""`bench`: how fast a model reads (prefill) and writes (decode), measured at the backend, without any text."""

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from ventoux.batch import Backend, Batch, Cache, Segment
from ventoux.errors import RequestError
from ventoux.model import Mistral

CHUNK = 512  # prompt tokens in one pass, as the engine's budget
MAX_STREAMS = 512  # all of them decode in one pass


@dataclass(frozen=True)
class Shape:
    """What one measurement runs: each of `streams` sequences reads `prompt` tokens at `depth`, then decodes `new`."""

    prompt: int
    new: int
    depth: int
    streams: int

    @property
    def length(self) -> int:
        return self.depth + self.prompt + self.new


@dataclass(frozen=True)
class Measured:
    prefill_tok_s: float
    decode_tok_s: float
    kv_bytes: int


def bench(model: Mistral, shape: Shape, *, repeat: int, as_json: bool) -> None:
    backend, means = model.backend, model.backend.description
    if shape.depth < 0:
        raise RequestError(f"depth must be at least 0, found {shape.depth}")
    if shape.streams > MAX_STREAMS:
        raise RequestError(f"streams must be at most {MAX_STREAMS}, found {shape.streams}")
    if shape.length > model.config.context_length:
        raise RequestError(
            f"depth, prompt and new are {shape.length} positions, but the context holds {model.config.context_length};"
            " ask for fewer"
        )
    runs = measure(backend, shape, repeat=repeat)
    result = {
        "prefill_tok_s": [round(run.prefill_tok_s, 2) for run in runs],
        "decode_tok_s": [round(run.decode_tok_s, 2) for run in runs],
        "backend": means.backend,
        "device": means.device,
        "compute": means.compute,
        "kv_dtype": means.kv_dtype,
        "threads": means.threads,
        "isa": means.isa,
        "rss_bytes": peak_memory(),
        "kv_bytes": runs[-1].kv_bytes,
    }
    if as_json:
        print(json.dumps(result))
        return
    prefill, decode = (median(getattr(run, name) for run in runs) for name in ("prefill_tok_s", "decode_tok_s"))
    print(f"prefill  {prefill:9.1f} tokens/s  {shape.streams} x {shape.prompt} at depth {shape.depth}")
    print(f"decode   {decode:9.1f} tokens/s  {shape.streams} x {shape.new} at depth {shape.depth + shape.prompt}")
    print(f"{means}, median of {repeat}")
    kept = f"{runs[-1].kv_bytes / 1e6:.1f} MB keys and values in {means.kv_dtype}"
    print(f"memory   {peak_memory() / 1e6:9.1f} MB at most, of it {kept}")


def measure(backend: Backend, shape: Shape, *, repeat: int) -> list[Measured]:
    """Measurements in one cache: what stands before `depth` is read once, the rest is run again each time.

    Running positions again overwrites them. With a window, the keys just before `depth` are then those of later
    positions: another text, but the same work.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, backend.config.vocab_size, (shape.streams, shape.depth + shape.prompt)).tolist()
    cache = backend.new_cache()
    slots = [cache.allocate(shape.length) for _ in range(shape.streams)]
    for slot, row in zip(slots, ids, strict=True):
        read(backend, cache, slot, row[: max(shape.depth, 1)], start=0)  # at least one, to warm up
    runs = [once(backend, shape, cache, dict(zip(slots, ids, strict=True))) for _ in range(repeat)]
    for slot in slots:
        cache.free(slot)
    return runs


def once(backend: Backend, shape: Shape, cache: Cache, streams: dict[int, list[int]]) -> Measured:
    """One measurement; `streams` are the ids of each slot."""
    begun = perf_counter()
    last = [read(backend, cache, slot, ids[shape.depth :], start=shape.depth) for slot, ids in streams.items()]
    read_all = perf_counter()
    for position in range(shape.depth + shape.prompt, shape.length):
        segments = [Segment(slot, position, [token], logits=1) for slot, token in zip(streams, last, strict=True)]
        last = backend.forward(Batch.pack(segments), cache).argmax(-1).tolist()
    done = perf_counter()
    return Measured(
        prefill_tok_s=shape.streams * shape.prompt / (read_all - begun),
        decode_tok_s=shape.streams * shape.new / (done - read_all),
        kv_bytes=cache.nbytes,
    )


def read(backend: Backend, cache: Cache, slot: int, ids: list[int], *, start: int) -> int:
    """Run ids in chunks -> the likeliest next id (0 when there are none)."""
    best = 0
    for at in range(0, len(ids), CHUNK):
        chunk = ids[at : at + CHUNK]
        last = at + CHUNK >= len(ids)
        logits = backend.forward(Batch.pack([Segment(slot, start + at, chunk, logits=int(last))]), cache)
        best = int(logits[0].argmax()) if last else best
    return best


def peak_memory() -> int:
    """Bytes that this process had resident at most."""
    try:  # Linux: ru_maxrss survives exec, and would tell what a larger parent had
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
