"""Where the time of one request goes: carried through the layers, shown in headers and metrics."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Timings", "timings_of"]

_SCOPE_KEY = "paragone.timings"


@dataclass(slots=True)
class Timings:
    """Times of one request, in seconds; zero where nothing was to do.

    Attributes:
        tokenize_s: rendering and tokenizing what no cache knew.
        queue_s: waiting for the device, from the queueing of the first response to the end of the last, without
            ``inference_s``.
        inference_s: the batches that responses of this request were in.
    """

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


def timings_of(scope: MutableMapping[str, Any]) -> Timings:
    """Return the timings of the request that an ASGI scope belongs to; one object for its whole life."""
    timings = scope.setdefault(_SCOPE_KEY, Timings())
    assert isinstance(timings, Timings)
    return timings
