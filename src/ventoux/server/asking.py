"""From what a body says to what the engine does: prompts, parameters, grammars, adapters."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ventoux.chat import encode_fim
from ventoux.decoding import Constraint
from ventoux.engine import Request
from ventoux.errors import RequestError
from ventoux.model import Mistral
from ventoux.server.errors import HttpError
from ventoux.server.service import Service
from ventoux.server.wire.chat import ChatBody, Grammar, ResponseFormat
from ventoux.server.wire.completions import CompletionBody, FimBody
from ventoux.server.wire.shared import Sampled

Result = TypeVar("Result")


async def aside(work: Callable[..., Result], *args: Any) -> Result:
    """Do on another thread what may take long with a long prompt: the others' tokens come out meanwhile."""
    return await asyncio.to_thread(work, *args)


@dataclass(frozen=True)
class Chosen:
    """What a request asks: the name that its answer carries, and the LoRA adapter that goes by it, if one does."""

    name: str
    adapter: str | None


def chosen(service: Service, name: str | None) -> Chosen:
    """What a request means by `model`. Raises HttpError 404 for a name that nothing has."""
    aliases, adapters = service.settings.aliases, service.model.adapters
    if name is None or name in aliases:
        return Chosen(name or aliases[0], None)
    if name in adapters:
        return Chosen(name, name)
    known = ", ".join((*aliases, *adapters))
    raise HttpError(404, f"there is no model {name!r} here; there is {known}", code="model_not_found", param="model")


async def chat_requests(service: Service, body: ChatBody) -> list[Request]:
    """One request for each answer that is wanted."""
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    ids = await aside(chat_ids, service.model, body)
    continues = bool(body.messages[-1].prefix)
    return await requests_for(service, [ids], body, continues=continues, logprobs=logprobs)


def chat_ids(model: Mistral, body: ChatBody) -> list[int]:
    return model.chat_format.encode(
        [message.plain() for message in body.messages],
        tokenizer=model.tokenizer,
        safe_prompt=bool(body.safe_prompt),
    )


async def completion_requests(service: Service, body: CompletionBody) -> list[Request]:
    """One request for each prompt and answer."""
    model = service.model
    if body.suffix is None:
        prompts = await aside(ids_of, model, body.prompt)
    elif body.echo or not isinstance(body.prompt, str):
        raise RequestError("suffix needs one prompt, a text, and no echo")
    else:
        prompts = [await aside(fim_ids, model, body.prompt, body.suffix)]
    return await requests_for(service, prompts, body, continues=body.suffix is None, logprobs=body.logprobs)


async def fim_requests(service: Service, body: FimBody) -> list[Request]:
    ids = await aside(fim_ids, service.model, body.prompt, body.suffix)
    return await requests_for(service, [ids], body, continues=False)


async def requests_for(
    service: Service,
    prompts: Sequence[Sequence[int]],
    body: Sampled,
    *,
    continues: bool,
    logprobs: int | None = None,
) -> list[Request]:
    """Each prompt `n` times, with seeds of their own; n answers to a prompt stand in a row."""
    n, most = body.n or 1, service.settings.max_choices
    if n * len(prompts) > most:
        raise RequestError(f"n answers to each prompt are {n * len(prompts)} in all; {most} is the most")
    constraint = await constraint_of(service, body)
    shared = Request([], continues=continues, constraint=constraint, adapter=chosen(service, body.model).adapter)
    return [
        replace(shared, prompt=ids, params=body.params(logprobs=logprobs, choice=choice))
        for ids in prompts
        for choice in range(n)
    ]


async def constraint_of(service: Service, body: Sampled) -> Constraint | None:
    """What the answer has to look like, made on another thread. Raises GrammarError, which is the request's fault."""
    form: ResponseFormat | None = getattr(body, "response_format", None)
    grammar: Grammar | None = getattr(body, "grammar", None)
    wants_form = form is not None and form.type != "text"
    if wants_form and grammar is not None:
        raise RequestError("response_format and grammar both say what the answer looks like; give one")
    if wants_form:
        assert form is not None
        schema = {"type": "object"} if form.json_schema is None else form.json_schema.schema_
        return await service.constraint("json_schema", json.dumps(schema))
    if grammar is not None:
        return await service.constraint(grammar.type, grammar.value)
    return None


def ids_of(model: Mistral, prompt: Any) -> list[list[int]]:
    """Ids of a text, of several, or ids. Text gets the BOS that the model wants, ids are taken as they are."""
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    found = [model.tokenizer.encode(each, bos=True) if isinstance(each, str) else each for each in prompts]
    if not all(found):
        raise RequestError("a prompt is empty; give at least one token to go on from")
    return found


def fim_ids(model: Mistral, prompt: str, suffix: str | None) -> list[int]:
    return encode_fim(prompt, suffix, tokenizer=model.tokenizer, version=model.chat_format.version)
