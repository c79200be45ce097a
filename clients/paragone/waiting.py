"""What a command says while it waits for a service that is still starting: a line at first, and one now and then."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paragone.transport import RETRIED

__all__ = ["filtered", "in_few_words"]

_EVERY_S = 10.0


@contextmanager
def in_few_words(clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Say of tries that fail the first one, and then every ten seconds how long it goes on."""
    last = -math.inf

    def shortened(record: logging.LogRecord) -> bool:
        nonlocal last
        if record.msg is not RETRIED or not isinstance(record.args, tuple):
            return True
        now = clock()
        if now - last < _EVERY_S:
            return False
        *_, left_s, error = record.args
        if math.isinf(last):
            record.msg, record.args = "waiting for up to %.0f s: %s", (left_s, error)
        else:
            record.msg, record.args = "still waiting, for up to %.0f s more", (left_s,)
        last = now
        return True

    with filtered(shortened):
        yield


@contextmanager
def filtered(shows: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Have a function decide, as long as the context lasts, which records of the client's log are shown."""
    logger = logging.getLogger("paragone")
    logger.addFilter(shows)
    try:
        yield
    finally:
        logger.removeFilter(shows)
