#!/usr/bin/env python3
"""Ventoux and llama.cpp on one GGUF file, in turns, pair by pair: how fast each reads (prefill) and writes (decode).

    python benchmarks/llama_cpp.py MODEL.gguf --peer-python PEERS/bin/python

Both read the same number of ids in batches of 512, then take one id at a time, on the same number of threads. They run
A B A B, each in a fresh process, so that a machine that slows down slows both; the ratio is taken within each pair.
llama-cpp-python lives in a virtual environment of its own, whose interpreter runs `llama_cpp_driver.py`. Build it for
this machine (no prebuilt wheel), or llama.cpp is measured without the instructions that make it fast.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from ventoux.cpu import physical_cores

DRIVER = Path(__file__).with_name("llama_cpp_driver.py")
PHASES = {"prefill_tok_s": "prefill", "decode_tok_s": "decode"}
Result = dict[str, Any]


def run(command: list[str]) -> Result:
    """The JSON object that a command prints as its last line; what it complains of is shown."""
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: Result = json.loads(out.splitlines()[-1])
    return result


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def span(values: list[float], digits: int = 1) -> str:
    """[1, 2, 9] -> 2.0 (1.0 to 9.0)"""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(ours: list[Result], theirs: list[Result]) -> str:
    lines = ["| | Ventoux, tokens/s | llama.cpp, tokens/s | Ventoux / llama.cpp |", "|---|---|---|---|"]
    for key, phase in PHASES.items():
        a, b = ([median(result[key]) for result in results] for results in (ours, theirs))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        lines.append(f"| {phase} | {span(a)} | {span(b)} | {span(ratios, 2)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ventoux and llama.cpp on one GGUF file, in turns")
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--peer-python", default=sys.executable, help="of an environment with llama-cpp-python")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="ids to read (default: 512)")
    parser.add_argument("--new", type=int, default=32, metavar="N", help="ids to write (default: 32)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="A B A B ... (default: 5)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="measurements in a process (default: 1)")
    parser.add_argument("--threads", type=int, default=physical_cores(), metavar="N", help="default: physical cores")
    parser.add_argument("--json", action="store_true", help="all measurements as one object instead of the table")
    args = parser.parse_args()

    names = ("prompt", "new", "repeat", "threads")
    flags = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    ours, theirs = [], []
    for pair in range(args.pairs):
        ours.append(run([sys.executable, "-m", "ventoux", "bench", "-m", args.model, *flags, "--json"]))
        # -I: else this folder comes first in the driver's path, and its `import llama_cpp` finds this file
        theirs.append(run([args.peer_python, "-I", str(DRIVER), args.model, *flags]))
        a, b = ours[-1], theirs[-1]
        said = (f"{phase} {median(a[key]):.1f} and {median(b[key]):.1f}" for key, phase in PHASES.items())
        print(f"pair {pair + 1} of {args.pairs}: {', '.join(said)} tokens/s", file=sys.stderr)
    if args.json:
        print(json.dumps({"ventoux": ours, "llama.cpp": theirs}))
        return
    print(
        f"{Path(args.model).name}: {args.prompt} ids read, {args.new} written; median (range) of {args.pairs} pairs\n"
    )
    print(table(ours, theirs))
    print(
        f"\n{cpu_model()}, {physical_cores()} cores of {os.cpu_count()} CPUs, {args.threads} threads."
        f" Ventoux {version('ventoux')} ({ours[-1]['isa']}); llama-cpp-python {theirs[-1]['version']}"
        f" ({theirs[-1]['system']}). Python {platform.python_version()}, {platform.system()} {platform.release()}."
    )


if __name__ == "__main__":
    main()
