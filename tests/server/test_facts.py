"""What has gone wrong in other servers, over HTTP: ids, streams, stop strings, clients that leave."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from served import Served, served
from tiny import save_hf, tiny_model
from toy import ByteTokenizer, ToyBackend, saying
from vocabularies import FILES, MISTRAL

import ventoux
from ventoux.model import Mistral

TALKS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<s>[INST] Hi [/INST]"}],
    [
        {"role": "user", "content": "  two  spaces "},
        {"role": "assistant", "content": "Yes 🦙"},
        {"role": "user", "content": "Ça va?"},
    ],
]


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_facts_21_ids_are_those_of_mistral_common(version: str, tmp_path: Path):
    save_hf(tiny_model(vocab_size=32768 if version == "v3" else 32000), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((MISTRAL / FILES[version]).read_bytes())
    model = ventoux.load(tmp_path, threads=1)
    oracle = MistralTokenizer.from_file(str(MISTRAL / FILES[version]))
    with served(lambda: model) as server, server.client() as client:
        for talk in TALKS:
            ids = oracle.encode_chat_completion(ChatCompletionRequest(messages=talk)).tokens
            assert client.post("/tokenize", json={"messages": talk}).json()["tokens"] == ids
            answer = client.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 1}).json()
            assert answer["usage"]["prompt_tokens"] == len(ids)
            assert ids.count(oracle.instruct_tokenizer.tokenizer.bos_id) == 1


def scripted(*texts: str) -> Mistral:
    """A model that goes on as these texts do, byte by byte."""
    return Mistral(ToyBackend(saying(*texts), context_length=4096), tokenizer=ByteTokenizer())


def streamed(server: Served, **body: Any) -> tuple[list[str], str]:
    """The pieces of an answer, and why it ended."""
    with server.client() as client:
        text = client.post("/v1/completions", json={"temperature": 0, "stream": True, **body}).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    return [chunk["choices"][0]["text"] for chunk in chunks], chunks[-1]["choices"][0]["finish_reason"]


def test_facts_22_spaces_stay_and_emoji_come_whole():
    text = "Say: a  b\n\n c 🦙🏔️ é — done."
    with served(lambda: scripted(text)) as server:
        pieces, reason = streamed(server, prompt="Say:")
    assert "".join(pieces) == text.removeprefix("Say:")
    assert not any("\ufffd" in piece for piece in pieces)
    assert reason == "stop"


@pytest.mark.parametrize(
    ("stop", "said"),
    [(["###"], " one #two ##three "), (["##three", "###"], " one #two "), (["#four"], " one #two ##three ###end")],
)
def test_facts_25_stop_strings_neither_leak_nor_swallow(stop: list[str], said: str):
    with served(lambda: scripted("Count: one #two ##three ###end")) as server:
        pieces, reason = streamed(server, prompt="Count:", stop=stop)
        with server.client() as client:
            whole = client.post("/v1/completions", json={"prompt": "Count:", "temperature": 0, "stop": stop}).json()
    assert "".join(pieces) == whole["choices"][0]["text"] == said
    assert reason == whole["choices"][0]["finish_reason"] == "stop"
    assert not any(string in "".join(pieces) for string in stop)


@pytest.mark.parametrize("stream", [True, False])
def test_facts_26_a_client_that_leaves_ends_its_answer(stream: bool):
    with served(lambda: scripted("Go" + " on" * 1300)) as server:
        with server.client() as client:
            body = {"prompt": "Go", "temperature": 0, "stream": stream}
            if stream:
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body, timeout=0.2)
        server.until(lambda: server.service.worker.alive == 0)
        assert server.service.kv_bytes == 0
