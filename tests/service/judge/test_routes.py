"""A hosted judge through the routes: pairs, tournaments, what is refused, and what the server says of it."""

import asyncio
import contextlib
import math

import httpx2
import pytest
import uvicorn
from serving_setup import free_port

from paragone.wire import PreferencesAnswer, TournamentsAnswer
from paragone_service.app import create_app
from paragone_service.config import ConfigError, Settings
from paragone_service.settings_sources import load_settings

from ..conftest import until
from .scripted import Scripted, completion
from .test_hosted_judge import longer_wins, said

pytestmark = pytest.mark.anyio
RESPONSES = ["x", "xxx", "xx"]


@contextlib.asynccontextmanager
async def listening(server):
    """Yield the address of a scripted server that listens on a port."""
    port = free_port()
    web = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning"))
    running = asyncio.ensure_future(web.serve())
    await until(lambda: web.started)
    try:
        yield f"judge:http://127.0.0.1:{port}/v1"
    finally:
        web.should_exit = True
        await running


@contextlib.asynccontextmanager
async def judging(server, hosted=None, **settings):
    """Yield a client of an application that hosts a judge, and the models given."""
    async with listening(server) as source:
        judge = {"source": source, "model": "m", "read": "votes", **settings}
        models = {"judge": judge, **{name: {"source": "loaded already"} for name in hosted or {}}}
        app = create_app(Settings(models=models), hosted or {})
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                yield client


def pair(first="Books.", second="TV.", **fields):
    return {"prompt": "TV or books?", "first": first, "second": second, **fields}


async def test_pairs_are_answered_with_intervals_reasons_and_what_they_cost():
    async with judging(Scripted(longer_wins), price_prompt=1.0, price_completion=1.0) as client:
        answer = await client.post("/v1/preferences", json={"pairs": [pair()], "return": ["rationale"]})
        plain = (await client.post("/v1/preferences", json={"pairs": [pair("TV.", "Books.")]})).json()
    assert answer.status_code == 200
    row = PreferencesAnswer(**answer.json()).preferences[0]
    assert row.probability == pytest.approx(5 / 6)
    assert row.logit == pytest.approx(math.log(5))
    assert row.interval == pytest.approx((0.33, 1.0), abs=0.02)
    assert [one.model_dump(exclude_unset=True) for one in row.rationales] == [
        {"text": "A", "shown_first": "first"},
        {"text": "B", "shown_first": "second"},
    ]
    usage = answer.json()["usage"]
    assert (usage["judge_calls"], usage["judge_tokens"], usage["judge_cost"]) == (2, 26, pytest.approx(26e-6))
    assert plain["preferences"][0].keys() == {"probability", "logit", "first_reward", "second_reward", "interval"}
    assert plain["preferences"][0]["probability"] + row.probability == 1
    assert plain["usage"]["judge_calls"] == 0


async def test_a_tournament_has_the_judges_table_and_win_rates_by_each_criterion():
    def by_length(body):
        first, second = said(body)
        longer = len(first) > len(second)
        return completion("A" if longer == ("long" in body["messages"][0]["content"]) else "B")

    criteria = [{"name": "long", "text": "be long", "weight": 2}, {"name": "brief", "text": "be brief"}]
    async with judging(Scripted(by_length)) as client:
        group = {"prompt": "TV or books?", "responses": RESPONSES, "criteria": criteria}
        answer = await client.post("/v1/tournaments", json={"groups": [group], "return": ["matrix"]})
    assert answer.status_code == 200, answer.text
    row = TournamentsAnswer(**answer.json()).tournaments[0]
    assert row.ranking == [1, 2, 0]
    p = 1 / (1 + 5 ** (-1 / 3))  # two thirds of one vote against a third of the other
    assert row.matrix[1][0] == pytest.approx(p)
    assert row.criteria["long"] == pytest.approx([(0.5 + 1 / 3) / 3, (0.5 + 5 / 3) / 3, 0.5])
    assert row.criteria["brief"] == pytest.approx([(0.5 + 5 / 3) / 3, (0.5 + 1 / 3) / 3, 0.5])
    assert answer.json()["usage"]["judge_calls"] == 3 * 2 * 2


async def test_a_cohort_is_judged_once_by_what_its_members_say():
    server = Scripted(lambda body: completion("?") if "Bad." in said(body) else longer_wins(body))
    criteria = [{"name": "long", "text": "be long", "weight": 2}, {"name": "brief", "text": "be brief"}]
    async with judging(server) as client:

        async def members(group, texts, **by):
            bodies = [
                {"group": group, "slot": slot, "size": len(texts), "prompt": "TV or books?", "response": text, **by}
                for slot, text in enumerate(texts)
            ]
            return await asyncio.gather(*(client.post("/v1/cohorts", json=body) for body in bodies))

        rows = [answer.json() for answer in await members("g", RESPONSES, criteria=criteria)]
        assert len(server.bodies) == 3 * 2 * 2
        assert sorted(row["usage"].get("judge_calls", 0) for row in rows) == [0, 0, 12]
        group = {"prompt": "TV or books?", "responses": RESPONSES, "criteria": criteria}
        answer = await client.post("/v1/tournaments", json={"groups": [group]})
        wanted = answer.json()["tournaments"][0]
        assert [row["win_rate"] for row in rows] == wanted["win_rates"]
        assert [row["criteria"] for row in rows] == [
            {name: rates[slot] for name, rates in wanted["criteria"].items()} for slot in range(3)
        ]
        await members("h", RESPONSES, principle="be kind")
        assert "be kind" in server.bodies[-1]["messages"][0]["content"]
        # A judge has nothing to say of one of them: it does not vote, and is told why.
        bad = await members("i", ["xxx", "Bad.", "x"])
        assert (bad[1].status_code, bad[1].json()["error"]["code"]) == (500, "judge_unparsed")
        assert [bad[0].json()["rank"], bad[2].json()["rank"]] == [1, 2]
        assert bad[0].json()["unscored"][0]["slot"] == 1


async def test_a_tournament_says_what_was_said_of_each_pair_if_asked(hosted):
    group = {"prompt": "TV or books?", "responses": RESPONSES, "references": ["xxxxx"]}
    body = {"groups": [group], "comparisons": "circular", "return": ["rationale"]}
    async with judging(Scripted(longer_wins), {"bt": hosted["bt"]}) as client:
        answer = await client.post("/v1/tournaments", json={**body, "model": "judge"})
        silent = await client.post("/v1/tournaments", json={**body, "model": "judge", "return": []})
        refused = await client.post("/v1/tournaments", json={**body, "model": "bt"})
    row = TournamentsAnswer(**answer.json()).tournaments[0]
    said = {(one.first, one.second): [(two.text, two.shown_first) for two in one.rationales] for one in row.rationales}
    forward, backward = [("A", "first"), ("B", "second")], [("B", "first"), ("A", "second")]
    longer = {(0, 1): backward, (0, 2): backward, (1, 2): forward}
    assert said == {**longer, **dict.fromkeys([(0, 3), (1, 3), (2, 3)], backward)}
    assert "rationales" not in silent.json()["tournaments"][0]
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "return_unavailable")


async def test_what_has_no_verdict_is_an_error_in_its_place_or_refuses_the_request():
    server = Scripted(lambda body: completion("?") if "Bad." in said(body) else longer_wins(body))
    async with judging(server) as client:
        body = {"pairs": [pair(), pair("Bad.")]}
        refused = await client.post("/v1/preferences", json=body)
        reported = await client.post("/v1/preferences", json={**body, "on_error": "report"})
        group = {"prompt": "TV or books?", "responses": ["xxx", "Bad.", "x"]}
        groups = await client.post("/v1/tournaments", json={"groups": [group], "on_error": "report"})
    assert refused.status_code == 500
    assert refused.json()["error"]["code"] == "judge_unparsed"
    assert refused.json()["error"]["item"] == 1
    first, second = reported.json()["preferences"]
    assert first["probability"] == pytest.approx(5 / 6)
    assert second["error"]["code"] == "judge_unparsed"
    row = groups.json()["tournaments"][0]
    assert row["win_rates"][1] is None
    assert row["errors"][0]["code"] == "judge_unparsed"
    assert row["ranking"] == [0, 2]


async def test_a_budget_that_is_spent_in_the_middle_is_429_with_what_is_done():
    async with judging(Scripted(longer_wins), calls_per_request=2, concurrency=1) as client:
        body = {"pairs": [pair(), pair("Long one.")]}
        answer = await client.post("/v1/preferences", json=body)
        again = await client.post("/v1/preferences", json=body)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "quota_exceeded"
    assert "2 of the request's 4 showings are done" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "1"
    assert again.status_code == 200


async def test_principles_are_refused_by_models_that_take_none_and_beside_criteria(hosted):
    criteria = [{"name": "k", "text": "be kind"}]
    async with judging(Scripted(longer_wins), {"bt": hosted["bt"]}) as client:
        for body, code in (
            ({"model": "bt", "pairs": [pair(principle="be kind")]}, 422),
            ({"model": "bt", "pairs": [pair(criteria=criteria)]}, 422),
            ({"model": "bt", "pairs": [pair()], "return": ["rationale"]}, 422),
            ({"model": "judge", "pairs": [pair(principle="be kind", criteria=criteria)]}, 422),
            ({"model": "judge", "pairs": [pair(criteria=criteria * 2)]}, 422),
            ({"model": "judge", "pairs": [pair(criteria=[])]}, 422),
            ({"model": "judge", "pairs": [pair(principle="be kind")]}, 200),
            ({"model": "judge", "pairs": [pair(criteria=criteria)]}, 200),
        ):
            answer = await client.post("/v1/preferences", json=body)
            assert answer.status_code == code, (body, answer.text)
        group = {"prompt": "TV or books?", "responses": RESPONSES, "principle": "be kind"}
        refused = await client.post("/v1/tournaments", json={"model": "bt", "groups": [group]})
        assert refused.status_code == 422
        assert "judges by what it was trained on" in refused.json()["error"]["message"]
        rewards = await client.post("/v1/rewards", json={"model": "judge", "items": [{"prompt": "a", "response": "b"}]})
        assert rewards.json()["error"]["code"] == "reference_required"


async def test_the_server_lists_the_judge_and_is_ready_while_its_server_is():
    server = Scripted(longer_wins)
    async with judging(server, principle="be kind") as client:
        info = (await client.get("/v1/models/judge")).json()
        assert (await client.get("/readyz")).status_code == 200
        server.well = False
        assert (await client.get("/readyz")).status_code == 503
        answer = (await client.post("/v1/preferences", json={"pairs": [pair()]})).json()
        assert (await client.get("/readyz")).status_code == 200  # it has just answered
    assert info["kind"] == "judge"
    assert info["source"].startswith("judge:http://127.0.0.1:")
    assert info["domain"] == "be kind"
    assert info["numerics"] == {"format": "letters", "read": "votes", "symmetrise": "mean-logit", "votes": "1"}
    assert answer["identity"] == info["identity"]


async def test_settings_of_a_judge_are_checked_at_the_door(tmp_path):
    path = tmp_path / "paragone.toml"
    path.write_text('[models.j]\nsource = "judge:https://judge/v1"\nmodel = "m"\nvots = 3\n')
    with pytest.raises(ConfigError, match=r"unknown key 'models.j.vots': did you mean 'votes'"):
        load_settings({}, path)
    path.write_text('[models.j]\nsource = "judge:https://judge/v1"\nmodel = "m"\nkey_env = "NOT_SET"\n')
    settings = load_settings({}, path)
    assert list(settings.judges) == ["j"]
    assert settings.loaded == {}
    with pytest.raises(ConfigError, match=r"models.j: key_env: the environment has no NOT_SET"):
        create_app(settings, {})
    path.write_text('engines = { j = "vllm:http://h" }\n' + path.read_text().replace("NOT_SET", "HOME"))
    with pytest.raises(ConfigError, match="has no backbone of its own"):
        load_settings({}, path)
