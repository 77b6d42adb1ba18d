"""The routes that generate: /v1/chat/completions, /v1/completions, /v1/fim/completions."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ventoux.chat.answers import AnswerReader
from ventoux.engine import Request as Asked
from ventoux.server import asking
from ventoux.server.forms import ChatForm, TextForm
from ventoux.server.guard import noted
from ventoux.server.service import Service
from ventoux.server.streams import EventStream, Form, Whole
from ventoux.server.wire.chat import ChatBody, ChatOut
from ventoux.server.wire.completions import CompletionBody, CompletionOut, FimBody
from ventoux.server.wire.shared import Sampled

router = APIRouter(prefix="/v1", tags=["generation"])
_STREAM: dict[str, Any] = {"text/event-stream": {}}  # events, whose schema OpenAPI 3.1 has no words for


def _responses(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "description": "the answer, or its chunks with stream: true", "content": _STREAM}}


@router.post("/chat/completions", responses=_responses(ChatOut), response_model=None)
async def chat(request: Request, body: ChatBody) -> Response:
    """The assistant's next message."""
    service: Service = request.app.state.service
    model = service.model
    requests = await asking.chat_requests(service, body)
    form = ChatForm(
        [model.chat_format.reader(asking.tools_of(body), tokenizer=model.tokenizer) for _ in requests],
        tokenizer=model.tokenizer,
        logprobs=bool(body.logprobs),
        streams=bool(body.stream),
        **_head(service, body),
    )
    return _answer(request, service, body, requests, form)


@router.post("/completions", responses=_responses(CompletionOut), response_model=None)
async def completions(request: Request, body: CompletionBody) -> Response:
    """What comes after a text."""
    service: Service = request.app.state.service
    requests = await asking.completion_requests(service, body)
    form = TextForm(
        [each.prompt for each in requests],
        echo=bool(body.echo),
        tokenizer=service.model.tokenizer,
        logprobs=body.logprobs is not None,
        **_head(service, body),
    )
    return _answer(request, service, body, requests, form)


@router.post("/fim/completions", responses=_responses(ChatOut), response_model=None)
async def fim(request: Request, body: FimBody) -> Response:
    """What stands between a prompt and its suffix, for models that fill in the middle."""
    service: Service = request.app.state.service
    requests = await asking.fim_requests(service, body)
    form = ChatForm(
        [AnswerReader(None, ()) for _ in requests],
        tokenizer=service.model.tokenizer,
        logprobs=False,
        streams=bool(body.stream),
        **_head(service, body),
    )
    return _answer(request, service, body, requests, form)


def _head(service: Service, body: Sampled) -> dict[str, Any]:
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    return {"model": asking.chosen(service, body.model).name, "choices": body.n or 1, "wants_usage": wants_usage}


def _answer(request: Request, service: Service, body: Sampled, requests: list[Asked], form: Form) -> Response:
    tokens, name = sum(len(each.prompt) for each in requests), asking.chosen(service, body.model).name
    noted(request.scope, model=name, prompt_tokens=tokens, choices=len(requests))
    if service.settings.log_prompts:
        noted(request.scope, prompts=[service.model.tokenizer.decode(each.prompt) for each in requests])
    answer = service.submit(requests)
    return EventStream(answer, form) if body.stream else Whole(answer, form)
