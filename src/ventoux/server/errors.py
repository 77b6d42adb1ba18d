"""What goes wrong, in the shape that clients of the OpenAI API know."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response

from ventoux.errors import (
    BusyError,
    ChatError,
    GenerationError,
    GrammarOverrunError,
    OutOfMemoryError,
    PrefixFileError,
    PromptTooLongError,
    RequestError,
    TokenizerError,
    VentouxError,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class HttpError(VentouxError):
    """An answer other than success. `fields` stand beside the message in the error's object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.fields = fields


class Json(Response):
    """JSON of what may hold anything that a stranger wrote, half a surrogate pair included."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def as_http(error: Exception) -> HttpError:
    """The status that an error of ours means to a client. What nobody foresaw says nothing of what is inside."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, PromptTooLongError):
        return HttpError(
            400,
            str(error),
            code="context_length_exceeded",
            n_prompt_tokens=error.n_prompt_tokens,
            n_ctx=error.n_ctx,
        )
    if isinstance(error, RequestError | ChatError | TokenizerError | PrefixFileError | GrammarOverrunError):
        return HttpError(400, str(error))
    if isinstance(error, BusyError):
        return HttpError(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, OutOfMemoryError):
        return HttpError(503, str(error), code="out_of_memory", headers={"Retry-After": "5"})
    if isinstance(error, GenerationError):
        return HttpError(500, str(error))
    return HttpError(500, "something went wrong that is not the request's fault; the server's log has it")


def body_of(error: HttpError) -> dict[str, Any]:
    """{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}"""
    kind = _KINDS.get(error.status, "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code, **error.fields}}


def response_of(error: HttpError) -> Json:
    return Json(body_of(error), status_code=error.status, headers=error.headers)


def of_validation(errors: Sequence[Any]) -> HttpError:
    """What pydantic found wrong with a body: a 400 that names the parameter, and all that are unknown at once."""
    unknown = [_place(each["loc"]) for each in errors if each["type"] == "extra_forbidden"]
    if unknown:
        message = f"unknown parameter(s) {', '.join(unknown)}; leave them out"
        return HttpError(400, message, param=unknown[0], code="unknown_parameter")
    first = errors[0]
    if first["type"] == "json_invalid":
        return HttpError(400, f"expected a body of JSON, found something else: {first['ctx']['error']}")
    place = _place(first["loc"])
    if not place:
        return HttpError(400, "expected a body of one JSON object, sent with Content-Type: application/json")
    return HttpError(400, f"{place}: {first['msg']}", param=place)


def _place(path: Sequence[str | int]) -> str:
    """("body", "messages", 0, "content", "list[TextPart]", 0, "type") -> messages.0.content.0.type"""
    parts = [str(part)[:100] for part in path if part != "body"]
    return ".".join(part for part in parts if "[" not in part)[:200]  # pydantic's names of what it tried
