"""What is wrong with a request is a 4xx in OpenAI's shape, which says what; nothing of it is a 500."""

import json

import pytest
from served import Served

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WRONG = {
    "an unknown parameter": (CHAT, {"messages": MESSAGES, "temprature": 0}, "temprature"),
    "an unknown key of a message": (CHAT, {"messages": [{"role": "user", "text": "Hello"}]}, "messages.0.text"),
    "a value out of range": (CHAT, {"messages": MESSAGES, "temperature": -1}, "temperature"),
    "a number that is none": (TEXT, {"prompt": "a", "top_p": "much"}, "top_p"),
    "no messages": (CHAT, {"messages": []}, "messages"),
    "no prompt": (TEXT, {}, "prompt"),
    "an empty prompt": (TEXT, {"prompt": []}, "prompt"),
    "a role": (CHAT, {"messages": [{"role": "wizard", "content": "Hello"}]}, "messages.0.role"),
    "two seeds": (TEXT, {"prompt": "a", "seed": 1, "random_seed": 2}, None),
    "an id outside of the vocabulary": (TEXT, {"prompt": [5, 100000]}, None),
    "too many answers": (TEXT, {"prompt": ["a"] * 30, "n": 16}, None),
    "an answer that is the last word": (CHAT, {"messages": [*MESSAGES, {"role": "assistant", "content": "Hi"}]}, None),
    "half a surrogate pair": (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, None),
    "top_logprobs alone": (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, None),
    "a million answers": (CHAT, {"messages": MESSAGES, "n": 1_000_000}, "n"),  # CVE-2024-8939
    "the best of many": (TEXT, {"prompt": "a", "best_of": 100}, "best_of"),
    "the whole vocabulary with each token": (TEXT, {"prompt": "a", "logprobs": 50_000}, "logprobs"),  # CVE-2026-34756
    "the same in a chat": (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 50_000}, "top_logprobs"),
    "a template of one's own": (CHAT, {"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),  # -61620
    "a seed beyond all": (TEXT, {"prompt": "a", "seed": 2**70}, "seed"),
    "a thousand stops": (TEXT, {"prompt": "a", "stop": ["x"] * 1000}, "stop"),
    "an empty stop": (TEXT, {"prompt": "a", "stop": ""}, "stop"),
    "a bias for nothing": (TEXT, {"prompt": "a", "logit_bias": {"no": 1}}, "logit_bias"),
    "a picture": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    "a suffix, where the model has none": (TEXT, {"prompt": "a", "suffix": "b"}, None),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused_and_named(server: Served, what: str):
    route, body, param = WRONG[what]
    with server.client() as client:
        content = json.dumps(body)  # which escapes what is no character, where httpx would refuse it
        answer = client.post(route, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert param is None or (error["param"] or "").startswith(param)
    assert error["message"]


def test_a_prompt_too_long_is_told_in_numbers_facts_24(server: Served):
    with server.client() as client:
        answer = client.post(TEXT, json={"prompt": [5] * 600, "max_tokens": 8})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["n_prompt_tokens"], error["n_ctx"], error["code"]) == (600, 512, "context_length_exceeded")


@pytest.mark.parametrize("body", [b"", b"{", b'{"prompt": NaN}', b"[" * 100_000, b"\xff\xfe", b'"text"'])
def test_what_is_no_json_is_refused(server: Served, body: bytes):
    with server.client() as client:
        answer = client.post(TEXT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_names_that_nothing_has(server: Served):
    with server.client() as client:
        answer = client.post(TEXT, json={"prompt": "a", "model": "gpt-4"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert client.get("/v1/models/gpt-4").status_code == 404
        assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
        assert client.get(TEXT).status_code == 405
