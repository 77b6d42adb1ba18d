"""Calls of tools as models write them, `{"name": ..., "arguments": {...}}` or a list of these, read as they come.

One character after the other, each looked at once: a hostile megabyte takes a second, whatever its depth.
"""

import json
import re
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

from ventoux.chat.messages import new_call_id

BLANKS = " \t\n\r"
_CLOSING = {"{": "}", "[": "]"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")

Take = Callable[[str], None]
Characters = Generator[None, str, str]  # takes characters, and returns the one that it stopped before


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """The answer calls a tool, the index-th of its calls; `id` is nine letters and digits. The arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments, which are JSON when they are whole."""

    index: int
    text: str


Piece = Content | CallBegins | CallArguments


class _MalformedError(Exception):
    """This is no call, or not any more."""


class Calls:
    """Reads calls until the last is closed, or until something is no call of one of `names`.

    A call begins when its name and the beginning of its arguments are known, and then its arguments come as they grow.
    What is malformed before that is content, from its beginning; what is malformed later, from there on.
    """

    def __init__(self, names: Collection[str], *, index: int, before: str = "") -> None:
        """`index` is the first call's; `before` is shown before the text if it turns out to be no call."""
        self.index = index
        self.done = False
        self._names = names
        self._raw = [before]  # of what was read and not given out
        self._held: list[str] = []  # arguments in it, while the name is not known
        self._pieces: list[Piece] = []
        self._arguments: list[str] = []
        self._begun = False
        self._reading = self._calls()
        next(self._reading)

    def push(self, text: str) -> tuple[list[Piece], str]:
        """More text -> what is known by it, and what stands behind the calls once they are `done`."""
        assert not self.done
        rest = ""
        for i, character in enumerate(text):
            self._raw.append(character)
            try:
                self._reading.send(character)
            except StopIteration:
                self.done, rest = True, text[i + 1 :]
                break
            except _MalformedError:
                self.done, rest = True, text[i + 1 :]
                self._flush()
                self._pieces += self._left()
                break
        self._flush()
        pieces, self._pieces = self._pieces, []
        return pieces, rest

    def finish(self) -> list[Piece]:
        """The answer ended here: what was held back."""
        return self._left()

    def _left(self) -> list[Piece]:
        raw, self._raw = "".join(self._raw), []
        return [Content(raw)] if raw else []

    def _flush(self) -> None:
        if self._arguments:
            self._pieces.append(CallArguments(self.index, "".join(self._arguments)))
            self._arguments = []

    def _calls(self) -> Generator[None, str, None]:
        first = yield from _after_blanks()
        if first == "{":
            yield from self._call()
            return
        _expect(first == "[")
        while True:
            _expect((yield from _after_blanks()) == "{")
            yield from self._call()
            c = yield from _after_blanks()
            if c == "]":
                self._raw.clear()
                return
            _expect(c == ",")

    def _call(self) -> Generator[None, str, None]:
        """One call, after its opening brace."""
        name: str | None = None
        seen: set[str] = set()
        self._begun, self._held = False, []
        while True:
            _expect((yield from _after_blanks()) == '"')
            key = yield from _text()
            _expect(key not in seen)
            seen.add(key)
            _expect((yield from _after_blanks()) == ":")
            c = yield from _after_blanks()
            if key == "name":
                _expect(c == '"')
                name = yield from _text()
                _expect(name in self._names)
                c = yield
                if self._held:
                    self._begin(name, held=True, next_character=c)
            elif key in ("arguments", "parameters"):
                _expect(c == "{" and not self._begun and not self._held)
                if name is not None:
                    self._begin(name, held=False, next_character=c)
                c = yield from _value(c, self._take)
            else:
                c = yield from _value(c, _drop)
            c = yield from _after_blanks(c)
            if c == "}":
                _expect(self._begun)
                self._raw.clear()
                self._flush()
                self.index += 1
                return
            _expect(c == ",")

    def _begin(self, name: str, *, held: bool, next_character: str) -> None:
        """All that was read says: this is a call. The next character is read, but not part of that."""
        self._begun = True
        self._raw = [next_character]
        self._pieces.append(CallBegins(self.index, new_call_id(), name))
        if held:
            self._arguments = self._held

    def _take(self, character: str) -> None:
        if self._begun:
            self._raw.pop()
            self._arguments.append(character)
        else:
            self._held.append(character)


def whole(pieces: Collection[Piece]) -> dict[str, Any]:
    """All pieces of an answer as an assistant's message of OpenAI's shape: content is None where there is none."""
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, CallArguments):
            arguments.setdefault(piece.index, []).append(piece.text)
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": "".join(arguments[call.index])},
        }
        for call in pieces
        if isinstance(call, CallBegins)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    return message | ({"tool_calls": calls} if calls else {})


def _expect(condition: bool) -> None:
    if not condition:
        raise _MalformedError


def _drop(character: str) -> None:
    """A character that is only checked."""


def _after_blanks(c: str = " ") -> Characters:
    while c in BLANKS:
        c = yield
    return c


def _text() -> Characters:
    """What a string says, after its opening quote."""
    raw: list[str] = ['"']
    yield from _string(raw.append)
    text: str = json.loads("".join(raw))
    return text


def _string(take: Take) -> Generator[None, str, None]:
    """A string to its closing quote."""
    while True:
        c = yield
        _expect(c >= " ")
        take(c)
        if c == '"':
            return
        if c == "\\":
            c = yield
            _expect(c in '"\\/bfnrtu')
            take(c)
            for _ in range(4 if c == "u" else 0):
                digit = yield
                _expect(digit in _HEX)
                take(digit)


def _scalar(c: str, take: Take) -> Characters:
    """A number, true, false or null, to the first character that is no part of it."""
    raw: list[str] = []
    while c.isalnum() or c in "+-.":
        raw.append(c)
        take(c)
        c = yield
    text = "".join(raw)
    _expect(text in ("true", "false", "null") or _NUMBER.fullmatch(text) is not None)
    return c


def _value(c: str, take: Take) -> Characters:
    """One value of strict JSON that begins with c; whatever its depth, the brackets to be closed are a list."""
    open_brackets: list[str] = []
    wanted = (
        "value"  # or "item" (a value or the list's end), "first" (a key or the object's end), "key", "colon", "next"
    )
    while True:
        if c in BLANKS:
            take(c)
        elif c == '"' and wanted in ("value", "item", "first", "key"):
            take(c)
            yield from _string(take)
            wanted = "colon" if wanted in ("first", "key") else "next"
        elif c in _CLOSING and wanted in ("value", "item"):
            take(c)
            open_brackets.append(c)
            wanted = "first" if c == "{" else "item"
        elif open_brackets and c == _CLOSING[open_brackets[-1]] and wanted in ("next", "first", "item"):
            take(c)
            open_brackets.pop()
            wanted = "next"
        elif c == "," and wanted == "next":
            take(c)
            wanted = "key" if open_brackets[-1] == "{" else "value"
        elif c == ":" and wanted == "colon":
            take(c)
            wanted = "value"
        else:
            _expect(wanted in ("value", "item"))
            c = yield from _scalar(c, take)
            wanted = "next"
            if open_brackets:
                continue
            return c
        c = yield
        if wanted == "next" and not open_brackets:
            return c
