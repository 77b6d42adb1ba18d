"""An engine on a thread of its own: each ticket's last event is Finished, once, whatever happens."""

import threading
from collections import defaultdict

import pytest
from toy import ToyBackend, hashed

from ventoux.decoding import SamplingParams
from ventoux.engine import Engine, Finished, Request
from ventoux.engine.worker import Worker
from ventoux.errors import BusyError, RequestError


class Office:
    """A worker, and all the events that it has delivered."""

    def __init__(self, row=hashed, *, capacity: int = 100, **settings) -> None:
        self.events = defaultdict(list)
        self.engine = Engine(ToyBackend(row), **settings)
        self.worker = Worker(self.engine, deliver=self.deliver, capacity=capacity)

    def deliver(self, events) -> None:
        for ticket, event in events:
            self.events[ticket].append(event)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.worker.close()
        assert self.worker.alive == 0
        assert self.engine.kv_bytes == 0
        for events in self.events.values():
            assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]


def request(*prompt: int, **params) -> Request:
    return Request(prompt or (1, 2, 3), SamplingParams(**{"temperature": 0, "max_tokens": 20, **params}))


def alone(asked: Request) -> list[int]:
    engine = Engine(ToyBackend(hashed))
    engine.add(asked)
    events = []
    while engine.busy:
        events += [event for _, event in engine.step()]
    return [event.id for event in events[:-1]]


def test_threads_get_what_one_gets():
    with Office() as office:
        tickets = {}

        def ask(n: int) -> None:
            tickets[n] = office.worker.submit(request(n, 2, 3))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert office.worker.drain(timeout=20)
        for n, ticket in tickets.items():
            assert [event.id for event in office.events[ticket][:-1]] == alone(request(n, 2, 3))


def test_no_more_than_its_capacity():
    held = threading.Event()

    def slow(ids):
        held.wait(20)
        return hashed(ids)

    with Office(slow, capacity=2) as office:
        office.worker.submit(request())
        office.worker.submit(request())
        with pytest.raises(BusyError, match="2 requests"):
            office.worker.submit(request())
        held.set()
        assert office.worker.drain(timeout=20)
        with pytest.raises(BusyError, match="shutting down"):
            office.worker.submit(request())


def test_what_is_wrong_is_told_at_once():
    with Office() as office, pytest.raises(RequestError):
        office.worker.submit(request(100_000))


def test_cancelling_ends_a_request_wherever_it_is():
    with Office(max_sequences=1) as office:
        tickets = [office.worker.submit(request(max_tokens=50, ignore_eos=True)) for _ in range(5)]
        for ticket in tickets[1:]:
            office.worker.cancel(ticket)
        office.worker.cancel(10_000)
        assert office.worker.drain(timeout=20)
        office.worker.cancel(tickets[0])  # it has ended: no error
        assert [office.events[ticket][-1].reason for ticket in tickets] == ["length"] + ["cancelled"] * 4


def test_a_step_that_fails_ends_its_requests_and_not_the_thread(monkeypatch):
    with Office() as office:
        step, broken = office.engine.step, [True]

        def failing():
            if broken.pop() if broken else False:
                raise ZeroDivisionError("of our own making")
            return step()

        monkeypatch.setattr(office.engine, "step", failing)
        first = office.worker.submit(request())
        while first not in office.events:
            pass
        second = office.worker.submit(request())
        assert office.worker.drain(timeout=20)
        assert "ZeroDivisionError" in str(office.events[first][-1].error)
        assert office.events[second][-1].reason in ("stop", "length")


def test_functions_run_between_steps():
    with Office() as office:
        office.worker.submit(request(max_tokens=50, ignore_eos=True))
        assert office.worker.call(lambda engine: engine is office.engine).result(20)
        with pytest.raises(ZeroDivisionError):
            office.worker.call(lambda engine: 1 / 0).result(20)
