"""One measurement of Ventoux for each line on standard input, as `ventoux bench` makes it: a JSON object a line."""

import argparse
import json
import os
import sys
import threading

import ventoux
from ventoux.cli.bench import Prepared, Shape, machine_of
from ventoux.cpu.packing import Writer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("prompt", "new", "depth", "streams", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--window", type=int)
    args = parser.parse_args()
    model = ventoux.load(args.model, threads=args.threads, window=args.window)
    shape = Shape(prompt=args.prompt, new=args.new, depth=args.depth, streams=args.streams)
    shape.check(model.config.context_length)
    prepared = Prepared.of(model.backend, shape)
    if not args.depth:
        prepared.once()  # each engine runs all of it once before it is measured
    for thread in threading.enumerate():
        if isinstance(thread, Writer):
            thread.join()  # it writes the packed weights, at the first start with a model
            os.sync()  # and the system to the disk
    print("ready", flush=True)
    for _ in sys.stdin:
        run = prepared.once()
        found = {
            "prefill_tok_s": run.prefill_tok_s,
            "decode_tok_s": run.decode_tok_s,
            "resident": run.resident,
            "machine": machine_of(prepared, [run]),
            "version": f"Ventoux {ventoux.__version__} ({model.backend.description})",
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
