"""Tools, JSON by a schema, filling in the middle and embeddings, asked by clients that others wrote."""

from typing import Literal

import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field
from served import Served

MESSAGES = [{"role": "user", "content": "Weather in Paris?"}]
SEEDED = {"model": "tiny", "max_tokens": 300}


class Weather(BaseModel):
    """The weather of a place."""

    model_config = ConfigDict(extra="forbid")
    sky: Literal["rain", "sun", "wind"]
    degrees: int = Field(ge=0, le=40)


TOOL = {"type": "function", "function": {"name": "Weather", "parameters": Weather.model_json_schema()}}


@pytest.fixture
def server(mistral_server: Served) -> Served:
    """One whose model has tools."""
    return mistral_server


def test_openai_parses(server: Served):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.parse(messages=MESSAGES, response_format=Weather, seed=1, **SEEDED)
    assert isinstance(answer.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(messages=MESSAGES, response_format=Weather, seed=1, **SEEDED) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed
    vectors = client.embeddings.create(model="tiny", input=["Call me", "Ishmael"]).data
    assert len(vectors) == 2
    assert all(len(vector.embedding) == 64 for vector in vectors)


def test_mistralai_calls_tools_and_fills_in_the_middle(server: Served):
    from mistralai.client import Mistral

    with Mistral(api_key="none", server_url=server.url) as client:
        ask = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "any", "random_seed": 1, **SEEDED}
        answer = client.chat.complete(**ask)
        assert answer.choices[0].finish_reason == "tool_calls"
        for call in answer.choices[0].message.tool_calls:
            assert len(call.id) == 9
            assert Weather.model_validate_json(call.function.arguments)
        with client.chat.stream(**ask) as stream:
            assert [event.data.choices[0].finish_reason for event in stream if event.data.choices][-1] == "tool_calls"
        schema = {"name": "weather", "schema": Weather.model_json_schema()}
        form = {"type": "json_schema", "json_schema": schema}
        text = client.chat.complete(messages=MESSAGES, response_format=form, random_seed=1, **SEEDED)
        assert Weather.model_validate_json(text.choices[0].message.content)
        middle = {"model": "tiny", "prompt": "def f(", "suffix": "return x", "temperature": 0, "max_tokens": 8}
        whole = client.fim.complete(**middle).choices[0].message.content
        with client.fim.stream(**middle) as stream:
            pieces = [event.data.choices[0].delta.content for event in stream if event.data.choices]
        assert "".join(piece for piece in pieces if isinstance(piece, str)) == whole != ""
        assert len(client.embeddings.create(model="tiny", inputs=["Call me"]).data[0].embedding) == 64


def test_langchain_calls_tools_and_keeps_to_schemas(server: Served):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", seed=1, **SEEDED)
    calls = chat.bind_tools([TOOL], tool_choice="required").invoke(MESSAGES).tool_calls
    assert calls
    assert all(Weather.model_validate(call["args"]) for call in calls)
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Weather, method=method).invoke(MESSAGES), Weather)


def test_langchain_streams_tools(server: Served):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", seed=1, **SEEDED)
    bound = chat.bind_tools([TOOL], tool_choice="required")
    total = None
    for chunk in bound.stream(MESSAGES):
        total = chunk if total is None else total + chunk
    calls = bound.invoke(MESSAGES).tool_calls
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [(c["name"], c["args"]) for c in calls]
