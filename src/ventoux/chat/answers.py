"""What a model answered: its text and its calls of tools, told apart while it is written."""

from collections.abc import Collection
from dataclasses import dataclass

from ventoux.chat.calls import BLANKS, Calls, Content, Piece


@dataclass(frozen=True)
class CallStyle:
    """How a format's models write calls: behind `marker`, a control token where the vocabulary has one of that name.

    "[TOOL_CALLS]", "", list: Mistral's. "<tool_call>", "</tool_call>": Hermes', one call in each. No marker: an answer
    that is a call and nothing else. `key` is what the arguments are called.
    """

    marker: str
    closing: str = ""
    key: str = "arguments"
    is_list: bool = False


MISTRAL = CallStyle("[TOOL_CALLS]", is_list=True)
_HERMES = CallStyle("<tool_call>", "</tool_call>")


def style_of(template: str) -> CallStyle | None:
    """The style that a template writes an assistant's calls in, None where it has no tools."""
    if "tools" not in template:
        return None
    for style in (MISTRAL, _HERMES):
        if style.marker in template:
            return style
    return CallStyle("", key="parameters" if '"parameters": ' in template else "arguments")


class AnswerReader:
    """Tokens in, as the engine tells them, and pieces of content and of calls out, as soon as they are certain.

    What is no call of a tool that was offered is content, together with the words that marked it: nothing is lost but
    blanks behind a call. Every character is looked at once or twice, whatever it is.
    """

    def __init__(self, style: CallStyle | None, names: Collection[str], *, marker_id: int | None = None) -> None:
        """Calls of `names` in `style`; None for an answer that is all content. `marker_id` where the marker is a
        control token, which text does not show."""
        self._style = style
        self._names = frozenset(names)
        self._marker_id = marker_id
        self._marker = style.marker if style and marker_id is None else ""
        self._calls: Calls | None = None
        self._index = 0  # of the next call
        self._held = ""  # what may become a marker, or the word that closes a call
        self._closing = ""  # what may follow a call
        self._behind = False  # nothing but blanks since a call
        self._bare = style is not None and not style.marker  # nothing but blanks yet, and a call may follow them

    def push(self, token_id: int, text: str) -> list[Piece]:
        """One token's id and text."""
        pieces = self._push(text)
        if token_id == self._marker_id:
            pieces += self._flush()
            self._begin("")
        return pieces

    def finish(self, text: str = "") -> list[Piece]:
        """The answer is over, with the text of its last event: what was held back."""
        return [*self._push(text), *self._flush()]

    def _push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        while text:
            if self._calls:
                found, text = self._calls.push(text)
                if self._calls.done:
                    self._leave(self._calls)
            else:
                found, text = self._content(text)
            pieces += found
        return pieces

    def _flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        left = self._calls.finish() if self._calls else []
        self._calls = None
        return [*left, *([Content(held)] if held else [])]

    def _begin(self, marker: str) -> None:
        """What follows is to be calls; if it turns out to be none, the marker was content."""
        self._calls = Calls(self._names, index=self._index, before=marker)
        self._behind = self._bare = False

    def _leave(self, calls: Calls) -> None:
        """Back to content."""
        self._behind = calls.index > self._index
        self._closing = self._style.closing if self._style and self._behind else ""
        self._index = calls.index
        self._calls = None

    def _content(self, text: str) -> tuple[list[Piece], str]:
        """Text outside of calls -> pieces, and what is left where it has to be looked at in another way."""
        text, self._held = self._held + text, ""
        if self._behind:
            return [], self._behind_call(text.lstrip(BLANKS))
        if self._bare:
            rest = text.lstrip(BLANKS)
            before: list[Piece] = [Content(text[: len(text) - len(rest)])] if len(rest) < len(text) else []
            self._bare = not rest
            if rest.startswith("{"):
                self._begin("")
            return before, rest
        before_marker, marker, rest = text.partition(self._marker) if self._marker else (text, "", "")
        if not marker:
            kept = next((n for n in range(len(self._marker) - 1, 0, -1) if text.endswith(self._marker[:n])), 0)
            before_marker, self._held = text[: len(text) - kept], text[len(text) - kept :]
        else:
            self._begin(marker)
        return ([Content(before_marker)] if before_marker else []), rest

    def _behind_call(self, text: str) -> str:
        """Text that follows a call, without its leading blanks -> what of it is to be looked at as content."""
        if not text:
            return ""
        if text.startswith(self._closing):
            self._behind, text, self._closing = bool(self._closing), text[len(self._closing) :], ""
            return text
        if self._closing.startswith(text):
            self._held = text
            return ""
        self._behind, self._closing = False, ""
        return text
