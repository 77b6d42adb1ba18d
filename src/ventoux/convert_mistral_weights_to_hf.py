"""`python -m ventoux.convert_mistral_weights_to_hf`: the flags of transformers' converter, for `convert --to hf`.

    python -m ventoux.convert_mistral_weights_to_hf --input_dir mistral-7B-v0.1 --model_size 7B --output_dir out

Its later versions take the two folders without flags, and so does this.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import NoReturn

from ventoux.errors import ConversionError, VentouxError

ABOUT = "Write mistral-src's weights (params.json, consolidated.*) in Hugging Face's layout, in the format they have."


class Parser(ArgumentParser):
    """Wrong usage as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> None:
    """Exits 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    flags = parser()
    args = flags.parse_args(arguments)
    source, target = (args.input_dir or args.input, args.output_dir or args.output)
    if source is None or target is None:
        flags.error("expected --input_dir and --output_dir")
    if (args.input_dir and args.input) or (args.output_dir and args.output):
        flags.error("a folder is named twice; name it once")
    if not args.safe_serialization:
        flags.error("--safe_serialization false: only safetensors are written, never pickles")
    try:
        run(args, Path(source), Path(target))
    except KeyboardInterrupt:
        sys.exit(130)
    except (VentouxError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def parser() -> ArgumentParser:
    flags = Parser(prog="python -m ventoux.convert_mistral_weights_to_hf", description=ABOUT, allow_abbrev=False)
    flags.add_argument("input", nargs="?", metavar="INPUT_DIR", help="the same as --input_dir")
    flags.add_argument("output", nargs="?", metavar="OUTPUT_DIR", help="the same as --output_dir")
    flags.add_argument("--input_dir", help="folder of params.json, the weights and the tokenizer")
    flags.add_argument("--output_dir", help="folder to write, which must not be there yet, or be empty")
    flags.add_argument(
        "--model_size", choices=["7B", "tokenizer_only"], default="7B", help="params.json says the size (default: 7B)"
    )
    flags.add_argument("--tokenizer_only", action="store_true", help="convert the tokenizer and no weights")
    flags.add_argument("--is_v3", action="store_true", help="refuse a tokenizer that is not v3; it is found out anyway")
    flags.add_argument(
        "--max_position_embeddings", type=whole, metavar="N", help="default: what params.json says, else 32768"
    )
    flags.add_argument(
        "--modules_are_split", action="store_true", help="refuse weights in one file; it is found out anyway"
    )
    flags.add_argument(
        "--safe_serialization", type=truth, nargs="?", const=True, default=True, help="true: pickles are not written"
    )
    flags.add_argument(
        *("--tokenizer_template_name", "--template_name"),
        metavar="MODEL",
        help="take the chat template of this model: a folder, a .gguf file, an alias or a hub id",
    )
    return flags


def run(args: Namespace, source: Path, target: Path) -> None:
    from ventoux.cli.convert import summarize
    from ventoux.conversion import convert, convert_tokenizer

    check(args, source)
    template = template_of(args.tokenizer_template_name) if args.tokenizer_template_name else None
    if args.tokenizer_only or args.model_size == "tokenizer_only":
        summarize(convert_tokenizer(source, target, chat_template=template))
        return
    length = args.max_position_embeddings
    summarize(convert(source, target, to="hf", context_length=length, chat_template=template, prefer_raw=True))


def check(args: Namespace, source: Path) -> None:
    """The folder is what the flags say it is."""
    from ventoux import tokenizer

    if not source.is_dir():
        raise ConversionError(f"{source}: expected a folder of mistral-src's layout, found none; check --input_dir")
    if not (source / "params.json").is_file() and not (args.tokenizer_only or args.model_size == "tokenizer_only"):
        raise ConversionError(f"{source}: expected params.json of mistral-src's layout, found none; check --input_dir")
    if args.modules_are_split and len(list(source.glob("consolidated.*"))) < 2:
        raise ConversionError(f"{source}: --modules_are_split was given, but the weights are not in several files")
    if args.is_v3 and (version := tokenizer.load(source).version) != "v3":
        raise ConversionError(f"{source}: --is_v3 was given, but the tokenizer is {version or 'no Mistral version'}")


def template_of(name: str) -> str:
    from ventoux import gguf
    from ventoux.chat import template_in
    from ventoux.checkpoint import pull

    path = pull.resolve(name)
    found = template_in(path) if path.is_dir() else gguf.read(path).metadata.get("tokenizer.chat_template")
    if not isinstance(found, str):
        raise ConversionError(f"{name}: expected a model with a chat template, found none; name another")
    return found


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() in ("true", "1")


if __name__ == "__main__":
    main()
