"""Whatever our own description of the API allows or forbids: no 5xx, and no answer that it does not describe."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import Served

CHECKS = [
    checks.not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def described(server: Served) -> list[Any]:
    """The operations of the server's own /openapi.json."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_server_is_as_it_is_described(server: Served, described: list[Any], examples: int):
    asking = [each for each in described if each.body]
    for operation in described:
        telling = operation not in asking
        share = 2 if telling else examples // len(asking)
        for mode, count in ((GenerationMode.POSITIVE, share - share // 4), (GenerationMode.NEGATIVE, share // 4)):
            if count:
                probe(operation, mode, count)
    server.until(lambda: server.service.worker.alive == 0)


def probe(operation: Any, mode: GenerationMode, count: int) -> None:
    """Ask in `count` ways that the description allows, or forbids."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body.pop("model", None)  # which nearly always names nothing
            if "messages" in case.body or "prompt" in case.body:  # answers up to the context's end take their time
                case.body.pop("max_completion_tokens", None)
                case.body["max_tokens"] = 4
        case.call_and_validate(checks=CHECKS, timeout=60)

    ask()


def test_every_route_is_described(described: list[Any]):
    routes = {operation.path for operation in described}
    assert routes >= {"/v1/chat/completions", "/v1/completions", "/v1/fim/completions", "/v1/models", "/v1/embeddings"}
    assert routes >= {"/tokenize", "/detokenize", "/health", "/ready", "/metrics"}
