"""A server in this process, on a port of its own: real HTTP, and a model that the test may look into."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from ventoux.model import Mistral
from ventoux.server import Settings
from ventoux.server.app import create_app
from ventoux.server.service import Service
from ventoux.server.tracing import Tracing


@dataclass
class Served:
    """`url` is the server's, without a slash at its end; `service` is what is behind it."""

    url: str
    service: Service

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **settings)

    def until(self, what: Callable[[], bool], *, seconds: float = 20) -> None:
        """Wait for something that another thread does."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.005)


@contextmanager
def served(
    load: Callable[[], Mistral], *, wait: bool = True, tracing: Tracing | None = None, **settings: Any
) -> Iterator[Served]:
    """Start a server and stop it. `wait` until the model is loaded; settings are those of `Settings`."""
    service = Service(Settings(**{"aliases": ("tiny",), **settings}), load)
    config = uvicorn.Config(
        create_app(service, tracing=tracing),
        host="127.0.0.1",
        port=0,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        found = Served(f"http://127.0.0.1:{port}", service)
        if wait:
            found.until(lambda: service.state != "loading")
        yield found
    finally:
        server.should_exit = True
        thread.join()
