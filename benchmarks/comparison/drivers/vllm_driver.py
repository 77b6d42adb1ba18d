"""What `ventoux bench` measures, measured on vLLM's CPU backend: a JSON object for each line on standard input."""

import argparse
import json
import os
import random
import sys
from time import perf_counter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("prompt", "new", "depth", "streams", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    assert args.depth == 0, "no row asks for a depth here"
    cpus = sorted(os.sched_getaffinity(0))[: args.threads]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),  # left alone, it keeps a core free for itself
        "OMP_NUM_THREADS": str(args.threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that nothing is left running
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    out = os.dup(1)  # what vLLM prints must not stand among the answers
    os.dup2(2, 1)
    import vllm  # reads the settings above

    length = args.prompt + args.new + 16
    model = vllm.LLM(
        args.model,
        dtype="bfloat16",
        max_model_len=length,
        max_num_seqs=args.streams,
        max_num_batched_tokens=max(512, length),
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        seed=0,
    )
    rng = random.Random(0)
    prompts = [{"prompt_token_ids": [rng.randrange(3, 30000) for _ in range(args.prompt)]} for _ in range(args.streams)]

    def seconds(tokens: int) -> float:
        params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begun = perf_counter()
        model.generate(prompts, params, use_tqdm=False)
        return perf_counter() - begun

    seconds(1 + args.new)  # each engine runs all of it once before it is measured
    os.write(out, b"ready\n")
    for _ in sys.stdin:
        first = seconds(1)
        whole = seconds(1 + args.new)
        found = {
            "prefill_tok_s": args.prompt * args.streams / first,
            "decode_tok_s": args.new * args.streams / (whole - first),
            "version": f"vLLM {vllm.__version__}",
        }
        os.write(out, (json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
