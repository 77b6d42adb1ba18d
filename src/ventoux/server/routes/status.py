"""How the server is: /health, /ready, /metrics, and the models that it has."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ventoux.server.errors import HttpError, Json
from ventoux.server.service import Service
from ventoux.server.wire.status import Models, Status

router = APIRouter(tags=["status"])


@router.get("/health", response_model=Status)
async def health(request: Request) -> Json:
    """200 once the model is loaded, and until the process ends; 503 while it is being loaded."""
    return _status(request.app.state.service, healthy=("ready", "draining"))


@router.get("/ready", response_model=Status)
async def ready(request: Request) -> Json:
    """200 while requests are taken; 503 while the model is being loaded, and when the server is about to end."""
    return _status(request.app.state.service, healthy=("ready",))


def _status(service: Service, *, healthy: tuple[str, ...]) -> Json:
    return Json({"status": service.state}, status_code=200 if service.state in healthy else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", response_model=Models)
async def models(request: Request) -> Json:
    """The names that requests may call the model by, and its LoRA adapters."""
    service: Service = request.app.state.service
    return Json({"object": "list", "data": [_model(service, name) for name in _names(service)]})


@router.get("/v1/models/{name:path}", response_model=None)
async def model(request: Request, name: str) -> Json:
    """One of them."""
    service: Service = request.app.state.service
    if name not in _names(service):
        raise HttpError(404, f"there is no model {name!r} here", code="model_not_found", param="model")
    return Json(_model(service, name))


def _names(service: Service) -> tuple[str, ...]:
    return (*service.settings.aliases, *service.model.adapters)


def _model(service: Service, name: str) -> dict[str, object]:
    config = service.model.config
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "ventoux",
        "max_model_len": config.context_length,
        "type": "base",
        "max_context_length": config.context_length,
        "capabilities": {
            "completion_chat": True,
            "completion_fim": service.model.chat_format.version in ("v2", "v3", "v7"),
        },
    }
