"""A load of completions over loopback: raw streams of asyncio, so that asking costs little beside answering."""

import asyncio
import json
import math
import random
import resource
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

NOVEL = Path(__file__).parents[2] / "tests" / "data" / "moby_dick_chapter_1.txt"
LINE = 1 << 20


@dataclass
class Asked:
    """Seconds on one clock: when it was asked, when each piece of text came, and when it was complete."""

    begun: float
    times: list[float]
    ended: float
    tokens: int


def bodies(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Passages of a novel of 40 to 300 words, to go on with for 64 to 128 tokens; the same for a seed."""
    chance, words = random.Random(seed), NOVEL.read_text().split()
    found = []
    for _ in range(count):
        length = chance.randrange(40, 300)
        begin = chance.randrange(len(words) - length)
        prompt = " ".join(words[begin : begin + length])
        found.append({"prompt": prompt, "max_tokens": chance.randrange(64, 129)})
    return found


async def ask(url: str, body: dict[str, Any]) -> Asked:
    """One streamed completion. Raises RuntimeError for any other answer."""
    place = urlsplit(url)
    sent = {**body, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(sent).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    begun, times, tokens, complete = perf_counter(), [], 0, False
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=LINE)
    try:
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                if b'"text":""' not in line:
                    times.append(perf_counter())
                if b'"usage":{' in line:
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            elif line.startswith((b"data: [DONE]", b"error", b'{"error"')):
                complete = line.startswith(b"data: [DONE]")
                if complete:
                    break
                raise RuntimeError(f"{url}: {line[:300].decode(errors='replace')}")
    finally:
        writer.close()
    if not complete or tokens != body["max_tokens"]:
        raise RuntimeError(f"{url}: expected a stream of {body['max_tokens']} tokens, found {tokens}")
    return Asked(begun, times, perf_counter(), tokens)


async def closed(url: str, asked: list[dict[str, Any]], clients: int) -> list[Asked]:
    """Clients that ask one thing after another."""
    waiting, done = iter(asked), []

    async def client() -> None:
        for body in waiting:
            done.append(await ask(url, body))

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


async def arriving(url: str, asked: list[dict[str, Any]], rate: float, *, seed: int) -> list[Asked]:
    """Requests that come when they come, `rate` a second on average (Poisson), whatever is answered meanwhile."""
    chance, tasks = random.Random(seed), []
    for body in asked:
        await asyncio.sleep(chance.expovariate(rate))
        tasks.append(asyncio.create_task(ask(url, body)))
    return [await task for task in tasks]


def cpu_seconds() -> float:
    """That this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed: of 1, 2, 3, 4 at 0.5 it is 2."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures(done: list[Asked]) -> dict[str, float]:
    """Throughput, and percentiles of what a client waits for, in seconds."""
    wall = max(each.ended for each in done) - min(each.begun for each in done)
    waits = {
        "first": [each.times[0] - each.begun for each in done],
        "next": [b - a for each in done for a, b in zip(each.times, each.times[1:], strict=False)],
        "whole": [each.ended - each.begun for each in done],
    }
    found = {"tok_s": sum(each.tokens for each in done) / wall, "wall_s": wall}
    return found | {f"{name}_p{p}_s": percentile(each, p / 100) for name, each in waits.items() for p in (50, 95, 99)}
