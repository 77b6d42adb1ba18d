"""Mistral's chat formats equal mistral-common's, token for token, over a generated family of conversations."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_oracle import Oracle
from vocabularies import FILES, MISTRAL

from ventoux import chat, tokenizer
from ventoux.errors import ChatError
from ventoux.tokenizer import Tokenizer

VERSIONS = ("v1", "v2", "v3", "v7")
family = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.sampled_from(["a", "Hello  world ", " é\n", "[INST] </s>", "", '{"a": 1}', "👩‍👧 x"]) | st.text(max_size=8)
contents = texts | st.lists(texts.map(lambda text: {"type": "text", "text": text}), max_size=3)
call_ids = st.text("abcXYZ019", min_size=9, max_size=9)
names = st.sampled_from(["get_weather", "f", "look-up"])
arguments = st.sampled_from(['{"city": "Malaucène"}', '{"b":1,"a":[1.0,null]}', "", "no JSON", "[", "1e5"])


@st.composite
def exchanges(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A call of tools and its results, as many as calls, and what the assistant makes of them."""
    calls = [
        {"id": draw(call_ids), "type": "function", "function": {"name": draw(names), "arguments": draw(arguments)}}
        for _ in range(draw(st.integers(1, 2)))
    ]
    messages: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": calls}]
    for call in calls:
        result = {"role": "tool", "tool_call_id": call["id"], "content": draw(contents | arguments)}
        messages.append(result | ({"name": call["function"]["name"]} if draw(st.booleans()) else {}))
    return messages


turns = st.one_of(
    contents.map(lambda content: [{"role": "user", "content": content}]),
    contents.map(lambda content: [{"role": "user", "content": content}]),
    contents.map(lambda content: [{"role": "assistant", "content": content}]),
    contents.map(lambda content: [{"role": "system", "content": content}]),
    exchanges(),
)
conversations = (
    st.lists(turns, min_size=1, max_size=7)
    .map(lambda parts: [m for part in parts for m in part])
    # mistral-common does not see a call in the very first message, and refuses its result
    .filter(lambda messages: "tool_calls" not in messages[0])
)
prefixes = st.none() | st.just({"role": "assistant", "content": "The answer is ", "prefix": True})
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "Wétter", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}, "strict": True}},
]


@pytest.fixture(scope="module", params=[*VERSIONS, "tekken"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Oracle]:
    return tokenizer.load(MISTRAL / FILES[request.param]), Oracle(request.param)


@family
@given(messages=conversations, prefix=prefixes, tools=st.sampled_from([None, TOOLS[:1], TOOLS]))
def test_facts_21_ids_equal_mistral_common(
    pair: tuple[Tokenizer, Oracle],
    messages: list[dict[str, Any]],
    prefix: dict[str, Any] | None,
    tools: list[dict[str, Any]] | None,
) -> None:
    ours, oracle = pair
    assert ours.version is not None
    messages = messages + [prefix] * (prefix is not None)
    tools = None if ours.version == "v1" else tools
    try:
        expected: list[int] | None = oracle.encode(messages, tools)
    except Exception:  # mistral-common has many ways to refuse, an assert among them
        expected = None
    try:
        ids: list[int] | None = chat.ChatFormat(ours.version, None, "").encode(messages, tokenizer=ours, tools=tools)
    except ChatError:
        ids = None
    assert ids == expected
    assert ids is None or ids.count(1) == 1


@family
@given(prompt=texts, suffix=st.none() | texts)
def test_fill_in_the_middle_equals_mistral_common(
    pair: tuple[Tokenizer, Oracle], prompt: str, suffix: str | None
) -> None:
    ours, oracle = pair
    assert ours.version is not None
    if ours.version == "v1":
        with pytest.raises(ChatError):
            chat.encode_fim(prompt, suffix, tokenizer=ours, version=ours.version)
    else:
        assert chat.encode_fim(prompt, suffix, tokenizer=ours, version=ours.version) == oracle.encode_fim(
            prompt, suffix
        )


def test_facts_21_the_documented_ids_of_v1() -> None:
    roles = zip(["user", "assistant", "user", "assistant"], "abcd", strict=True)
    ids = chat.encode([{"role": r, "content": c} for r, c in roles], tokenizer=tokenizer.load(MISTRAL / FILES["v1"]))
    expected = "1 733 16289 28793 264 733 28748 16289 28793 287 2 733 16289 28793 277 733 28748 16289 28793 281 2"
    assert ids == [int(each) for each in expected.split()]


@pytest.mark.parametrize("version", VERSIONS)
def test_safe_prompt_is_a_system_prompt_before_the_users(version: str) -> None:
    ours = tokenizer.load(MISTRAL / FILES[version])
    user = {"role": "user", "content": "How to kill a linux process"}
    system = {"role": "system", "content": "Be brief."}
    guard = {"role": "system", "content": chat.GUARDRAIL}
    both = {"role": "system", "content": chat.GUARDRAIL + "\n\nBe brief."}
    for messages, expected in (([user], [guard, user]), ([system, user], [both, user])):
        safe = chat.encode(messages, tokenizer=ours, version=version, safe_prompt=True)
        assert safe == chat.encode(expected, tokenizer=ours, version=version)


def test_facts_23_call_ids_are_nine_alphanumerics_and_round_trip() -> None:
    ours = tokenizer.load(MISTRAL / FILES["v3"])
    assert chat.new_call_id(Random(7)) == chat.new_call_id(Random(7)) != chat.new_call_id(Random(8))
    for _ in range(50):
        call_id = chat.new_call_id()
        assert len(call_id) == 9
        assert call_id.isascii()
        assert call_id.isalnum()
        call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
        result = {"role": "tool", "tool_call_id": call_id, "content": "1"}
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}, result]
        text = ours.decode(chat.encode(messages, tokenizer=ours, version="v3"))
        assert text.count(json.dumps(call_id)) == 2


USER = {"role": "user", "content": "x"}
CALL = {"id": "abcdefghi", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "version", "words"),
    [
        ([], "v1", "at least one message"),
        ("hi", "v1", "a list of messages, found str"),
        ([USER, "hi"], "v1", "message 1: expected an object"),
        ([USER, {"role": "bot", "content": "x"}], "v1", "message 1: expected a role among .* found 'bot'"),
        ([USER, {"role": "user"}], "v1", "message 1: expected content"),
        ([{"role": "user", "content": 5}], "v1", "message 0: expected content.* found int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "v3", "message 0: expected content parts .*image_url"),
        ([{"role": "user", "content": "x", "contnet": "y"}], "v1", r"message 0: unknown key\(s\) \['contnet'\]"),
        (
            [USER, {"role": "assistant", "content": ""}],
            "v1",
            "message 1: expected content or tool_calls, found neither",
        ),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [CALL]}], "v3", "message 1: .* found both"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], "v1", "v1 has no tools"),
        ([USER, {"role": "assistant", "tool_calls": [{**CALL, "id": "1"}]}], "v3", "message 1: .*nine letters and dig"),
        ([USER, {"role": "assistant", "tool_calls": ["f"]}], "v3", "message 1: expected tool calls of the form"),
        ([USER, {"role": "tool", "content": "x"}], "v3", "message 1: expected assistant or system or user after user"),
        (
            [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}],
            "v3",
            "message 2: expected nine letters and digits as tool_call_id, found None",
        ),
        ([USER, {"role": "assistant", "content": "x", "prefix": True}, USER], "v1", "message 1: .*prefix .*last"),
        ([{**USER, "prefix": True}], "v1", "message 0: .*assistant messages only"),
        ([USER], "v9", "chat format among v1, v2, v3, v7, found 'v9'"),
        ([USER], "v3", r"needs the control token \[INST\], which this tokenizer \(v1\) has not"),
        ([USER], "template", "needs the checkpoint's template"),
    ],
)
def test_bad_messages_are_named(messages: Any, version: str, words: str) -> None:
    ours = tokenizer.load(MISTRAL / FILES["v1"])
    with pytest.raises(ChatError, match=words):
        chat.encode(messages, tokenizer=ours, version=version)


def test_a_conversation_to_be_answered_ends_with_the_user() -> None:
    ours = tokenizer.load(MISTRAL / FILES["v1"])
    with pytest.raises(ChatError, match="message 1: expected a user or tool message last, found assistant"):
        chat.format_for(ours, template=None).encode([USER, {"role": "assistant", "content": "y"}], tokenizer=ours)


def test_tools_are_checked() -> None:
    ours = tokenizer.load(MISTRAL / FILES["v3"])
    for tool, words in (
        ({"type": "function"}, "tool 0: expected"),
        ({"type": "function", "function": {"name": "a b"}}, "tool 0: expected a name"),
        ({"type": "function", "function": {"name": "a", "parameters": [1]}}, "tool 0: expected parameters"),
        ({"type": "function", "function": {"name": "a", "parameters": {"x": {1}}}}, "JSON can write"),
    ):
        with pytest.raises(ChatError, match=words):
            chat.encode([USER], tokenizer=ours, version="v3", tools=[tool])
