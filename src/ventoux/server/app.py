"""The application: routes, errors and what stands before them, around one service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ventoux.errors import VentouxError
from ventoux.server.errors import HttpError, as_http, of_validation, response_of
from ventoux.server.guard import Guard
from ventoux.server.routes import admin, embeddings, generation, page, status, tokens
from ventoux.server.service import Service
from ventoux.server.tracing import Tracing
from ventoux.server.wire.shared import ErrorBody

ABOUT = "Mistral 7B and its relatives, over the OpenAI and Mistral APIs."
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# What any route may answer beside its success.
_FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": about}
    for code, about in {
        400: "something in the request is wrong, and the message says what",
        401: "no key that is known",
        403: "a host or an origin that is not allowed",
        404: "no such model, or nothing here",
        413: "the body is too long",
        429: "too many requests wait; Retry-After says when to come back",
        503: "the model is being loaded, or the server is about to end",
        504: "the answer took too long",
    }.items()
}


def create_app(service: Service, *, tracing: Tracing | None = None) -> ASGIApp:
    """The server as an ASGI application. It starts loading the model when it is started itself."""
    settings = service.settings
    app = FastAPI(
        title="Ventoux",
        summary=ABOUT,
        version=version("ventoux"),
        lifespan=_living(service),
        responses=_FAILURES,
        docs_url=None,  # FastAPI's pages run scripts of another host's
        redoc_url=None,
    )
    app.state.service = service
    for routes in (generation, embeddings, tokens, status, admin, page):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(VentouxError, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)

    def counted(method: str, route: str, status: int) -> None:
        service.metrics.http.labels(method if method in _METHODS else "other", route, str(status)).inc()

    guarded: ASGIApp = Guard(app, settings, counted=counted, tracing=tracing)
    if settings.origins:
        guarded = CORSMiddleware(
            guarded, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return guarded


def _living(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.start())
        try:
            yield
        finally:
            await loading
            await service.close()

    return living


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response_of(of_validation(error.errors()))


async def _failed(request: Request, error: Exception) -> Response:
    return response_of(as_http(error))


async def _refused(request: Request, error: Exception) -> Response:
    """What FastAPI itself refuses: no such route, a method that a route has not, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    return response_of(HttpError(error.status_code, str(error.detail), headers=dict(error.headers or {})))


async def _broken(request: Request, error: Exception) -> Response:
    """Ours to mend: Starlette raises it once more, for the guard to log."""
    return response_of(as_http(error))
