"""Many clients at once, who come, go and leave in the middle: each gets its own answer, and nothing stays behind.

The load takes 5 seconds, 60 as a slow test, or VENTOUX_LOAD_SECONDS.
"""

import asyncio
import gc
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from served import Served, served

import ventoux
from ventoux.engine import Event, Finished, Token
from ventoux.model import Mistral
from ventoux.server.service import Answer

TEXT = "/v1/completions"
CLIENTS = 64
LONG = {"prompt": "Call me", "max_tokens": 30000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def long(long_folder: Path) -> Mistral:
    return ventoux.load(long_folder, threads=2)


@dataclass
class Told:
    """What the clients were told, in numbers; `wrong` is what differs from what a single request gets."""

    complete: int = 0
    left: int = 0
    busy: int = 0
    wrong: list[str] = field(default_factory=list)


def questions(model: Mistral) -> list[tuple[dict, str]]:
    """Bodies of requests, and their answers when nobody else asks: greedy, and sampled with a seed."""
    chance, found = random.Random(5), []
    for n in range(16):
        prompt = " ".join(chance.choices(["whale", "ship", "the", "sea", "Ahab", "é", "🐳"], k=chance.randrange(1, 40)))
        choosing = {"temperature": 0} if n % 2 else {"temperature": 0.9, "seed": n, "top_p": 0.9}
        body = {"prompt": prompt, "max_tokens": chance.randrange(1, 60), **choosing}
        found.append((body, str(model.generate(**body))))
    return found


async def client(
    http: httpx.AsyncClient, asked: list[tuple[dict, str]], told: Told, *, seed: int, until: float
) -> None:
    """Asks one thing after another; now and then it hangs up, before an answer begins or within it."""
    chance = random.Random(seed)
    while time.monotonic() < until:
        body, right = chance.choice(asked)
        patience = chance.uniform(0, 0.2) if chance.random() < 0.3 else None
        try:
            async with asyncio.timeout(patience):
                said = await (streamed if chance.random() < 0.5 else whole)(http, body)
        except TimeoutError:
            told.left += 1
            continue
        if said is None:
            told.busy += 1
            await asyncio.sleep(chance.uniform(0, 0.1))
        elif said == right:
            told.complete += 1
        else:
            told.wrong.append(f"{body}: expected {right!r}, found {said!r}")


async def whole(http: httpx.AsyncClient, body: dict) -> str | None:
    """The answer; None when too many wait."""
    answer = await http.post(TEXT, json=body)
    if answer.status_code == 429:
        assert int(answer.headers["retry-after"]) > 0
        return None
    found = answer.json()
    return found["choices"][0]["text"] if answer.status_code == 200 else f"{answer.status_code}: {found}"


async def streamed(http: httpx.AsyncClient, body: dict) -> str | None:
    """The same out of chunks, of which one has the reason and the last line says that they are all."""
    async with http.stream("POST", TEXT, json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return None if answer.status_code == 429 else f"{answer.status_code}: {await answer.aread()!r}"
        lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks if "choices" in chunk]
    if lines[-1] != "[DONE]" or [*filter(None, ends)] != ends[-1:] or len({chunk["id"] for chunk in chunks}) != 1:
        return f"no stream that is complete: {lines}"
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def ended(server: Served) -> Counter[str]:
    """How many requests ended in each way, by the server's own count."""
    found: Counter[str] = Counter()
    for metric in server.service.metrics.ended.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                found[sample.labels["finished_reason"]] += int(sample.value)
    return found


async def load(server: Served, asked: list[tuple[dict, str]], seconds: float) -> tuple[Told, list[int]]:
    """All clients for a while -> what they were told, and the memory after each of four parts of it."""
    told, memory = Told(), []
    async with AsyncExitStack() as stack:
        connect = partial(httpx.AsyncClient, base_url=server.url, timeout=60, trust_env=False, verify=False)
        https = [await stack.enter_async_context(connect()) for _ in range(CLIENTS)]
        for part in range(4):
            until = time.monotonic() + seconds / 4
            asking = (client(http, asked, told, seed=part * CLIENTS + n, until=until) for n, http in enumerate(https))
            await asyncio.gather(*asking)
            gc.collect()
            memory.append(resident())
    return told, memory


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_is_lost_doubled_or_left_behind(tiny: Mistral, seconds: float):
    asked, kept = questions(tiny), 1 << 16
    seconds = float(os.environ.get("VENTOUX_LOAD_SECONDS", seconds))
    with served(lambda: tiny, max_running=8, max_waiting=40, prefix_bytes=kept) as server:
        told, memory = asyncio.run(load(server, asked, seconds))
        server.until(lambda: server.service.worker.alive == 0)
        server.until(lambda: not alive(Answer), seconds=5)
        assert not told.wrong, told.wrong[:3]
        assert told.complete > CLIENTS
        assert told.left
        assert told.busy, "64 clients should meet a full queue of 48"
        how = ended(server)
        assert set(how) <= {"stop", "length", "cancelled"}
        assert told.complete <= how["stop"] + how["length"] <= told.complete + told.left
        assert how["cancelled"] <= told.left
        assert server.service.kv_bytes <= kept, "of ended texts; those that ran have given back theirs"
        assert memory[-1] - memory[0] < 24 << 20, [f"{each >> 20} MiB" for each in memory]
        with server.client() as http:  # and it is as good as new
            for body, right in asked:
                assert http.post(TEXT, json=body).json()["choices"][0]["text"] == right


def alive(kind: type) -> int:
    """How many objects of a class there are."""
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


class Watch:
    """What a server's worker delivers, and how much of it the server had when it first cancelled a request."""

    def __init__(self, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: Counter[int] = Counter()
        self.ends: dict[int, Finished] = {}
        self.at_cancel: dict[int, int] = {}
        worker = server.service.worker
        deliver, cancel = worker._deliver, worker.cancel

        def delivering(events: list[tuple[int, Event]]) -> None:
            for ticket, event in events:
                if isinstance(event, Finished):
                    self.ends[ticket] = event
                elif isinstance(event, Token):
                    self.tokens[ticket] += 1
            deliver(events)

        def cancelling(ticket: int) -> None:
            self.at_cancel.setdefault(ticket, self.tokens[ticket])
            cancel(ticket)

        monkeypatch.setattr(worker, "_deliver", delivering)
        monkeypatch.setattr(worker, "cancel", cancelling)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer_within_a_step_facts_26(
    long: Mistral, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    with served(lambda: long) as server:
        watch = Watch(server, monkeypatch)
        leave(server, {**LONG, "stream": stream}, when=lambda: sum(watch.tokens.values()) > 5)
        server.until(lambda: server.service.worker.alive == 0)
        ((ticket, end),) = watch.ends.items()
        assert end.reason == "cancelled"
        assert end.usage.completion_tokens <= watch.at_cancel[ticket] + 1, "one step may have been under way"
        assert end.usage.completion_tokens < LONG["max_tokens"] / 2
        assert server.service.kv_bytes == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_is_never_served_facts_26(
    long: Mistral, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    with served(lambda: long, max_running=1) as server, server.client() as first:
        watch = Watch(server, monkeypatch)
        with first.stream("POST", TEXT, json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            leave(server, {**LONG, "stream": stream}, when=lambda: server.service.worker.alive == 2)
            server.until(lambda: server.service.worker.alive == 1)
            (end,) = watch.ends.values()
            assert (end.reason, end.usage.completion_tokens) == ("cancelled", 0)
            for _ in range(5):  # the other's answer goes on
                next(lines)
        server.until(lambda: server.service.worker.alive == 0)


def test_a_client_that_leaves_ends_the_reading_of_its_prompt_facts_26(long: Mistral, monkeypatch: pytest.MonkeyPatch):
    with served(lambda: long, token_budget=8) as server:
        watch = Watch(server, monkeypatch)
        body = {"prompt": [5] * 30000, "max_tokens": 1, "stream": True}
        leave(server, body, when=lambda: server.service.kv_bytes > 0)
        server.until(lambda: server.service.worker.alive == 0)
        (end,) = watch.ends.values()
        assert (end.reason, end.usage.completion_tokens) == ("cancelled", 0)


def leave(server: Served, body: dict, *, when: Callable[[], bool]) -> None:
    """Ask, and hang up once something is so."""

    async def asking() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False, verify=False) as http:
            task = asyncio.create_task(http.post(TEXT, json=body))
            while not when():
                assert not task.done(), task.result().text[:500]
                await asyncio.sleep(0.002)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(asking(), 60))


def test_a_client_that_does_not_read_holds_up_nobody(long: Mistral):
    """Its answer waits for it; the engine's does not, nor do the others'."""
    with served(lambda: long) as server, server.client() as lazy, server.client() as other:
        with lazy.stream("POST", TEXT, json={**LONG, "max_tokens": 3000, "stream": True, "logprobs": 20}):
            server.until(lambda: server.service.worker.alive == 1)
            answer = other.post(TEXT, json={**LONG, "max_tokens": 50}).json()
            assert answer["usage"]["completion_tokens"] == 50
            server.until(lambda: server.service.worker.alive == 0, seconds=60)
        server.until(lambda: not alive(Answer))
