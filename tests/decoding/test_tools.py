"""An answer that has to call a tool does, in the words of its format, and its reader finds the calls."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import numpy as np
import pytest
from vocabularies import FILES, MISTRAL

from ventoux import tokenizer
from ventoux.chat import ChatFormat, whole
from ventoux.decoding import Grammars
from ventoux.decoding.tools import tool_calls
from ventoux.errors import ChatError, GrammarError, RequestError
from ventoux.tokenizer import Tokenizer

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def tool(name: str, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", PARAMETERS), tool("stop", NOTHING)]
FORMATS = {
    "v2": ChatFormat("v2", None, ""),
    "v3": ChatFormat("v3", None, ""),
    "v7": ChatFormat("v7", None, ""),
    "hermes": ChatFormat("template", "{{ tools }}<tool_call>", ""),
    "bare": ChatFormat("template", """{{ tools }}{{ '"parameters": ' }}""", ""),
}


@pytest.fixture(scope="module", params=FORMATS)
def written_by(request: pytest.FixtureRequest, default_model: Any) -> tuple[ChatFormat, Tokenizer, Grammars]:
    chat_format = FORMATS[request.param]
    file = default_model if chat_format.version == "template" else MISTRAL / FILES[request.param]
    found = tokenizer.load(file)
    return chat_format, found, Grammars(found)


def answer(written_by: tuple[ChatFormat, Tokenizer, Grammars], seed: int, **asked: Any) -> dict[str, Any]:
    """The message of a model that writes at random what it may, and closes what it may in every other place."""
    chat_format, text_tokenizer, grammars = written_by
    constraint = tool_calls(grammars, TOOLS, chat_format=chat_format, **asked)
    assert constraint is not None
    rng = np.random.default_rng(seed)
    state = constraint.begin(continues=False)
    reading, stream, pieces = chat_format.reader(TOOLS, tokenizer=text_tokenizer), text_tokenizer.stream(), []
    for _ in range(3000):
        allowed = np.flatnonzero(state.allowed(text_tokenizer.vocab_size)).tolist()
        closing = [i for i in allowed if set(text_tokenizer.token_bytes(i)) <= set(b'"}]')]
        token_id = int(rng.choice(closing if closing and rng.random() < 0.5 else allowed))
        if token_id in text_tokenizer.end_ids:
            break
        state.take(token_id)
        pieces += reading.push(token_id, stream.push(token_id))
        if state.complete:
            break
    else:
        raise AssertionError("the answer has no end")
    return whole([*pieces, *reading.finish(stream.finish())])


@pytest.mark.parametrize("seed", range(2))
def test_an_answer_that_has_to_call_does(written_by: tuple[ChatFormat, Tokenizer, Grammars], seed: int) -> None:
    for choice in ("any", "required"):
        message = answer(written_by, seed, choice=choice)
        assert message["content"] is None
        for call in message["tool_calls"]:
            function = call["function"]
            schema = PARAMETERS if function["name"] == "weather" else NOTHING
            jsonschema.validate(json.loads(function["arguments"]), schema)
    assert len(answer(written_by, seed, choice="any", parallel=False)["tool_calls"]) == 1
    named = answer(written_by, seed, choice={"type": "function", "function": {"name": "stop"}})
    assert [call["function"] for call in named["tool_calls"]] == [{"name": "stop", "arguments": "{}"}]


def test_calls_are_written_in_the_tokens_of_training(written_by: tuple[ChatFormat, Tokenizer, Grammars]) -> None:
    """What mistral-common writes of a call into a prompt, but for its id, is what the model may write."""
    chat_format, text_tokenizer, grammars = written_by
    if chat_format.version == "template":
        pytest.skip("a template's own business")
    marker = text_tokenizer.control_id("[TOOL_CALLS]")
    assert marker is not None
    constraint = tool_calls(grammars, TOOLS, choice="required", chat_format=chat_format)
    assert constraint is not None
    state = constraint.begin(continues=False)
    call = '{"name": "weather", "arguments": {"city": "Nîmes", "days": 2}}'
    for token_id in [marker, *text_tokenizer.encode(f"[{call}, {call}]")]:
        assert state.allowed(text_tokenizer.vocab_size)[token_id]
        state.take(token_id)
    assert state.complete


def test_auto_is_free_unless_something_has_to_be_kept() -> None:
    v3 = tokenizer.load(MISTRAL / FILES["v3"])
    grammars, chat_format = Grammars(v3), FORMATS["v3"]
    assert tool_calls(grammars, TOOLS, chat_format=chat_format) is None
    assert tool_calls(grammars, TOOLS, choice="none", chat_format=chat_format) is None
    assert tool_calls(grammars, None, chat_format=chat_format) is None
    strict = [tool("weather", PARAMETERS, strict=True)]
    for constraint in (
        tool_calls(grammars, TOOLS, chat_format=chat_format, parallel=False),
        tool_calls(grammars, strict, chat_format=chat_format),
    ):
        assert constraint is not None
        state = constraint.begin(continues=False)
        marker = v3.control_id("[TOOL_CALLS]")
        assert marker is not None
        for token_id in v3.encode("Let me [see] {it}"):
            allowed = state.allowed(v3.vocab_size)
            assert allowed[[token_id, marker]].all()
            state.take(token_id)
        state.take(marker)
        assert not state.allowed(v3.vocab_size)[v3.encode("weather")[0]]


def test_parameters_that_cannot_be_followed_are_any_object_unless_strict() -> None:
    v3 = tokenizer.load(MISTRAL / FILES["v3"])
    grammars = Grammars(v3)
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    assert tool_calls(grammars, [tool("f", odd)], choice="any", chat_format=FORMATS["v3"]) is not None
    with pytest.raises(GrammarError, match=r"tool f: parameters: .*uniqueItems"):
        tool_calls(grammars, [tool("f", odd, strict=True)], choice="any", chat_format=FORMATS["v3"])


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("always", "tool_choice must be"),
        ({"type": "function"}, "tool_choice must be"),
        ({"type": "function", "function": {"name": "g"}}, "the tools are weather, stop"),
        (7, "tool_choice must be"),
    ],
)
def test_choices_that_there_are_not(choice: Any, reason: str) -> None:
    grammars = Grammars(tokenizer.load(MISTRAL / FILES["v3"]))
    with pytest.raises(RequestError, match=reason):
        tool_calls(grammars, TOOLS, choice=choice, chat_format=FORMATS["v3"])
    with pytest.raises(RequestError, match="needs tools"):
        tool_calls(grammars, [], choice="required", chat_format=FORMATS["v3"])
    with pytest.raises(ChatError, match="no tools"):
        tool_calls(grammars, TOOLS, choice="required", chat_format=ChatFormat("v1", None, ""))
