"""The commands and their flags. What they do stands in the modules beside this one, imported when they are called."""

import argparse
import functools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from ventoux.cli.options import (
    CHAT_FORMATS,
    MODEL_HELP,
    Parser,
    UsageError,
    adapter_flag,
    draft_flag,
    load,
    model_flags,
    positive,
    sampling,
    sampling_flags,
    window,
)
from ventoux.errors import shown

ABOUT = "Run Mistral 7B and its relatives on a CPU."
FORMAT = functools.partial(argparse.HelpFormatter, max_help_position=30)

Run = Callable[[Namespace], None]


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and do what they say."""
    args = parser(arguments[0]).parse_args(arguments)
    try:
        args.run(args)
    except UsageError as error:
        args.parser.error(str(error))


def parser(first: str = "") -> ArgumentParser:
    """For arguments that begin with `first`: when that is a command, of this one alone, which takes less time."""
    top = Parser(prog="ventoux", description=ABOUT, formatter_class=FORMAT)
    top.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    top.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error, and why weights are packed; allowed anywhere",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name in [first] if first in COMMANDS else COMMANDS:
        COMMANDS[name](functools.partial(command, commands, name))
    return top


class Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from importlib.metadata import version

        print(f"ventoux {version('ventoux')}")
        sys.exit()


def command(
    commands: Any, name: str, about: str, run: Run, *, parents: Sequence[ArgumentParser] = ()
) -> ArgumentParser:
    """Add one command; the first sentence of `about` stands in the list of commands."""
    added: ArgumentParser = commands.add_parser(
        name, help=about.split(".")[0], description=about, parents=parents, formatter_class=FORMAT
    )
    added.set_defaults(run=run, parser=added)
    return added


Add = Callable[..., ArgumentParser]


def add_pull(add: Add) -> None:
    about = (
        "Fetch a model and print its path. One that is here already is checked: the default model by its hash, others"
        " by asking the hub again. A hub id is org/name, or org/name:file.gguf for one file of several."
    )
    add(about, pull).add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)


def pull(args: Namespace) -> None:
    from ventoux.checkpoint.pull import pull

    print(pull(args.name))


def add_info(add: Add) -> None:
    about = "Show what a model is and what will be used. Sizes, tensors, window, tokenizer, chat format, arithmetic."
    flags = add(about, info, parents=[model_flags()])
    flags.add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_chat_format(flags)
    add_json(flags)


def info(args: Namespace) -> None:
    from ventoux.cli.info import info

    info(load(args, name=args.name), as_json=args.json)


def add_demo(add: Add) -> None:
    flags = add("Continue the reference's three prompts.", demo, parents=[model_flags(), draft_flag(), adapter_flag()])
    add_reference_flags(flags, temperature=0.0)


def demo(args: Namespace) -> None:
    from ventoux.cli.reference import demo

    checked = sampling(args)
    demo(load(args, name=args.name), adapter=args.adapter, **checked)


def add_interactive(add: Add) -> None:
    about = "Continue prompt after prompt, as the reference does. Ends with the input (Ctrl-D)."
    flags = add(about, interactive, parents=[model_flags(), draft_flag(), adapter_flag()])
    add_reference_flags(flags, temperature=0.7)
    flags.add_argument("--instruct", action="store_true", help="talk in turns, in the model's chat format")


def interactive(args: Namespace) -> None:
    from ventoux.cli.reference import interactive

    checked = sampling(args)
    interactive(load(args, name=args.name), instruct=args.instruct, adapter=args.adapter, **checked)


def add_generate(add: Add) -> None:
    flags = add("Continue a text.", generate, parents=[model_flags(), draft_flag(), adapter_flag(), sampling_flags()])
    flags.add_argument("prompt", nargs="?", metavar="PROMPT", help="default: standard input")
    flags.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        default=argparse.SUPPRESS,
        help="with --json: log-probabilities, of the K likeliest too",
    )
    shape = flags.add_mutually_exclusive_group()
    shape.add_argument("--json-schema", metavar="FILE", help="the text is JSON, valid by the schema in this file")
    shape.add_argument("--regex", metavar="PATTERN", help="the text matches this regular expression as a whole")
    add_json(flags)


def generate(args: Namespace) -> None:
    from ventoux.cli.generate import generate, read_schema, read_text

    checked = sampling(args)
    if "logprobs" in checked and not args.json:
        raise UsageError("--logprobs needs --json")
    schema = None if args.json_schema is None else read_schema(args.json_schema)
    prompt = read_text(args.prompt)
    generate(
        load(args), prompt, as_json=args.json, json_schema=schema, regex=args.regex, adapter=args.adapter, **checked
    )


def add_serve(add: Add) -> None:
    from ventoux.cli.serve import serve, serve_flags

    about = (
        "Serve the OpenAI and Mistral HTTP APIs, and a chat page. Listens on this machine alone unless told otherwise;"
        " SIGTERM or Ctrl-C finishes what runs, and ends."
    )
    flags = add(about, serve, parents=[model_flags(), draft_flag()])
    flags.add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)
    serve_flags(flags)
    add_chat_format(flags)


def add_chat(add: Add) -> None:
    about = "Talk with a model. Alt-Enter starts a new line, Ctrl-C stops an answer, /help lists the commands."
    flags = add(about, chat, parents=[model_flags(), draft_flag(), adapter_flag(), sampling_flags()])
    flags.add_argument("--message", metavar="TEXT", help="answer this one message and exit")
    flags.add_argument("--system", metavar="TEXT", help="the system prompt")
    flags.add_argument("--safe-prompt", action="store_true", help="put Mistral's guardrail prompt first")
    add_chat_format(flags)


def chat(args: Namespace) -> None:
    from ventoux.cli.chat import Conversation, one_shot, talk

    checked = sampling(args)
    if args.message is not None and not args.message.strip():
        raise UsageError("--message is empty; give it a text to answer")
    checked["adapter"] = args.adapter
    conversation = Conversation(load(args), system=args.system, safe_prompt=args.safe_prompt, sampling=checked)
    if args.message is not None:
        one_shot(conversation, args.message)
    else:
        talk(conversation)


def add_tokenize(add: Add) -> None:
    flags = add("Show the tokens of a text.", tokenize, parents=[model_flags()])
    flags.add_argument("text", nargs="?", metavar="TEXT", help="default: standard input")
    flags.add_argument("--chat", action="store_true", help="as a user's message, in the model's chat format")
    add_chat_format(flags)
    add_json(flags)


def tokenize(args: Namespace) -> None:
    from ventoux.cli.generate import read_text
    from ventoux.cli.tokenize import tokenize

    if args.chat_format is not None and not args.chat:
        raise UsageError("--chat-format needs --chat")
    text = read_text(args.text)
    tokenize(load(args), text, chat=args.chat, as_json=args.json)


def add_bench(add: Add) -> None:
    about = (
        "Measure the speed of prefill and decode. In tokens per second, of all streams together: prefill reads the"
        " prompt, decode adds one token a step. What is timed is the model's forward passes and the choice of the"
        " likeliest token, after one short warm-up; making text out of ids is not. The prompt's ids are random."
        " Beside them stands what the machine can do at most, and what share of it was reached."
    )
    flags = add(about, bench, parents=[model_flags()])
    flags.add_argument("--prompt", type=positive, default=512, metavar="N", help="tokens to read (default: 512)")
    flags.add_argument("--new", type=positive, default=32, metavar="N", help="tokens to decode (default: 32)")
    flags.add_argument("--depth", type=int, default=0, metavar="N", help="positions in the cache before (default: 0)")
    flags.add_argument("--streams", type=positive, default=1, metavar="N", help="sequences at once (default: 1)")
    flags.add_argument("--repeat", type=positive, default=3, metavar="N", help="measurements (default: 3)")
    add_json(flags)


def bench(args: Namespace) -> None:
    from ventoux.cli.bench import Shape, bench

    shape = Shape(prompt=args.prompt, new=args.new, depth=args.depth, streams=args.streams)
    bench(load(args), shape, repeat=args.repeat, as_json=args.json)


def add_convert(add: Add) -> None:
    from ventoux.cli.convert import size

    about = (
        "Write a checkpoint in another layout or number format. SRC is what -m takes elsewhere. DST must not be there"
        " yet, and appears when it is complete. Tokenizer and chat template go along."
    )
    flags = add(about, convert)
    flags.add_argument("src", metavar="SRC", help=MODEL_HELP.partition(" (")[0])
    flags.add_argument("dst", metavar="DST", help="a folder (raw, hf) or a file (gguf)")
    flags.add_argument(
        "--to", required=True, choices=["raw", "hf", "gguf"], help="mistral-src's layout, Hugging Face's, llama.cpp's"
    )
    flags.add_argument(
        "--dtype",
        choices=["f32", "f16", "bf16", "q8_0", "q4_0"],
        help="q8_0 and q4_0 for gguf only (default: as it is; block formats become f32 in folders, which is exact)",
    )
    flags.add_argument(
        "--shard-size", type=size, metavar="SIZE", help="hf: largest file of weights, such as 500MB (default: 5GB)"
    )
    flags.add_argument(
        "--window",
        type=window,
        metavar="N",
        help="sliding window in keys for a source that does not say it; off for none",
    )


def convert(args: Namespace) -> None:
    from ventoux.cli.convert import summarize
    from ventoux.conversion import convert

    if args.shard_size is not None and args.to != "hf":
        raise UsageError("--shard-size needs --to hf; the others have one file of weights")
    if args.to != "gguf" and args.dtype in ("q8_0", "q4_0"):
        raise UsageError(f"--dtype {args.dtype} needs --to gguf")
    if args.to != "gguf" and args.dst.endswith(".gguf"):
        raise UsageError(f"--to {args.to} writes a folder, but {shown(args.dst)} is named as a GGUF file")
    done = convert(args.src, args.dst, to=args.to, dtype=args.dtype, shard_size=args.shard_size, window=args.window)
    summarize(done)


def add_cache(add: Add) -> None:
    about = (
        "Show the packed weights that are kept for the next start. Size, last use, whether they are good, and the"
        " model; `clear` deletes them all. What was not used for longest goes by itself when there are more than"
        " VENTOUX_PACKED_GB gigabytes (20; 0 keeps none)."
    )
    flags = add(about, cache)
    flags.add_argument("action", nargs="?", choices=["clear"], metavar="clear", help="delete them all")
    add_json(flags)


def cache(args: Namespace) -> None:
    from ventoux.cli.cache import cache

    cache(args.action, as_json=args.json)


COMMANDS: dict[str, Callable[[Add], None]] = {
    "pull": add_pull,
    "info": add_info,
    "demo": add_demo,
    "interactive": add_interactive,
    "generate": add_generate,
    "chat": add_chat,
    "serve": add_serve,
    "tokenize": add_tokenize,
    "bench": add_bench,
    "convert": add_convert,
    "cache": add_cache,
}


def add_reference_flags(flags: ArgumentParser, *, temperature: float) -> None:
    flags.add_argument("name", nargs="?", metavar="MODEL", help=MODEL_HELP)
    flags.add_argument(
        "--max_tokens", "--max-tokens", type=int, default=35, metavar="N", help="tokens a prompt (default: 35)"
    )
    flags.add_argument(
        "--temperature", type=float, default=temperature, metavar="X", help=f"0 is greedy (default: {temperature:g})"
    )


def add_chat_format(flags: ArgumentParser) -> None:
    text = "v1, v2, v3 or v7, or template for the checkpoint's own (default: what the checkpoint wants)"
    flags.add_argument("--chat-format", choices=CHAT_FORMATS, metavar="NAME", help=text)


def add_json(flags: ArgumentParser) -> None:
    flags.add_argument("--json", action="store_true", help="print one JSON object")
