"""`principle` of an item, for a scalar model that follows one: part of what is read, and of the cache key."""

import asyncio

import pytest

from paragone_models import load_model
from tests.models.files.families.test_principles import HEAD, PROMPT, RESPONSES, written
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

PRINCIPLES = ("correctness", "brevity")


@pytest.fixture(scope="module")
def models(tmp_path_factory, hosted):
    folder = tmp_path_factory.mktemp("principles")
    written(folder)
    return {"follows": load_model(folder, name="follows", device="cpu", head=HEAD), "bt": hosted["bt"]}


@pytest.fixture
async def client(models):
    async with serving(models) as client:
        yield client


async def ask(client, route, **body):
    response = await client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_each_route_scores_by_the_principle_of_its_item(client, models):
    expected = {one: models["follows"].score(PROMPT, RESPONSES, principle=one).rewards for one in PRINCIPLES}
    items = [{"prompt": PROMPT, "response": RESPONSES[0], "principle": one} for one in PRINCIPLES]
    answer = await ask(client, "rewards", model="follows", items=items)
    assert [row["reward"] for row in answer["rewards"]] == pytest.approx([expected[p][0] for p in PRINCIPLES], abs=1e-5)
    assert answer["usage"]["forward_responses"] == 2  # another principle, another entry
    assert (await ask(client, "rewards", model="follows", items=items))["usage"]["cached_responses"] == 2
    pairs = [{"prompt": PROMPT, "first": RESPONSES[0], "second": RESPONSES[1], "principle": one} for one in PRINCIPLES]
    logits = [row["logit"] for row in (await ask(client, "preferences", model="follows", pairs=pairs))["preferences"]]
    assert logits == pytest.approx([expected[p][0] - expected[p][1] for p in PRINCIPLES], abs=1e-5)
    groups = [{"prompt": PROMPT, "responses": RESPONSES, "principle": one} for one in PRINCIPLES]
    tables = await ask(client, "tournaments", model="follows", groups=groups, signal="reward")
    assert tables["usage"]["forward_responses"] == 0
    for one, row in zip(PRINCIPLES, tables["tournaments"], strict=True):
        assert row["signal"] == pytest.approx(expected[one].tolist(), abs=1e-5)


async def test_tokens_show_the_question(client):
    items = [{"prompt": PROMPT, "response": RESPONSES[0], "principle": "brevity"}]
    (row,) = (await ask(client, "tokens", model="follows", items=items))["tokens"]
    assert "satisfies this principle: brevity. Only answer Yes or No." in row["text"]


@pytest.mark.parametrize(
    ("model", "extra", "reason"),
    [
        ("follows", {}, "judges by a principle: send one"),
        ("bt", {"principle": "brevity"}, "leave principle out, or ask a judge"),
        ("follows", {"principle": ""}, "at least 1"),
    ],
)
async def test_a_principle_is_asked_for_and_only_where_there_is_a_place_for_it(client, model, extra, reason):
    body = {"model": model, "items": [{"prompt": PROMPT, "response": "two", **extra}]}
    response = await client.post("/v1/rewards", json=body)
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]


async def test_criteria_are_a_judges(client):
    criteria = [{"name": "short", "text": "It is short."}]
    body = {"model": "follows", "groups": [{"prompt": PROMPT, "responses": RESPONSES, "criteria": criteria}]}
    response = await client.post("/v1/tournaments", json=body)
    assert response.status_code == 422
    assert "leave criteria out" in response.json()["error"]["message"]


async def test_a_cohort_is_scored_by_the_principle_that_its_members_name(client):
    def member(slot, principle):
        text = {"group": "g", "slot": slot, "size": 2, "prompt": PROMPT, "response": RESPONSES[slot]}
        return client.post("/v1/cohorts", json={"model": "follows", **text, "principle": principle})

    first = asyncio.ensure_future(member(0, "brevity"))
    await asyncio.wait([first], timeout=0.05)
    other = await member(1, "correctness")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "cohort_conflict")
    assert "another principle" in other.json()["error"]["message"]
    rows = [(await member(1, "brevity")).json(), (await first).json()]
    groups = [{"prompt": PROMPT, "responses": RESPONSES[:2], "principle": "brevity"}]
    (wanted,) = (await ask(client, "tournaments", model="follows", groups=groups))["tournaments"]
    assert [row["win_rate"] for row in reversed(rows)] == wanted["win_rates"]
