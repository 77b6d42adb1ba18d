#!/usr/bin/env python3
"""Decoding with guesses and without, in turns: on text that the prompt holds already, and on text that it does not.

    python benchmarks/speculation.py [--model MODEL] [--pairs 5]
    python benchmarks/speculation.py --draft MODEL       a draft model; both sides guess what the text repeats
    python benchmarks/speculation.py --draft-layers 6    a poor one: the model's own first layers, with its head
    python benchmarks/speculation.py --idle-layers 90    the best there can be: the model has 90 more layers, which take
                                                         time and change nothing, and drafts for itself without

`copy` has a passage and its first sentences again, and goes on with it; `edit` asks for the passage with a word
changed; `prose` goes on with a novel; `sampled` does so at temperature 0.8 and hardly repeats itself; `short` is that
after the novel's first words, which a draft model reads at once.
The two engines share one model and run in turns, each beginning every other pair; each pair must give the same tokens,
and gives one ratio of seconds.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

import ventoux
from ventoux import cpu
from ventoux.batch import Backend
from ventoux.checkpoint import Tensor
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Event, Request
from ventoux.model import Mistral

NOVEL = Path(__file__).parents[1] / "tests" / "data" / "moby_dick_chapter_1.txt"


def tasks(model: Mistral, tokens: int) -> dict[str, Request]:
    """Prompts and how many tokens to generate."""
    novel = NOVEL.read_text()
    passage = " ".join(novel.split()[:220])

    def chat(text: str) -> list[int]:
        return model.chat_format.encode([{"role": "user", "content": text}], tokenizer=model.tokenizer)

    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = {
        "copy": model.tokenizer.encode(f"{passage}\n\n{' '.join(passage.split()[:30])}", bos=True),
        "edit": chat(f"Repeat this text word for word, but write 'ocean' for 'sea':\n\n{passage}"),
        "prose": model.tokenizer.encode(novel[:1500], bos=True),
    }
    requests = {name: Request(prompt, greedy) for name, prompt in prompts.items()}
    sampled = replace(greedy, temperature=0.8, seed=1)
    short = model.tokenizer.encode(novel[:100], bos=True)
    return requests | {"sampled": Request(prompts["prose"], sampled), "short": Request(short, sampled)}


def shallow(model: Mistral, layers: int) -> Backend:
    """The model's first layers only: what it would say next if the others added nothing."""
    assert model.checkpoint is not None
    config = replace(model.config, num_layers=layers, windows=model.config.windows[:layers])
    return cpu.Backend(config, model.checkpoint.tensors)


def deep(model: Mistral, idle: int) -> Backend:
    """The model with more layers at its end, which take their time and add zeros."""
    assert model.checkpoint is not None
    tensors, layers = dict(model.checkpoint.tensors), model.config.num_layers
    for i in range(layers, layers + idle):
        for name, tensor in model.checkpoint.tensors.items():
            if name.startswith("layers.0."):
                adds = "o_proj" in name or "down_proj" in name
                data = np.zeros_like(tensor.data) if adds else tensor.data  # blocks of zero bytes are zeros
                own = name.replace("layers.0.", f"layers.{i}.")
                tensors[own] = Tensor(own, tensor.shape, tensor.format, data, tensor.row_order)
    windows = (*model.config.windows, *model.config.windows[:1] * idle)
    return cpu.Backend(replace(model.config, num_layers=layers + idle, windows=windows), tensors)


def run(engine: Engine, request: Request) -> tuple[float, Completion]:
    """Seconds from the first token to the last, and the answer."""
    key, events, first = engine.add(request), [], 0.0
    collected: list[Event] = []
    while engine.busy:
        events = engine.step()
        first = first or (perf_counter() if events else 0.0)
        collected += [event for own, event in events if own == key]
    return perf_counter() - first, Completion(collected)


def compare(make: Callable[[bool], Engine], request: Request, pairs: int) -> tuple[list[tuple[float, float]], str]:
    """Seconds with and without, pair by pair, and the last pair's right guesses of those that were checked."""
    measured, told = [], ""
    for i in range(pairs):
        order = (True, False) if i % 2 else (False, True)
        found = {guesses: run(make(guesses), request) for guesses in order}
        assert found[True][1].ids == found[False][1].ids, "guesses changed the text"
        measured.append((found[True][0], found[False][0]))
        told = f"{found[True][1].guesses.right} of {found[True][1].guesses.checked}"
    return measured, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as ventoux.load takes it (default: the default model)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument("--draft", metavar="MODEL", help="a smaller model of the same vocabulary")
    drafts.add_argument("--draft-layers", type=int, metavar="N")
    drafts.add_argument("--idle-layers", type=int, metavar="N")
    parser.add_argument("--json", action="store_true", help="all measurements, tokens/s, as one object")
    args = parser.parse_args()
    model, draft = ventoux.load(args.model), None
    backend = model.backend
    if args.draft:
        draft = ventoux.load(args.draft).backend
    if args.draft_layers:
        draft = shallow(model, args.draft_layers)
    if args.idle_layers:
        backend, draft = deep(model, args.idle_layers), backend

    def make(guesses: bool) -> Engine:
        if draft:
            return Engine(backend, model.tokenizer, draft=draft if guesses else None)
        return Engine(backend, model.tokenizer, speculates=guesses)

    if args.json:
        measured = {name: compare(make, request, args.pairs)[0] for name, request in tasks(model, args.tokens).items()}
        speeds = {
            name: {kind: [args.tokens / pair[i] for pair in pairs] for i, kind in enumerate(("with", "without"))}
            for name, pairs in measured.items()
        }
        print(json.dumps(speeds))
        return
    what = "draft" if draft else "guesses"
    print(f"| text | with {what}, tokens/s | without, tokens/s | with / without | guesses that were right |")
    print("|---|---|---|---|---|")
    for name, request in tasks(model, args.tokens).items():
        pairs, told = compare(make, request, args.pairs)
        ratios = sorted(without / with_guesses for with_guesses, without in pairs)
        speeds = [args.tokens / median(column) for column in zip(*pairs, strict=True)]
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio} | {told} |", flush=True)


if __name__ == "__main__":
    main()
