"""/v1/embeddings: the mean of each text's hidden states, of length 1."""

import base64
from secrets import token_hex
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from ventoux.errors import RequestError
from ventoux.server import asking
from ventoux.server.errors import Json
from ventoux.server.guard import noted
from ventoux.server.service import Service
from ventoux.server.wire.embeddings import EmbeddingsBody, EmbeddingsOut

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post("/embeddings", response_model=EmbeddingsOut)
async def embeddings(request: Request, body: EmbeddingsBody) -> Json:
    """The mean of the hidden states after the last norm, of all tokens of a text, scaled to length 1.

    The model was not trained for it: vectors of texts that begin alike are near each other, whatever they mean.
    """
    service: Service = request.app.state.service
    model, chosen = service.model, asking.chosen(service, body.model)
    size = model.config.hidden_size
    if body.dimensions not in (None, size):
        raise RequestError(f"dimensions must be {size}, as many as the model has, found {body.dimensions}")
    texts = await asking.aside(asking.ids_of, model, body.input)
    tokens = sum(map(len, texts))
    noted(request.scope, prompt_tokens=tokens)
    async with service.aside():
        means = await asking.aside(lambda: model.embed(texts, adapter=chosen.adapter))
    vectors = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    data = [
        {"object": "embedding", "index": index, "embedding": written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Json({"id": f"embd-{token_hex(12)}", "object": "list", "data": data, "model": chosen.name, "usage": usage})


def written(vector: Any, encoding: str | None) -> list[float] | str:
    """Numbers, or the bytes of little-endian float32 in base64."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
