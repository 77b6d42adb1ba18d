"""Other models' formats: their own template, and control tokens only where the template itself writes them."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ventoux.chat import sandbox
from ventoux.chat.messages import Turn, parse
from ventoux.errors import ChatError
from ventoux.tokenizer.base import Tokenizer


def encode(
    messages: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    template: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Ids of a conversation as the template writes it, ready for the answer; exactly one BOS if the model takes one.

    What a template writes itself may be a control token. The same characters in a message, a call or a tool stay text.
    """
    turns = parse(messages)
    control = tokenizer.control_tokens()
    conversation = [_message(turn) for turn in turns]
    try:
        masks = _Masks(control, [template, *_texts(conversation), *_texts(tools)])
        conversation = masks.cover(conversation)
        offered = masks.cover(tools) if tools else None
    except RecursionError:
        raise ChatError("expected messages and tools nested a few levels deep, found hundreds") from None
    to_be_continued = turns[-1].role == "assistant" and turns[-1].prefix
    if to_be_continued:
        conversation[-1]["content"] += masks.end
    text = sandbox.render(
        template,
        {
            "messages": conversation,
            "tools": offered,
            "add_generation_prompt": turns[-1].role != "assistant",
            "bos_token": _name(control, tokenizer.bos_id),
            "eos_token": _name(control, tokenizer.eos_id),
        },
    )
    if to_be_continued:
        text = text[: text.rindex(masks.end)] if masks.end in text else _no_prefix(turns[-1])
    return _with_one_bos(_ids(text, control, tokenizer, masks.uncover), tokenizer)


class _Masks:
    """Covers control tokens' names with characters that occur nowhere else, one for each, and uncovers them again."""

    def __init__(self, control: Mapping[str, int], texts: Sequence[str]) -> None:
        size = sum(map(len, texts))
        if size > sandbox.MAX_TEXT:
            raise ChatError(f"expected a conversation of at most {sandbox.MAX_TEXT} characters, found {size}")
        present = set().union(*texts)
        free = (chr(code) for code in range(0xE000, 0x110000) if chr(code) not in present)  # private use first
        self.end = next(free)
        # longest first: "<s>" may stand inside another name
        names = sorted((n for n in control if any(n in text for text in texts)), key=len, reverse=True)
        self._masks = {name: next(free) for name in names}
        self._names = str.maketrans({mask: name for name, mask in self._masks.items()})

    def cover(self, value: Any) -> Any:
        if isinstance(value, str):
            for name, mask in self._masks.items():
                value = value.replace(name, mask)
            return value
        if isinstance(value, Mapping):
            return {self.cover(key): self.cover(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(item) for item in value]
        return value

    def uncover(self, text: str) -> str:
        return text.translate(self._names)


def _texts(value: Any) -> Iterator[str]:
    """Every string in a message or tool, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as templates expect it: content is one string, a call's arguments are an object."""
    message: dict[str, Any] = {"role": turn.role, "content": "\n".join(turn.parts)}
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _object(call.arguments)}}
            for call in turn.calls
        ]
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _object(arguments: str) -> Any:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _name(control: Mapping[str, int], token_id: int | None) -> str:
    return next((name for name, control_id in control.items() if control_id == token_id), "")


def _no_prefix(turn: Turn) -> str:
    raise ChatError(f"message {turn.index}: expected a template that shows the prefix, found one that leaves it out")


def _ids(text: str, control: Mapping[str, int], tokenizer: Tokenizer, uncover: Callable[[str], str]) -> list[int]:
    """Cut the rendered text at the names of control tokens; what stands between them is text."""
    if not control:
        return tokenizer.encode(uncover(text))
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    ids: list[int] = []
    for piece in re.split(f"({names})", text):
        if piece in control:
            ids.append(control[piece])
        elif piece:
            ids += tokenizer.encode(uncover(piece))
    return ids


def _with_one_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The BOS first, once, whether the template writes it or not; none for models whose prompts begin without."""
    bos = tokenizer.encode("", bos=True)
    start = 0
    while bos and ids[start : start + 1] == bos:
        start += 1
    return bos + ids[start:]
