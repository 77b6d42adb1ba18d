#!/usr/bin/env python3
"""Decoding with guesses and without, in turns: on text that the prompt holds already, and on text that it does not.

    python benchmarks/speculation.py [--model MODEL] [--pairs 5]

`copy` has a passage and its first sentences again, and goes on with it; `edit` asks for the passage with a word
changed; `prose` goes on with a novel.
The two engines share one model and run in turns; each pair must give the same tokens, and gives one ratio of seconds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import ventoux
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Event, Request
from ventoux.model import Mistral

NOVEL = Path(__file__).parents[1] / "tests" / "data" / "moby_dick_chapter_1.txt"


def tasks(model: Mistral, tokens: int) -> dict[str, Request]:
    """Prompts and how many tokens to generate; greedy."""
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
    return {name: Request(prompt, greedy) for name, prompt in prompts.items()}


def run(engine: Engine, request: Request) -> tuple[float, list[int]]:
    """Seconds from the first token to the last, and the ids."""
    key, events, first = engine.add(request), [], 0.0
    collected: list[Event] = []
    while engine.busy:
        events = engine.step()
        first = first or (perf_counter() if events else 0.0)
        collected += [event for own, event in events if own == key]
    return perf_counter() - first, Completion(collected).ids


def compare(make: Callable[[bool], Engine], request: Request, pairs: int) -> list[tuple[float, float]]:
    measured = []
    for _ in range(pairs):
        (with_guesses, ids), (without, same) = (run(make(guesses), request) for guesses in (True, False))
        assert ids == same, "guesses changed the text"
        measured.append((with_guesses, without))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as ventoux.load takes it (default: the default model)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="all measurements, tokens/s, as one object")
    args = parser.parse_args()
    model = ventoux.load(args.model)

    def make(guesses: bool) -> Engine:
        return Engine(model.backend, model.tokenizer, speculates=guesses)

    if args.json:
        measured = {name: compare(make, request, args.pairs) for name, request in tasks(model, args.tokens).items()}
        speeds = {
            name: {kind: [args.tokens / pair[i] for pair in pairs] for i, kind in enumerate(("with", "without"))}
            for name, pairs in measured.items()
        }
        print(json.dumps(speeds))
        return
    print("| text | with guesses, tokens/s | without, tokens/s | with / without |")
    print("|---|---|---|---|")
    for name, request in tasks(model, args.tokens).items():
        pairs = compare(make, request, args.pairs)
        ratios = sorted(without / with_guesses for with_guesses, without in pairs)
        speeds = [args.tokens / median(column) for column in zip(*pairs, strict=True)]
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
