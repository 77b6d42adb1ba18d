"""The chat page at /, and its assets under /page/: files of the package, read once."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ventoux.server.errors import HttpError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    # What a model writes is hostile input: should any of it ever become markup, it may still run and fetch nothing.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time; the ETag makes that cheap
}


@dataclass(frozen=True)
class _Asset:
    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, _Asset]:
    """The page's files by name. What a request asks for is looked up here: no path of a stranger's is opened."""
    found = {}
    for file in sorted(_FOLDER.iterdir()):
        if file.suffix in _TYPES:
            content = file.read_bytes()
            etag = f'"{sha256(content).hexdigest()[:32]}"'
            found[file.name] = _Asset(content, f"{_TYPES[file.suffix]}; charset=utf-8", etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return _sent(request, assets()["index.html"])


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    found = assets().get(name)
    if found is None or name == "index.html":
        raise HttpError(404, "the page has no such file")
    return _sent(request, found)


def _sent(request: Request, asset: _Asset) -> Response:
    """The file, or 304 where the browser has it. What is sent to HEAD the server cuts off itself."""
    headers = {**_HEADERS, "ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
