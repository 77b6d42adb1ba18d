#!/usr/bin/env python3
"""How much of a decode step passes outside of the kernels, which compute the layers and the head.

    python benchmarks/overhead.py [--model MODEL]

What is left is everything else: schedule, batch, embedding, angles, choice of the token, text, events. The tasks are
`prose` (greedy) and `sampled` (temperature 0.8) of benchmarks/speculation.py, without guesses; the turns alternate.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from speculation import tasks

import ventoux
from ventoux import cpu
from ventoux.engine import Engine, Request


class Stopwatch:
    """Sums up the seconds of the calls that go through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = perf_counter()
            result = call(*args)
            self.seconds += perf_counter() - begin
            return result

        return timed


class TimedLayer:
    def __init__(self, layer: Any, kernels: Stopwatch) -> None:
        self.run, self.run_asked = kernels.around(layer.run), kernels.around(layer.run_asked)


def step(engine: Engine, request: Request, kernels: Stopwatch) -> tuple[float, float]:
    """Milliseconds of a step, and those outside of the kernels: means over an answer, behind its prompt."""
    engine.add(request)
    while not engine.step():
        pass
    kernels.seconds = 0.0
    steps, begin = 0, perf_counter()
    while engine.busy:
        engine.step()
        steps += 1
    seconds = perf_counter() - begin
    return seconds / steps * 1e3, (seconds - kernels.seconds) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as ventoux.load takes it (default: the default model)")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="of each answer (default: 200)")
    parser.add_argument("--turns", type=int, default=9, metavar="N", help="of each task (default: 9)")
    args = parser.parse_args()
    if args.tokens < 2 or args.turns < 1:
        parser.error("an answer has at least 2 tokens, and each task at least one turn")

    model = ventoux.load(args.model)
    backend = model.backend
    if not isinstance(backend, cpu.Backend):
        parser.error("this looks into the CPU backend")
    kernels = Stopwatch()
    timed: Any = backend
    timed._layers = [TimedLayer(layer, kernels) for layer in backend._layers]
    timed._logits = kernels.around(backend._logits)
    engine = Engine(backend, model.tokenizer, speculates=False)
    requests = {name: request for name, request in tasks(model, args.tokens).items() if name in ("prose", "sampled")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in requests}
    for turn in range(args.turns + 1):  # the first one warms up
        for name, request in requests.items():
            measured = step(engine, request, kernels)
            if turn:
                found[name].append(measured)
    print("| task | a step, ms | outside of the kernels, ms | share (range) |\n|---|---|---|---|")
    for name, turns in found.items():
        shares = sorted(outside / whole for whole, outside in turns)
        whole, outside = (median(each) for each in zip(*turns, strict=True))
        print(f"| {name} | {whole:.2f} | {outside:.3f} | {median(shares):.1%} ({shares[0]:.1%} to {shares[-1]:.1%}) |")


if __name__ == "__main__":
    main()
