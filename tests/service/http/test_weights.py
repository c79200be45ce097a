"""`weights` of a request: another reward from the same representations, told by the fingerprint."""

import pytest

from paragone_models import load_model
from paragone_models.spec import ModelSpec
from tests.service.conftest import make_model, make_tokenizer, serving

pytestmark = pytest.mark.anyio

PROMPT = "Close the street to cars?"
RESPONSES = ["Yes, the air gets cleaner.", "no", "Buses can still stop!"]
KINDS = {
    "rated": ModelSpec(kind="regression", dimension=2, attributes=("good", "long"), temperature=0.5, max_length=256),
    "merged": ModelSpec(
        kind="helpsteer", dimension=3, attributes=("good", "long"), temperature=2.0, max_length=256, calibrated=True
    ),
    "scalar": ModelSpec(kind="bradley-terry", dimension=1, max_length=256),
}
WEIGHTS = {"good": 1.0, "long": -0.3}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("weighed"), make_tokenizer()
    return {
        name: load_model(make_model(root / name, spec, tokenizer, seed), name=name, device="cpu")
        for seed, (name, spec) in enumerate(KINDS.items(), start=40)
    }


@pytest.fixture
async def client(kinds):
    async with serving(kinds) as client:
        yield client


async def ask(client, route, **body):
    response = await client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", ["rated", "merged"])
async def test_weights_of_a_request_merge_the_attributes_in_all_three_routes(client, kinds, name):
    items = [{"prompt": PROMPT, "response": response} for response in RESPONSES]
    plain = await ask(client, "rewards", model=name, items=items)
    weighed = await ask(client, "rewards", model=name, items=items, weights=WEIGHTS)
    expected = [row["attributes"]["good"] - 0.3 * row["attributes"]["long"] for row in plain["rewards"]]
    assert [row["reward"] for row in weighed["rewards"]] == pytest.approx(expected, abs=1e-9)
    assert weighed["usage"]["forward_responses"] == 0  # arithmetic on what is cached
    first, second = expected[:2]
    logit = (first - second) / kinds[name].spec.temperature
    pair = {"prompt": PROMPT, "first": RESPONSES[0], "second": RESPONSES[1]}
    pairs = await ask(client, "preferences", model=name, pairs=[pair], weights=WEIGHTS)
    assert pairs["preferences"][0]["logit"] == pytest.approx(logit, abs=1e-9)
    assert pairs["preferences"][0]["first_reward"] == pytest.approx(first, abs=1e-9)
    groups = [{"prompt": PROMPT, "responses": RESPONSES}]
    table = await ask(client, "tournaments", model=name, groups=groups, weights=WEIGHTS, signal="reward")
    assert table["tournaments"][0]["signal"] == pytest.approx(expected, abs=1e-9)
    again = load_model(kinds[name].provenance.source, device="cpu", weights=WEIGHTS)
    answers = (weighed, pairs, table)
    assert {one["fingerprint"] for one in answers} == {
        again.spec.fingerprint(again.identity, again.provenance.numerics)
        if not KINDS[name].calibrated
        else weighed["fingerprint"]
    }
    assert weighed["fingerprint"] != plain["fingerprint"]
    assert weighed["identity"] == plain["identity"]
    assert not weighed["calibrated"]


async def test_an_attribute_that_is_not_named_counts_nothing(client):
    items = [{"prompt": PROMPT, "response": RESPONSES[0]}]
    row = (await ask(client, "rewards", model="rated", items=items, weights={"long": 2}))["rewards"][0]
    assert row["reward"] == pytest.approx(2 * row["attributes"]["long"], abs=1e-9)


async def test_references_are_held_against_with_the_weights(client):
    item = {"prompt": PROMPT, "response": RESPONSES[0], "references": RESPONSES[1:]}
    row = (await ask(client, "rewards", model="rated", items=[item], weights=WEIGHTS))["rewards"][0]
    items = [{"prompt": PROMPT, "response": response} for response in RESPONSES]
    own, *others = (
        one["reward"] for one in (await ask(client, "rewards", model="rated", items=items, weights=WEIGHTS))["rewards"]
    )
    assert row["reference_logit"] == pytest.approx((own - sum(others) / 2) / 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "weights", "reason"),
    [
        ("scalar", WEIGHTS, "is of kind bradley-terry and rates no attributes"),
        ("rated", {"good": 1.0, "secret words": 2.0}, "weights name 1 attributes that model rated does not rate"),
        ("rated", {}, "at least 1 item"),
        ("rated", {"good": 1e9}, "less than or equal to 1000000"),
    ],
)
async def test_weights_that_do_not_fit_are_refused(client, model, weights, reason):
    body = {"model": model, "items": [{"prompt": PROMPT, "response": "no"}], "weights": weights}
    response = await client.post("/v1/rewards", json=body)
    assert response.status_code == 422
    assert reason in response.json()["error"]["message"]
    assert "secret" not in response.text


async def test_tokens_take_no_weights(client):
    body = {"model": "rated", "items": [{"prompt": PROMPT, "response": "no"}], "weights": WEIGHTS}
    assert (await client.post("/v1/tokens", json=body)).status_code == 422
