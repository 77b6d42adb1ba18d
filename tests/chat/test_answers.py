"""An answer's text and its calls of tools: the same pieces however it is cut, and nothing is lost."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_oracle import Oracle
from vocabularies import FILES, MISTRAL

from ventoux import tokenizer
from ventoux.chat import AnswerReader, CallArguments, CallBegins, CallStyle, ChatFormat, Content, Piece, whole
from ventoux.chat.answers import style_of
from ventoux.errors import ChatError

MARKER, TEXT = 5, 100  # ids: [TOOL_CALLS], and any other
LIST = CallStyle("[TOOL_CALLS]", is_list=True)
HERMES = CallStyle("<tool_call>", "</tool_call>")
BARE = CallStyle("", key="parameters")
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}},
]
CALL = '{"name": "f", "arguments": {"a": [1, {"b": "}]\\"\\u00e9"}], "c": -1.5e3}}'
ARGUMENTS = '{"a": [1, {"b": "}]\\"\\u00e9"}], "c": -1.5e3}'


def reader(style: CallStyle | None) -> AnswerReader:
    return AnswerReader(style, ["f", "get_weather"], marker_id=MARKER if style == LIST else None)


def read(style: CallStyle | None, *parts: str | int, size: int = 10**9) -> list[Piece]:
    """All pieces of texts, cut to `size`, and ids of control tokens."""
    answer = reader(style)
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, int):
            pieces += answer.push(part, "")
        else:
            for start in range(0, len(part), size):
                pieces += answer.push(TEXT, part[start : start + size])
    return pieces + answer.finish()


def content(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))


def calls(pieces: list[Piece]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in whole(pieces).get("tool_calls", [])]


WELL_FORMED: list[tuple[CallStyle, list[str | int], str, int]] = [
    (LIST, [MARKER, f" [{CALL}]"], "", 1),
    (LIST, ["Let me see. ", MARKER, f"[{CALL}, {CALL}]\n"], "Let me see. ", 2),
    (LIST, [MARKER, f"[{CALL}]", MARKER, f"[{CALL}]"], "", 2),
    (LIST, [MARKER, f"[{CALL}] done"], "done", 1),
    (LIST, [MARKER, CALL], "", 1),
    (HERMES, [f"<tool_call>\n{CALL}\n</tool_call>"], "", 1),
    (HERMES, [f"a <tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\n b"], "a b", 2),
    (HERMES, [f"<tool_call>[{CALL},{CALL}]</tool_call>"], "", 2),
    (HERMES, [f"<tool_call>{CALL}"], "", 1),
    (HERMES, [f"<tool_call>{CALL} </tool"], "</tool", 1),
    (BARE, [CALL.replace("arguments", "parameters")], "", 1),
    (BARE, [CALL], "", 1),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("style", "parts", "text", "count"), WELL_FORMED)
def test_calls_come_out_as_they_were_written(
    style: CallStyle, parts: list[str | int], text: str, count: int, size: int
) -> None:
    pieces = read(style, *parts, size=size)
    assert content(pieces) == text
    assert calls(pieces) == [("f", ARGUMENTS)] * count
    begun = [piece for piece in pieces if isinstance(piece, CallBegins)]
    assert [piece.index for piece in begun] == list(range(count))
    assert len({piece.id for piece in begun}) == count


def test_facts_23_ids_of_calls_are_nine_alphanumerics() -> None:
    (call,) = whole(read(LIST, MARKER, f"[{CALL}]"))["tool_calls"]
    assert re.fullmatch("[a-zA-Z0-9]{9}", call["id"])


def test_arguments_come_while_they_grow() -> None:
    answer = reader(LIST)
    assert answer.push(MARKER, "") == []
    assert answer.push(TEXT, '[{"name": "f"') == []
    assert answer.push(TEXT, ', "arguments"') == []
    name, begun = answer.push(TEXT, ': {"ci')
    assert isinstance(name, CallBegins)
    assert (name.index, name.name, begun) == (0, "f", CallArguments(0, '{"ci'))
    assert answer.push(TEXT, 'ty": "Bé') == [CallArguments(0, 'ty": "Bé')]
    assert answer.finish('douin"') == [CallArguments(0, 'douin"')]  # cut by max_tokens


def test_keys_may_stand_in_any_order_beside_others() -> None:
    text = f'[{{"id": "x", "arguments": {ARGUMENTS}, "more": [1, {{}}], "name": "f", "type": null}}]'
    for size in (1, 1000):
        assert calls(read(LIST, MARKER, text, size=size)) == [("f", ARGUMENTS)]


MALFORMED = [
    "[",
    "[]",
    "wurst",
    "[{}]",
    '[{"name": "f"}]',
    '[{"name": "g", "arguments": {}}]',  # no tool of that name was offered
    '[{"name": "f", "arguments": 7}]',
    '[{"name": "f", "arguments": "{}"}]',
    '[{"name": "f", "name": "f", "arguments": {}}]',
    '[{"arguments": {"a": 1}, "name": "g"}]',
    '[{"arguments": {"a": 1}, "name"',
    "[{'name': 'f'}]",
    '[{"name": "f\n", "arguments": {}}]',
    '[{"name": "\\x", "arguments": {}}]',
    '[{"name": "\\u12g4", "arguments": {}}]',
    '[{"name": tru, "arguments": {}}]',
    '{"a": 01, "name": "f"}',
    '{"a": [1,], "name": "f"}',
    '{"a": {,}, "name": "f"}',
    '{"a": ], "name": "f"}',
    "\\" * 9,
]


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_call_is_content(text: str, size: int) -> None:
    assert read(None, text) == [Content(text)]
    for style, parts, shown in (
        (LIST, ["a", MARKER, text, " b"], f"a{text} b"),
        (HERMES, [f"a<tool_call>{text} b"], f"a<tool_call>{text} b"),
        (BARE, [f"{text} b"], f"{text} b"),
    ):
        pieces = read(style, *parts, size=size)
        assert calls(pieces) == []
        assert content(pieces) == shown


@pytest.mark.parametrize("rest", ["", " x", '"b": 2', "]", '"b": {"c"'])
def test_what_goes_wrong_within_arguments_goes_on_as_content(rest: str) -> None:
    for size in (1, 1000):
        pieces = read(LIST, MARKER, '[{"name": "f", "arguments": {"a": 1, ' + rest, size=size)
        assert calls(pieces)[0][1] + content(pieces) == '{"a": 1, ' + rest


def test_a_call_that_follows_a_malformed_one_is_read() -> None:
    pieces = read(HERMES, f"<tool_call>no</tool_call><tool_call>{CALL}</tool_call>")
    assert (content(pieces), calls(pieces)) == ("<tool_call>no</tool_call>", [("f", ARGUMENTS)])
    pieces = read(LIST, MARKER, "[{", MARKER, f"[{CALL}]")
    assert (content(pieces), calls(pieces)) == ("[{", [("f", ARGUMENTS)])


@settings(deadline=None)
@given(
    text=st.lists(st.sampled_from([*'[]{}":,\\ a1é\n<', '"name"', '"f"', '"arguments"', CALL, "<tool_call>"])),
    cuts=st.integers(1, 5),
    style=st.sampled_from([LIST, HERMES, BARE]),
)
def test_however_it_is_cut(text: list[str], cuts: int, style: CallStyle) -> None:
    joined = "".join(text)
    parts: list[str | int] = [MARKER, joined] if style == LIST else [joined]
    one, other = read(style, *parts), read(style, *parts, size=cuts)
    assert (content(one), calls(one)) == (content(other), calls(other))
    if not calls(one):
        assert content(one) == joined


HOSTILE = {
    "brackets": "[" * 200_000 + "]" * 200_000,
    "nested": '[{"name": "f", "arguments": {"a": ' + "[" * 400_000,
    "markers": "<tool_call>" * 36_000,
    "half markers": "<tool_call" * 40_000,
    "blanks": " \n" * 200_000,
    "escapes": '[{"name": "' + "\\\\" * 200_000,
    "digits": '[{"id": ' + "1" * 400_000,
    "calls": "[" + '{"name": "f", "arguments": {}}, ' * 12_000,
    "closings": f"<tool_call>{CALL}" + "</tool_call " * 32_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_security_a_hostile_text_takes_linear_time(name: str) -> None:
    """One step of a reader's Python for each character, whatever it is: quadratic time would be an hour."""
    text = HOSTILE[name]
    answer = reader(HERMES if "<" in text else LIST)
    answer.push(MARKER, "")
    pieces = [piece for i in range(0, len(text), 50) for piece in answer.push(TEXT, text[i : i + 50])] + answer.finish()
    assert pieces


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{{ messages }}", None),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", LIST),
        ("{{ tools }}<tool_call>\n", HERMES),
        ("""{{ tools }}{{ '"parameters": ' }}""", BARE),
        ("{{ tools }}", CallStyle("")),
    ],
)
def test_a_template_tells_how_calls_are_written(template: str, style: CallStyle | None) -> None:
    assert style_of(template) == style


def test_formats_without_tools_refuse_them() -> None:
    v1 = tokenizer.load(MISTRAL / FILES["v1"])
    messages = [{"role": "user", "content": "x"}]
    for chat_format in (ChatFormat("v1", None, ""), ChatFormat("template", "{{ messages }}", "")):
        with pytest.raises(ChatError, match="no tools"):
            chat_format.reader(TOOLS, tokenizer=v1)
        with pytest.raises(ChatError, match="no tools"):
            chat_format.encode(messages, tokenizer=v1, tools=TOOLS)
        assert chat_format.reader(tokenizer=v1).push(TEXT, "[TOOL_CALLS]") == [Content("[TOOL_CALLS]")]


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_facts_23_what_was_read_is_written_as_mistral_common_writes_it(version: str) -> None:
    """The model's ids -> a message -> back into the prompt, with results, as the oracle encodes the same messages."""
    ours = tokenizer.load(MISTRAL / FILES[version])
    chat_format = ChatFormat(ours.version or "", None, "")
    marker = ours.control_id("[TOOL_CALLS]")
    assert marker is not None
    arguments = '{"city": "Malaucène", "days": [1, 2.5]}'
    answer = f'[{{"name": "get_weather", "arguments": {arguments}}}, {{"name": "f", "arguments": {{}}}}]'
    reading, stream = chat_format.reader(TOOLS, tokenizer=ours), ours.stream()
    pieces = [piece for i in [marker, *ours.encode(answer)] for piece in reading.push(i, stream.push(i))]
    message = whole([*pieces, *reading.finish(stream.finish())])
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather", "f"]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}, {k: v for k, v in message.items() if v}]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": '{"ok": 1}'}
        for call in message["tool_calls"]
    ]
    if ours.version == "v2":  # has no way to write several results in a row
        asked[1] = {**asked[1], "tool_calls": message["tool_calls"][:1]}
        results = results[:1]
    messages = [*asked, *results]
    assert chat_format.encode(messages, tokenizer=ours, tools=TOOLS) == Oracle(version).encode(messages, TOOLS)
