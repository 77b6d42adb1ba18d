"""What `ventoux bench` measures, measured on transformers in bf16: a JSON object for each line on standard input."""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


def resident() -> dict[str, int] | None:
    """Bytes of this process's own memory (RssAnon) and of pages of files (RssFile); None where not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {
        name: int(lines[line].split()[0]) * 1024 for name, line in {"anonymous": "RssAnon", "file": "RssFile"}.items()
    }


@torch.inference_mode()
def measure(model: torch.nn.Module, ids: torch.Tensor, new: int) -> dict[str, object]:
    """`ids` [1, T] are read in one pass, of which the last token's logits are made; then one id at a time."""
    cache = DynamicCache(config=model.config)
    begun = perf_counter()
    step = model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    read = perf_counter()
    for _ in range(new):
        step = model(step, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    done = perf_counter()
    return {
        "prefill_tok_s": ids.shape[1] / (read - begun),
        "decode_tok_s": new / (done - read),
        "resident": resident(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("prompt", "new", "depth", "streams", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    assert args.depth == 0, "no row asks for a depth here"
    assert args.streams == 1, "no row asks for streams here"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    ids = torch.randint(model.config.vocab_size, (1, args.prompt))
    measure(model, ids, args.new)  # each engine runs all of it once before it is measured
    print("ready", flush=True)
    for _ in sys.stdin:
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        print(json.dumps(measure(model, ids, args.new) | {"version": versions}), flush=True)


if __name__ == "__main__":
    main()
