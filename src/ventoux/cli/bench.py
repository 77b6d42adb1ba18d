"""`bench`: how fast a model reads (prefill) and writes (decode), measured at the backend, without any text."""

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from ventoux.batch import Backend, Batch, Cache, Segment
from ventoux.config import ModelConfig
from ventoux.cpu.limits import Memory, measure_limits
from ventoux.errors import RequestError
from ventoux.model import Mistral

CHUNK = 512  # prompt tokens in one pass, as the engine's budget
MAX_STREAMS = 512  # all of them decode in one pass
TURNS = 16  # of decoding and reading memory


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

    def check(self, context_length: int) -> None:
        """Raise what a user has to hear of a shape that cannot be run."""
        if self.depth < 0:
            raise RequestError(f"depth must be at least 0, found {self.depth}")
        if self.streams > MAX_STREAMS:
            raise RequestError(f"streams must be at most {MAX_STREAMS}, found {self.streams}")
        if self.length > context_length:
            raise RequestError(
                f"depth, prompt and new are {self.length} positions, but the context holds {context_length};"
                " ask for fewer"
            )


@dataclass(frozen=True)
class Work:
    """What the model's matrices and attention have to do, whoever computes them.

    prefill_macs      multiply-adds for a token of the prompt, on average: matrices, scores and sums of values; of the
                      last layer only keys and values, since the rest of it, and the output head, which stands
                      outside, are run for the last token alone
    decode_macs       the same for a token that is decoded, with the output head
    step_kv_elements  numbers of keys and values that a decode step of all streams reads, on average
    """

    prefill_macs: float
    decode_macs: float
    step_kv_elements: float

    @classmethod
    def of(cls, config: ModelConfig, shape: Shape) -> "Work":
        E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_heads, config.num_kv_heads
        layer, keys, before = E * D * (2 * H + 2 * K) + 3 * E * F, 2 * E * D * K, config.num_layers - 1
        matrices = config.num_layers * layer
        end = shape.depth + shape.prompt
        read = sum(seen(shape.depth, end, window) for window in config.windows[:-1])
        last = layer - keys + 2 * H * D * seen(end - 1, end, config.windows[-1])  # of the last token
        decode = sum(seen(shape.length - shape.new, shape.length, window) for window in config.windows)
        return cls(
            prefill_macs=before * layer + 2 * H * D * read + keys + last / shape.prompt,
            decode_macs=matrices + E * config.vocab_size + 2 * H * D * decode,
            step_kv_elements=shape.streams * 2 * K * D * decode,
        )


def seen(start: int, end: int, window: int | None) -> float:
    """Keys that the queries at positions start .. end-1 see, on average: min(p + 1, W). (0, 4, 2) -> (1+2+2+2) / 4."""
    positions = np.arange(start, end) + 1
    return float(np.minimum(positions, window or end).mean())


@dataclass(frozen=True)
class Measured:
    """One measurement; `resident` is the memory of the process while it decodes, as `resident_memory` tells it."""

    prefill_tok_s: float
    decode_tok_s: float
    kv_bytes: int
    resident: dict[str, int] | None


def bench(model: Mistral, shape: Shape, *, repeat: int, as_json: bool) -> None:
    means = model.backend.description
    shape.check(model.config.context_length)
    prepared = Prepared.of(model.backend, shape)
    runs = [prepared.once() for _ in range(repeat)]
    peak = peak_memory()  # before the limits are measured, which takes memory
    machine = machine_of(prepared, runs)
    result = {
        "prefill_tok_s": [round(run.prefill_tok_s, 2) for run in runs],
        "decode_tok_s": [round(run.decode_tok_s, 2) for run in runs],
        "backend": means.backend,
        "device": means.device,
        "compute": means.compute,
        "kv_dtype": means.kv_dtype,
        "threads": means.threads,
        "isa": means.isa,
        "rss_bytes": peak,
        "resident": runs[-1].resident,
        "kv_bytes": runs[-1].kv_bytes,
        "machine": machine,
    }
    if as_json:
        print(json.dumps(result))
        return
    prefill, decode = (median(getattr(run, name) for run in runs) for name in ("prefill_tok_s", "decode_tok_s"))
    print(f"prefill  {prefill:9.1f} tokens/s  {shape.streams} x {shape.prompt} at depth {shape.depth}")
    print(f"decode   {decode:9.1f} tokens/s  {shape.streams} x {shape.new} at depth {shape.depth + shape.prompt}")
    print(f"{means}, median of {repeat}")
    kept = f"{runs[-1].kv_bytes / 1e6:.1f} MB keys and values in {means.kv_dtype}"
    print(f"memory   {peak / 1e6:9.1f} MB at most, of it {kept}")
    if machine:
        print(describe(machine))


def machine_of(prepared: "Prepared", runs: list[Measured]) -> dict[str, float | str] | None:
    """The machine's limits and what share of them was reached; None where the CPU does not compute.

    Prefill is compared with products of int8, bf16 or fp32, whichever its arithmetic is made of, at one product for
    each weight and activation: activations of sixteen bits take two of int8. Decode is compared with memory that is
    read in turns with its steps: on a shared machine memory is twice as fast at one moment as at the next.
    """
    backend, shape, means = prepared.backend, prepared.shape, prepared.backend.description
    if means.threads is None:
        return None
    limits, memory = measure_limits(means.threads), Memory(means.threads)
    work = Work.of(backend.config, shape)
    peak = {"int8": limits.int8_gmac_s, "bf16": limits.bf16_gmac_s, "fp32": limits.fp32_gmac_s}[means.products]
    prefill = work.prefill_macs * median(run.prefill_tok_s for run in runs) / 1e9
    step_bytes = backend.step_bytes + work.step_kv_elements * means.kv_itemsize
    step_s, memory_s = prepared.in_turns(memory.read)
    decode, read = step_bytes / step_s / 1e9, memory.nbytes / memory_s / 1e9
    figures = {
        "read_gb_s": read,
        "int8_gmac_s": limits.int8_gmac_s,
        "fp32_gmac_s": limits.fp32_gmac_s,
        "bf16_gmac_s": limits.bf16_gmac_s,
        "prefill_gmac_s": prefill,
        "prefill_share": prefill / peak,
        "decode_gmac_s": work.decode_macs * median(run.decode_tok_s for run in runs) / 1e9,
        "decode_gb_s": decode,
        "decode_share": decode / read,
        "step_gb": step_bytes / 1e9,
    }
    return {name: round(value, 4) for name, value in figures.items()} | {"prefill_against": means.products}


def describe(machine: dict[str, float | str]) -> str:
    m, kind = machine, machine["prefill_against"]
    bf16 = f", {m['bf16_gmac_s']:.0f} in bf16" if m["bf16_gmac_s"] else ""
    return (
        f"machine  reads {m['read_gb_s']:.1f} GB/s, multiplies {m['int8_gmac_s']:.0f} GMAC/s in int8{bf16} and"
        f" {m['fp32_gmac_s']:.0f} in fp32\n"
        f"         prefill multiplied {m['prefill_gmac_s']:.1f} GMAC/s, {m['prefill_share']:.0%} of {kind};"
        f" decode in turns with reading read {m['decode_gb_s']:.1f} GB/s, {m['decode_share']:.0%}"
    )


@dataclass(frozen=True)
class Prepared:
    """A shape's measurements in one cache: what stands before `depth` is read once, the rest is run again each time.

    Running positions again overwrites them. With a window, the keys just before `depth` are then those of later
    positions: another text, but the same work. Of a long past, what no query can see is not read.
    """

    backend: Backend
    shape: Shape
    cache: Cache
    streams: dict[int, list[int]]  # the ids of each slot

    @classmethod
    def of(cls, backend: Backend, shape: Shape) -> "Prepared":
        """Read what stands before `depth`."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, backend.config.vocab_size, (shape.streams, shape.depth + shape.prompt)).tolist()
        cache = backend.new_cache()
        streams = {cache.allocate(shape.length): row for row in ids}
        unseen = max(0, shape.depth - (backend.config.window or shape.depth))
        first = unseen if backend.description.backend == "cpu" else 0  # the other backend's rings are filled in order
        for slot, row in streams.items():
            read(backend, cache, slot, row[first : max(shape.depth, 1)], start=first)  # at least one, to warm up
        return cls(backend, shape, cache, streams)

    def once(self) -> Measured:
        shape = self.shape
        begun = perf_counter()
        last = [
            read(self.backend, self.cache, slot, ids[shape.depth :], start=shape.depth)
            for slot, ids in self.streams.items()
        ]
        read_all = perf_counter()
        for position in range(shape.length - shape.new, shape.length):
            last = self.step(position, last)
        done = perf_counter()
        return Measured(
            prefill_tok_s=shape.streams * shape.prompt / (read_all - begun),
            decode_tok_s=shape.streams * shape.new / (done - read_all),
            kv_bytes=self.cache.nbytes,
            resident=resident_memory(),
        )

    def step(self, position: int, tokens: list[int]) -> list[int]:
        """Each stream decodes one token -> the likeliest next ones."""
        last = zip(self.streams, tokens, strict=True)
        segments = [Segment(slot, position, [token], logits=1) for slot, token in last]
        best: list[int] = self.backend.forward(Batch.pack(segments), self.cache).argmax(-1).tolist()
        return best

    def in_turns(self, other: Callable[[], object]) -> tuple[float, float]:
        """Seconds of a decode step, behind what `once` has read, and of other work that takes turns with it."""
        spent, tokens = [0.0, 0.0], [0] * len(self.streams)
        for turn in range(TURNS):
            begun = perf_counter()
            tokens = self.step(self.shape.length - self.shape.new + turn % self.shape.new, tokens)
            between = perf_counter()
            other()
            spent[0] += between - begun
            spent[1] += perf_counter() - between
        return spent[0] / TURNS, spent[1] / TURNS


def read(backend: Backend, cache: Cache, slot: int, ids: list[int], *, start: int) -> int:
    """Run ids in chunks -> the likeliest next id (0 when there are none)."""
    best = 0
    for at in range(0, len(ids), CHUNK):
        chunk = ids[at : at + CHUNK]
        last = at + CHUNK >= len(ids)
        logits = backend.forward(Batch.pack([Segment(slot, start + at, chunk, logits=int(last))]), cache)
        best = int(logits[0].argmax()) if last else best
    return best


def resident_memory() -> dict[str, int] | None:
    """Bytes that this process has resident: its own (RssAnon), and pages of files (RssFile). None if not on Linux."""
    try:
        status = Path("/proc/self/status").read_text()
        return {
            name: int(status.split(f"{line}:")[1].split()[0]) * 1024
            for name, line in {"anonymous": "RssAnon", "file": "RssFile"}.items()
        }
    except (OSError, IndexError):
        return None


def peak_memory() -> int:
    """Bytes that this process had resident at most."""
    try:  # Linux: ru_maxrss survives exec, and would tell what a larger parent had
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
