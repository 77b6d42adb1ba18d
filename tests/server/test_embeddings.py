"""Embeddings are the mean of the model's hidden states, of length 1."""

import numpy as np
import pytest
from openai import OpenAI
from served import Served

from ventoux.model import Mistral

TEXTS = ["Call me Ishmael.", "The sea, the sea!"]


def test_they_are_the_means(server: Served, tiny: Mistral):
    means = tiny.embed(TEXTS)
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    with server.client() as client:
        answer = client.post("/v1/embeddings", json={"input": TEXTS}).json()
        ids = [tiny.tokenizer.encode(text, bos=True) for text in TEXTS]
        by_ids = client.post("/v1/embeddings", json={"input": ids}).json()
    found = np.array([entry["embedding"] for entry in answer["data"]])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert by_ids["data"] == answer["data"]
    assert answer["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    through_client = OpenAI(base_url=f"{server.url}/v1", api_key="none").embeddings.create(model="tiny", input=TEXTS)
    np.testing.assert_allclose([entry.embedding for entry in through_client.data], expected, rtol=1e-6)


@pytest.mark.parametrize("body", [{"input": ""}, {"input": []}, {"input": "a", "dimensions": 3}, {"input": [7**9]}])
def test_what_is_wrong_is_refused(server: Served, body: dict):
    with server.client() as client:
        assert client.post("/v1/embeddings", json=body).status_code == (200 if body == {"input": ""} else 400)
