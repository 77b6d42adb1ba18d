"""What stands before every route: request ids, the log, allowed hosts and origins, keys, the size of bodies.

Plain ASGI: Starlette's BaseHTTPMiddleware would stand between a stream and the client that leaves it.
"""

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ventoux.server.errors import HttpError, response_of
from ventoux.server.settings import Settings
from ventoux.server.tracing import Tracing

log = logging.getLogger("ventoux.server")

OPEN = ("/health", "/ready")  # a load balancer has no key
_REQUEST_ID = re.compile("[a-zA-Z0-9._-]{1,128}")
_BODY_SECONDS = 60.0  # for a body to arrive


class Guard:
    """Refuses what may not come in, and writes a line of the log for each request."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        counted: Callable[[str, str, int], None],
        tracing: Tracing | None = None,
    ) -> None:
        """`counted` is told of each answer's method, route and status."""
        self._app = app
        self._settings = settings
        self._counted = counted
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        begun, headers = time.monotonic(), Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else token_hex(8)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "log": {}}
        status, started = 499, False  # until there is an answer: the client may leave before
        span = self._tracing.begin(scope["method"], headers) if self._tracing else None

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope["path"], headers, scope["method"])
            await self._app(scope, self._bounded(headers, receive), sending)
        except HttpError as error:
            await response_of(error)(scope, receive, sending)
        except Exception:  # one request's end, not the server's
            log.exception("request %s failed", request_id)
        finally:
            method, route = scope["method"], getattr(scope.get("route"), "path", "other")
            said = {"request_id": request_id, "method": method, "status": status, **scope["state"]["log"]}
            self._counted(method, route, status)
            write("request", path=scope["path"], seconds=round(time.monotonic() - begun, 4), **said)
            if self._tracing:
                self._tracing.end(span, route=route, **said)

    def _check(self, path: str, headers: Headers, method: str) -> None:
        settings = self._settings
        if (
            settings.allowed_hosts is not None
            and (host := host_of(headers.get("host", ""))) not in settings.allowed_hosts
        ):
            raise HttpError(
                403,
                f"this server does not answer to the name {host[:100]!r}; start it with --allowed-host to have it do",
            )
        if (origin := headers.get("origin")) and not self._same_origin(origin, headers) and path not in OPEN:
            raise HttpError(403, f"pages of {origin[:100]!r} may not ask here; start the server with --cors-origin")
        if path in OPEN or (method == "OPTIONS" and origin):  # a browser's first question carries no key
            return
        admin = path.startswith("/admin/")
        keys = settings.admin_keys if admin else settings.api_keys
        if admin and not keys:
            raise HttpError(404, "there is nothing here")
        if keys and not known(headers.get("authorization", ""), headers.get("x-api-key", ""), keys):
            raise HttpError(
                401,
                "expected an API key, as `Authorization: Bearer KEY`, found none that is known",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="ventoux", charset="UTF-8"'} if of_page(path) else None,
            )

    def _same_origin(self, origin: str, headers: Headers) -> bool:
        return origin in self._settings.origins or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, with a limit on the body's bytes, and on the time that it takes to arrive."""
        most = self._settings.max_body_bytes
        too_long = f"the body has more than {most} bytes, which is the most"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            raise HttpError(413, too_long)
        seen, complete = 0, False

        async def receiving() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()  # the client leaving, some time
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds") from None
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, too_long)  # which goes through FastAPI's reading of bodies as it is
            complete = not message.get("more_body", False)
            return message

        return receiving


def of_page(path: str) -> bool:
    """Whether it is the chat page's: a browser asks for a password then, and sends it with all the rest."""
    return path == "/" or path.startswith("/page/")


def known(authorization: str, x_api_key: str, keys: tuple[str, ...]) -> bool:
    """Whether a request brings one of the keys. All are compared, in a time that says nothing of them."""
    brought = x_api_key or authorization.removeprefix("Bearer ").strip()
    if authorization.startswith("Basic "):  # a browser that was asked for a password: its user's name does not matter
        try:
            brought = base64.b64decode(authorization[6:], validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    found = [hmac.compare_digest(brought.encode(), key.encode()) for key in keys]
    return any(found)


def host_of(header: str) -> str:
    """localhost:8000 -> localhost; [::1]:8000 -> ::1"""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


def write(event: str, **fields: Any) -> None:
    """A line of the log, as JSON."""
    log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=True, default=str))


class JsonLines(logging.Formatter):
    """Every line of the log as JSON: what `write` wrote as it is, and what others say in fields."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == log.name and record.levelno == logging.INFO:
            return record.getMessage()
        said = {"time": round(record.created, 3), "event": record.levelname.lower(), "logger": record.name}
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**said, "message": record.getMessage(), **trace})


def noted(scope: Mapping[str, Any], **fields: Any) -> None:
    """Have these fields in the request's line of the log."""
    scope["state"]["log"].update(fields)
