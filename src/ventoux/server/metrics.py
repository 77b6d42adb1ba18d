"""What /metrics tells Prometheus. The names are those that vLLM's dashboards have, with our prefix."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from ventoux.engine import Finished

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counters of one server. They hold numbers only: nothing of what was asked or answered."""

    def __init__(self, service: Callable[[], Any]) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"ventoux_{name}", about, buckets=buckets, registry=registry)

        def counter(name: str, about: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"ventoux_{name}", about, labels, registry=registry)

        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token")
        self.next_token = histogram("inter_token_latency_seconds", "Between two tokens of an answer", _SHORT)
        self.request_seconds = histogram("e2e_request_latency_seconds", "From a request's arrival to its end")
        self.queue_seconds = histogram("request_queue_time_seconds", "Spent waiting for a place in a step")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = counter("prompt_tokens_cached", "Tokens of prompts that were not computed again")
        self.generated_tokens = counter("generation_tokens", "Tokens of answers")
        self.ended = counter("request_success", "Requests that have ended", ["finished_reason"])
        self.refused = counter("requests_refused", "Requests refused since too many waited")
        self.http = counter("http_requests", "Answers given", ["method", "route", "status"])
        registry.register(_Now(service))

    def finished(self, event: Finished) -> None:
        self.ended.labels(event.reason).inc()
        self.prompt_tokens.inc(event.usage.prompt_tokens)
        self.cached_tokens.inc(event.usage.cached_tokens)
        self.generated_tokens.inc(event.usage.completion_tokens)
        self.queue_seconds.observe(event.timings.queued_s)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Now:
    """What is read when somebody asks: how much runs, waits and is kept."""

    def __init__(self, service: Callable[[], Any]) -> None:
        self._service = service

    def collect(self) -> Iterable[GaugeMetricFamily]:
        service = self._service()
        running, waiting = service.queue
        yield GaugeMetricFamily("ventoux_num_requests_running", "Requests in the engine's steps", running)
        yield GaugeMetricFamily("ventoux_num_requests_waiting", "Requests that wait for a place", waiting)
        yield GaugeMetricFamily("ventoux_kv_cache_bytes", "Keys and values of running requests", service.kv_bytes)
        yield GaugeMetricFamily(
            "ventoux_prefix_cache_bytes", "Keys and values kept of ended texts", service.prefix_bytes
        )
        yield GaugeMetricFamily("ventoux_ready", "1 when requests are taken", service.state == "ready")
