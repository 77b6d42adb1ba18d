"""Instructions and allocations, counted: what a slower kernel costs does not depend on who else uses the machine.

    python tests/counting/renew.py        # after a change that is meant: writes today's numbers into counts.json

Each instruction is a trap, which takes about 20 microseconds: kernel calls are small.
"""

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from ventoux.cpu import _kernels

HERE = Path(__file__).parent
RECORD = HERE / "counts.json"
FORMATS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FLOAT_FORMATS = FORMATS[:3]
COLUMNS, ROWS = 256, 16
Call = tuple[Callable[..., None], tuple[Any, ...]]


def library(source: str, folder: Path) -> Path:
    """A C file compiled into a shared library. Raises OSError or CalledProcessError where there is no compiler."""
    out = folder / f"{source}.so"
    # no red zone: the flags are pushed where it would be
    command = ["cc", "-O2", "-shared", "-fPIC", "-mno-red-zone", "-o", str(out), str(HERE / f"{source}.c")]
    subprocess.run(command, check=True, capture_output=True)
    return out


def compiler() -> str:
    """What the kernels were compiled with, as their file says; "" for a build whose counts would say nothing."""
    binary = Path(_kernels.__file__).read_bytes()
    if b"__asan_" in binary or b"__ubsan_" in binary or b"__tsan_" in binary or b".debug_info" in binary:
        return ""
    found = re.search(rb"(GCC: [ -~]+|[ -~]*clang version [ -~]+)\0", binary)
    return found[1].decode() if found else ""


def why_not() -> str:
    """Why instructions cannot be compared here with those of counts.json; "" if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "instructions are counted on x86-64 Linux"
    if compiler() != json.loads(RECORD.read_text())["compiler"]:
        return f"counts.json is for another compiler than {compiler() or 'this, or for another kind of build'!r}"
    return ""


def linear(isa: str, format: str, tokens: int) -> Call:
    """One panel of 16 rows and 256 columns, its activations quantized as the backend does it."""
    rng = np.random.default_rng(0)
    if format in FLOAT_FORMATS:
        data = rng.integers(0, 60, (ROWS, COLUMNS * (4 if format == "F32" else 2)), np.uint8)
    else:
        data = tiny.random_blocks(rng, ROWS, COLUMNS, format=format)
    pool = _kernels.Pool(1, isa)
    weight = _kernels.Weight(pool, format, COLUMNS, data)
    x, out = rng.standard_normal((tokens, COLUMNS), np.float32), np.zeros((tokens, ROWS), np.float32)
    return _kernels.linear, (pool, x, [weight], [out], False, "f32" if format in FLOAT_FORMATS else "mixed")


def attention(isa: str, tokens: int) -> Call:
    """`tokens` behind 24 keys in a ring of 32, 2 heads over 1 of 16."""
    H, K, D, past = 2, 1, 16, 24
    rng = np.random.default_rng(0)
    pool, cache = _kernels.Pool(1, isa), _kernels.Cache(K, D, [32], "f16")
    slot = cache.allocate(past + tokens)

    def arguments(start: int, count: int) -> tuple[Any, ...]:
        q, k, v, out = (rng.standard_normal((count, n * D), np.float32) for n in (H, K, K, H))
        cos, sin = (np.ones((count, D // 2), np.float32) for _ in range(2))
        span = (np.array([n], np.int32) for n in (slot, start, count))
        return pool, cache, 0, D, q, k, v, cos, sin, *span, out

    _kernels.attention(*arguments(0, past))
    return _kernels.attention, arguments(past, tokens)


def calls(isa: str, *, formats: tuple[str, ...] = FORMATS, tokens: tuple[int, ...] = (1, 8)) -> dict[str, Call]:
    """What is counted, by name."""
    linears = {f"linear {f}, {T} tokens": linear(isa, f, T) for f in formats for T in tokens}
    return linears | {f"attention, {T} tokens": attention(isa, T) for T in (1, 4)}


class Counter:
    """Counts a call's instructions within the kernels' own code."""

    def __init__(self, folder: Path) -> None:
        self._count = ctypes.PyDLL(str(library("stepping", folder))).instructions
        self._count.argtypes = (ctypes.py_object, ctypes.py_object, ctypes.c_uint64, ctypes.c_uint64)
        self._count.restype = ctypes.c_uint64
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        own = next(words for words in maps if words[-1] == str(Path(_kernels.__file__)) and "x" in words[1])
        self._first, self._last = (int(end, 16) for end in own[0].split("-"))

    def __call__(self, call: Call) -> int:
        function, arguments = call
        function(*arguments)  # what a first call sets up is not counted
        return int(self._count(function, arguments, self._first, self._last))


STEPS = """
import ctypes, sys
from ventoux.batch import Batch, Segment
import ventoux
model = ventoux.load(sys.argv[1], threads=1)
cache = model.backend.new_cache()
slot = cache.allocate(64)
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_uint64
counts = []
for position in range(12):
    batch = Batch.pack([Segment(slot, position, [5], logits=1)])
    before = allocations()
    model.backend.forward(batch, cache)
    counts.append(allocations() - before)
print(min(counts[4:]))
"""


def allocations(model: Path, folder: Path) -> int:
    """Calls of malloc and its like in one decode step of a model, once it is warm."""
    environment = os.environ | {"LD_PRELOAD": str(library("allocations", folder)), "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", STEPS, str(model)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
