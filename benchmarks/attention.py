#!/usr/bin/env python3
"""Attention within a window next to the same attention without one, and next to what else computes it on this CPU.

    python benchmarks/attention.py --tokens 16384 --window 4096

One layer's attention: queries, keys and values are given, as the projections lay them out. All run in one process, in
turns, A B C A B C, so that a machine that slows down slows all of them; ratios are taken within each turn. Peak memory
is measured in a process of its own for each, on top of what queries, keys and values take. Masks that are made once for
all layers are not timed, but they count as memory.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

from ventoux.cpu import physical_cores
from ventoux.pytorch.attention import attend

Computation = Callable[[], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor]
OURS, WITHOUT = "Ventoux", "Ventoux without the window"


def ours(inputs: Inputs, window: int) -> Computation:
    return lambda: attend(*inputs, window=window, offset=0, scale=inputs[0].shape[-1] ** -0.5)


def without(inputs: Inputs, window: int) -> Computation:
    return lambda: attend(*inputs, window=None, offset=0, scale=inputs[0].shape[-1] ** -0.5)


def torch_sdpa(inputs: Inputs, window: int) -> Computation:
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]

    def run() -> Tensor:
        keys, values = (x.repeat_interleave(groups, 1) for x in (key, value))
        return nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)

    return run


def transformers_sdpa(inputs: Inputs, window: int) -> Computation:
    query, key, value = inputs
    module = nn.Module()
    module.num_key_value_groups = query.shape[1] // key.shape[1]
    T = query.shape[2]
    mask = sdpa_mask(1, T, T, mask_function=sliding_window_causal_mask_function(window), allow_is_causal_skip=False)
    return lambda: sdpa_attention_forward(module, query, key, value, mask)[0].transpose(1, 2)


def flex(inputs: Inputs, window: int) -> Computation:
    query, key, value = inputs
    T, shared = query.shape[2], query.shape[1] != key.shape[1]
    mask = create_block_mask(lambda b, h, q, k: (k <= q) & (k > q - window), None, None, T, T, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=shared)


KINDS = {
    OURS: ours,
    WITHOUT: without,
    "torch SDPA, causal, without the window": torch_sdpa,
    "transformers `sdpa`: SDPA with a mask of the window": transformers_sdpa,
    "FlexAttention, compiled": flex,
}


def made(args: argparse.Namespace, tokens: int) -> Inputs:
    """query [1, H, T, D], key and value [1, K, T, D], views of [1, T, heads, D]."""
    torch.manual_seed(0)
    dtype, D = getattr(torch, args.dtype), args.head_dim
    query, key, value = (
        torch.randn(1, tokens, heads, D).to(dtype).transpose(1, 2).requires_grad_(args.training)
        for heads in (args.heads, args.kv_heads, args.kv_heads)
    )
    return query, key, value


def once(compute: Computation, inputs: Inputs, training: bool) -> Tensor:
    """One run, with the backward pass if it is training."""
    if not training:
        with torch.no_grad():
            return compute()
    out = compute()
    torch.autograd.grad(out, inputs, out)
    return out.detach()


def peak_kib() -> int:
    """The most memory that this process has had. Linux's getrusage counts that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def peak(args: argparse.Namespace) -> int:
    """MiB that one kind takes on top of what it is given, in this process; libraries are warmed up before."""
    small = made(args, 512)
    once(KINDS[args.peak](small, args.window), small, args.training)
    inputs = made(args, args.tokens)
    before = peak_kib()
    once(KINDS[args.peak](inputs, args.window), inputs, args.training)
    return (peak_kib() - before) // 1024


def peak_elsewhere(kind: str) -> int:
    """`peak` in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", kind]
    return int(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))


def span(values: list[float]) -> str:
    """[1, 2, 9] -> 2.00 (1.00 to 9.00)"""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def ready(args: argparse.Namespace, inputs: Inputs) -> dict[str, Computation]:
    """The kinds that run here, each run once and compared with the first: what is wrong is not measured."""
    computations: dict[str, Computation] = {}
    expected: dict[str, Tensor] = {}
    for kind, make in KINDS.items():
        if any(word in kind.lower() for word in args.skip):
            continue
        try:
            computation = make(inputs, args.window)
            out = once(computation, inputs, args.training)
        except Exception as error:  # one that cannot run here is left out, and says why
            print(f"{kind}: left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            continue
        what = "whole" if "without" in kind else "window"
        torch.testing.assert_close(out, expected.setdefault(what, out), rtol=0.02, atol=0.01)
        computations[kind] = computation
    return computations


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Attention within a window, next to attention without one")
    parser.add_argument("--tokens", type=int, default=16384, metavar="T")
    parser.add_argument("--window", type=int, default=4096, metavar="W")
    parser.add_argument("--heads", type=int, default=4, metavar="H", help="query heads; 32 in Mistral 7B (default: 4)")
    parser.add_argument("--kv-heads", type=int, default=1, metavar="K", help="8 in Mistral 7B (default: 1)")
    parser.add_argument("--head-dim", type=int, default=128, metavar="D")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--training", action="store_true", help="forward and backward")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="turns (default: 10)")
    parser.add_argument("--threads", type=int, default=physical_cores(), metavar="N", help="default: physical cores")
    parser.add_argument("--skip", nargs="+", default=[], metavar="WORD", help="leave out kinds with these words")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for a machine that is not quiet")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.tokens, args.window, args.runs, args.threads, args.kv_heads) < 1 or args.heads % args.kv_heads:
        parser.error("counts are at least 1, and --kv-heads divides --heads")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args)))
        return
    clock = process_time if args.cpu_time else perf_counter
    inputs = made(args, args.tokens)
    computations = ready(args, inputs)
    seconds: dict[str, list[float]] = {kind: [] for kind in computations}
    for turn in range(args.runs):
        for kind, compute in computations.items():
            begun = clock()
            once(compute, inputs, args.training)
            seconds[kind].append(clock() - begun)
        print(f"turn {turn + 1} of {args.runs}: {[round(s[-1], 2) for s in seconds.values()]} s", file=sys.stderr)
    print(
        f"| {args.tokens} tokens, window {args.window} | s | times {OURS}'s | peak memory, MiB |",
        "|---|---|---|---|",
        sep="\n",
    )
    for kind, times in seconds.items():
        ratios = [other / mine for other, mine in zip(times, seconds[OURS], strict=True)]
        print(f"| {kind} | {span(times)} | {span(ratios)} | {peak_elsewhere(kind)} |")
    T, W = args.tokens, min(args.window, args.tokens)
    limit = T * (T + 1) / (W * (W + 1) + 2 * W * (T - W))
    work = "Forward and backward" if args.training else "Forward"
    seconds_are = "CPU seconds" if args.cpu_time else "seconds by the clock"
    print(
        f"\n{work}, {args.dtype}, {args.heads} heads over {args.kv_heads} KV heads of {args.head_dim}; without the"
        f" window there are {limit:.2f} times the scores. Median (range) of {args.runs} turns, {seconds_are}."
        f" {cpu_model()}, {args.threads} threads; torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
