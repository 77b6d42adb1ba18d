"""Markdown drawn while it is written. What stands on the screen is never drawn again.

So the answer streams word by word, scrolls as any text does, and Ctrl-C, whose ^C the terminal echoes into the line,
spoils nothing. Line breaks, numbers and everything unknown (tables, links) stay as the model wrote them.
"""

import os
import re
import shutil
import sys
from itertools import groupby
from operator import itemgetter
from typing import TextIO

from wcwidth import wcswidth

BOLD, DIM, CODE = "1", "2", "36"
# A line's end, blanks, a character of a script without blanks (CJK), or a word.
UNITS = re.compile(r"\n|[^\S\n]+|[\u2e80-\uffef]|[^\s\u2e80-\uffef]+")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not steer the terminal
MARKS = re.compile(r"(`+|\*\*)")
ITEM = re.compile(r"[-*+]|\d+[.)]")


class Writer:
    """Takes pieces of markdown and writes lines that are wrapped between words."""

    def __init__(self, out: TextIO | None = None, *, width: int | None = None) -> None:
        self._out = out or sys.stdout
        self._width = width or shutil.get_terminal_size().columns
        self._code = "" if os.environ.get("NO_COLOR") else CODE
        self._pending = ""  # perhaps not a whole word yet
        self._fence = ""  # the backticks that opened the code block
        self._start_line()

    def write(self, piece: str) -> None:
        *units, self._pending = UNITS.findall(self._pending + CONTROL.sub("", piece)) or [""]
        for unit in units:
            self._unit(unit)
        if self._pending == "\n" or columns(self._pending) >= self._width:
            self._flush()
        self._out.flush()

    def close(self) -> None:
        """Write what is left, and end the line."""
        self._flush()
        self._unit("\n")
        self._out.flush()

    def _flush(self) -> None:
        unit, self._pending = self._pending, ""
        if unit:
            self._unit(unit)

    def _start_line(self) -> None:
        self._fresh = True  # nothing but blanks so far
        self._column, self._hang, self._blanks = 0, 0, ""
        self._line_style, self._verbatim = "", False
        self._bold, self._in_code = False, False

    def _unit(self, unit: str) -> None:
        if unit == "\n":
            self._out.write("\n")
            self._start_line()
        elif unit.isspace():
            self._blanks += unit.expandtabs(4)
        else:
            word = self._first(unit) if self._fresh else unit
            self._fresh = False
            self._word(word)

    def _first(self, word: str) -> str:
        """The first word of a line says what the line is -> what to write for it."""
        ticks = re.match("`*", word)
        fence = ticks[0] if ticks else ""
        if self._fence:
            closes = word == fence and len(fence) >= len(self._fence)
            self._fence, self._line_style = ("", DIM) if closes else (self._fence, self._code)
            self._verbatim = True
        elif len(fence) >= 3 and "`" not in word[len(fence) :]:
            self._fence, self._line_style, self._verbatim = fence, DIM, True
        elif re.fullmatch("#{1,6}", word):
            self._line_style = BOLD
        elif ITEM.fullmatch(word):
            self._hang = len(self._blanks) + len(word) + 1
            return "•" if word in "-*+" else word
        return word

    def _word(self, word: str) -> None:
        parts = [word] if self._verbatim else MARKS.split(word)
        text, styles = "", []
        for i, part in enumerate(parts):
            if i % 2 and self._toggles(part, text, after=parts[i + 1]):
                continue
            text += part
            styles += [self._style()] * len(part)
        space = len(self._blanks)
        end = self._column + space + columns(text)
        if end > self._width and self._column > self._hang and not self._verbatim:
            self._out.write("\n" + " " * self._hang)
            end, self._blanks = self._hang + columns(text), ""
        self._out.write(self._blanks + styled(text, styles))
        self._column, self._blanks = end if end <= self._width else end % self._width, ""

    def _toggles(self, mark: str, before: str, *, after: str) -> bool:
        """Whether a mark is one, and not part of what is meant, as in 2**3 or in code."""
        if mark[0] == "`":
            self._in_code = not self._in_code
            return True
        opens = after != "" and not before[-1:].isalnum()
        if self._in_code or not (self._bold or opens):
            return False
        self._bold = not self._bold
        return True

    def _style(self) -> str:
        styles = (self._line_style, BOLD if self._bold else "", self._code if self._in_code else "")
        return ";".join(dict.fromkeys(filter(None, styles)))


def columns(text: str) -> int:
    """How wide a terminal draws it; what cannot be printed has no width."""
    return max(0, wcswidth(text))


def styled(text: str, styles: list[str]) -> str:
    """The text in the style of each of its characters."""
    runs = groupby(zip(styles, text, strict=True), key=itemgetter(0))
    parts = ((style, "".join(character for _, character in run)) for style, run in runs)
    return "".join(f"\033[{style}m{part}\033[0m" if style else part for style, part in parts)
