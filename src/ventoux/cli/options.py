"""The flags that several commands share, and what becomes of them.

argparse, because it costs 20 ms of a start in which the model answers within a second; typer costs 270.
"""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ventoux.errors import RequestError, shown

if TYPE_CHECKING:
    from ventoux.model import Mistral

CHAT_FORMATS = ("v1", "v2", "v3", "v7", "template")
MODEL_HELP = "folder, .gguf file, alias or hub id (default: SmolLM2-135M-Instruct)"
SAMPLING = {
    "max_tokens": (int, "N", "tokens at most (default: up to the end of the context)"),
    "temperature": (float, "X", "0 always takes the likeliest token (default: 0.7)"),
    "top_p": (float, "X", "keep the likeliest tokens that hold this much probability (default: 1, all)"),
    "top_k": (int, "N", "keep the N likeliest tokens (default: 0, all)"),
    "min_p": (float, "X", "keep tokens at least this fraction as likely as the likeliest (default: 0, all)"),
    "repetition_penalty": (float, "X", "divide the logits of tokens seen before (default: 1)"),
    "presence_penalty": (float, "X", "subtract from the logits of tokens generated before (default: 0)"),
    "frequency_penalty": (float, "X", "subtract for each time a token was generated (default: 0)"),
    "seed": (int, "N", "the same seed gives the same text (default: different each time)"),
}


class UsageError(Exception):
    """A wrong flag that argparse alone cannot see; told as argparse tells its own."""


class Parser(ArgumentParser):
    """argparse with flags written in full, and wrong usage as one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ventoux: error: {message}; see {self.prog} --help\n")


def model_flags() -> ArgumentParser:
    """Which model, and how it is computed."""
    flags = Parser(add_help=False)
    group = flags.add_argument_group("the model")
    group.add_argument("-m", "--model", metavar="MODEL", help=MODEL_HELP)
    group.add_argument(
        "--window", type=window, metavar="N", help="sliding window in keys, which a GGUF file cannot say; off for none"
    )
    group.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    group.add_argument(
        "--compute",
        choices=["auto", "mixed", "int16", "f32"],
        default="auto",
        help="cpu: mixed rounds activations to 8 bits and where it matters to 11, 12 or 16, or to 14 (K-quants on some"
        " machines); int16 all to 16; f32 none; auto is what suits the checkpoint (default)",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=["auto", "f32", "f16", "int8"],
        default="auto",
        help="cpu: keys and values; int8 takes half of f16; auto is f16 beside int16, f32 beside f32 (default)",
    )
    group.add_argument(
        "--no-speculation", action="store_true", help="one token at a time, also where the text repeats itself"
    )
    group.add_argument(
        "--backend",
        choices=["cpu", "pytorch"],
        default="cpu",
        help="our own kernels (default), or torch, which the extra [torch] brings",
    )
    group.add_argument("--device", metavar="NAME", help="pytorch: cpu (default), cuda, cuda:1, mps")
    group.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], help="pytorch: default fp32 on a CPU, bf16 elsewhere"
    )
    return flags


def draft_flag() -> ArgumentParser:
    """For commands that generate."""
    flags = Parser(add_help=False)
    flags.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="a smaller model of the same vocabulary that guesses ahead; same text",
    )
    return flags


def adapter_flag() -> ArgumentParser:
    """For commands that generate."""
    flags = Parser(add_help=False)
    flags.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter of the model, as PEFT saves it")
    return flags


def load(args: Namespace, *, name: str | None = None, adapters: Mapping[str, str] | None = None) -> "Mistral":
    """The model that the flags mean, with LoRA adapters by name; `name` stands for --model where a command takes it as
    an argument."""
    from ventoux.loading import load

    if (adapter := getattr(args, "adapter", None)) is not None:
        adapters = {adapter: adapter}

    if name is not None and args.model is not None:
        raise UsageError(f"the model is named twice, {shown(name)} and {shown(args.model)}; name it once")
    try:
        return load(
            args.model if name is None else name,
            window=args.window,
            backend=args.backend,
            device=args.device,
            dtype=args.dtype,
            threads=args.threads,
            compute=args.compute,
            kv_cache_dtype=args.kv_cache_dtype,
            chat_format=getattr(args, "chat_format", None),
            speculation=not args.no_speculation,
            draft_model=getattr(args, "draft_model", None),
            adapters=adapters,
        )
    except RequestError as error:  # what is wrong with a file has errors of its own
        raise wrong_flag(error, ("threads", "compute", "kv_cache_dtype", "device", "dtype", "draft_model")) from error


def sampling_flags() -> ArgumentParser:
    """How each token is chosen, and when to stop. What is left out is up to `SamplingParams`."""
    flags = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = flags.add_argument_group("sampling")
    for name, (kind, metavar, text) in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--logit-bias", type=bias, action="append", metavar="ID=X", help="add to one token's logit; repeatable"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    group.add_argument(
        "--stop-id", type=int, action="append", dest="stop_ids", metavar="ID", help="end before this token; repeatable"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the end of the text")
    return flags


def sampling(args: Namespace) -> dict[str, Any]:
    """The flags that were given, under their names in `SamplingParams`, checked before a model is loaded."""
    from ventoux.decoding import SamplingParams
    from ventoux.engine import Request

    names = (*SAMPLING, "logit_bias", "stop", "stop_ids", "ignore_eos", "logprobs")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    try:
        Request((), SamplingParams(**given))
    except RequestError as error:
        raise wrong_flag(error, names) from error
    return given


def wrong_flag(error: RequestError, names: Sequence[str]) -> UsageError:
    """top_p must be ... -> --top-p must be ..."""
    text = re.sub(rf"\b({'|'.join(names)})\b", lambda name: f"--{name[0].replace('_', '-')}", str(error), count=1)
    return UsageError(text.replace("--stop-ids", "--stop-id", 1))


def counted(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def bias(text: str) -> tuple[int, float]:
    """15=-2.5 -> (15, -2.5)"""
    try:
        token_id, value = text.split("=")
        return int(token_id), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ID=X, for example 15=-2.5, found {text!r}") from None


def window(text: str) -> int | str:
    return text if text == "off" else positive(text, other="off or ")


def positive(text: str, *, other: str = "") -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected {other}a whole number of at least 1, found {text!r}")
    return int(text)
