"""One thread that steps an engine, for callers on other threads: the server's event loop, above all."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeVar

from ventoux.engine.engine import Engine
from ventoux.engine.request import Event, Finished, Request, Timings, Usage
from ventoux.errors import BusyError, GenerationError

Result = TypeVar("Result")
Deliver = Callable[[Sequence[tuple[int, Event]]], None]


class Worker:
    """Runs an engine on a thread of its own. Every method may be called from any thread.

    `deliver` gets the events of each step, by ticket, on the worker's thread: it has to return quickly, and not raise.
    A ticket's last event is Finished, exactly once, whatever happens. At most `capacity` requests are alive at once,
    those that wait included; the next is a BusyError, so that a queue cannot grow without end.
    """

    def __init__(self, engine: Engine, *, deliver: Deliver, capacity: int) -> None:
        self._engine = engine
        self._deliver = deliver
        self._capacity = capacity
        self._tickets = count()
        self._changed = threading.Condition()  # around what follows
        self._inbox: deque[Callable[[], None]] = deque()  # what callers want, for the thread to do between two steps
        self._alive: set[int] = set()
        self._draining = self._stopped = False
        self._keys: dict[int, int] = {}  # ticket -> the engine's key; the thread's alone
        self._owners: dict[int, int] = {}  # the engine's key -> ticket
        self._events: list[tuple[int, Event]] = []
        self._thread = threading.Thread(target=self._run, name="ventoux-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> int:
        """Requests that have not finished, waiting ones included."""
        return len(self._alive)

    def submit(self, request: Request) -> int:
        """Queue a request -> the ticket under which its events come.

        Raises as Engine.check does; BusyError when `capacity` requests are alive, or no more are taken.
        """
        self._engine.check(request)  # reads nothing that a step changes
        with self._changed:
            if self._draining:
                raise BusyError("no more requests are taken: the engine is shutting down")
            if len(self._alive) >= self._capacity:
                raise BusyError(f"{self._capacity} requests are running or waiting, which is the most; try again later")
            ticket = next(self._tickets)
            self._alive.add(ticket)
            self._post(partial(self._add, ticket, request))
        return ticket

    def cancel(self, ticket: int) -> None:
        """End a request before the next step: Finished("cancelled") is delivered. One that has ended is no error."""
        with self._changed:
            if ticket in self._alive:
                self._post(partial(self._cancel, ticket))

    def call(self, function: Callable[[Engine], Result]) -> "Future[Result]":
        """Run a function on the engine between two steps: the future has what it returns or raises."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._engine))
                except Exception as error:
                    future.set_exception(error)

        with self._changed:
            if self._stopped:
                raise BusyError("the engine has been shut down")
            self._post(run)
        return future

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait until those that are alive have finished -> whether they have."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._alive, timeout)

    def close(self) -> None:
        """Cancel what is alive, and end the thread. Closing twice is no error."""
        with self._changed:
            self._draining = True
            for ticket in self._alive:
                self._post(partial(self._cancel, ticket))
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _post(self, wish: Callable[[], None]) -> None:
        self._inbox.append(wish)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._stopped or self._engine.busy)
                wishes = [*self._inbox]
                self._inbox.clear()
                if self._stopped and not wishes and not self._engine.busy:
                    return
            for wish in wishes:
                wish()
            self._step()
            self._hand_out()

    def _step(self) -> None:
        if not self._engine.busy:
            return
        try:
            events = self._engine.step()
        except Exception as error:  # ours to mend; those who wait for an answer are told, and the next ones are served
            for ticket, key in self._keys.items():
                self._engine.cancel(key)
                self._events.append((ticket, _failed(error)))
            with suppress(Exception):
                self._engine.step()  # the cancelled ones' events, which have been told already
            self._keys.clear()
            self._owners.clear()
            return
        for key, event in events:
            if key in self._owners:
                self._events.append((self._owners[key], event))

    def _hand_out(self) -> None:
        events, self._events = self._events, []
        if not events:
            return
        ended = [ticket for ticket, event in events if isinstance(event, Finished)]
        for ticket in ended:
            self._owners.pop(self._keys.pop(ticket, -1), None)
        self._deliver(events)
        with self._changed:
            self._alive.difference_update(ended)
            self._changed.notify_all()

    def _add(self, ticket: int, request: Request) -> None:
        try:
            key = self._engine.add(request)
        except Exception as error:
            self._events.append((ticket, _failed(error)))
        else:
            self._keys[ticket], self._owners[key] = key, ticket

    def _cancel(self, ticket: int) -> None:
        if ticket in self._keys:
            self._engine.cancel(self._keys[ticket])


def _failed(error: Exception) -> Finished:
    cause = GenerationError(f"the engine failed: {type(error).__name__}: {error}")
    cause.__cause__ = error
    return Finished("error", Usage(0, 0), Timings(0, 0, 0), error=cause)
