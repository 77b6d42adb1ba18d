"""The process: it listens before the model is loaded, and ends when what runs has finished."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

import uvicorn

from ventoux.errors import VentouxError
from ventoux.server.app import create_app
from ventoux.server.service import Service
from ventoux.server.tracing import from_environment

_MAX_HEADER_BYTES = 64 << 10
_FETCH_SECONDS = 30  # for clients to take the rest of their answers, once all is computed and the server is to end
_LAST_SECONDS = (
    2.0  # from the second signal to the end, whatever hangs: a model being loaded, a client that reads nothing
)
_SWITCH_SECONDS = (
    0.0005  # how long a thread of Python's keeps others waiting: the engine's step is not to wait for JSON
)


def serve(service: Service, *, host: str, port: int, tls: dict[str, Any]) -> None:
    """Listen, load, answer, until SIGTERM or Ctrl-C; a second one does not wait for what runs.

    `tls` is uvicorn's: ssl_certfile, ssl_keyfile, ssl_keyfile_password. Raises what loading the model raised, and
    VentouxError when nobody can listen there, or the files of TLS are no such.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = uvicorn.Config(
        create_app(service, tracing=from_environment()),
        http="h11",  # which has a limit on headers
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_FETCH_SECONDS,
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl's errors too
        raise VentouxError(f"the files of TLS cannot be used: {error.strerror or error}") from error
    with listening(host, port) as bound:
        where = bound.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        say(f"loading the model; listening on {'https' if tls else 'http'}://{shown}:{where}")
        asyncio.run(_run(_Server(config), service, bound))
    if service.failure:
        raise service.failure


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise VentouxError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    with bound:
        yield bound


class _Server(uvicorn.Server):
    """uvicorn's server without its way with signals, which ends the process by them; ours is to end with 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(server: _Server, service: Service, bound: socket.socket) -> None:
    """Serve until a signal, or until the model could not be loaded."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        if ending.is_set():  # the second time: those who wait for an answer are told that it ends here
            last = Timer(_LAST_SECONDS, os._exit, (1,))
            last.daemon = True
            last.start()
            aside.append(asyncio.create_task(service.close()))
        ending.set()

    async def drain() -> None:
        await ending.wait()
        say("ending: no more requests are taken, and those that run are finished; once more ends at once")
        await service.drain()
        server.should_exit = True

    async def watch() -> None:
        while service.state == "loading":
            await asyncio.sleep(0.02)
        if service.state == "failed":
            server.should_exit = True
        elif service.state == "ready":
            say(f"ready: {service.settings.aliases[0]}, {service.model.backend.description}")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    aside = [asyncio.create_task(drain()), asyncio.create_task(watch())]
    try:
        await server.serve(sockets=[bound])
    finally:
        for task in aside:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*aside)


def say(text: str) -> None:
    print(f"ventoux: {text}", file=sys.stderr, flush=True)
