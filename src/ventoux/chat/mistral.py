"""Mistral's own chat formats, token for token as mistral-common writes them.

    v1  <s> [INST] system\\n\\nuser [/INST] answer</s>       the bracketed words are plain text; v0.1 and v0.2
    v2  <s>[INST]user[/INST]answer</s>                     control tokens; system prompt with the last user turn
    v3  as v2, and calls and results carry ids             v0.3
    v7  as v3, [SYSTEM_PROMPT]system[/SYSTEM_PROMPT] in its place

Source: mistral-common's protocol/instruct/{validator,normalize}.py and tokens/tokenizers/instruct.py. As there, turns
of one role in a row are merged, tools stand before the last user turn, and v2 drops calls and results before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from ventoux.chat.messages import Call, Turn, fail, is_call_id, parse, parse_tools
from ventoux.errors import ChatError
from ventoux.tokenizer.base import Tokenizer

VERSIONS = ("v1", "v2", "v3", "v7")
UNKNOWN = 0  # <unk> in every tokenizer of Mistral's

_FOLLOWERS = {
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool", "user"),
}


def encode(
    messages: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    version: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Ids of a conversation, BOS first. An assistant's turn ends with EOS unless it is a prefix to be continued."""
    turns = parse(messages)
    _check(turns, version, bool(tools))
    system = _system_prompt(turns)
    turns = _merged(turns, version)
    control = _Control(tokenizer, version)
    writer = _Writer(
        tokenizer,
        version,
        control,
        tools=_json(parse_tools(tools)) if tools else None,
        system=None if version == "v7" else system,
        first_user=next((i for i, turn in enumerate(turns) if turn.role == "user"), -1),
        last_user=max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1),
    )
    ids = [control.bos]
    for position, turn in enumerate(turns):
        if version == "v2" and writer.last_user < position and turn.role == turns[position - 1].role == "tool":
            fail(turn.index, "expected one tool result, found several in a row, which v2 has no way to write")
        ids += writer.write(position, turn)
    return ids


def encode_fim(prompt: str, suffix: str | None, *, tokenizer: Tokenizer, version: str) -> list[int]:
    """Fill in the middle: what the model writes next stands between `prompt` and `suffix`. v2 and later.

    The file of tokenizer v2 has no [SUFFIX] and [PREFIX]: there both are <unk>, as mistral-common writes them.
    """
    if version not in VERSIONS[1:]:
        raise ChatError(f"filling in the middle needs chat format {', '.join(VERSIONS[1:])}, found {version!r}")
    control = _Control(tokenizer, version)
    marks = ("[SUFFIX]", "[PREFIX]")
    before_suffix, before_prompt = (UNKNOWN, UNKNOWN) if tokenizer.version == "v2" else (control[m] for m in marks)
    # Encoded behind a character that no merge crosses, so that no space is put before the suffix.
    behind = tokenizer.encode("☺" + suffix)[2:] if suffix else []
    return [control.bos, before_suffix, *behind, before_prompt, *tokenizer.encode(prompt)]


def _check(turns: Sequence[Turn], version: str, tools: bool) -> None:
    """Refuse what mistral-common refuses, in words that say where."""
    if version not in VERSIONS:
        raise ChatError(f"expected a chat format among {', '.join(VERSIONS)}, found {version!r}")
    if version == "v1" and (tools or any(turn.calls or turn.role == "tool" for turn in turns)):
        raise ChatError("chat format v1 has no tools; use a model with tokenizer v2 or later, or leave them out")
    if len(turns) == 1 and turns[0].role not in ("user", "system"):
        fail(0, f"expected a conversation to begin with a user or system message, found {turns[0].role}")
    for before, turn in pairwise(turns):
        if turn.role not in _FOLLOWERS[before.role]:
            fail(turn.index, f"expected {' or '.join(_FOLLOWERS[before.role])} after {before.role}, found {turn.role}")
    for turn in turns:
        _check_turn(turn, version, last=turn is turns[-1])
    _check_answers(turns)


def _check_turn(turn: Turn, version: str, *, last: bool) -> None:
    if turn.prefix and not last:
        fail(turn.index, "expected an assistant's prefix to be the last message, found more messages behind it")
    if turn.role == "assistant" and version != "v7" and bool(turn.parts) == bool(turn.calls):
        fail(turn.index, f"expected content or tool_calls, found {'both' if turn.parts else 'neither'}")
    if version in ("v1", "v2"):
        return
    for call_id in [call.id for call in turn.calls] + ([turn.call_id] if turn.role == "tool" else []):
        if not is_call_id(call_id):
            what = "tool_call_id" if turn.role == "tool" else "id of a tool call"
            fail(turn.index, f"expected nine letters and digits as {what}, found {call_id!r}")


def _check_answers(turns: Sequence[Turn]) -> None:
    """Every call has a result before the assistant speaks again, and there is no result without a call."""
    open_calls = 0
    for turn in turns:
        if turn.role == "assistant":
            if open_calls:
                fail(turn.index, f"expected {open_calls} more tool result(s) before the assistant speaks again")
            open_calls = len(turn.calls)
        elif turn.role == "tool":
            open_calls -= 1
            if open_calls < 0:
                fail(turn.index, "expected a tool result to answer a call, found more results than calls")
    if open_calls and turns[-1].role != "assistant":
        fail(turns[-1].index, f"expected {open_calls} more tool result(s) at the end of the conversation")


def _system_prompt(turns: Sequence[Turn]) -> str | None:
    return "\n\n".join(turn.text for turn in turns if turn.role == "system" and turn.parts) or None


def _merged(turns: Sequence[Turn], version: str) -> list[Turn]:
    """Turns of one role in a row as one; before v7 without the system's, and with a user's turn to begin with."""
    merged: list[Turn] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        run = list(group)
        if role == "tool" or (role == "system" and version == "v7"):
            merged += run
        elif role != "system":
            merged.append(_joined(run, version))
    if version != "v7" and (not merged or merged[0].role != "user"):
        merged.insert(0, Turn(0, "user", ()))
    return merged


def _joined(run: Sequence[Turn], version: str) -> Turn:
    turn = replace(
        run[-1],
        parts=tuple(part for turn in run for part in turn.parts),
        calls=tuple(call for turn in run for call in turn.calls),
    )
    if turn.role == "assistant" and version != "v7" and turn.text and turn.calls:
        fail(
            turn.index,
            f"expected content or tool_calls in a row of assistant messages, found both; {version} has no such turn",
        )
    if turn.role == "assistant" and not turn.text and not turn.calls:
        fail(turn.index, "expected content or tool_calls, found neither")
    return turn


class _Control:
    """Control tokens by name, with an error that says which tokenizer the format needs."""

    def __init__(self, tokenizer: Tokenizer, version: str) -> None:
        self._tokenizer = tokenizer
        self._version = version

    def __getitem__(self, name: str) -> int:
        token_id = self._tokenizer.control_id(name)
        if token_id is None:
            raise ChatError(
                f"chat format {self._version} needs the control token {name}, which this tokenizer"
                f" ({self._tokenizer.version or 'not one of Mistral'}) has not; choose another chat format"
            )
        return token_id

    @property
    def bos(self) -> int:
        return self["<s>"] if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    @property
    def eos(self) -> int:
        return self["</s>"] if self._tokenizer.eos_id is None else self._tokenizer.eos_id


@dataclass(frozen=True)
class _Writer:
    """One conversation's turns to ids."""

    tokenizer: Tokenizer
    version: str
    control: _Control
    tools: str | None
    system: str | None
    first_user: int
    last_user: int

    def write(self, position: int, turn: Turn) -> list[int]:
        if turn.role == "user":
            return self._user(position, turn)
        if turn.role == "assistant":
            return self._assistant(position, turn)
        if turn.role == "tool":
            return self._result(position, turn)
        return self._between("[SYSTEM_PROMPT]", turn.text)

    def _user(self, position: int, turn: Turn) -> list[int]:
        takes_system = position == (self.first_user if self.version == "v1" else self.last_user)
        text = f"{self.system}\n\n{turn.text}" if self.system and takes_system else turn.text
        if self.version == "v1":
            return self.tokenizer.encode(f"[INST] {text} [/INST]")
        ids = self._between("[INST]", text)
        if self.tools is not None and position == self.last_user:
            return self._between("[AVAILABLE_TOOLS]", self.tools) + ids
        return ids

    def _assistant(self, position: int, turn: Turn) -> list[int]:
        ids: list[int] = []
        if turn.text:
            ids += self.tokenizer.encode(turn.text if self.version == "v1" else turn.text.rstrip(" "))
        if turn.calls:
            if self._forgotten(position):
                return []
            calls = _json([self._call(call) for call in turn.calls])
            ids += [self.control["[TOOL_CALLS]"], *self.tokenizer.encode(calls)]
        return ids if turn.prefix else [*ids, self.control.eos]

    def _result(self, position: int, turn: Turn) -> list[int]:
        if self._forgotten(position):
            return []
        if self.version == "v7":
            call_id = self.tokenizer.encode(turn.call_id or "")
            content = [self.control["[TOOL_CONTENT]"], *self.tokenizer.encode(turn.text)]
            return [self.control["[TOOL_RESULTS]"], *call_id, *content, self.control["[/TOOL_RESULTS]"]]
        content = _parsed(turn.text or "{}")
        result: Any = {"content": content, "call_id": turn.call_id}
        if self.version == "v2":
            result = [{"name": turn.name, "content": content}]
        return self._between("[TOOL_RESULTS]", _json(result))

    def _call(self, call: Call) -> dict[str, Any]:
        written = {"name": call.name, "arguments": _parsed(call.arguments)}
        return written if self.version == "v2" else {**written, "id": call.id}

    def _forgotten(self, position: int) -> bool:
        """v2 writes calls and results of the current exchange only."""
        return self.version == "v2" and position < self.last_user

    def _between(self, opening: str, text: str) -> list[int]:
        closing = opening.replace("[", "[/")
        return [self.control[opening], *self.tokenizer.encode(text), self.control[closing]]


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"expected tools, calls and results that JSON can write, found {error}") from None


def _parsed(text: str) -> Any:
    """What a JSON text says; any other text is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
