"""`/v1/rewards` on request: a scalar against references, per-block scores and gate scales, of every kind."""

import numpy as np
import pytest
import torch

from paragone.wire import RewardsAnswer
from paragone_models import load_model
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import conversation
from tests.service.conftest import make_model, make_tokenizer, serving

pytestmark = pytest.mark.anyio

PROMPT = "Close the street to cars?"
OTHER = "Should every school have a garden?"
RESPONSES = ["Yes, the air gets cleaner.", "no", "Buses can still stop!", ""]
KINDS = {
    "gated": ModelSpec(
        kind="general-preference", dimension=6, gate="softmax", normalise=True, temperature=0.1, max_length=256
    ),
    "plain": ModelSpec(kind="general-preference", dimension=4, normalise=True, temperature=0.1, max_length=256),
    "hybrid": ModelSpec(
        kind="hybrid", dimension=5, gate="softmax", normalise=True, temperature=0.3, max_length=256, pooling="mean"
    ),
    "scalar": ModelSpec(kind="bradley-terry", dimension=1, temperature=2.0, max_length=256),
    "rated": ModelSpec(
        kind="regression",
        dimension=2,
        attributes=("good", "long"),
        weights=(0.7, -0.2),
        temperature=0.5,
        max_length=256,
    ),
    "weightless": ModelSpec(kind="regression", dimension=2, attributes=("good", "long"), max_length=256),
}
HAVE_BLOCKS = ("gated", "plain", "hybrid")
HAVE_GATES = ("gated", "hybrid")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("kinds"), make_tokenizer()
    loaded = {}
    for seed, (name, spec) in enumerate(KINDS.items(), start=20):
        loaded[name] = load_model(make_model(root / name, spec, tokenizer, seed), name=name, device="cpu")
        if spec.gate != "none":  # far from uniform, so that scales tell something
            torch.nn.init.normal_(loaded[name].network.head.prompt_head.weight, std=0.5)
    return loaded


@pytest.fixture
async def client(kinds):
    async with serving(kinds) as client:
        yield client


async def ask(client, model, items, *returned, **body):
    response = await client.post("/v1/rewards", json={"model": model, "items": items, "return": returned, **body})
    assert response.status_code == 200, response.text
    RewardsAnswer.model_validate(response.json())
    return response.json()


async def refusal(client, model, items, *returned, **body):
    response = await client.post("/v1/rewards", json={"model": model, "items": items, "return": returned, **body})
    return response.status_code, response.json()["error"]


def item(response=0, references=(1, 2, 3), prompt=PROMPT):
    asked = {"prompt": prompt, "response": RESPONSES[response]}
    return {**asked, "references": [RESPONSES[one] for one in references]} if references else asked


def gate_scales(model, prompt, response):
    """The model's own, from the whole conversation in one forward."""
    (reading,) = model.reader.read([conversation(prompt, response, None)])
    return model.gate_scales(model.encode([reading.item]))[0].numpy()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "weightless"])
async def test_the_logit_against_references_is_the_mean_of_the_single_ones_cold_and_warm(client, kinds, name):
    model = kinds[name]
    vectors = model.score(PROMPT, RESPONSES).representations
    expected = np.mean([float(model.logit(vectors[0], vectors[other])) for other in (1, 2, 3)])
    cold = await ask(client, name, [item(), item(1, None)])
    warm = await ask(client, name, [item(), item(1, None)])
    assert cold["rewards"][0]["reference_logit"] == pytest.approx(expected, abs=2e-5)
    assert "reference_logit" not in cold["rewards"][1]
    assert cold["rewards"] == warm["rewards"]
    assert (cold["usage"]["forward_responses"], cold["usage"]["cached_responses"]) == (4, 1)
    assert (warm["usage"]["forward_responses"], warm["usage"]["cached_responses"]) == (0, 5)
    pairs = [{"prompt": PROMPT, "first": RESPONSES[0], "second": RESPONSES[other]} for other in (1, 2, 3)]
    single = (await client.post("/v1/preferences", json={"model": name, "pairs": pairs})).json()["preferences"]
    assert cold["rewards"][0]["reference_logit"] == pytest.approx(np.mean([row["logit"] for row in single]), abs=1e-12)


@pytest.mark.parametrize("name", HAVE_BLOCKS)
async def test_blocks_are_the_models_own_and_sum_to_the_logit(client, kinds, name):
    model = kinds[name]
    vectors = model.score(PROMPT, RESPONSES).representations
    expected = np.mean([model.blocks(vectors[0], vectors[other]).numpy() for other in (1, 2, 3)], axis=0)
    for _ in ("cold", "warm"):
        (row,) = (await ask(client, name, [item()], "blocks"))["rewards"]
        assert row["blocks"] == pytest.approx(expected.tolist(), abs=2e-5)
    own = 0.0
    if name == "hybrid":
        rewards = [one["reward"] for one in (await ask(client, name, [item(n, None) for n in range(4)]))["rewards"]]
        own = (rewards[0] - np.mean(rewards[1:])) / model.spec.temperature
    assert sum(row["blocks"]) + own == pytest.approx(row["reference_logit"], abs=1e-9)


@pytest.mark.parametrize("name", HAVE_GATES)
async def test_gate_scales_are_the_models_own_cold_and_warm_and_each_prompt_is_run_once(client, kinds, name):
    items = [item(0, None), item(1, None), item(2, None, prompt=OTHER)]
    cold = await ask(client, name, items, "gate_scales")
    warm = await ask(client, name, items, "gate_scales")
    plain = await ask(client, name, items)
    for asked, row, again in zip(items, cold["rewards"], warm["rewards"], strict=True):
        expected = gate_scales(kinds[name], asked["prompt"], asked["response"])
        assert row["gate_scales"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert again["gate_scales"] == pytest.approx(row["gate_scales"], abs=1e-6)
        assert sum(row["gate_scales"]) == pytest.approx(1.0, abs=1e-6)
    assert cold["rewards"][0]["gate_scales"] == cold["rewards"][1]["gate_scales"] != cold["rewards"][2]["gate_scales"]
    assert cold["usage"]["forward_prompts"] == warm["usage"]["forward_prompts"] == 2
    assert warm["usage"]["forward_responses"] == 0
    assert 0 < warm["usage"]["forward_tokens"] < cold["usage"]["forward_tokens"]
    assert "forward_prompts" not in plain["usage"]
    assert all("gate_scales" not in row for row in plain["rewards"])


async def test_the_gate_is_read_where_a_long_response_has_cut_its_prompt(client, kinds):
    prompt, response = " ".join(f"number {n}" for n in range(80)), "word " * 20
    answer = await ask(client, "gated", [{"prompt": prompt, "response": response}], "gate_scales")
    assert answer["rewards"][0]["truncated_tokens"] > 0
    assert answer["rewards"][0]["gate_scales"] == pytest.approx(
        gate_scales(kinds["gated"], prompt, response).tolist(), abs=1e-5
    )


async def test_everything_can_be_asked_for_at_once(client):
    (row,) = (await ask(client, "hybrid", [item()], "representation", "blocks", "gate_scales"))["rewards"]
    assert [len(row[name]) for name in ("representation", "blocks", "gate_scales")] == [5, 2, 2]
    assert row["representation"][0] == row["reward"]


@pytest.mark.parametrize("name", ["scalar", "rated", "weightless"])
async def test_blocks_of_a_kind_without_any_are_refused(client, name):
    status, error = await refusal(client, name, [item()], "blocks")
    assert (status, error["code"]) == (422, "return_unavailable")
    assert "has no 2-blocks: ask a general-preference or hybrid model" in error["message"]


@pytest.mark.parametrize("name", ["plain", "scalar"])
async def test_gate_scales_of_a_model_without_a_gate_are_refused(client, name):
    status, error = await refusal(client, name, [], "gate_scales")
    assert (status, error["code"]) == (422, "return_unavailable")
    assert error["message"] == f'model {name} has no gate, and so no scales: leave "gate_scales" out of "return"'


async def test_references_need_a_model_that_compares(client):
    status, error = await refusal(client, "weightless", [item()])
    assert (status, error["code"]) == (422, "preferences_unavailable")
    assert (await ask(client, "weightless", [item(0, None)]))["rewards"][0]["attributes"]


async def test_blocks_without_references_name_the_item(client):
    status, error = await refusal(client, "gated", [item(), item(1, None)], "blocks")
    assert (status, error["code"], error["item"]) == (422, "invalid_request", 1)
    assert error["message"] == "items[1]: blocks compare a response with others: give the item references"
    good, bad = (await ask(client, "gated", [item(), item(1, None)], "blocks", on_error="report"))["rewards"]
    assert len(good["blocks"]) == 3
    assert (bad["error"]["code"], bad["error"]["item"]) == ("invalid_request", 1)


async def test_a_reference_that_cannot_be_read_is_the_items_problem(client):
    long = {**item(), "references": ["word " * 400]}
    status, error = await refusal(client, "gated", [item(1), long], "gate_scales")
    assert (status, error["code"], error["item"]) == (422, "response_too_long", 1)
    rows = (await ask(client, "gated", [long, item(1), {**item(), "references": []}], "blocks", "gate_scales",
                      on_error="report"))["rewards"]  # fmt: skip
    assert [row.get("error", {}).get("code") for row in rows] == ["response_too_long", None, "invalid_request"]
    assert len(rows[1]["gate_scales"]) == 3


async def test_references_count_towards_the_limit_of_responses(client):
    status, error = await refusal(client, "gated", [{**item(), "references": ["a"] * 20_000}])
    assert (status, error["code"]) == (413, "too_many_items")
    assert error["message"].startswith("20001 responses and references in one request; the limit is 20000")


async def test_tokens_read_no_references(client):
    response = await client.post("/v1/tokens", json={"model": "gated", "items": [item(0, None), item()]})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["item"]) == (422, "invalid_request", 1)
    assert "references are read by /v1/rewards alone" in error["message"]
