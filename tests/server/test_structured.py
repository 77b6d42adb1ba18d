"""Answers that have to look like something do, over HTTP, from a model of random weights that would say anything."""

import json
import re

import jsonschema
import pytest
from served import Served

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "tame": {"type": "boolean"},
    },
    "required": ["name", "legs", "tame"],
    "additionalProperties": False,
}
ASK = {"messages": [{"role": "user", "content": "A whale."}], "max_tokens": 200}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1])
def test_json_by_a_schema(server: Served, stream: bool, temperature: float):
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    with server.client() as client:
        body = {**ASK, "response_format": form, "temperature": temperature, "seed": 3, "stream": stream}
        answer = client.post("/v1/chat/completions", json=body)
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    else:
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        text = answer.json()["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_pattern_and_a_grammar(server: Served):
    with server.client() as client:
        regex = {**ASK, "grammar": {"type": "regex", "value": "(yes|no), (captain|sir)!"}}
        lark = {"prompt": "2 + 2 = ", "max_tokens": 20, "grammar": {"type": "lark", "value": 'start: ("4" | "5") "."'}}
        said = client.post("/v1/chat/completions", json=regex).json()["choices"][0]["message"]["content"]
        text = client.post("/v1/completions", json=lark).json()["choices"][0]["text"]
    assert re.fullmatch("(yes|no), (captain|sir)!", said)
    assert text in ("4.", "5.")


@pytest.mark.parametrize(
    "asked",
    [
        {"grammar": {"type": "regex", "value": "(a{1000}){1000}{1000}"}},  # CVE-2025-48942 to -48944
        {"grammar": {"type": "regex", "value": "(unclosed"}},
        {"grammar": {"type": "lark", "value": "start: nothing"}},
        {"grammar": {"type": "lark", "value": "start: " + "(" * 5000 + '"a"' + ")" * 5000}},  # CVE-2025-57809
        {"grammar": {"type": "regex", "value": "a"}, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/x"}}}},
    ],
)
def test_what_cannot_be_followed_is_refused(server: Served, asked: dict):
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={**ASK, **asked})
        assert answer.status_code == 400, answer.text
        assert client.post("/v1/chat/completions", json={**ASK, "max_tokens": 2}).status_code == 200


def test_a_schema_of_a_thousand_floors_is_refused(server: Served):
    schema: dict = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    with server.client() as client:
        assert client.post("/v1/chat/completions", json={**ASK, "response_format": form}).status_code == 400
