"""Answers on their way out, whole or as server-sent events; a client that leaves ends what it asked for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from ventoux.engine import Event
from ventoux.errors import VentouxError
from ventoux.server.errors import as_http, body_of, to_json
from ventoux.server.guard import log, noted
from ventoux.server.service import Answer

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still at work\n\n"
_PATIENCE = 30.0  # seconds that an answer, once complete, may take to be read


class Form(Protocol):
    """How a route writes its answer."""

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before any token."""
        ...

    def take(self, index: int, event: Event) -> list[dict[str, Any]]:
        """An event of the answer's request `index` -> the chunks that it makes."""
        ...

    def end(self) -> list[dict[str, Any]]:
        """The chunks after the last token."""
        ...

    def whole(self) -> dict[str, Any]:
        """The answer in one piece, after all events."""
        ...

    def usage(self) -> dict[str, Any]:
        """Tokens of what has finished."""
        ...


class _Reply(Response):
    """What becomes of an answer's events, in a form."""

    def __init__(self, answer: Answer, form: Form) -> None:
        super().__init__()
        self._answer = answer
        self._form = form


class Whole(_Reply):
    """The answer as one JSON object, once it is complete."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if await while_connected(receive, self._collect):
                count(scope, self._form)
                body = to_json(self._form.whole())
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        finally:
            self._answer.close()

    async def _collect(self) -> None:
        async for batch in self._answer.batches():
            for index, event in batch:
                self._form.take(index, event)


class EventStream(_Reply):
    """The answer as server-sent events, a chunk for what each step brings. An error on the way is the last event."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # proxies would hold the tokens back
        ]

        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in self._events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        try:
            with suppress(TimeoutError):  # a client that does not read would keep its socket and its answer for ever
                async with asyncio.timeout(self._answer.seconds + _PATIENCE):
                    await while_connected(receive, write)
        finally:
            count(scope, self._form)
            self._answer.close()

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            yield written(self._form.begin())
            async for batch in self._answer.batches():
                if not batch:
                    yield KEEP_ALIVE
                    continue
                chunks = [chunk for index, event in batch for chunk in self._form.take(index, event)]
                if chunks:
                    yield written(chunks)
            yield written(self._form.end()) + DONE
        except Exception as error:
            if not isinstance(error, VentouxError):
                log.exception("a stream failed")  # the guard sees errors only where no answer has begun
            yield written([body_of(as_http(error))])


def count(scope: Scope, form: Form) -> None:
    """Have the log hold how long the answer was."""
    usage = form.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    noted(scope, completion_tokens=usage["completion_tokens"], cached_tokens=cached)


def written(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + to_json(chunk) + b"\n\n" for chunk in chunks)


async def while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Do the work, or stop it as soon as the client has gone -> whether it was done. Raises what the work raises."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
