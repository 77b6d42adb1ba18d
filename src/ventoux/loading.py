"""`ventoux.load`: from a path or a name to a model that is ready to run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ventoux.backends import choose, compute_with
from ventoux.errors import RequestError, shown
from ventoux.model import Mistral
from ventoux.vocabulary import check_same_vocabulary, texts

_MAX_THREADS = 1024
_PREFIX_BYTES = 1 << 30  # of keys and values that are kept for what begins alike: a 7B's 8,000 positions


def load(
    path: str | Path | None = None,
    *,
    backend: Literal["cpu", "pytorch"] = "cpu",
    device: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    window: int | Literal["off"] | None = None,
    threads: int | None = None,
    compute: Literal["auto", "mixed", "int16", "f32"] = "auto",
    kv_cache_dtype: Literal["auto", "f32", "f16", "int8"] = "auto",
    chat_format: str | None = None,
    speculation: bool = True,
    draft_model: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> Mistral:
    """A model from a folder (raw or Hugging Face), a .gguf file, an alias or a hub id; None is the default model.

    backend      "cpu" for our own kernels, "pytorch" for torch (the extra [torch])
    device       pytorch's: "cpu", "cuda", "cuda:1", "mps"; None is "cpu"
    dtype        pytorch's: "fp32", "bf16" or "fp16"; None is fp32 on a CPU and bf16 elsewhere
    window       keys that a query sees, "off" for all of them; None is what the checkpoint says
    threads      of the kernels, or of torch in the whole process; None is one for each physical core, or torch's choice
    compute      the kernels': activations in 8 bits and where it matters in 11, 12 or 16, or in 14 ("mixed"), in 16
                 ("int16"), in float32 ("f32"); "auto" suits the checkpoint
    kv_cache_dtype  the kernels': keys and values in "f32", "f16" or "int8"; "auto" is f32 beside f32, else f16
    chat_format  "v1", "v2", "v3", "v7", or "template"; None is what the checkpoint wants
    speculation  guess what the text repeats, and check several tokens at once where that is faster: the same text
    draft_model  a smaller model of the same vocabulary, named as `path`, which guesses the rest, while that is faster
    adapters     LoRA adapters that requests may choose: names -> folders as PEFT saves them

    Raises RequestError, MissingExtraError, CheckpointError, ConfigError, TokenizerError, ChatError, DownloadError or
    OutOfMemoryError, which say what was found and what to do. A checkpoint without a tokenizer loads: ids and logits
    work, text is a TokenizerError.
    """
    from ventoux import checkpoint
    from ventoux.checkpoint import pull

    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MAX_THREADS):
        raise RequestError(f"threads must be a whole number from 1 to {_MAX_THREADS}, found {threads!r}")
    if compute not in ("auto", "mixed", "int16", "f32"):
        raise RequestError(f"compute must be auto, mixed, int16 or f32, found {shown(compute)}")
    if kv_cache_dtype not in ("auto", "f32", "f16", "int8"):
        raise RequestError(f"kv_cache_dtype must be auto, f32, f16 or int8, found {shown(kv_cache_dtype)}")
    if draft_model is not None and (backend != "cpu" or not speculation):
        raise RequestError("draft_model needs the cpu backend and speculation, which check what it guesses")
    kernels = {"compute": compute, "kv_cache_dtype": kv_cache_dtype}
    make = choose(backend, kernels, device=device, dtype=dtype, threads=threads)  # before anything is fetched
    found = checkpoint.read(pull.resolve(None if path is None else str(path)))
    config = found.config
    if window is not None:
        config = config.with_window(None if window == "off" else window)
    tokenizer, template = texts(found)
    draft = None
    if draft_model is not None:
        smaller = checkpoint.read(pull.resolve(str(draft_model)))
        check_same_vocabulary(smaller, found, tokenizer)  # before the weights, which take longer
        draft = compute_with(make, smaller, smaller.config)
    return Mistral(
        compute_with(make, found, config, adapters=adapters),
        tokenizer=tokenizer,
        template=template,
        chat_format=chat_format,
        checkpoint=found,
        speculation=speculation,
        draft=draft,
        prefix_bytes=_PREFIX_BYTES,
    )
