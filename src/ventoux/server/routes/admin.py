"""/admin: adapters that come and go while the server runs, and conversations in files. With keys of their own."""

from pathlib import Path

from fastapi import APIRouter, Request

from ventoux.errors import CheckpointError, RequestError
from ventoux.server import asking
from ventoux.server.errors import HttpError, Json
from ventoux.server.service import Service
from ventoux.server.wire.admin import AdapterBody, Adapters, Name, Session, SessionBody, SessionName

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


@router.post("/sessions/save", response_model=Session)
async def save(request: Request, body: SessionBody) -> Json:
    """Keep what was computed for a conversation, or a text, in a file: as far as it is still there."""
    service: Service = request.app.state.service
    file, model = within(service.settings.sessions_folder, body.name, "--sessions-folder"), service.model
    if (body.messages is None) == (body.prompt is None):
        raise RequestError("expected messages, a conversation, or prompt, a text; give one of them")
    if body.messages is not None:
        messages = [message.plain() for message in body.messages]
        ids = await asking.aside(asking.conversation_ids, model, messages)
    else:
        [ids] = await asking.aside(asking.ids_of, model, body.prompt)
    tokens = await service.call(lambda engine: engine.save_prefix(ids, file, salt=body.cache_salt or ""))
    return Json({"name": body.name, "tokens": tokens})


@router.post("/sessions/restore", response_model=Session)
async def restore(request: Request, body: SessionName) -> Json:
    """Have requests that go on with a saved text begin where it ended."""
    service: Service = request.app.state.service
    file = within(service.settings.sessions_folder, body.name, "--sessions-folder")
    if not file.is_file():
        raise HttpError(404, f"there is no session {body.name!r} here")
    ids = await service.call(lambda engine: engine.load_prefix(file, salt=body.cache_salt or ""))
    return Json({"name": body.name, "tokens": len(ids)})


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
