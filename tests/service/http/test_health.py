"""Liveness, readiness and metrics."""

import asyncio

import pytest

from tests.service.conftest import serving
from tests.service.doubles import Gated, gated, metric

pytestmark = pytest.mark.anyio


async def test_a_live_process_says_so(client):
    response = await client.get("/livez")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_readiness_runs_a_canary_through_every_model_and_then_none_for_a_while(hosted):
    async with gated(hosted) as (client, engine):
        assert (await client.get("/readyz")).text == "ready\n"
        assert engine.calls == [1]
        assert (await client.get("/readyz")).status_code == 200
        assert engine.calls == [1]
        assert await metric(client, "paragone_cache_memory_entries") == 0


async def test_a_recent_request_is_canary_enough(hosted):
    async with gated(hosted) as (client, engine):
        await client.post("/v1/rewards", json={"items": [{"prompt": "p", "response": "r"}]})
        assert (await client.get("/readyz")).status_code == 200
        assert engine.calls == [1]


async def test_many_readiness_checks_at_once_run_one_canary(hosted):
    async with gated(hosted) as (client, engine):
        engine.gate.clear()
        checks = [asyncio.create_task(client.get("/readyz")) for _ in range(5)]
        await asyncio.sleep(0.02)
        engine.gate.set()
        assert {(await check).status_code for check in checks} == {200}
        assert engine.calls == [1]


async def test_a_failing_engine_is_not_ready(hosted):
    async with gated(hosted) as (client, engine):
        engine.error = RuntimeError("a kernel went wrong")
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["error"] == {
            "code": "not_ready", "message": "model bt has not run a forward lately",
        }  # fmt: skip
        assert response.headers["retry-after"] == "1"
        engine.error = None
        assert (await client.get("/readyz")).status_code == 200


async def test_an_engine_that_says_that_it_is_broken_is_not_ready_whatever_it_did_before(hosted):
    async with gated(hosted) as (client, engine):
        assert (await client.get("/readyz")).status_code == 200
        engine.healthy = False
        assert (await client.get("/readyz")).status_code == 503


async def test_one_model_that_fails_makes_the_whole_server_not_ready(hosted):
    engine = Gated(hosted["bt"])
    engine.error = RuntimeError("a kernel went wrong")
    async with serving({"gpm": hosted["gpm"], "bt": hosted["bt"]}, engines={"bt": engine}) as client:
        assert (await client.get("/readyz")).status_code == 503
        pairs = [{"prompt": "p", "first": "a", "second": "b"}]
        assert (await client.post("/v1/preferences", json={"pairs": pairs})).status_code == 200


async def test_a_model_without_a_tokenizer_can_be_ready(hosted):
    async with serving({"mute": hosted["mute"]}) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_every_metric_that_the_documents_name_is_there(client):
    from pathlib import Path

    await client.post("/v1/preferences", json={"pairs": [{"prompt": "p", "first": "a", "second": "b"}]})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    named = {word.split("{")[0] for word in page.split("`") if word.startswith("paragone_")}
    shown = {line.split()[2] for line in response.text.splitlines() if line.startswith("# TYPE")}
    assert named == shown
