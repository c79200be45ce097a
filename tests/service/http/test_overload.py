"""Overload: who would wait for too long is refused before the body is parsed; who has rested goes ahead."""

import asyncio
import contextlib
import json

import httpx2
import pytest

from paragone.codes import ErrorCode
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.http.overload import SCOPE_RESERVATION, unparsed_refusal
from tests.service.conftest import serving, until
from tests.service.doubles import gated, metric
from tests.service.http.test_connections import listening

pytestmark = pytest.mark.anyio

BROKEN = b"{" + b"x" * 5_000
"""What no parser takes: who answers this with a 503 has not tried."""
JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 5001\r\n"


def ask(number=0, **more):
    return {"items": [{"prompt": f"Is it {number}?", "response": "Yes. " * 20}], **more}


@contextlib.contextmanager
def busy(app, name="bt"):
    """Have a model wait for a minute's work of somebody, and know how much of a body is work."""
    door = app.state.registry.find(name).admission
    door.characters_per_s = 1_000.0
    door.parsed("somebody", 1_000, 900, 1)
    with door.admitted(60_000, 1, "somebody", None):
        yield


async def test_a_request_that_would_wait_for_too_long_is_refused_unparsed(hosted):
    async with serving({"bt": hosted["bt"]}) as client:
        with busy(client.app):
            refused = await client.post("/v1/rewards", content=BROKEN, headers=JSON)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert await metric(client, 'paragone_refused_wait_total{model="bt"}') == 1
            patient = {**JSON, "x-deadline-s": "600"}
            assert (await client.post("/v1/rewards", content=BROKEN, headers=patient)).status_code == 400
        assert (await client.post("/v1/rewards", content=BROKEN, headers=JSON)).status_code == 400


async def test_who_asks_for_what_the_cache_knows_is_answered_whatever_waits(hosted):
    async with serving({"bt": hosted["bt"]}) as client:
        for _ in range(2):
            assert (await client.post("/v1/rewards", json=ask())).status_code == 200
        with busy(client.app):
            for _ in range(20):
                assert (await client.post("/v1/rewards", json=ask())).status_code == 200


async def test_now_and_then_a_body_of_who_is_refused_is_parsed_to_see_what_is_known_by_now(hosted):
    async with serving({"bt": hosted["bt"]}) as client:
        assert (await client.post("/v1/rewards", json=ask(1))).status_code == 200
        with busy(client.app):
            answers = [(await client.post("/v1/rewards", content=BROKEN, headers=JSON)).status_code for _ in range(9)]
        assert answers == [503] * 8 + [400]


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({}, True),
        ({"model": "bt"}, True),
        ({"model": "gpm"}, False),  # which is idle
        ({"model": "nobody"}, False),
        ({"model": None}, False),
        ({"deadline_s": 600}, False),
        ({"deadline_s": 4.5}, True),
        ({"deadline_s": None}, False),  # unusual: it is parsed
        ({"model": "gpm", "note": {"model": "bt"}}, False),
        ({"note": 'a text with "model": "gpm" and "deadline_s": 600, inside'}, True),
    ],
)
async def test_model_and_deadline_are_found_in_the_bytes_or_the_body_is_parsed(hosted, body, refused):
    app = create_app(Settings(), {"bt": hosted["bt"], "gpm": hosted["gpm"]})
    async with app.router.lifespan_context(app):
        scope = {"path": "/v1/rewards", "headers": [], "client": ("somewhere", 1)}
        content = json.dumps({**ask(), **body, "padding": "x" * 4_000}).encode()
        with busy(app):
            assert bool(unparsed_refusal(scope, content, app.state.registry)) is refused
            assert unparsed_refusal({**scope, "path": "/v1/models"}, content, app.state.registry) is None
        assert unparsed_refusal(scope, content, app.state.registry) is None


@pytest.fixture
def service(hosted):
    return lambda settings, drain: create_app(settings, {"bt": hosted["bt"]}, drain=drain)


async def test_a_complete_request_is_refused_in_its_connection_which_stays_open(service):
    async with listening(service) as (connect, server):
        client = await connect()
        app = server.config.app
        with busy(app):
            before = len(server.server_state.tasks)
            await client.send(2 * (HEAD + b"\r\n" + BROKEN))  # two at once, without waiting for the first answer
            assert await client.answer() == (503, "overloaded")
            assert await client.answer() == (503, "overloaded")
            assert len(server.server_state.tasks) == before
            await client.send(HEAD + b"\r\n")
            await asyncio.sleep(0.05)
            await client.send(BROKEN)  # in pieces: the usual way, and the same answer
            assert await client.answer() == (503, "overloaded")
            await client.send(HEAD + b"x-deadline-s: 600\r\n\r\n" + BROKEN)
            assert await client.answer() == (400, "invalid_json")
        await client.send(HEAD + b"\r\n" + BROKEN)
        assert await client.answer() == (400, "invalid_json")
        requests = app.state.metrics.requests
        assert requests.labels("/v1/rewards", "503")._value.get() == 3


async def test_a_burst_is_refused_in_its_connections_while_none_of_it_is_parsed(service):
    async with listening(service) as (connect, server):
        door = server.config.app.state.registry.find("bt").admission
        door.characters_per_s = 1_000.0
        door.parsed("somebody", 1_000, 900, 1)
        clients = [await connect() for _ in range(6)]
        for client in clients:
            await client.send(HEAD + b"\r\n" + BROKEN)
        answers = [await client.answer() for client in clients]
        assert set(answers) <= {(400, "invalid_json"), (503, "overloaded")}
        assert answers[0] == (400, "invalid_json")
        # Whatever was let in, and refused for another reason, has given back what it had reserved.
        assert (door.reserved, door.waiting, door._clients.total) == (0, 0, 0)


async def test_what_a_body_reserves_counts_until_it_is_answered(hosted):
    async with gated(hosted) as (client, engine):
        app = client.app
        door = app.state.registry.find("bt").admission
        assert (await client.post("/v1/rewards", json=ask(1))).status_code == 200
        door.characters_per_s = 10.0
        scope = {"path": "/v1/rewards", "headers": [], "client": ("somewhere", 1)}
        content = json.dumps(ask(2)).encode()
        assert unparsed_refusal(scope, content, app.state.registry) is None
        assert door.reserved > 0
        assert unparsed_refusal(scope, content, app.state.registry) is None  # it was judged already
        other = {**scope, "client": ("elsewhere", 2)}
        del other[SCOPE_RESERVATION]
        assert unparsed_refusal(other, content, app.state.registry).code is ErrorCode.OVERLOADED
        scope[SCOPE_RESERVATION].release()
        engine.gate.clear()
        asked = asyncio.create_task(client.post("/v1/rewards", json=ask(3)))
        await until(lambda: engine.calls[1:])
        assert (door.reserved, door.waiting > 0) == (0, True)
        engine.gate.set()
        assert (await asked).status_code == 200
        assert (door.reserved, door.waiting, door._clients.total) == (0, 0, 0)


async def test_who_has_no_key_or_asks_for_another_host_hears_of_that_and_not_of_the_load(service):
    async with listening(service, api_key="secret") as (connect, server):
        client = await connect()
        with busy(server.config.app):
            await client.send(HEAD + b"\r\n" + BROKEN)
            assert await client.answer() == (401, "missing_key")
            await client.send(HEAD + b"authorization: Bearer wrong\r\n\r\n" + BROKEN)
            assert await client.answer() == (403, "wrong_key")
            await client.send(HEAD + b"authorization: Bearer secret\r\n\r\n" + BROKEN)
            assert await client.answer() == (503, "overloaded")
    async with listening(service) as (connect, server):
        client = await connect()
        with busy(server.config.app):
            await client.send(HEAD.replace(b"localhost", b"elsewhere") + b"\r\n" + BROKEN)
            assert await client.answer() == (421, "unknown_host")


async def test_a_small_question_of_a_newcomer_goes_ahead_of_a_crowd_that_always_asks(hosted):
    async with gated(hosted, max_wait_s=10_000) as (first, engine), contextlib.AsyncExitStack() as stack:

        async def client(port):
            transport = httpx2.ASGITransport(app=first.app, client=("127.0.0.1", port))
            return await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://localhost"))

        crowd = [await client(port) for port in range(1, 13)]
        model = first.app.state.registry.find("bt")
        scheduler = model.scheduler
        scheduler.devices[0].max_batch_tokens = 1_000  # a few of the crowd's items
        order = []

        async def question(who, name, items):
            answer = await who.post("/v1/rewards", json={"items": items})
            assert answer.status_code == 200
            order.append(name)

        # Whoever has just had an answer has not rested.
        await asyncio.gather(*(question(who, "first", ask(number)["items"]) for number, who in enumerate(crowd)))
        order.clear()
        model.admission.characters_per_s = 100.0  # for seconds of work a rest of milliseconds is none
        engine.gate.clear()
        engine.calls.clear()
        asked = [
            asyncio.create_task(question(who, "crowd", ask(100 + number)["items"])) for number, who in enumerate(crowd)
        ]
        await until(lambda: sum(engine.calls) + scheduler.queue_items == len(crowd))
        running = sum(engine.calls)
        newcomer = await client(99)
        asked.append(asyncio.create_task(question(newcomer, "small", [{"prompt": "a", "response": "b"}])))
        await until(lambda: running + scheduler.queue_items == len(crowd) + 1)
        engine.gate.set()
        await asyncio.gather(*asked)
        assert order.index("small") <= running


async def test_texts_are_read_as_the_device_comes_to_them_and_not_ahead_of_it(hosted):
    async with gated(hosted, max_wait_s=10_000) as (client, engine):
        queue = client.app.state.registry.find("bt").scheduler
        queue.devices[0].max_batch_tokens = 300  # two or three of the questions
        engine.gate.clear()
        asked = [asyncio.create_task(client.post("/v1/rewards", json=ask(number))) for number in range(20)]
        await until(queue.stocked)
        await asyncio.sleep(0.05)
        assert sum(engine.calls) + queue.queue_items < 10
        engine.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
