"""From what a body says to what the engine does: prompts, parameters, grammars, adapters."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ventoux.chat import encode_fim
from ventoux.engine import Request
from ventoux.errors import RequestError
from ventoux.model import Mistral
from ventoux.server.errors import HttpError
from ventoux.server.service import Service
from ventoux.server.wire.chat import ChatBody
from ventoux.server.wire.completions import CompletionBody, FimBody
from ventoux.server.wire.shared import Sampled

Result = TypeVar("Result")


async def aside(work: Callable[..., Result], *args: Any) -> Result:
    """Do on another thread what may take long with a long prompt: the others' tokens come out meanwhile."""
    return await asyncio.to_thread(work, *args)


def named_model(service: Service, name: str | None) -> str:
    """What a request calls the model -> the name that its answer carries.

    Raises HttpError 404 for a name that nothing has.
    """
    aliases = service.settings.aliases
    if name is None or name in aliases:
        return name or aliases[0]
    known = ", ".join(aliases)
    raise HttpError(404, f"there is no model {name!r} here; there is {known}", code="model_not_found", param="model")


async def chat_requests(service: Service, body: ChatBody) -> list[Request]:
    """One request for each answer that is wanted."""
    named_model(service, body.model)
    logprobs = body.top_logprobs or 0 if body.logprobs else None
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true")
    ids = await aside(chat_ids, service.model, body)
    request = Request(ids, body.params(logprobs=logprobs), continues=bool(body.messages[-1].prefix))
    return choices(service, [request], body)


def chat_ids(model: Mistral, body: ChatBody) -> list[int]:
    return model.chat_format.encode(
        [message.plain() for message in body.messages],
        tokenizer=model.tokenizer,
        safe_prompt=bool(body.safe_prompt),
    )


def choices(service: Service, requests: Sequence[Request], body: Sampled) -> list[Request]:
    """Each request `n` times, with seeds of their own; n answers to a prompt stand in a row."""
    n, most = body.n or 1, service.settings.max_choices
    if n * len(requests) > most:
        raise RequestError(f"n answers to each prompt are {n * len(requests)} in all; {most} is the most")
    return [
        replace(request, params=body.params(logprobs=request.params.logprobs, choice=choice))
        for request in requests
        for choice in range(n)
    ]


async def completion_requests(service: Service, body: CompletionBody) -> list[Request]:
    """One request for each prompt and answer."""
    named_model(service, body.model)
    if body.suffix is not None and (body.echo or not isinstance(body.prompt, str)):
        raise RequestError("suffix needs one prompt, a text, and no echo")
    prompts = await aside(prompt_ids, service.model, body)
    params = body.params(logprobs=body.logprobs)
    return choices(service, [Request(ids, params, continues=body.suffix is None) for ids in prompts], body)


def prompt_ids(model: Mistral, body: CompletionBody) -> list[list[int]]:
    """Ids of each prompt. Text gets the BOS that the model wants, ids are taken as they are."""
    if body.suffix is not None:
        assert isinstance(body.prompt, str)
        return [fim_ids(model, body.prompt, body.suffix)]
    prompts: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    found = [model.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not all(found):
        raise RequestError("a prompt is empty; give at least one token to go on from")
    return found


async def fim_requests(service: Service, body: FimBody) -> list[Request]:
    named_model(service, body.model)
    ids = await aside(fim_ids, service.model, body.prompt, body.suffix)
    return choices(service, [Request(ids, body.params(), continues=False)], body)


def fim_ids(model: Mistral, prompt: str, suffix: str | None) -> list[int]:
    return encode_fim(prompt, suffix, tokenizer=model.tokenizer, version=model.chat_format.version)
