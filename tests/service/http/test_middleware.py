"""What every request passes: key, request id, timings, draining, counting."""

import asyncio
import logging
import time

import pytest

from paragone_service import app
from paragone_service.api_keys import hash_of
from paragone_service.http.errors import ErrorCode, ServiceError, error_response
from paragone_service.http.middleware import Drain, Lingering
from tests.service.conftest import serving, until

pytestmark = pytest.mark.anyio

GOOD = {"pairs": [{"prompt": "p", "first": "a", "second": "b"}]}
PATHS = ["/v1/models", "/v1/models/gpm", "/metrics", "/openapi.json", "/docs", "/nothing"]


async def test_without_the_key_nothing_but_health_is_answered(hosted):
    async with serving(hosted, api_key="sesame") as client:
        for path in PATHS:
            response = await client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_key"), path
            offered = response.headers["www-authenticate"]
            assert offered == 'Bearer realm="paragone", Basic realm="paragone", charset="UTF-8"'
        assert (await client.post("/v1/preferences", json=GOOD)).status_code == 401
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("value", ["Bearer open", "Bearer sesame2", "bearer SESAME"])
async def test_a_wrong_key_is_refused(hosted, value):
    async with serving(hosted, api_key="sesame", headers={"authorization": value}) as client:
        response = await client.post("/v1/preferences", json=GOOD)
        assert response.status_code == 403
        assert response.json()["error"] == {"code": "wrong_key", "message": "this is not the server's key"}


@pytest.mark.parametrize("value", ["sesame", "Basic sesame", "Bearer", "Bearer "])
async def test_a_key_that_is_not_a_bearer_key_is_missing(hosted, value):
    async with serving(hosted, api_key="sesame", headers={"authorization": value}) as client:
        assert (await client.post("/v1/preferences", json=GOOD)).json()["error"]["code"] == "missing_key"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_with_the_key_everything_is_answered(hosted, scheme):
    async with serving(hosted, api_key="sesame", headers={"authorization": f"{scheme} sesame"}) as client:
        assert (await client.post("/v1/preferences", json=GOOD)).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize("user", ["", "any", "paragone"])
async def test_a_key_may_be_the_password_of_http_basic(hosted, user):
    async with serving(hosted, api_key="ses:ame") as client:
        assert (await client.get("/v1/models", auth=(user, "ses:ame"))).status_code == 200
        refused = await client.get("/v1/models", auth=(user, "sesame"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_key")


async def test_each_key_of_a_file_is_let_in_until_its_line_is_gone(hosted, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "_KEYS_EVERY_S", 0.02)
    file = tmp_path / "keys"
    file.write_text(f"a:{hash_of('one')}\nb:{hash_of('two')}\n")
    async with serving(hosted, api_key_file=file) as client:

        async def status(key):
            return (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code

        assert [await status(key) for key in ("one", "two", "three")] == [200, 200, 403]
        file.write_text(f"b:{hash_of('two')}\nc:{hash_of('three')}\n")

        async def exchanged():
            return [await status(key) for key in ("one", "two", "three")] == [403, 200, 200]

        await until(exchanged)


async def test_tenants_share_no_cached_representation_and_no_id(hosted, tmp_path):
    file = tmp_path / "keys"
    lines = [f"{name}:{hash_of(name)}" for name in ("a", "b", "c", "d")]
    file.write_text(f"{lines[0]} tenant=x\n{lines[1]} tenant=x\n{lines[2]} tenant=y\n{lines[3]}\n")
    body = {"model": "gpm", "return": ["ids"], **GOOD}
    async with serving(hosted, api_key_file=file) as client:

        async def ask(key, sent):
            return (await client.post("/v1/preferences", json=sent, headers={"authorization": f"Bearer {key}"})).json()

        answers = {key: await ask(key, body) for key in ("a", "b", "c", "d")}
        forwards = {key: answer["usage"]["forward_responses"] for key, answer in answers.items()}
        assert forwards == {"a": 2, "b": 0, "c": 2, "d": 2}
        (row,) = answers["a"]["preferences"]
        named = {"model": "gpm", "pairs": [{"first_id": row["first_id"], "second_id": row["second_id"]}]}
        assert (await ask("b", named))["preferences"][0]["probability"] == row["probability"]
        assert (await ask("c", named))["error"]["code"] == "unknown_id"


HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"]


@pytest.mark.parametrize("host", HOSTS)
async def test_without_a_key_names_of_loopback_are_answered(client, host):
    assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "10.0.0.7", "[::2]"]
)
async def test_without_a_key_another_name_is_refused_everywhere_but_at_health(client, host):
    for path in ("/v1/models", "/docs", "/metrics", "/openapi.json"):
        refused = await client.get(path, headers={"host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "unknown_host"), path
    assert (await client.get("/livez", headers={"host": host})).status_code == 200


async def test_allowed_hosts_replace_those_of_loopback_and_a_key_allows_any(hosted):
    async with serving(hosted, allowed_hosts="judge.example") as client:
        assert (await client.get("/v1/models", headers={"host": "judge.example:8000"})).status_code == 200
        assert (await client.get("/v1/models")).status_code == 421
    async with serving(hosted, allowed_hosts="*") as client:
        assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 200
    async with serving(hosted, api_key="sesame", headers={"authorization": "Bearer sesame"}) as client:
        assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},  # another program of this machine
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_a_page_of_another_origin_can_do_nothing_without_a_key_or_with_a_browsers(hosted, headers):
    sent = {"host": "localhost:8000", "content-type": "text/plain", **headers}
    for settings, auth in (({}, None), ({"api_key": "sesame"}, ("any", "sesame"))):
        async with serving(hosted, **settings) as client:
            for path in ("/v1/models/gpm:unload", "/v1/files", "/v1/heads", "/v1/preferences", "/rerank", "/livez"):
                refused = await client.post(path, content="{}", headers=sent, auth=auth)
                assert refused.status_code == 403, path
                assert "a web page of another origin" in refused.text
            assert (await client.get("/v1/models", headers=sent, auth=auth)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:8000"},
        {"origin": "https://localhost", "host": "localhost:443"},
        {"origin": "http://[::1]:8000", "host": "[::1]:8000"},
        {"origin": "http://judge.example", "x-forwarded-host": "judge.example, inner"},
        {"origin": "https://judge.example", "sec-fetch-site": "same-origin"},  # behind a proxy that changes Host
        {"sec-fetch-site": "none"},
        {},
    ],
)
async def test_the_servers_own_page_and_programs_are_answered(client, headers):
    sent = {"host": "localhost:8000", **headers}
    assert (await client.post("/v1/preferences", json=GOOD, headers=sent)).status_code == 200


async def test_a_request_id_is_given_back_and_made_where_there_is_none(client):
    response = await client.get("/livez", headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"
    made = {(await client.get("/livez")).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    for bad in ("two words", "x" * 200):
        assert (await client.get("/livez", headers={"x-request-id": bad})).headers["x-request-id"] != bad


async def test_every_answer_says_where_the_time_went(client):
    cold = await client.post("/v1/preferences", json=GOOD)
    warm = await client.post("/v1/preferences", json=GOOD)
    refused = await client.post("/v1/preferences", json={"pairs": 1})
    names = [f"x-{phase}-ms" for phase in ("tokenize", "queue", "inference", "total")]
    times = [{name: float(answer.headers[name]) for name in names} for answer in (cold, warm, refused)]
    assert times[0]["x-tokenize-ms"] > 0
    assert times[0]["x-inference-ms"] > 0
    for one in times[1:]:
        assert one["x-tokenize-ms"] == one["x-queue-ms"] == one["x-inference-ms"] == 0
        assert one["x-total-ms"] > 0
    parts = sum(times[0][name] for name in names[:-1])
    assert parts <= times[0]["x-total-ms"]


async def test_requests_are_counted_by_route_and_status_and_unknown_paths_together(client):
    await client.post("/v1/preferences", json=GOOD)
    await client.post("/v1/preferences", json={"pairs": 1})
    for path in ("/a", "/b"):
        await client.get(path)
    await client.get("/v1/models/gpm")
    text = (await client.get("/metrics")).text
    assert 'paragone_requests_total{route="/v1/preferences",status="200"} 1.0' in text
    assert 'paragone_requests_total{route="/v1/preferences",status="422"} 1.0' in text
    assert 'paragone_requests_total{route="other",status="404"} 2.0' in text
    assert 'paragone_requests_total{route="/v1/models/{model}",status="200"} 1.0' in text
    assert 'paragone_errors_total{code="invalid_request"} 1.0' in text
    assert 'paragone_errors_total{code="not_found"} 2.0' in text
    for phase in ("tokenize", "queue", "inference", "total"):
        assert f'paragone_request_seconds_count{{phase="{phase}",route="/v1/preferences"}}' in text


async def test_a_crash_is_an_internal_error_that_names_the_request_and_not_the_reason(hosted, caplog):
    async with serving(hosted) as client:

        @client.app.get("/crash")
        async def crash():
            raise KeyError("secret")

        with caplog.at_level(logging.ERROR, "paragone.service"):
            response = await client.get("/crash", headers={"x-request-id": "r-1"})
        assert response.status_code == 500
        assert response.json()["error"] == {
            "code": "internal_error", "message": "the server failed; its log has request r-1",
        }  # fmt: skip
        assert "secret" in caplog.text
        assert 'paragone_errors_total{code="internal_error"} 1.0' in (await client.get("/metrics")).text


async def test_while_draining_no_new_work_is_admitted(hosted):
    drain = Drain()
    async with serving(hosted, drain=drain) as client:
        assert (await client.get("/readyz")).status_code == 200
        drain.begun = True
        refused = await client.post("/v1/preferences", json=GOOD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "shutting_down")
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_requests_are_logged_only_when_that_is_wanted(client, caplog):
    with caplog.at_level(logging.INFO, "paragone.access"):
        await client.get("/livez", headers={"x-request-id": "r-1"})
    assert caplog.messages[0].startswith("r-1 GET /livez 200 ")


async def test_what_is_not_answered_within_the_grace_is_refused(hosted):
    drain = Drain()
    async with serving(hosted, drain=drain) as client:

        @client.app.get("/slow")
        async def slow():
            await asyncio.sleep(60)

        asking = asyncio.create_task(client.get("/slow"))

        async def asked():
            return "paragone_requests_in_flight 2.0" in (await client.get("/metrics")).text

        await until(asked)
        drain.begun = True
        drain.end()
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"] == "1"
        assert 'paragone_errors_total{code="shutting_down"} 1.0' in (await client.get("/metrics")).text


async def test_a_timeout_of_our_own_is_no_end_of_the_grace(hosted):
    async with serving(hosted) as client:

        @client.app.get("/timeout")
        async def timeout():
            raise TimeoutError

        assert (await client.get("/timeout")).json()["error"]["code"] == "internal_error"


async def refused_while_sending(receive, *, header=(b"transfer-encoding", b"chunked"), drain=None, **bounds):
    """Send a body to an application that refuses it unread; return the messages of its answer, and how long it took."""

    async def refuse(scope, receive, send):
        await error_response(ServiceError(ErrorCode.WRONG_KEY, "no"))(scope, receive, send)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [header]}
    started = time.perf_counter()
    await Lingering(refuse, drain=drain or Drain(), **bounds)(scope, receive, send)
    return [(message["type"], message.get("more_body")) for message in sent], time.perf_counter() - started


HELD = [("http.response.start", None), ("http.response.body", True), ("http.response.body", None)]


async def test_an_answer_before_the_end_of_the_body_ends_when_the_body_does():
    pieces = iter([True, True, False])

    async def receive():
        return {"type": "http.request", "body": b"x", "more_body": next(pieces)}

    answer, _ = await refused_while_sending(receive)
    assert answer == HELD
    assert not list(pieces)


async def test_a_client_that_leaves_while_its_body_is_thrown_away_ends_it():
    async def receive():
        return {"type": "http.disconnect"}

    answer, _ = await refused_while_sending(receive)
    assert answer == HELD


@pytest.mark.parametrize("pause_s", [0.0, 60.0])
async def test_neither_an_endless_body_nor_a_silent_client_is_waited_for_forever(pause_s):
    async def receive():
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": b"x", "more_body": True}

    bounds = {"linger_s": 60.0, "silence_s": 0.05} if pause_s else {"linger_s": 0.05, "silence_s": 60.0}
    answer, seconds = await refused_while_sending(receive, **bounds)
    assert answer == HELD
    assert 0.04 < seconds < 30


async def test_nobody_is_read_on_beyond_the_grace():
    drain = Drain()

    async def receive():
        drain.end()
        await asyncio.sleep(60)

    answer, seconds = await refused_while_sending(receive, drain=drain, linger_s=60.0, silence_s=60.0)
    assert answer == HELD
    assert seconds < 30


async def test_a_request_without_a_body_is_not_read():
    async def receive():
        raise AssertionError

    answer, _ = await refused_while_sending(receive, header=(b"content-length", b"0"))
    assert answer == [("http.response.start", None), ("http.response.body", None)]
