#!/usr/bin/env python3
"""From the shell to the first token: how long `ventoux generate` takes to begin its answer, and to end.

    python benchmarks/cold_start.py [-m MODEL] [--runs 10] [--against "COMMAND"]

Each run is a new process, as a user starts it. The first token is there when the first byte comes out of its standard
output, which `generate` flushes token by token. One run goes before the others and is not counted: it brings the files
into the page cache, so "cold" means the process, not the disk. `--against` is another command line, run in turns.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter


def command(model: str | None, prompt: str) -> list[str]:
    """`ventoux` of the environment that runs this script, or else its module."""
    beside = Path(sys.executable).with_name("ventoux")
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "ventoux"]
    # temperature 0: each run does the same work
    return [*program, "generate", prompt, "--temperature", "0", "--max-tokens", "8", *(["-m", model] if model else [])]


def once(words: list[str], *, quiet: bool = False) -> tuple[float, float]:
    """Seconds to the first byte on standard output, and to the end. A command that says nothing is an error.

    `quiet` hides what it says on standard error.
    """
    begun = perf_counter()
    errors = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=errors) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)  # not through a buffer, which would wait for more
        said = perf_counter() - begun
        while os.read(process.stdout.fileno(), 65536):
            pass
    if process.returncode != 0 or not first:
        sys.exit(f"{shlex.join(words)} ended with status {process.returncode}, {len(first)} bytes of answer")
    return said, perf_counter() - begun


def span(seconds: list[float]) -> str:
    """[0.5, 0.6, 0.9] -> 0.600 (0.500 to 0.900)"""
    return f"{median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="From the shell to the first token of `ventoux generate`")
    parser.add_argument("-m", "--model", help="default: the default model")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--against", metavar="COMMAND", help="another command line, whose first byte is waited for too")
    args = parser.parse_args()
    commands = {"ventoux generate": command(args.model, args.prompt)}
    if args.against:
        words = shlex.split(args.against)
        if not words or shutil.which(words[0]) is None:
            sys.exit(f"there is no command {args.against!r}")
        commands[args.against] = words
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for run in range(args.runs + 1):
        for name, words in commands.items():  # in turns: what else the machine does disturbs all alike
            said, ended = once(words)
            if run:
                measured[name].append((said, ended))
    print("| command | first token, s | end, s |", "|---|---|---|", sep="\n")
    for name, seconds in measured.items():
        print(f"| `{name}` | {span([first for first, _ in seconds])} | {span([end for _, end in seconds])} |")
    print(f"\nMedian (range) of {args.runs} runs on {os.cpu_count()} CPUs.")


if __name__ == "__main__":
    main()
