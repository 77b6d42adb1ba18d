"""A span for each request, which goes on from the caller's."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from served import served

from ventoux.model import Mistral
from ventoux.server.tracing import Tracing, from_environment


def test_spans_tell_of_requests_and_not_of_prompts(tiny: Mistral):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = "0af7651916cd43dd8448eb211c80319c"
    with served(lambda: tiny, tracing=Tracing(provider)) as server, server.client() as client:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        body = {"prompt": "a secret", "max_tokens": 3, "ignore_eos": True, "stream": True}
        client.post("/v1/completions", json=body, headers=headers)
        server.until(lambda: len(exporter.get_finished_spans()) == 1)
        client.get("/nothing")
        server.until(lambda: len(exporter.get_finished_spans()) == 2)
    span, other = exporter.get_finished_spans()
    assert span.name == "POST /v1/completions"
    assert format(span.context.trace_id, "032x") == trace
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["gen_ai.request.model"] == "tiny"
    assert other.attributes["http.response.status_code"] == 404
    assert "secret" not in span.to_json()


def test_it_is_off_unless_the_environment_says_where_to(monkeypatch: pytest.MonkeyPatch):
    assert from_environment() is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert from_environment() is not None
