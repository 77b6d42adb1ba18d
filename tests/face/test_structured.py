"""Structured output through the Python face."""

import json
import sys
from typing import Any

import pytest
from toy import ByteTokenizer, ToyBackend, hashed

from ventoux import GrammarError, MissingExtraError, Mistral, RequestError

SCHEMA = {"enum": ["ab", "cd", "abc"]}


def toy() -> Mistral:
    return Mistral(ToyBackend(hashed), tokenizer=ByteTokenizer(), template="{{ messages[0]['content'] }}")


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_every_method_that_generates_takes_a_shape(temperature: float) -> None:
    model, params = toy(), {"temperature": temperature, "seed": 1, "json_schema": SCHEMA}
    messages = [{"role": "user", "content": "xyz"}]
    answers = [model.generate("xyz", **params), *model.generate(["xyz", "z"], **params), model.chat(messages, **params)]
    answers.append("".join(event.text for event in model.stream("xyz", **params)))
    answers.append("".join(event.text for event in model.stream_chat(messages, **params)))
    assert {json.loads(answer) for answer in answers} <= {"ab", "cd", "abc"}
    assert model.generate("xyz", regex="[x-z]{3}").strip("xyz") == ""
    assert model.generate("xyz", grammar='start: "e" "d"') == "ed"
    assert model.generate("xyz", json_schema=None, regex=None, grammar="start: /d/") == "d"


@pytest.mark.parametrize(
    ("params", "error", "reason"),
    [
        ({"regex": "a", "grammar": "start: /a/"}, RequestError, "found 2"),
        ({"regex": "("}, GrammarError, "unclosed"),
        ({"json_schema": "{}"}, GrammarError, "an object"),
        ({"grammar": 7}, GrammarError, "as text"),
        ({"schema": {}}, RequestError, "json_schema, regex, grammar"),
        ({"json_schema": {"$ref": "https://example.com/a.json"}}, GrammarError, "not fetched"),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_runs(params: Any, error: Any, reason: str) -> None:
    model = toy()
    for method in (model.generate, model.stream):
        with pytest.raises(error, match=reason):
            method("x", **params)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ventoux\[grammar\]'"):
        toy().generate("x", regex="a")
    assert toy().generate("x", max_tokens=1, regex=None) is not None
