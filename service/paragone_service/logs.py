"""The log: lines for people, or JSON for machines; no text of a client's unless that is wanted.

    {"time": "2026-11-29T08:30:00.123Z", "level": "info", "logger": "paragone.access", "request_id": "…", "status": 200,
     "method": "POST", "route": "/v1/preferences", "model": "judge", "items": 4, "key": "training", "total_ms": 12.3, …}

Every request is one such line. With ``--log-texts`` it holds the request as it was sent.

The start of a server is told in one of two ways: to people by the lines of ``startup.py``, and to machines by a record
for each fact.
"""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from paragone_service.config import Settings

__all__ = ["FIELDS", "HOLDS_TEXTS", "ONE_FACT", "START_LOGGER", "JsonFormatter", "configure_logging"]

FIELDS = "paragone_fields"
"""Attribute of a log record that holds what its line of JSON has beside the message, or instead of it."""
HOLDS_TEXTS = "paragone_holds_texts"
"""Attribute of a log record whose exception may repeat what a client sent."""
START_LOGGER = "paragone.start"
"""Says to people what a server hosts and how; its lines are written as they are."""
ONE_FACT = {"paragone_one_fact": True}
"""``extra`` of a record that says to machines what a line of the start says to people."""


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A moment and a name before each of ten lines, written at one moment, would hide what they say.
        return record.getMessage() if record.name == START_LOGGER else super().format(record)


class JsonFormatter(logging.Formatter):
    """Write each record as one line of JSON.

    Args:
        texts: whether messages of exceptions that may hold a client's texts are written.
    """

    def __init__(self, *, texts: bool) -> None:
        super().__init__()
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, FIELDS, None)
        if fields is None:
            line["message"] = record.getMessage()
        else:
            line.update(fields)
        if record.exc_info and record.exc_info[1] is not None:
            shown = self._texts or not getattr(record, HOLDS_TEXTS, False)
            line["exception"] = _exceptions(record.exc_info[1], messages=shown)
        # ASCII: whatever collects the lines, none of them is cut or broken by a letter.
        return json.dumps(line, default=str)


def _exceptions(error: BaseException, *, messages: bool) -> list[dict[str, Any]]:
    """Return an exception and what it came from, the last one first: type, places in our code, message if wanted."""
    chain: list[dict[str, Any]] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(current.__traceback__)
        ]
        one: dict[str, Any] = {"type": type(current).__name__, "frames": frames}
        if messages:
            one["message"] = str(current)
        chain.append(one)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def configure_logging(settings: Settings) -> None:
    """Set up the log of the process, once, at the door."""
    as_json = settings.log_format == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(texts=settings.log_texts)
        if as_json
        else _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    level = settings.log_level.upper()
    for name in ("paragone", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    if as_json:
        logging.getLogger(START_LOGGER).setLevel(logging.WARNING)
    elif settings.log_level == "info":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        handler.addFilter(lambda record: not hasattr(record, next(iter(ONE_FACT))))
    # A line of JSON for each request is what the format is for; people want to read theirs.
    wanted = as_json if settings.access_log is None else settings.access_log
    logging.getLogger("paragone.access").setLevel(logging.INFO if wanted else logging.WARNING)
