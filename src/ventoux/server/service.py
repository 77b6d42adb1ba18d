"""The model behind the routes: loaded once, stepped on one thread, its events brought to the event loop."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from ventoux.decoding import Constraint
from ventoux.engine import Engine, Event, Finished, Request, Token
from ventoux.engine.worker import Worker
from ventoux.errors import BusyError
from ventoux.model import Mistral
from ventoux.server.errors import HttpError
from ventoux.server.metrics import Metrics
from ventoux.server.settings import Settings

Result = TypeVar("Result")
State = Literal["loading", "ready", "failed", "draining"]
Batch = list[tuple[int, Event]]

_CONSTRAINTS = 64  # compiled ones that are kept


@dataclass
class _Ticket:
    """Where a request's events go, and when it had its last."""

    mail: asyncio.Queue[Batch]
    index: int
    submitted: float
    last: float | None = None


class Service:
    """One model, one engine, one thread; every method is the event loop's, unless it says otherwise."""

    def __init__(self, settings: Settings, load: Callable[[], Mistral]) -> None:
        self.settings = settings
        self.started = int(time.time())
        self.state: State = "loading"
        self.metrics = Metrics(lambda: self)
        self.failure: Exception | None = None
        self._load = load
        self._model: Mistral | None = None
        self._engine: Engine | None = None
        self._worker: Worker | None = None
        self._tickets: dict[int, _Ticket] = {}
        self._aside = asyncio.Semaphore(1)  # around work beside the engine's, which takes its time
        self._waiting_aside = 0
        self._constraints: dict[tuple[str, str], Constraint] = {}
        self._seconds = 1.0  # that a request has taken lately, for Retry-After

    async def start(self) -> None:
        """Load the model, which takes a thread and a while; then requests are taken. Errors are kept in `failure`."""
        self._loop = asyncio.get_running_loop()
        try:
            self._model = await asyncio.to_thread(self._load)
        except Exception as error:
            self.failure, self.state = error, "failed"
            return
        settings = self.settings
        self._engine = self._model.new_engine(
            budget=settings.token_budget, max_sequences=settings.max_running, prefix_bytes=settings.prefix_bytes
        )
        capacity = settings.max_running + settings.max_waiting
        self._worker = Worker(self._engine, deliver=self._deliver, capacity=capacity)
        if self.state == "loading":
            self.state = "ready"

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until those that run have finished."""
        self.state = "draining"
        if self._worker:
            await asyncio.to_thread(self._worker.drain)

    async def close(self) -> None:
        """Cancel what runs, and end the thread."""
        self.state = "draining"
        if self._worker:
            await asyncio.to_thread(self._worker.close)

    @property
    def model(self) -> Mistral:
        """The model, once it is loaded. Raises HttpError 503."""
        if self._model is None or self.state != "ready":
            reason = {"loading": "the model is being loaded", "failed": "the model could not be loaded"}
            message = reason.get(self.state, "the server is shutting down")
            raise HttpError(503, message, code=self.state, headers={"Retry-After": "5"})
        return self._model

    @property
    def worker(self) -> Worker:
        assert self.model
        assert self._worker is not None
        return self._worker

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that running requests hold."""
        return self._engine.kv_bytes if self._engine else 0

    @property
    def prefix_bytes(self) -> int:
        """Bytes of keys and values that are kept of texts that have ended."""
        return self._engine.prefix_bytes if self._engine else 0

    @property
    def queue(self) -> tuple[int, int]:
        """Requests that run, and that wait, about."""
        alive = self._worker.alive if self._worker else 0
        return min(alive, self.settings.max_running), max(0, alive - self.settings.max_running)

    async def constraint(self, kind: Literal["json_schema", "regex", "lark"], text: str) -> Constraint:
        """What answers have to look like by a schema, a pattern or a grammar; the last ones are kept.

        Raises GrammarError, and MissingExtraError without the library.
        """
        if found := self._constraints.get((kind, text)):
            return found
        async with self.aside():
            made = await asyncio.to_thread(self._compiled, kind, text)
        if len(self._constraints) >= _CONSTRAINTS:
            self._constraints.pop(next(iter(self._constraints)), None)
        self._constraints[kind, text] = made
        return made

    def _compiled(self, kind: str, text: str) -> Constraint:
        grammars = self.model.grammars
        if kind == "json_schema":
            return grammars.json_schema(json.loads(text))
        return grammars.regex(text) if kind == "regex" else grammars.lark(text)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Wait for one's turn to do what the engine does not do; one at a time. Raises HttpError 429."""
        if self._waiting_aside >= self.settings.max_waiting:
            raise HttpError(429, "too many requests wait; try again later", headers={"Retry-After": "1"})
        self._waiting_aside += 1
        try:
            async with self._aside:
                yield
        finally:
            self._waiting_aside -= 1

    async def call(self, function: Callable[[Engine], Result]) -> Result:
        """Run a function on the engine between two steps."""
        return await asyncio.wrap_future(self.worker.call(function))

    def submit(self, requests: Sequence[Request]) -> "Answer":
        """Queue requests that belong together -> where their events come. All of them are taken, or none.

        Raises as Engine.check does; HttpError 429 when too many wait, 503 when none are taken.
        """
        worker, mail = self.worker, asyncio.Queue[Batch]()
        tickets: list[int] = []
        try:
            for index, request in enumerate(requests):
                ticket = worker.submit(request)
                self._tickets[ticket] = _Ticket(mail, index, time.monotonic())
                tickets.append(ticket)
        except BusyError as error:
            self.metrics.refused.inc()
            later = math.ceil(self._seconds * (1 + self.queue[1] / self.settings.max_running))
            raise HttpError(429, str(error), headers={"Retry-After": str(max(1, later))}) from error
        finally:
            if len(tickets) < len(requests):
                self.cancel(tickets)
        return Answer(self, tickets, mail)

    def cancel(self, tickets: Sequence[int]) -> None:
        """Forget requests, and end those that have not ended."""
        for ticket in tickets:
            if self._tickets.pop(ticket, None) and self._worker:
                self._worker.cancel(ticket)

    def _deliver(self, events: Sequence[tuple[int, Event]]) -> None:
        """On the worker's thread: once a step, whatever the number of requests."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: Sequence[tuple[int, Event]]) -> None:
        now = time.monotonic()
        batches: dict[int, tuple[asyncio.Queue[Batch], Batch]] = {}
        for key, event in events:
            ticket = self._tickets.get(key)
            if isinstance(event, Finished):
                self._finished(event, self._tickets.pop(key, None), now)
            if ticket is None:
                continue
            if isinstance(event, Token):
                self._timed(ticket, now)
            batches.setdefault(id(ticket.mail), (ticket.mail, []))[1].append((ticket.index, event))
        for mail, batch in batches.values():
            mail.put_nowait(batch)

    def _timed(self, ticket: _Ticket, now: float) -> None:
        if ticket.last is None:
            self.metrics.first_token.observe(now - ticket.submitted)
        else:
            self.metrics.next_token.observe(now - ticket.last)
        ticket.last = now

    def _finished(self, event: Finished, ticket: _Ticket | None, now: float) -> None:
        self.metrics.finished(event)
        if ticket is not None:
            seconds = now - ticket.submitted
            self.metrics.request_seconds.observe(seconds)
            self._seconds += 0.2 * (seconds - self._seconds)


class Answer:
    """The events of requests that were submitted together."""

    def __init__(self, service: Service, tickets: list[int], mail: asyncio.Queue[Batch]) -> None:
        self._service = service
        self._tickets = tickets
        self._mail = mail
        self._deadline = time.monotonic() + service.settings.timeout_s

    @property
    def seconds(self) -> float:
        """How long the answer may still take."""
        return max(0.0, self._deadline - time.monotonic())

    async def batches(self) -> AsyncIterator[Batch]:
        """Events by request, as they come, until all have finished; [] where nothing came for a while.

        Raises what a request ended with, and HttpError 504 when it takes too long.
        """
        settings, alive = self._service.settings, len(self._tickets)
        while alive:
            left = self._deadline - time.monotonic()
            try:
                async with asyncio.timeout(min(settings.keep_alive_s, left)):  # 3.11's wait_for may lose a cancellation
                    batch = await self._mail.get()
            except TimeoutError:
                if time.monotonic() >= self._deadline:
                    message = f"the answer took longer than {settings.timeout_s:g} seconds, which is the most"
                    raise HttpError(504, message, code="timeout") from None
                yield []
                continue
            for _, event in batch:
                if isinstance(event, Finished):
                    alive -= 1
                    if event.error is not None:
                        raise event.error
                    if event.reason == "cancelled":
                        raise HttpError(503, "the server stopped before the answer was complete", code="cancelled")
            yield batch

    def close(self) -> None:
        """Nobody reads on: what has not finished is cancelled."""
        self._service.cancel(self._tickets)
