"""Ventoux's engine without a server: bodies of requests come as a line of JSON, their times go out as one."""

import argparse
import json
import sys
from time import perf_counter

import ventoux
from ventoux.decoding import SamplingParams
from ventoux.engine import Finished, Request, Token
from ventoux.server import Settings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    model = ventoux.load(args.model, threads=args.threads)
    usual = Settings(("model",))
    for line in sys.stdin:
        asked = json.loads(line)
        engine = model.new_engine(budget=usual.token_budget, max_sequences=usual.max_running)
        print(json.dumps(run(model, engine, asked["bodies"], asked["clients"])), flush=True)


def run(model: ventoux.Mistral, engine: ventoux.engine.Engine, bodies: list[dict], clients: int) -> list[dict]:
    """Keep as many requests alive as there would be clients -> for each, the times of its beginning and its tokens."""
    waiting, alive, done = bodies[::-1], {}, []
    while waiting or alive:
        while waiting and len(alive) < clients:
            body = waiting.pop()
            params = SamplingParams(temperature=0, max_tokens=body["max_tokens"], ignore_eos=True)
            begun = perf_counter()
            key = engine.add(Request(model.tokenizer.encode(body["prompt"], bos=True), params))
            alive[key] = {"begun": begun, "times": [], "tokens": 0}
        events = engine.step()
        now = perf_counter()
        for key, event in events:
            if isinstance(event, Token):
                alive[key]["tokens"] += 1
                if event.text:
                    alive[key]["times"].append(now)
            elif isinstance(event, Finished):
                done.append({**alive.pop(key), "ended": now})
    return done


if __name__ == "__main__":
    main()
