import json
import logging
import sys

import pytest
from pydantic import ValidationError

from paragone_service.config import Settings
from paragone_service.logs import HOLDS_TEXTS, JsonFormatter, configure_logging
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

BODY = {"model": "bt", "pairs": [{"prompt": "A private question?", "first": "secret one", "second": "secret two"}] * 3}


@pytest.fixture
def lines():
    """The lines of the access log, as the format json writes them."""
    written = []

    class Lines(logging.Handler):
        def emit(self, record):
            written.append(json.loads(JsonFormatter(texts=False).format(record)))

    logger, handler = logging.getLogger("paragone.access"), Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(before)


def written(record_of, *, texts=False):
    return json.loads(JsonFormatter(texts=texts).format(record_of))


def record(message="text", *arguments, error=None, **extra):
    exc_info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("paragone.service", logging.ERROR, "f.py", 1, message, arguments, exc_info)
    vars(made).update(extra)
    return made


async def test_a_request_is_one_line_that_says_who_asked_what_and_where_the_time_went(hosted, lines):
    async with serving(hosted, api_key="k", headers={"authorization": "Bearer k"}) as client:
        assert (await client.post("/v1/preferences", json=BODY, headers={"x-request-id": "r-1"})).status_code == 200
    (line,) = lines
    assert line["total_ms"] >= line["inference_ms"] > 0
    told = {name: line[name] for name in ("request_id", "method", "route", "status", "code", "key", "model", "items")}
    assert told == {
        "request_id": "r-1", "method": "POST", "route": "/v1/preferences", "status": 200, "code": None,
        "key": "default", "model": "bt", "items": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        BODY | {"model": "secret model"},
        BODY | {"secret field": 1},
        {"pairs": [{"prompt": "secret", "first": {"secret": 1}, "second": "b"}]},
        {"pairs": "secret"},
        ["secret"],
    ],
)
async def test_no_line_holds_what_a_client_sent(hosted, lines, body):
    async with serving(hosted) as client:
        await client.post("/v1/preferences", json=body)
        await client.get("/secret/path")
    assert len(lines) == 2
    assert "secret" not in json.dumps(lines)
    assert lines[0]["items"] == (3 if "pairs" in body and len(body["pairs"]) == 3 else lines[0]["items"])


async def test_texts_are_in_the_line_where_that_is_wanted(hosted, lines):
    async with serving(hosted, log_format="json", log_texts=True) as client:
        await client.post("/v1/preferences", json=BODY)
    assert lines[0]["request"] == BODY


def test_an_exception_that_may_repeat_a_text_is_told_by_type_and_place_alone():
    try:
        try:
            raise KeyError("secret prompt")
        except KeyError as error:
            raise ValueError("secret response") from error
    except ValueError:
        error = sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1]
    hidden = written(record("request %s failed", "r-1", error=error, **{HOLDS_TEXTS: True}))
    assert "secret" not in json.dumps(hidden)
    assert [one["type"] for one in hidden["exception"]] == ["ValueError", "KeyError"]
    assert "test_logs.py:" in hidden["exception"][0]["frames"][0]
    assert hidden["message"] == "request r-1 failed"
    shown = written(record("m", error=error, **{HOLDS_TEXTS: True}), texts=True)
    assert shown["exception"][0]["message"] == "secret response"
    ours = written(record("m", error=error))  # of the engine, say: it has seen no text
    assert ours["exception"][0]["message"] == "secret response"


async def test_a_crash_names_the_request_and_not_what_it_held(hosted, caplog):
    async with serving(hosted) as client:

        @client.app.get("/crash")
        async def crash():
            raise KeyError("secret")

        with caplog.at_level(logging.ERROR, "paragone.service"):
            await client.get("/crash", headers={"x-request-id": "r-1"})
    (crashed,) = [one for one in caplog.records if one.name == "paragone.service" and one.exc_info]
    line = JsonFormatter(texts=False).format(crashed)
    assert "secret" not in line
    assert "r-1" in line


def test_a_line_is_one_line_of_ascii():
    line = JsonFormatter(texts=False).format(record("two\nlines, é \u2028 and \ud800"))
    assert line.isascii()
    assert line.count("\n") == 0
    assert json.loads(line)["message"] == "two\nlines, é \u2028 and \ud800"


@pytest.mark.parametrize(
    "settings", [{"log_texts": True}, {"log_texts": True, "log_format": "json", "access_log": False}]
)
def test_texts_without_a_place_are_refused(settings):
    with pytest.raises(ValidationError, match="log_texts"):
        Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        ({}, False),
        ({"log_format": "json"}, True),
        ({"log_format": "json", "access_log": False}, False),
        ({"access_log": True}, True),
    ],
)
def test_requests_are_logged_in_json_or_where_wanted(settings, logged):
    logger = logging.getLogger("paragone.access")
    levels = {name: logging.getLogger(name).level for name in ("paragone", "paragone.access", "uvicorn")}
    configure_logging(Settings(**settings))
    try:
        assert logger.isEnabledFor(logging.INFO) is logged
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


async def test_what_each_key_uses_is_counted_by_its_name(hosted):
    async with serving(hosted, api_key="k", headers={"authorization": "Bearer k"}) as client:
        await client.post("/v1/preferences", json=BODY)
        await client.post("/v1/preferences", json=BODY | {"model": "gone"})
        await client.post("/v1/preferences", json=BODY, headers={"authorization": "Bearer wrong"})
        text = (await client.get("/metrics")).text
    assert 'paragone_key_requests_total{key="default",outcome="ok"} 1.0' in text
    assert 'paragone_key_requests_total{key="default",outcome="unknown_model"} 1.0' in text
    assert 'paragone_key_items_total{key="default"} 6.0' in text
    assert 'outcome="wrong_key"' not in text  # nobody's key
    assert 'paragone_errors_total{code="wrong_key"} 1.0' in text
    assert 'paragone_errors_total{code="overloaded"} 0.0' in text
