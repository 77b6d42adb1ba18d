"""`generate`: a prompt in, its continuation out, as text that streams or as one JSON object."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ventoux.engine import Finished, Token
from ventoux.errors import RequestError, shown
from ventoux.model import Mistral


def read_text(argument: str | None) -> str:
    """The argument, or all of standard input; one closing newline, which `echo` adds, is not part of it."""
    if argument is not None:
        return argument
    if sys.stdin.isatty():
        raise RequestError("expected a text as argument or on standard input, found neither; see --help")
    return sys.stdin.read().removesuffix("\n")


def read_schema(path: str) -> dict[str, Any]:
    """The JSON object in a file. Raises RequestError when there is none."""
    try:
        schema = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RequestError(f"{path}: expected a JSON schema, it cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected a JSON schema, found no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise RequestError(f"{path}: expected a JSON schema, an object, found {shown(schema)}")
    return schema


def generate(model: Mistral, prompt: str, *, as_json: bool, **sampling: Any) -> None:
    events = model.stream(prompt, **sampling)
    if as_json:
        print(json.dumps(collect(list(events)), ensure_ascii=False))
        return
    try:
        for event in events:
            print(event.text, end="", flush=True)
    finally:  # Ctrl-C too: the shell's prompt gets a line of its own
        print(flush=True)


def collect(events: list[Token | Finished]) -> dict[str, Any]:
    """What --json prints. Timings are seconds; logprobs stand there when they were asked for."""
    tokens = [event for event in events if isinstance(event, Token)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    timings = {**asdict(finished.timings), "prompt_tok_s": finished.prompt_tok_s, "decode_tok_s": finished.decode_tok_s}
    answer: dict[str, Any] = {
        "text": "".join(event.text for event in events),
        "ids": [token.id for token in tokens],
        "finish_reason": finished.reason,
        "usage": asdict(finished.usage),
        "guesses": asdict(finished.guesses),
        "timings": timings,
    }
    if tokens and tokens[0].logprob is not None:
        answer["logprobs"] = [{"logprob": token.logprob, "top": token.top_logprobs} for token in tokens]
    return answer
