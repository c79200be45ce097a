"""Process models over HTTP: each step's probability, its cache entry, and what an aggregation makes of it."""

import numpy as np
import pytest

from paragone_models import load_model
from tests.models.files.families.test_process import PROMPT, STEPS, written
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

ITEMS = [{"prompt": PROMPT, "steps": steps} for steps in STEPS]
TEXTS = ["\n\n".join(steps) for steps in STEPS]


@pytest.fixture(scope="module")
def models(tmp_path_factory, hosted):
    folder = tmp_path_factory.mktemp("process")
    written(folder)
    return {
        "steps": load_model(folder, name="steps", device="cpu"),
        "worst": load_model(folder, name="worst", device="cpu", aggregation="min"),
        "bt": hosted["bt"],
    }


@pytest.fixture
async def client(models):
    async with serving(models) as client:
        yield client


async def ask(client, route, **body):
    response = await client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def right(models):
    return [row.tolist() for row in models["steps"].score(PROMPT, TEXTS).steps]


async def test_steps_and_texts_have_the_probabilities_of_their_steps_and_no_reward(client, models):
    expected = right(models)
    answer = await ask(client, "rewards", model="steps", items=ITEMS, **{"return": ["representation"]})
    assert [row["steps"] for row in answer["rewards"]] == [pytest.approx(row, abs=1e-6) for row in expected]
    assert [row["reward"] for row in answer["rewards"]] == [None] * 3
    logits = answer["rewards"][0]["representation"]
    assert 1 / (1 + np.exp(-np.array(logits))) == pytest.approx(expected[0], abs=1e-6)
    assert "aggregation" not in answer
    texts = await ask(client, "rewards", model="steps", items=[{"prompt": PROMPT, "response": one} for one in TEXTS])
    assert [row["steps"] for row in texts["rewards"]] == [pytest.approx(row, abs=1e-6) for row in expected]


async def test_steps_are_cached_and_where_they_end_is_part_of_the_key(client):
    first = await ask(client, "rewards", model="steps", items=ITEMS)
    again = await ask(client, "rewards", model="steps", items=ITEMS[::-1])
    assert first["usage"]["forward_responses"] == 3
    assert again["usage"] == {**again["usage"], "forward_responses": 0, "cached_responses": 3}
    assert again["rewards"] == first["rewards"][::-1]
    joined = [{"prompt": PROMPT, "steps": ["".join(STEPS[0])]}]
    assert (await ask(client, "rewards", model="steps", items=joined))["usage"]["forward_responses"] == 1


@pytest.mark.parametrize("how", ["min", "prod", "last"])
async def test_an_aggregation_of_the_request_makes_rewards_pairs_and_tournaments(client, models, how):
    rules = {"min": min, "prod": np.prod, "last": lambda values: values[-1]}
    chance = np.array([float(rules[how](row)) for row in right(models)])
    logits = np.log(chance / (1 - chance))
    answer = await ask(client, "rewards", model="steps", items=ITEMS, aggregation=how)
    assert [row["reward"] for row in answer["rewards"]] == pytest.approx(logits.tolist(), abs=1e-5)
    assert answer["aggregation"] == how
    groups = [{"prompt": PROMPT, "responses": TEXTS}]
    table = await ask(client, "tournaments", model="steps", groups=groups, aggregation=how, **{"return": ["matrix"]})
    matrix = np.array(table["tournaments"][0]["matrix"])
    assert matrix[0, 1] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), abs=1e-5)
    pair = {"prompt": PROMPT, "first": TEXTS[0], "second": TEXTS[1]}
    pairs = await ask(client, "preferences", model="steps", pairs=[pair], aggregation=how)
    assert pairs["preferences"][0]["probability"] == matrix[0, 1]
    plain = await ask(client, "rewards", model="steps", items=ITEMS)
    assert answer["fingerprint"] != plain["fingerprint"]
    assert {one["fingerprint"] for one in (answer, table, pairs)} == {answer["fingerprint"]}


async def test_a_model_that_was_loaded_with_one_is_a_reward_model_everywhere(client, models):
    worst = [min(row) for row in right(models)]
    answer = await ask(client, "rewards", model="worst", items=ITEMS)
    assert answer["aggregation"] == "min"
    assert [1 / (1 + np.exp(-row["reward"])) for row in answer["rewards"]] == pytest.approx(worst, abs=1e-5)
    named = await ask(client, "rewards", model="steps", items=ITEMS, aggregation="min")
    assert named["fingerprint"] == answer["fingerprint"]
    item = {**ITEMS[0], "references": TEXTS[1:]}
    (row,) = (await ask(client, "rewards", model="worst", items=[item]))["rewards"]
    own, *others = (one["reward"] for one in answer["rewards"])
    assert row["reference_logit"] == pytest.approx(own - sum(others) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("route", "body", "code", "reason"),
    [
        ("preferences", {"pairs": [{"prompt": "a", "first": "b", "second": "c"}]}, 422, "name an aggregation"),
        ("tournaments", {"groups": [{"prompt": "a", "responses": ["b", "c"]}]}, 422, "name an aggregation"),
        ("rewards", {"items": [{"prompt": "a", "response": "b", "references": ["c"]}]}, 422, "name an aggregation"),
        ("rewards", {"items": [{"prompt": "a", "steps": []}]}, 422, "at least 1 item"),
        ("rewards", {"items": [{"prompt": "a", "steps": ["b"], "response": "b"}]}, 422, "unknown field"),
        ("rewards", {"items": [], "aggregation": "mean"}, 422, "'min', 'prod' or 'last'"),
        ("rewards", {"model": "bt", "items": [{"prompt": "a", "steps": ["b"]}]}, 422, "scores no steps"),
        ("rewards", {"model": "bt", "items": [], "aggregation": "min"}, 422, "aggregation makes one reward of"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_reason(client, route, body, code, reason):
    response = await client.post(f"/v1/{route}", json={"model": "steps", **body})
    assert response.status_code == code
    assert reason in response.json()["error"]["message"]


async def test_a_bad_item_is_reported_in_its_place(client):
    items = [{"prompt": "a", "steps": ["b"]}, {"prompt": "a", "response": "b"}]
    answer = await ask(client, "rewards", model="bt", items=items, on_error="report")
    assert "scores no steps" in answer["rewards"][0]["error"]["message"]
    assert isinstance(answer["rewards"][1]["reward"], float)
