"""The writer of answers: what comes out, whatever the pieces it comes in."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventoux.cli.markdown import Writer

BOLD, CODE, DIM = "\x1b[1m{}\x1b[0m", "\x1b[36m{}\x1b[0m", "\x1b[2m{}\x1b[0m"


def drawn(*pieces, width=80):
    out = io.StringIO()
    writer = Writer(out, width=width)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return out.getvalue()


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Roses\nare red\n\nfin", "Roses\nare red\n\nfin\n"),
        ("1. one\n2. two\n  - sub\n* item", "1. one\n2. two\n  • sub\n• item\n"),
        ("a **b** c", f"a {BOLD.format('b')} c\n"),
        ("**b c**.", f"{BOLD.format('b')} {BOLD.format('c')}.\n"),
        ("2**3 and 2 ** 3 * 4", "2**3 and 2 ** 3 * 4\n"),
        ("use `x**2`!", f"use {CODE.format('x**2')}!\n"),
        ("# Title", f"{BOLD.format('#')} {BOLD.format('Title')}\n"),
        ("```py\n- **x**\n```\n**y**", f"{DIM.format('```py')}\n{CODE.format('-')} {CODE.format('**x**')}\n"
         f"{DIM.format('```')}\n{BOLD.format('y')}\n"),
        ("a\x1b[2Jb\r\n", "a[2Jb\n\n"),
    ],
)  # fmt: skip
def test_examples(text, expected):
    assert drawn(text) == drawn(*text) == expected


def test_lines_are_wrapped_between_words_and_under_their_item():
    assert drawn("one two three", width=8) == "one two\nthree\n"
    assert drawn("one two3 four", width=8) == "one two3\nfour\n"
    assert drawn("- one two three", width=8) == "• one\n  two\n  three\n"
    assert drawn("你好世界", width=4) == "你好\n世界\n"
    assert drawn("```\na b c d\n```", width=5).count("\n") == 3, "code is not wrapped"


def test_words_are_written_when_they_are_complete():
    out = io.StringIO()
    writer = Writer(out, width=10)
    writer.write("one tw")
    assert out.getvalue() == "one"
    writer.write("o ")
    assert out.getvalue() == "one two"
    writer.write("x" * 10)
    assert out.getvalue().endswith("x" * 10), "a word that fills the line does not hold the answer up"


def test_colour_can_be_refused(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert drawn("`a`\n```\n**x**\n```").splitlines()[::2] == ["a", "**x**"]


WORDS = st.sampled_from(["word", " ", "\n", "```", "**", "`", "- ", "1. ", "世界", "\t", "#"])


@given(st.lists(WORDS).map("".join), st.lists(st.integers(1, 5)))
def test_the_pieces_do_not_matter_and_no_letter_is_lost(text, cuts):
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    whole = drawn(text)
    assert drawn(*pieces, rest) == whole
    shown = re.sub(r"\x1b\[[\d;]*m", "", whole)
    assert [c for c in shown if c.isalnum()] == [c for c in text if c.isalnum()]
