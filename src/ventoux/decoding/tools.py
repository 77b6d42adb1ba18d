"""Which calls of tools an answer may make, as a constraint."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ventoux.chat.answers import CallStyle
from ventoux.chat.format import ChatFormat
from ventoux.chat.messages import parse_tools
from ventoux.decoding.grammar import Constraint, Grammars
from ventoux.errors import ChatError, GrammarError, RequestError, shown

_MOST_CALLS = 16  # in one answer that has to call: a small model would call for ever
_ANY = {"type": "object"}
_TEXT = "text: /(?s:.*)/\n"


def tool_calls(
    grammars: Grammars,
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    choice: str | Mapping[str, Any] = "auto",
    chat_format: ChatFormat,
    parallel: bool = True,
) -> Constraint | None:
    """What an answer to a request with tools has to look like, None for anything.

    choice is "auto", "none", "any" or "required" (the same), or {"type": "function", "function": {"name": ...}}.
    Arguments are valid by the tool's parameters. Where those cannot be followed, they are any object, unless the tool
    is `strict`. With `parallel` false there is one call at most. An answer of choice "auto" is constrained where it has
    to be (a strict tool, or `parallel` false), and where calls begin with a control token.
    With choice "none" nothing is constrained: leave the tools out of the prompt, as if the request had none.

    Raises RequestError for a choice that there is not, GrammarError for a strict tool that cannot be followed, and
    ChatError where the format has no tools.
    """
    named = _chosen(choice, tools)
    if choice == "none" or not tools:
        return None
    style = chat_format.call_style
    if style is None:
        raise ChatError(f"chat format {chat_format.version} of this model has no tools; leave them out")
    begins_with_text = grammars.control_id(style.marker) is None
    strict = any(tool["function"].get("strict") is True for tool in tools)
    if choice == "auto" and (begins_with_text or (parallel and not strict)):
        return None
    calls, schemas = [], {}
    for i, tool in enumerate(tools):
        function = tool["function"]
        if named in (None, function["name"]):
            schemas[f"arguments{i}"] = _followed(grammars, function)
            written = f'{{"name": {json.dumps(function["name"])}, "{style.key}": '
            calls.append(f'{_quoted(written)} @arguments{i} "}}"')
    rules = _rules(style, grammars, most=_MOST_CALLS if parallel and named is None else 1)
    start = "start: text calls?\n" + _TEXT if choice == "auto" else "start: calls\n"
    grammar = f"{start}{rules}call: {' | '.join(calls)}\n"
    return grammars.rules(grammar, schemas, text=begins_with_text)


def _chosen(choice: str | Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The name that a choice gives, which has to be a tool's; None when it gives none."""
    names = [tool["function"]["name"] for tool in parse_tools(tools)]
    if choice in ("auto", "none"):
        return None
    if not names:
        raise RequestError(f"tool_choice {shown(choice)} needs tools, found none; give tools, or leave it out")
    if choice in ("any", "required"):
        return None
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError(
            'tool_choice must be auto, none, any, required or {"type": "function", "function": {"name": ...}}, found'
            f" {shown(choice)}"
        )
    if name not in names:
        raise RequestError(f"tool_choice names {shown(name)}, but the tools are {', '.join(names)}")
    return name


def _followed(grammars: Grammars, function: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function's parameters as a schema that can be followed."""
    schema = {**(function.get("parameters") or {}), **_ANY}
    try:
        grammars.json_schema(schema)
    except GrammarError as error:
        if function.get("strict") is True:
            raise GrammarError(f"tool {function['name']}: parameters: {error}") from None
        return _ANY
    return schema


def _rules(style: CallStyle, grammars: Grammars, *, most: int) -> str:
    """The rule `calls` for a style, over the rule `call`."""
    if not style.marker:
        return "calls: call\n"
    marker, closing = _word(style.marker, grammars), _word(style.closing, grammars)
    if style.is_list:
        opening = '" ["' if grammars.spaced and marker.startswith("<") else '"["'
        more = f'(", " call){{0,{most - 1}}}' if most > 1 else ""
        return f'calls: {marker} {opening} call {more} "]"\n'
    more = f'("\\n" one){{0,{most - 1}}}' if most > 1 else ""
    return f'calls: one {more}\none: {marker} "\\n" call "\\n" {closing}\n'


def _word(text: str, grammars: Grammars) -> str:
    """A control token where the vocabulary has one of that name, else its letters."""
    token_id = grammars.control_id(text)
    return _quoted(text) if token_id is None else f"<[{token_id}]>"


def _quoted(text: str) -> str:
    return json.dumps(text)
