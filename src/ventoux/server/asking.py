"""From what a body says to what the engine does: prompts, parameters, grammars, adapters."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ventoux.chat import encode, encode_fim
from ventoux.decoding import Constraint
from ventoux.decoding.tools import tool_calls
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
    requests = await requests_for(service, [ids], body, continues=continues, logprobs=logprobs)
    calls = await called(service, body)
    if calls is not None and requests[0].constraint is not None:
        raise RequestError("tool_choice and response_format both say what the answer looks like; give one")
    return [replace(each, constraint=calls) for each in requests] if calls is not None else requests


def chat_ids(model: Mistral, body: ChatBody) -> list[int]:
    return model.chat_format.encode(
        [message.plain() for message in body.messages],
        tokenizer=model.tokenizer,
        tools=tools_of(body),
        safe_prompt=bool(body.safe_prompt),
    )


def conversation_ids(model: Mistral, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """A conversation as it stands, its last answer included."""
    form = model.chat_format
    return encode(messages, tokenizer=model.tokenizer, version=form.version, template=form.template)


def tools_of(body: ChatBody) -> list[dict[str, Any]] | None:
    """The tools that an answer may call. With choice "none" it may call none, and is told of none."""
    if not body.tools or body.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True) for tool in body.tools]


async def called(service: Service, body: ChatBody) -> Constraint | None:
    """What an answer has to look like that has to call tools, or may in one way only."""
    choice: Any = body.tool_choice
    if choice is None:
        choice = "auto"
    elif not isinstance(choice, str):
        choice = choice.model_dump()
    parallel = body.parallel_tool_calls is not False
    tools = tools_of(body)
    if tools is None and choice in ("auto", "none"):
        return None
    if choice == "auto" and parallel and not any(tool["function"].get("strict") for tool in tools or ()):
        return None  # and no grammar has to be made
    model = service.model
    async with service.aside():
        return await aside(
            lambda: tool_calls(
                model.grammars, tools or [], choice=choice, chat_format=model.chat_format, parallel=parallel
            )
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
    requests = await requests_for(service, prompts, body, continues=body.suffix is None, logprobs=body.logprobs)
    if not body.echo or (body.logprobs is None and body.max_tokens != 0):
        return requests
    return [replace(each, prompt_logprobs=body.logprobs or 0) for each in requests]


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
    shared = Request(
        [],
        continues=continues,
        constraint=constraint,
        adapter=chosen(service, body.model).adapter,
        salt=body.cache_salt or "",
    )
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
