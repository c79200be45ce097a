"""What the service counts and times, in Prometheus' form. One registry per application, so that tests do not share it.

Durations are in seconds in the metrics and in milliseconds in the ``x-…-ms`` headers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)

from paragone.codes import ErrorCode

__all__ = ["Metrics"]

_DEVICE = ("model", "device")
_CUTS = ("full", "head", "headers", "malformed", "body", "idle")
_TIERS = ("memory", "redis", "coalesced", "miss")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for

# Up to five minutes: a bulk request may wait that long, and the tail is what one looks at.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Metrics:
    """Hold every metric of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._define_requests(self.registry)
        self._define_batches(self.registry)
        self._define_cache(self.registry)
        self._define_judges(self.registry)

    def _define_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("paragone_requests_total", "Requests answered.", ("route", "status"), registry=registry)
        self.errors = Counter("paragone_errors_total", "Requests refused, by error code.", ("code",), registry=registry)
        self.seconds = Histogram(
            "paragone_request_seconds",
            "Time of a request, by phase: tokenize, queue, inference (only where work was done), total.",
            ("route", "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.connections_cut = Counter(
            "paragone_connections_cut_total",
            "Connections closed by a limit: full, head (slow), headers (too large), malformed, body (slow), idle.",
            ("reason",),
            registry=registry,
        )
        for reason in _CUTS:
            self.connections_cut.labels(reason)
        # A rate over a series that appears with its first event misses that event.
        for code in ErrorCode:
            self.errors.labels(code)
        self.key_requests = Counter(
            "paragone_key_requests_total",
            "Requests by key, by what became of them: ok, or the code that refused them.",
            ("key", "outcome"),
            registry=registry,
        )
        self.key_items = Counter(
            "paragone_key_items_total", "Pairs, items and groups asked for by a key.", ("key",), registry=registry
        )
        self.key_seconds = Counter(
            "paragone_key_seconds_total", "Time of a key's requests, in seconds.", ("key",), registry=registry
        )
        self.quota_refused = Counter(
            "paragone_quota_refused_total",
            "Requests over a quota: requests, tokens, judge_calls.",
            ("quota",),
            registry=registry,
        )
        for quota in ("requests", "tokens", "judge_calls"):
            self.quota_refused.labels(quota)
        self.in_flight = Gauge("paragone_requests_in_flight", "Requests being worked on.", registry=registry)

    def _define_batches(self, registry: CollectorRegistry) -> None:
        self.batch_tokens = Histogram(
            "paragone_batch_tokens", "Tokens in a batch.", ("model",), buckets=_TOKENS, registry=registry
        )
        self.batch_size = Histogram(
            "paragone_batch_size", "Responses in a batch.", ("model",), buckets=_SIZES, registry=registry
        )
        self.padding_ratio = Histogram(
            "paragone_padding_ratio",
            "Share of padding if a batch were one rectangle: what an engine that does not pack would waste.",
            ("model",),
            buckets=_RATIOS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "paragone_batch_seconds", "Time of a batch on the device.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.batch_failures = Counter(
            "paragone_batch_failures_total", "Batches that the engine failed.", ("model",), registry=registry
        )
        self.memory_splits = Counter(
            "paragone_batch_splits_total", "Batches split for want of device memory.", ("model",), registry=registry
        )
        self.dropped = Counter(
            "paragone_responses_dropped_total",
            "Responses taken out of the queue because their client left.",
            ("model",),
            registry=registry,
        )
        self.expired = Counter(
            "paragone_responses_expired_total",
            "Responses taken out of the queue because their deadline passed.",
            ("model",),
            registry=registry,
        )
        self.refused_wait = Counter(
            "paragone_refused_wait_total",
            "Requests refused for the wait they had to expect.",
            ("model",),
            registry=registry,
        )
        self.truncations = Counter(
            "paragone_truncations_total", "Conversations answered with a cut prompt.", ("model",), registry=registry
        )
        self.non_finite = Counter(
            "paragone_non_finite_total", "Responses whose score was NaN or infinite.", ("model",), registry=registry
        )
        self.device_up = Gauge(
            "paragone_device_up", "1 while a device gets batches, 0 while it is set aside.", _DEVICE, registry=registry
        )
        self.device_tokens = Counter(
            "paragone_device_tokens_total", "Tokens that a device has run.", _DEVICE, registry=registry
        )
        self.device_seconds = Counter(
            "paragone_device_busy_seconds_total", "Time of a device's batches.", _DEVICE, registry=registry
        )
        self.device_failures = Counter(
            "paragone_device_failures_total", "Batches that a device failed.", _DEVICE, registry=registry
        )
        self.queue_items = Gauge(
            "paragone_queue_items", "Responses that wait for a device.", ("model",), registry=registry
        )
        self.queue_tokens = Gauge(
            "paragone_queue_tokens", "Tokens that wait for a device.", ("model",), registry=registry
        )
        self.backlog = Gauge(
            "paragone_backlog_seconds",
            "Time that all admitted work takes, as expected now.",
            ("model",),
            registry=registry,
        )
        self.engine_healthy = Gauge(
            "paragone_engine_healthy", "1 while the engine works, 0 while it does not.", ("model",), registry=registry
        )

    def _define_cache(self, registry: CollectorRegistry) -> None:
        self.cache_responses = Counter(
            "paragone_cache_responses_total",
            "Responses asked for, by where the representation came from: memory, redis, coalesced, miss.",
            ("tier",),
            registry=registry,
        )
        self.cache_corrupted = Counter(
            "paragone_cache_corrupted_total",
            "Values in Redis that were damaged, forged or of another type: ignored and overwritten.",
            registry=registry,
        )
        self.cache_outdated = Counter(
            "paragone_cache_outdated_total",
            "Values in Redis of an earlier release: ignored and overwritten.",
            registry=registry,
        )
        self.cache_bytes = Gauge("paragone_cache_memory_bytes", "Size of the memory cache.", registry=registry)
        self.cache_entries = Gauge("paragone_cache_memory_entries", "Entries of the memory cache.", registry=registry)
        self.redis_up = Gauge("paragone_redis_up", "1 while Redis answers, 0 while it does not.", registry=registry)
        self.redis_errors = Counter(
            "paragone_redis_errors_total", "Failed operations of Redis.", ("operation",), registry=registry
        )
        self.redis_unasked = Counter(
            "paragone_redis_unasked_total",
            "Keys that Redis was not asked for: too many were waiting.",
            registry=registry,
        )
        self.redis_opened = Counter(
            "paragone_redis_circuit_opened_total", "Times that Redis was given up as away.", registry=registry
        )
        self.redis_unwritten = Counter(
            "paragone_redis_unwritten_total", "Values not written to Redis: away, or too busy.", registry=registry
        )
        # Labels exist from the start: a rate over a series that appears later misses its first events.
        for tier in _TIERS:
            self.cache_responses.labels(tier)

    def _define_judges(self, registry: CollectorRegistry) -> None:
        self.judge_calls = Counter(
            "paragone_judge_calls_total",
            "Calls to a judge, by what became of them: ok, or the code of why there was no verdict.",
            ("model", "outcome"),
            registry=registry,
        )
        self.judge_tokens = Counter(
            "paragone_judge_tokens_total",
            "Tokens that a judge read (prompt) and wrote (completion).",
            ("model", "direction"),
            registry=registry,
        )
        self.judge_seconds = Histogram(
            "paragone_judge_seconds", "Time of a call to a judge.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.judge_first_shown = Summary(
            "paragone_judge_first_shown_probability",
            "Probability that a judge gave the response which was shown first: ½ on average, without position bias.",
            ("model",),
            registry=registry,
        )
        self.judge_orders = Counter(
            "paragone_judge_orders_total",
            "Comparisons asked in both orders, by whether the two verdicts agree on the better response.",
            ("model", "verdicts"),
            registry=registry,
        )

    def watch_judge(self, model: str, outcomes: Iterable[str]) -> None:
        """Show all series of a judge from the start."""
        for outcome in outcomes:
            self.judge_calls.labels(model, outcome)
        for direction in ("prompt", "completion"):
            self.judge_tokens.labels(model, direction)
        for verdicts in ("agree", "disagree"):
            self.judge_orders.labels(model, verdicts)
        self.judge_first_shown.labels(model)

    def count_key(self, key: str, code: str | None, total_s: float, asked: Mapping[str, Any] | None) -> None:
        """Count what a key used.

        Args:
            key: its name.
            code: what its request was refused with; None: it was answered.
            asked: what the log says of the request; None: its body was not read.
        """
        self.key_requests.labels(key, code or "ok").inc()
        self.key_seconds.labels(key).inc(total_s)
        if asked is not None:
            self.key_items.labels(key).inc(asked["items"])

    def watch_cache(self, size_bytes: Callable[[], float], entries: Callable[[], float]) -> None:
        """Read the size of the memory cache whenever the metrics are read."""
        self.cache_bytes.set_function(size_bytes)
        self.cache_entries.set_function(entries)

    def show_device(self, model: str, device: str) -> None:
        """Show all series of a device from the start."""
        self.device_up.labels(model, device).set(1)
        for metric in (self.device_tokens, self.device_seconds, self.device_failures):
            metric.labels(model, device)

    def watch_queue(
        self,
        model: str,
        items: Callable[[], float],
        tokens: Callable[[], float],
        backlog_s: Callable[[], float],
        healthy: Callable[[], float],
    ) -> None:
        """Read a model's queue and health whenever the metrics are read, and show all its series from the start."""
        self.queue_items.labels(model).set_function(items)
        self.queue_tokens.labels(model).set_function(tokens)
        self.backlog.labels(model).set_function(backlog_s)
        self.engine_healthy.labels(model).set_function(healthy)
        for metric in (
            self.truncations,
            self.non_finite,
            self.dropped,
            self.expired,
            self.refused_wait,
            self.batch_failures,
            self.memory_splits,
        ):
            metric.labels(model)

    def forget_model(self, model: str, devices: Sequence[str]) -> None:
        """Show a model's queue, health and devices no more: it is hosted no more."""
        for metric in (self.queue_items, self.queue_tokens, self.backlog, self.engine_healthy):
            metric.remove(model)
        for device in devices:
            self.device_up.remove(model, device)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
