"""What `ventoux bench` measures, measured on llama.cpp: run by the interpreter that has llama-cpp-python.

Prints one JSON object with the lists prefill_tok_s and decode_tok_s. Knows nothing of Ventoux, which is not installed
there.
"""

import argparse
import json
import random
from time import perf_counter

import llama_cpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("prompt", "new", "repeat", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    model = llama_cpp.Llama(
        args.model,
        n_ctx=args.prompt + args.new + 16,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_batch=512,
        verbose=False,
    )
    rng = random.Random(0)
    prompt = [rng.randrange(model.n_vocab()) for _ in range(args.prompt)]
    model.eval(prompt[:16])  # warm up: the weights come into memory
    model.eval(prompt[:1])
    prefill, decode = [], []
    for _ in range(args.repeat):
        model.reset()
        begun = perf_counter()
        model.eval(prompt)
        read = perf_counter()
        for i in range(args.new):  # which ids makes no difference to the time
            model.eval([prompt[i % len(prompt)]])
        done = perf_counter()
        prefill.append(args.prompt / (read - begun))
        decode.append(args.new / (done - read))
    system = llama_cpp.llama_print_system_info().decode()
    features = [
        part.split("=")[0].strip() for part in system.replace("CPU :", "").split("|") if part.strip()[-1:] == "1"
    ]
    print(
        json.dumps(
            {
                "prefill_tok_s": prefill,
                "decode_tok_s": decode,
                "threads": args.threads,
                "version": llama_cpp.__version__,
                "system": " ".join(features),
            }
        )
    )


if __name__ == "__main__":
    main()
