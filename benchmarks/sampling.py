#!/usr/bin/env python3
"""How long the choice of one token takes, by the filters and by how flat the distribution is.

    python benchmarks/sampling.py --vocabulary 32000

Logits are normally distributed; 0 makes all of them equal. Of each set of logits the fastest of a few times counts; the
table has the median, the 90th percentile and the largest over the sets, since some need more work than others.
"""

import argparse
from time import perf_counter
from typing import Any

import numpy as np

from ventoux.decoding import History, SamplingParams, sample

FILTERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature alone": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
}


def microseconds(logits: np.ndarray, params: SamplingParams, times: int) -> float:
    rng, history, fastest = np.random.Generator(np.random.PCG64(0)), History(), float("inf")
    for _ in range(times):
        begin = perf_counter()
        sample(logits, params, rng=rng, history=history)
        fastest = min(fastest, perf_counter() - begin)
    return fastest * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000, metavar="V")
    parser.add_argument("--deviations", type=float, nargs="+", default=[0, 0.1, 1, 2, 3, 6], metavar="D")
    parser.add_argument("--sets", type=int, default=40, metavar="N", help="of logits, for each deviation (default: 40)")
    parser.add_argument("--times", type=int, default=6, metavar="N", help="each is tried (default: 6)")
    args = parser.parse_args()
    if min(args.vocabulary, args.sets, args.times) < 1 or min(args.deviations) < 0:
        parser.error("a vocabulary, sets and times are at least 1, and no deviation is negative")

    rng = np.random.default_rng(0)
    print(f"Microseconds, {args.vocabulary:,} logits: median, 90th percentile, largest.\n")
    print("| | " + " | ".join(f"deviation {d:g}" for d in args.deviations) + " |")
    print("|---" * (1 + len(args.deviations)) + "|")
    sets = {d: rng.standard_normal((args.sets, args.vocabulary), np.float32) * np.float32(d) for d in args.deviations}
    for name, filters in FILTERS.items():
        cells = []
        for logits in sets.values():
            found = [microseconds(each, SamplingParams(**filters), args.times) for each in logits]
            cells.append(", ".join(f"{value:.0f}" for value in np.percentile(found, [50, 90, 100])))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
