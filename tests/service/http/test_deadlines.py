"""Deadlines: late work is dropped wherever it waits, and its request is answered with 504."""

import asyncio
import threading

import pytest

from tests.service.conftest import serving, until
from tests.service.doubles import gated, metric

pytestmark = pytest.mark.anyio


def ask(number=0, **more):
    return {"items": [{"prompt": f"Is it {number}?", "response": "Yes."}], **more}


@pytest.mark.parametrize(("body", "headers"), [({"deadline_s": 0.2}, {}), ({}, {"x-deadline-s": "0.2"})])
async def test_a_request_that_waits_in_the_queue_is_dropped_at_its_deadline(hosted, body, headers):
    async with gated(hosted) as (client, engine):
        engine.gate.clear()
        first = asyncio.create_task(client.post("/v1/rewards", json=ask(1)))
        await until(lambda: engine.calls)
        late = await client.post("/v1/rewards", json=ask(2, **body), headers=headers)
        assert late.status_code == 504
        error = late.json()["error"]
        assert error["code"] == "deadline_exceeded"
        assert "0.2 s" in error["message"]
        engine.gate.set()
        assert (await first).status_code == 200
        assert engine.calls == [1]
        assert await metric(client, 'paragone_responses_dropped_total{model="bt"}') == 1


async def test_the_servers_default_counts_where_a_request_names_no_deadline(hosted):
    async with gated(hosted, deadline_s=0.2) as (client, engine):
        engine.gate.clear()
        assert (await client.post("/v1/rewards", json=ask())).status_code == 504
        engine.gate.set()


async def test_a_longer_deadline_than_the_default_may_be_named(hosted):
    async with gated(hosted, deadline_s=0.2) as (client, engine):
        engine.gate.clear()
        asked = asyncio.create_task(client.post("/v1/rewards", json=ask(deadline_s=30)))
        await asyncio.sleep(0.5)
        engine.gate.set()
        assert (await asked).status_code == 200


async def test_a_deadline_ends_a_request_whose_text_is_still_being_read(hosted):
    go_on = threading.Event()
    async with serving({"bt": hosted["bt"]}) as client:
        reading = next(iter(client.app.state.registry))._reading
        reading._thread.submit(go_on.wait)  # somebody's long text is before it
        try:
            assert (await client.post("/v1/rewards", json=ask(deadline_s=0.2))).status_code == 504
        finally:
            go_on.set()
        assert (await client.post("/v1/rewards", json=ask(deadline_s=20))).status_code == 200


async def test_texts_that_wait_to_be_read_count_in_the_wait_that_is_expected(hosted):
    go_on = threading.Event()
    async with serving({"bt": hosted["bt"]}) as client:
        reading = next(iter(client.app.state.registry))._reading
        reading._thread.submit(go_on.wait)
        try:
            long = {"items": [{"prompt": "Why?", "response": "x" * 250_000}] * 6}
            first = asyncio.create_task(client.post("/v1/tokens", json=long, headers={"x-deadline-s": "1"}))
            await until(lambda: reading._unread.total)
            for route in ("tokens", "rewards"):
                refused = await client.post(f"/v1/{route}", json=ask())
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1
            assert (await first).status_code == 504
        finally:
            go_on.set()
        assert (await client.post("/v1/tokens", json=ask())).status_code == 200


async def test_a_body_that_never_ends_is_answered_at_the_deadline(hosted):
    async with serving({"bt": hosted["bt"]}) as client:

        async def slow():
            yield b"{"
            await asyncio.sleep(30)

        headers = {"x-deadline-s": "0.2", "content-type": "application/json"}
        assert (await client.post("/v1/rewards", content=slow(), headers=headers)).status_code == 504


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9"])
async def test_a_deadline_that_is_no_time_is_refused(client, value):
    refused = await client.post("/v1/rewards", json=ask(), headers={"x-deadline-s": value})
    assert refused.status_code == 422
    assert "x-deadline-s must be a number of seconds" in refused.json()["error"]["message"]
    if value not in ("soon", "nan", "inf"):
        assert (await client.post("/v1/rewards", json=ask(deadline_s=float(value)))).status_code == 422
