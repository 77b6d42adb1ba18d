"""Messages as users write them (plain dicts of OpenAI's shape), checked and turned into frozen turns."""

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

from ventoux.errors import ChatError

GUARDRAIL = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, unethical,"
    " prejudiced, or negative content. Ensure replies promote fairness and positivity."
)
ROLES = ("system", "user", "assistant", "tool")

_CALL_ID = re.compile("[a-zA-Z0-9]{9}")
_FUNCTION_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", "prefix"}
_JOINT = "\n\n"


@dataclass(frozen=True)
class Call:
    """An assistant's wish to run a function; `arguments` is JSON, or text where the model wrote none."""

    name: str
    arguments: str
    id: str | None


@dataclass(frozen=True)
class Turn:
    """One message. `parts` are its texts, several when its content is a list."""

    index: int
    role: str
    parts: tuple[str, ...]
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    prefix: bool = False

    @property
    def text(self) -> str:
        return _JOINT.join(part for part in self.parts if part)


def new_call_id(rng: Random | None = None) -> str:
    """An id for a tool call, as Mistral v3 wants it: nine alphanumerics. Give `rng` for ids that repeat."""
    alphabet = string.ascii_letters + string.digits
    choose = secrets.choice if rng is None else rng.choice
    return "".join(choose(alphabet) for _ in range(9))


def is_call_id(text: str | None) -> bool:
    """Whether v3 accepts an id: "D681PevKs" is one."""
    return text is not None and _CALL_ID.fullmatch(text) is not None


def with_guardrail(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation with Mistral's guardrail first; a system prompt that opens it follows after a blank line."""
    if messages and isinstance(messages[0], Mapping) and messages[0].get("role") == "system":
        first = parse(messages[:1])[0]
        return [{"role": "system", "content": _JOINT.join(filter(None, [GUARDRAIL, first.text]))}, *messages[1:]]
    return [{"role": "system", "content": GUARDRAIL}, *messages]


def parse(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Check every message by itself; ChatError names its index, what was expected and what was found."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChatError(f"expected a list of messages, found {type(messages).__name__}")
    if not messages:
        raise ChatError('expected at least one message such as {"role": "user", "content": "..."}, found none')
    return [_turn(index, message) for index, message in enumerate(messages)]


def fail(index: int, reason: str) -> NoReturn:
    raise ChatError(f"message {index}: {reason}")


def parse_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools in OpenAI's shape, with the keys that Mistral's models were trained on, in their order."""
    return [_tool(index, tool) for index, tool in enumerate(tools or [])]


def _turn(index: int, message: Mapping[str, Any]) -> Turn:
    if not isinstance(message, Mapping):
        fail(index, f"expected an object with role and content, found {type(message).__name__}")
    role, prefix = message.get("role"), message.get("prefix", False)
    if role not in ROLES:
        fail(index, f"expected a role among {', '.join(ROLES)}, found {role!r}")
    extra = sorted(str(key) for key, value in message.items() if key not in _KEYS and value)
    if extra:
        fail(index, f"unknown key(s) {extra}; a message has {', '.join(sorted(_KEYS))}")
    calls = message.get("tool_calls") or ()
    if role != "assistant" and (calls or prefix):
        fail(index, f"expected tool_calls and prefix in assistant messages only, found them with role {role}")
    if not isinstance(prefix, bool):
        fail(index, f"expected true or false as prefix, found {prefix!r}")
    if not isinstance(calls, list | tuple):
        fail(index, f"expected a list of tool_calls, found {type(calls).__name__}")
    return Turn(
        index=index,
        role=role,
        parts=_parts(index, message.get("content"), optional=role == "assistant"),
        calls=tuple(_call(index, call) for call in calls),
        call_id=_optional_text(index, message, "tool_call_id"),
        name=_function_name(index, message["name"]) if role == "tool" and message.get("name") is not None else None,
        prefix=prefix,
    )


def _parts(index: int, content: Any, *, optional: bool) -> tuple[str, ...]:
    if content is None and optional:
        return ()
    if isinstance(content, str):
        return (content,) if content else ()
    if not isinstance(content, list | tuple):
        found = "none" if content is None else type(content).__name__
        fail(index, f'expected content, a string or a list of {{"type": "text", "text": ...}}, found {found}')
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            fail(index, f'expected content parts of the form {{"type": "text", "text": ...}}, found {kind!r}')
    return tuple(part["text"] for part in content)


def _call(index: int, call: Any) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        fail(index, 'expected tool calls of the form {"id": ..., "function": {"name": ..., "arguments": ...}}')
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(arguments)
        except (TypeError, ValueError, RecursionError) as error:
            fail(index, f"expected the call's arguments to be an object that JSON can write, found {error}")
    if arguments is not None and not isinstance(arguments, str):
        fail(index, f"expected the call's arguments as JSON text or an object, found {type(arguments).__name__}")
    return Call(_function_name(index, function.get("name")), arguments or "{}", _optional_text(index, call, "id"))


def _function_name(index: int, name: Any) -> str:
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        fail(index, f"expected a function name of 1 to 64 letters, digits, underscores and dashes, found {name!r}")
    return name


def _optional_text(index: int, message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        fail(index, f"expected {key} to be a string, found {type(value).__name__}")
    return value


def _tool(index: int, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise ChatError(f'tool {index}: expected {{"type": "function", "function": {{"name": ...}}}}')
    name, parameters = function.get("name"), function.get("parameters") or {}
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        raise ChatError(
            f"tool {index}: expected a name of 1 to 64 letters, digits, underscores and dashes, found {name!r}"
        )
    if not isinstance(parameters, Mapping):
        raise ChatError(f"tool {index}: expected parameters to be a JSON schema, found {type(parameters).__name__}")
    description = function.get("description") or ""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": dict(parameters)}}
