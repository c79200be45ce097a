"""A span for each request of a client, where the program traces with OpenTelemetry; else nothing at all.

The client sets up no tracing of its own: it takes part in that of the program, whose ``traceparent`` it sends, so that
the service's spans hang below the caller's.
"""

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any

__all__ = ["inject", "request_span"]

_trace: Any = None
_propagate: Any = None
with contextlib.suppress(ImportError):
    from opentelemetry import propagate as _propagate
    from opentelemetry import trace as _trace


@contextlib.contextmanager
def request_span(name: str) -> Iterator[None]:
    """Run a request, with its retries, inside a span of its name. A failure is recorded without its message."""
    if _trace is None:
        yield
        return
    tracer = _trace.get_tracer("paragone")
    with tracer.start_as_current_span(
        name, kind=_trace.SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_status(_trace.StatusCode.ERROR, type(error).__name__)
            raise


def inject(headers: MutableMapping[str, str]) -> None:
    """Add the trace's headers (W3C's, unless the program propagates others) to those of a request."""
    if _propagate is not None:
        _propagate.inject(headers)
