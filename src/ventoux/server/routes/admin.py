"""/admin: LoRA adapters that come and go while the server runs. These routes have keys of their own."""

from pathlib import Path

from fastapi import APIRouter, Request

from ventoux.errors import CheckpointError, RequestError
from ventoux.server import asking
from ventoux.server.errors import HttpError, Json
from ventoux.server.service import Service
from ventoux.server.wire.admin import AdapterBody, Adapters, Name

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/adapters", response_model=Adapters)
async def adapters(request: Request) -> Json:
    """The names of the adapters that requests may call as a model."""
    return _listed(request.app.state.service)


@router.post("/adapters", response_model=Adapters)
async def load(request: Request, body: AdapterBody) -> Json:
    """Load an adapter from the folder of its name."""
    service: Service = request.app.state.service
    folder = within(service.settings.adapters_folder, body.name, "--adapters-folder")
    if body.name in service.settings.aliases:
        raise RequestError(f"{body.name!r} is a name of the model itself; rename the adapter's folder")
    async with service.aside():
        try:
            await asking.aside(service.model.load_adapter, body.name, folder)
        except CheckpointError as error:
            raise HttpError(400, str(error)) from error
    return _listed(service)


@router.delete("/adapters/{name}", response_model=Adapters)
async def unload(request: Request, name: Name) -> Json:
    """Forget an adapter that no request uses."""
    service: Service = request.app.state.service
    if name not in service.model.adapters:
        raise HttpError(404, f"there is no adapter {name!r} here")
    await service.call(lambda engine: engine.unload_adapter(name))
    return _listed(service)


def within(folder: Path | None, name: str, flag: str) -> Path:
    """A place in a folder that the server was given. Raises HttpError 404 when there is none."""
    if folder is None:
        raise HttpError(404, f"this server was started without {flag}")
    place = (folder / name).resolve()
    if place.parent != folder.resolve():  # a link that leads out
        raise HttpError(404, f"there is no {name!r} here")
    return place


def _listed(service: Service) -> Json:
    return Json({"adapters": list(service.model.adapters)})
