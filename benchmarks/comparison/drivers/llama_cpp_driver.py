"""What `ventoux bench` measures, measured on llama.cpp: run by the interpreter that has llama-cpp-python.

A JSON object for each line on standard input. Knows nothing of Ventoux, which is not installed there. It calls
llama.cpp's own functions, without the Python class that copies each step's logits, and chooses no token, which Ventoux
does within its time.
"""

import argparse
import ctypes
import json
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

import llama_cpp as llama

UBATCH = 512
Token = tuple[int, int, int, bool]  # id, position, sequence, whether it wants logits


class Model:
    """A file with a context for `streams` sequences of `length` positions; llama.cpp's defaults, but for threads."""

    def __init__(self, path: str, *, length: int, streams: int, spare: int, threads: int) -> None:
        llama.llama_backend_init()
        self.quiet = llama.llama_log_callback(lambda *_: None)  # kept: llama.cpp calls it later, too
        llama.llama_log_set(self.quiet, None)
        self.model = llama.llama_load_model_from_file(os.fsencode(path), llama.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = llama.llama_context_default_params()
        params.n_ctx = (length + 255) // 256 * 256 * streams + spare
        params.n_batch = params.n_ubatch = UBATCH
        params.n_seq_max = streams + bool(spare)
        params.kv_unified = bool(spare)
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {params.n_ctx} positions")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(UBATCH, 0, 1)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def decode(self, tokens: Iterable[Token]) -> None:
        """Run tokens in one batch, and wait for their logits."""
        n = 0
        for n, (token, position, sequence, logits) in enumerate(tokens, 1):
            self.batch.token[n - 1], self.batch.pos[n - 1] = token, position
            self.batch.n_seq_id[n - 1], self.batch.seq_id[n - 1][0] = 1, sequence
            self.batch.logits[n - 1] = logits
        self.batch.n_tokens = n
        if (status := llama.llama_decode(self.context, self.batch)) != 0:
            sys.exit(f"llama_decode ended with {status}")
        llama.llama_synchronize(self.context)

    def read(self, ids: list[int], start: int, sequence: int) -> None:
        for at in range(0, len(ids), UBATCH):
            chunk = ids[at : at + UBATCH]
            last = start + len(ids) - 1
            self.decode((token, p, sequence, p == last) for p, token in enumerate(chunk, start + at))

    def forget(self, sequence: int, position: int) -> None:
        """Take back what a sequence has from a position on."""
        llama.llama_memory_seq_rm(self.memory, sequence, position, -1)

    def fill(self, ids: list[int], depth: int) -> None:
        """Give sequence 0 `depth` positions, of which only the first few hundred are computed.

        The rest are copies of their keys and values, rotated to their place by llama.cpp (its context shift): another
        text, but the same memory to read and the same work on it, in seconds instead of the many minutes that reading
        12,288 tokens takes. Needs a spare sequence, 1.
        """
        self.read(ids, 0, 0)
        size = llama.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(self.context, state, size, 0)
        for start in range(len(ids), depth, len(ids)):
            if not llama.llama_state_seq_set_data(self.context, state, size, 1):
                sys.exit("llama.cpp did not take its own state back")
            self.forget(1, depth - start)
            llama.llama_memory_seq_add(self.memory, 1, 0, -1, start)
            llama.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            self.forget(1, -1)
        self.decode([(ids[0], depth, 0, True)])  # the rotation is done before the next batch
        self.forget(0, depth)
        last = llama.llama_memory_seq_pos_max(self.memory, 0)
        assert last == depth - 1, f"the cache ends at {last}"


def resident() -> dict[str, int] | None:
    """Bytes of this process's own memory (RssAnon) and of pages of files (RssFile); None where not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {
        name: int(lines[line].split()[0]) * 1024 for name, line in {"anonymous": "RssAnon", "file": "RssFile"}.items()
    }


def measure(model: Model, prompts: list[list[int]], depth: int, new: int) -> dict[str, object]:
    for sequence in range(len(prompts)):
        model.forget(sequence, depth)
    begun = perf_counter()
    for sequence, prompt in enumerate(prompts):
        model.read(prompt, depth, sequence)
    read = perf_counter()
    first = depth + len(prompts[0])
    for i in range(new):  # which ids makes no difference to the time
        model.decode((prompt[i % len(prompt)], first + i, sequence, True) for sequence, prompt in enumerate(prompts))
    done = perf_counter()
    tokens = sum(len(prompt) for prompt in prompts)
    return {
        "prefill_tok_s": tokens / (read - begun),
        "decode_tok_s": new * len(prompts) / (done - read),
        "resident": resident(),
    }


def version() -> str:
    system = llama.llama_print_system_info().decode()
    features = [
        part.split("=")[0].strip() for part in system.replace("CPU :", "").split("|") if part.strip()[-1:] == "1"
    ]
    return f"llama-cpp-python {llama.__version__} ({' '.join(features)})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("prompt", "new", "depth", "streams", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    length = args.depth + args.prompt + args.new
    spare = UBATCH if args.depth else 0
    model = Model(args.model, length=length, streams=args.streams, spare=spare, threads=args.threads)
    rng = random.Random(0)
    prompts = [[rng.randrange(model.vocabulary) for _ in range(args.prompt)] for _ in range(args.streams)]
    if args.depth:
        model.fill([rng.randrange(model.vocabulary) for _ in range(min(UBATCH, args.depth))], args.depth)
    else:
        measure(model, prompts, 0, args.new)  # each engine runs all of it once before it is measured
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure(model, prompts, args.depth, args.new) | {"version": version()}), flush=True)


if __name__ == "__main__":
    main()
