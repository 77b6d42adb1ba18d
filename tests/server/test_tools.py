"""Tools over HTTP, from a model of random weights that is held to calls: with Mistral's own tokenizer and format."""

import json
import re

import jsonschema
import pytest
from openai import OpenAI
from served import Served

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
ASK = {"messages": [{"role": "user", "content": "Weather in Paris?"}], "tools": TOOLS, "max_tokens": 300, "seed": 4}


@pytest.fixture
def server(mistral_server: Served) -> Served:
    """One whose model has tools."""
    return mistral_server


def check(calls: list) -> None:
    for call in calls:
        assert re.fullmatch("[a-zA-Z0-9]{9}", call["id"])
        assert call["type"] == "function"
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            jsonschema.validate(arguments, PARAMETERS)
        else:
            assert call["function"]["name"] == "time"


@pytest.mark.parametrize("choice", ["required", "any", {"type": "function", "function": {"name": "weather"}}])
def test_an_answer_that_has_to_call_does_facts_23(server: Served, choice):
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={**ASK, "tool_choice": choice}).json()
        one = client.post(
            "/v1/chat/completions", json={**ASK, "tool_choice": choice, "parallel_tool_calls": False}
        ).json()
    message = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert message["content"] is None
    check(message["tool_calls"])
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1
    if not isinstance(choice, str):
        assert {call["function"]["name"] for call in message["tool_calls"]} == {"weather"}


def test_streamed_calls_add_up(server: Served):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    asked = {**ASK, "tool_choice": "required", "model": "tiny"}
    calls: dict[int, dict] = {}
    reasons = []
    for chunk in client.chat.completions.create(stream=True, **asked):
        reasons.append(chunk.choices[0].finish_reason)
        for part in chunk.choices[0].delta.tool_calls or ():
            call = calls.setdefault(
                part.index, {"id": part.id, "type": part.type, "name": part.function.name, "text": ""}
            )
            call["text"] += part.function.arguments or ""
    found = [{**call, "function": {"name": call["name"], "arguments": call["text"]}} for call in calls.values()]
    check(found)
    assert reasons[-1] == "tool_calls"
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in whole] == [(c["name"], c["text"]) for c in calls.values()]


def test_a_conversation_with_results_goes_on(server: Served):
    with server.client() as client:
        message = client.post("/v1/chat/completions", json={**ASK, "tool_choice": "required"}).json()["choices"][0][
            "message"
        ]
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "rain"} for c in message["tool_calls"]]
        turns = [*ASK["messages"], message, *results]
        answer = client.post("/v1/chat/completions", json={**ASK, "messages": turns, "max_tokens": 4})
    assert answer.status_code == 200, answer.text


def test_without_tools_there_are_none(server: Served):
    with server.client() as client:
        told = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 2}).json()["usage"]["prompt_tokens"]
        none = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 2, "tool_choice": "none"}).json()
        wrong = [
            client.post("/v1/chat/completions", json={**ASK, "tools": None, "tool_choice": "required"}),
            client.post(
                "/v1/chat/completions", json={**ASK, "tool_choice": {"type": "function", "function": {"name": "no"}}}
            ),
        ]
    assert none["usage"]["prompt_tokens"] < told
    assert [answer.status_code for answer in wrong] == [400, 400]
