"""A span for each request, for OpenTelemetry (the extra [otel]), where its environment variables say where to.

The attributes are of its conventions for generative AI: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import os
from collections.abc import Mapping
from typing import Any

from ventoux.errors import MissingExtraError

_WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAMES = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "model": "gen_ai.request.model",
}


class Tracing:
    """Spans of one server. They hold what the log's lines hold, and as little of the prompts."""

    def __init__(self, provider: Any) -> None:
        """`provider` is an opentelemetry.trace.TracerProvider."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        self._tracer = provider.get_tracer("ventoux")
        self._extract, self._kind = extract, SpanKind.SERVER

    def begin(self, method: str, headers: Mapping[str, str]) -> Any:
        """A span that goes on from the caller's, if it sent one."""
        return self._tracer.start_span(method, context=self._extract(headers), kind=self._kind)

    def end(self, span: Any, *, method: str, route: str, status: int, request_id: str, **fields: Any) -> None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("ventoux.request_id", request_id)
        for name, value in fields.items():
            if name in _NAMES:
                span.set_attribute(_NAMES[name], value)
        span.end()


def from_environment() -> Tracing | None:
    """What the environment asks for; None where it asks for nothing. Raises MissingExtraError."""
    if not any(os.environ.get(name) for name in _WHERE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(f"tracing, which ${_WHERE[0]} asks for,", "otel", error) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "ventoux")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
