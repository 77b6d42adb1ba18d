"""The routes that generate say what the engine says, whole and in pieces, alone and together."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from openai import OpenAI
from served import Served, served

from ventoux.model import Mistral

CHAT = {"messages": [{"role": "user", "content": "Call me Ishmael."}], "temperature": 0, "max_tokens": 24}


def chunks(response: httpx.Response) -> list[dict]:
    """The objects of a stream, whose last line says that it is complete."""
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_chat_is_what_the_model_says(server: Served, tiny: Mistral):
    said = tiny.chat(CHAT["messages"], temperature=0, max_tokens=24)
    with server.client() as client:
        whole = client.post("/v1/chat/completions", json=CHAT).json()
        stream = chunks(client.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": str(said), "refusal": None}
    assert whole["choices"][0]["finish_reason"] == said.reason
    assert whole["usage"]["completion_tokens"] == len(said.ids)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream) == str(said)
    assert [chunk["choices"][0]["finish_reason"] for chunk in stream][-1] == said.reason
    assert len({chunk["id"] for chunk in stream}) == 1


def test_a_text_goes_on_as_the_model_does(server: Served, tiny: Mistral):
    prompts = ["Call me", "The whale is a fish of the"]
    said = tiny.generate(prompts, temperature=0, max_tokens=12)
    with server.client() as client:
        body = {"prompt": prompts, "temperature": 0, "max_tokens": 12}
        whole = client.post("/v1/completions", json=body).json()
        ids = [tiny.tokenizer.encode(prompt, bos=True) for prompt in prompts]
        by_ids = client.post("/v1/completions", json={**body, "prompt": ids}).json()
        echoed = client.post("/v1/completions", json={**body, "prompt": prompts[0], "echo": True}).json()
        stream = chunks(client.post("/v1/completions", json={**body, "stream": True}))
    assert [choice["text"] for choice in whole["choices"]] == [str(each) for each in said]
    assert [choice["text"] for choice in by_ids["choices"]] == [str(each) for each in said]
    assert echoed["choices"][0]["text"] == prompts[0] + str(said[0])
    for index, each in enumerate(said):
        texts = [c["text"] for chunk in stream for c in chunk["choices"] if c["index"] == index]
        assert "".join(texts) == str(each)


def test_usage_of_several_answers_counts_the_prompt_once(server: Served):
    with server.client() as client:
        body = {**CHAT, "n": 3, "temperature": 1, "seed": 5, "stream": True, "stream_options": {"include_usage": True}}
        stream = chunks(client.post("/v1/chat/completions", json=body))
        one = client.post("/v1/chat/completions", json=CHAT).json()
    usage = stream[-1]["usage"]
    assert stream[-1]["choices"] == []
    assert usage["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    texts = ["".join(c["choices"][0]["delta"].get("content", "") for c in stream[:-1] if c["choices"][0]["index"] == i)
             for i in range(3)]  # fmt: skip
    assert len(set(texts)) == 3, "each answer has a seed of its own"


def test_log_probabilities_are_the_models(server: Served, tiny: Mistral):
    said = tiny.chat(CHAT["messages"], temperature=0, max_tokens=24, logprobs=2)
    with server.client() as client:
        asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
        whole = client.post("/v1/chat/completions", json=asked).json()
        stream = chunks(client.post("/v1/chat/completions", json={**asked, "stream": True}))
    content = whole["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == pytest.approx(said.logprobs)
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(said.ids)
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode("utf-8", "replace") == str(said)
    told = [c["choices"][0]["logprobs"] for c in stream if c["choices"][0]["logprobs"]]
    assert [entry for each in told for entry in each["content"]] == content


def test_a_prompts_own_log_probabilities(server: Served, tiny: Mistral):
    """What lm-eval asks: the prompt once more, with what the model thought of it, and nothing or little behind it."""
    ids = tiny.tokenizer.encode("Call me Ishmael.", bos=True)
    rows = tiny.logits(ids).astype("f8")
    expected = [row[after] - np.logaddexp.reduce(row) for row, after in zip(rows, ids[1:], strict=False)]
    with server.client() as client:
        for prompt in ("Call me Ishmael.", ids):
            body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
            [choice] = client.post("/v1/completions", json=body).json()["choices"]
            assert choice["text"] == "Call me Ishmael."
            assert choice["logprobs"]["token_logprobs"][0] is None
            assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-5)
            assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [1] * len(expected)
            more = client.post("/v1/completions", json={**body, "max_tokens": 2, "temperature": 0}).json()["choices"][0]
            assert len(more["logprobs"]["tokens"]) == len(more["logprobs"]["text_offset"]) == len(ids) + 2
            assert more["logprobs"]["token_logprobs"][: len(ids)] == choice["logprobs"]["token_logprobs"]
        assert client.post("/v1/completions", json={"prompt": ids, "max_tokens": 0}).status_code == 400
        echoed = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 0, "echo": True}).json()
        assert echoed["choices"][0]["text"] == "Call me Ishmael."


def test_many_clients_get_what_one_gets(server: Served, tiny: Mistral):
    texts = [f"{n} whales in the sea" for n in range(24)]
    alone = [str(tiny.generate(text, temperature=0, max_tokens=5 + n)) for n, text in enumerate(texts)]

    def ask(n: int) -> str:
        with server.client() as client:
            body = {"prompt": texts[n], "temperature": 0, "max_tokens": 5 + n}
            return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone
    assert server.service.worker.alive == 0


def test_the_openai_client_is_content(server: Served):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.chat.completions.create(model="tiny", **CHAT)
    pieces = client.chat.completions.create(model="tiny", stream=True, **CHAT)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.choices[0].message.content
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_silence_is_filled_and_every_alias_answers(tiny: Mistral):
    """A prompt that takes long to read leaves its stream silent: what stands between would take it for dead."""
    slow = {"aliases": ("tiny", "small"), "keep_alive_s": 0.001, "token_budget": 1}
    with served(lambda: tiny, **slow) as server, server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": [5] * 400, "max_tokens": 2, "stream": True})
        named = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "model": "small"}).json()
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert answer.text.count(": still at work") > 1
    assert len(chunks(answer)) >= 2
    assert named["model"] == "small"
    assert listed == ["tiny", "small"]
