"""Traces of requests, by OpenTelemetry: client → service → engine, joined by W3C headers. Needs the extra ``tracing``.

A request's span has the client's as its parent, where a ``traceparent`` came. A batch's span has as its parent that of
the first request in it, and links to the others; an engine elsewhere gets the batch's ``traceparent``. Where traces are
off there is no middleware, and what is left costs one look at a context variable.
"""

import contextlib
from collections.abc import Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paragone.installing import pip_install
from paragone_service.config import ConfigError
from paragone_service.http.errors import SCOPE_CODE

__all__ = ["Trace", "Tracing", "add_trace_headers", "batch_span", "current_trace", "make_tracer"]


@dataclass(frozen=True, slots=True)
class Trace:
    """What the parts of one trace need: who makes spans, and the context of the one they belong to."""

    tracer: Any
    context: Any


_CURRENT: ContextVar[Trace | None] = ContextVar("paragone_trace", default=None)


def make_tracer(url: str | None) -> Any:
    """Return what makes spans and sends them to a collector by OTLP over HTTP; None without one.

    Raises:
        ConfigError: if the extra is not installed.
    """
    if url is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"traces_url needs OpenTelemetry ({error}): {pip_install('tracing')}") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "paragone"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider.get_tracer("paragone")


class Tracing:
    """Give every request a span, below the client's where it sent one."""

    def __init__(self, app: ASGIApp, *, tracer: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on inside its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(Headers(scope=scope))
        span = self._tracer.start_span(scope["method"], context=parent, kind=SpanKind.SERVER)

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
            await send(message)

        token = _CURRENT.set(Trace(self._tracer, set_span_in_context(span, parent)))
        try:
            await self._app(scope, receive, watch)
        finally:
            _CURRENT.reset(token)
            route = getattr(scope.get("route"), "path", "other")  # never the path: it may hold anything
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("http.route", route)
            if SCOPE_CODE in scope:
                span.set_attribute("paragone.code", str(scope[SCOPE_CODE]))
            span.end()


def current_trace() -> Trace | None:
    """Return the trace of the request that is being worked on, None where there is none."""
    return _CURRENT.get()


@contextlib.contextmanager
def batch_span(model: str, traces: Iterable[Trace | None]) -> Iterator[None]:
    """Run a batch inside a span of its own.

    Args:
        traces: of its responses; None among them for those whose request is not traced.
    """
    traced = list({id(trace): trace for trace in traces if trace is not None}.values())
    if not traced:
        yield
        return
    from opentelemetry.trace import Link, get_current_span, set_span_in_context

    first = traced[0]
    links = [Link(get_current_span(trace.context).get_span_context()) for trace in traced[1:]]
    span = first.tracer.start_span("batch", context=first.context, links=links, attributes={"paragone.model": model})
    token = _CURRENT.set(Trace(first.tracer, set_span_in_context(span, first.context)))
    try:
        yield
    finally:
        _CURRENT.reset(token)
        span.end()


def add_trace_headers(headers: MutableMapping[str, str]) -> None:
    """Add the W3C headers of the current trace to those of a request to another server; nothing without a trace."""
    trace = _CURRENT.get()
    if trace is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers, context=trace.context)
