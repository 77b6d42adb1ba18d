"""Text to ids and back: /tokenize, /detokenize."""

from fastapi import APIRouter, Request

from ventoux.errors import RequestError
from ventoux.server import asking
from ventoux.server.errors import Json
from ventoux.server.service import Service
from ventoux.server.wire.tokens import DetokenizeBody, DetokenizeOut, TokenizeBody, TokenizeOut

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", response_model=TokenizeOut)
async def tokenize(request: Request, body: TokenizeBody) -> Json:
    """Ids of a text, or of a conversation as the model would read it."""
    service: Service = request.app.state.service
    model = service.model
    asking.chosen(service, body.model)
    if (body.content is None) == (body.messages is None):
        raise RequestError("expected content, a text, or messages, a conversation; give one of them")
    if body.messages is not None:
        messages = [message.plain() for message in body.messages]
        ids = await asking.aside(lambda: model.chat_format.encode(messages, tokenizer=model.tokenizer))
    else:
        text, bos = body.content or "", bool(body.add_special)
        ids = await asking.aside(lambda: model.tokenizer.encode(text, bos=bos))
    return Json({"tokens": ids, "count": len(ids), "max_model_len": model.config.context_length})


@router.post("/detokenize", response_model=DetokenizeOut)
async def detokenize(request: Request, body: DetokenizeBody) -> Json:
    """The text of ids; control tokens have none."""
    service: Service = request.app.state.service
    model = service.model
    asking.chosen(service, body.model)
    if wrong := [token for token in body.tokens if token >= model.tokenizer.vocab_size]:
        raise RequestError(f"tokens holds {wrong[0]}, but the vocabulary has {model.tokenizer.vocab_size}")
    return Json({"content": await asking.aside(model.tokenizer.decode, body.tokens)})
