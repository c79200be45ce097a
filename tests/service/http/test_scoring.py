"""The routes that score, from HTTP to HTTP, with tiny real models."""

import asyncio
import itertools
import math

import numpy as np
import pytest

from paragone.wire import PreferencesAnswer, RewardsAnswer, TournamentsAnswer
from paragone_models import load_model
from paragone_models.comparator import probability
from paragone_models.spec import ModelSpec
from paragone_models.tournament import summarise
from tests.service.conftest import make_model, make_tokenizer, serving

pytestmark = pytest.mark.anyio

PROMPT = "Close the street to cars?"
RESPONSES = ["Yes, the air gets cleaner.", "no", "Buses can still stop!", ""]


async def ask(client, route, **body):
    response = await client.post(f"/v1/{route}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def pairs_of(responses, prompt=PROMPT):
    return [{"prompt": prompt, "first": a, "second": b} for a, b in itertools.permutations(responses, 2)]


async def test_a_preference_is_the_models_own_and_the_first_is_the_one_that_is_measured(client, hosted):
    answer = PreferencesAnswer.model_validate(
        await ask(client, "preferences", model="gpm", pairs=pairs_of(RESPONSES[:2]))
    )
    expected = hosted["gpm"].score(PROMPT, RESPONSES[:2]).probabilities
    one, other = answer.preferences
    assert one.probability == pytest.approx(expected[0, 1], abs=1e-5)
    assert other.probability == pytest.approx(expected[1, 0], abs=1e-5)
    assert (one.first_reward, one.second_reward) == (None, None)
    assert answer.model == "gpm"
    assert answer.identity == hosted["gpm"].identity
    assert answer.fingerprint == hosted["gpm"].fingerprint
    assert answer.calibrated is False


@pytest.mark.parametrize("model", ["gpm", "bt"])
async def test_the_two_orders_of_a_pair_add_up_to_exactly_one_cold_and_warm(hosted, model):
    async with serving(hosted) as client:
        for _ in ("cold", "warm"):
            answer = await ask(client, "preferences", model=model, pairs=pairs_of(RESPONSES))
            got = {(a, b): row["probability"] for (a, b), row in
                   zip(itertools.permutations(RESPONSES, 2), answer["preferences"], strict=True)}  # fmt: skip
            assert all(got[a, b] + got[b, a] == 1.0 for a, b in got)


async def test_cold_and_warm_answers_are_equal_to_the_last_bit(client):
    cold = await ask(client, "preferences", pairs=pairs_of(RESPONSES))
    warm = await ask(client, "preferences", pairs=pairs_of(RESPONSES))
    assert cold["preferences"] == warm["preferences"]
    assert cold["usage"]["forward_responses"] == 4
    assert warm["usage"] == {"forward_responses": 0, "forward_tokens": 0, "cached_responses": 24, "truncated": 0}


async def test_a_response_seen_once_is_never_run_again_whatever_it_is_compared_with(client):
    first, second, third, _ = RESPONSES
    await ask(client, "preferences", pairs=[{"prompt": PROMPT, "first": first, "second": second}])
    answer = await ask(client, "tournaments", groups=[{"prompt": PROMPT, "responses": [second, first, third]}])
    assert answer["usage"]["forward_responses"] == 1
    answer = await ask(client, "rewards", items=[{"prompt": PROMPT, "response": third}])
    assert answer["usage"]["forward_responses"] == 0
    answer = await ask(client, "rewards", items=[{"prompt": "Another prompt?", "response": third}])
    assert answer["usage"]["forward_responses"] == 1


async def test_every_form_of_a_conversation_is_the_same_conversation(client):
    forms = [
        (PROMPT, "no"),
        ([{"role": "user", "content": PROMPT}], {"role": "assistant", "content": "no"}),
        ([{"role": "user", "content": PROMPT}], [{"role": "assistant", "content": "no"}]),
    ]
    answer = await ask(client, "rewards", items=[{"prompt": prompt, "response": one} for prompt, one in forms])
    assert answer["usage"]["forward_responses"] == 1
    assert answer["usage"]["cached_responses"] == 2
    assert len({str(row) for row in answer["rewards"]}) == 1


async def test_text_parts_are_read_as_their_text(client):
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Close the "}, {"type": "text", "text": "street to cars?"}],
        }
    ]
    items = [{"prompt": prompt, "response": "no"} for prompt in (PROMPT, parts)]
    one, other = (await ask(client, "rewards", model="bt", items=items))["rewards"]
    assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)


async def test_a_reward_model_shows_rewards_and_their_difference_is_the_logit(client, hosted):
    answer = await ask(client, "preferences", model="bt", pairs=pairs_of(RESPONSES[:2]))
    row = answer["preferences"][0]
    assert row["logit"] == row["first_reward"] - row["second_reward"]
    assert row["probability"] == float(probability(row["logit"]))
    rewards = (await ask(client, "rewards", model="bt", items=[{"prompt": PROMPT, "response": RESPONSES[0]}]))[
        "rewards"
    ]
    assert rewards == [{"reward": row["first_reward"], "attributes": {}, "truncated_tokens": 0}]
    assert row["first_reward"] == pytest.approx(float(hosted["bt"].score(PROMPT, RESPONSES[:1]).rewards[0]), abs=1e-5)


async def test_a_representation_comes_only_when_it_is_asked_for(client):
    item = {"prompt": PROMPT, "response": "no"}
    plain = RewardsAnswer.model_validate(await ask(client, "rewards", model="gpm", items=[item]))
    full = RewardsAnswer.model_validate(
        await ask(client, "rewards", model="gpm", items=[item], **{"return": ["representation"]})
    )
    assert plain.rewards[0].representation is None
    assert plain.rewards[0].reward is None
    assert len(full.rewards[0].representation) == 4


async def test_attributes_are_named(client):
    answer = await ask(client, "rewards", model="ratings", items=[{"prompt": PROMPT, "response": "no"}])
    assert list(answer["rewards"][0]["attributes"]) == ["helpful", "verbose"]
    assert answer["rewards"][0]["reward"] is None


async def test_a_tournament_costs_one_forward_a_response_cold_and_none_warm(client):
    groups = [{"prompt": PROMPT, "responses": RESPONSES}]
    cold = await ask(client, "tournaments", groups=groups)
    warm = await ask(client, "tournaments", groups=groups)
    assert (cold["usage"]["forward_responses"], cold["usage"]["cached_responses"]) == (4, 0)
    assert (warm["usage"]["forward_responses"], warm["usage"]["cached_responses"]) == (0, 4)
    assert cold["tournaments"] == warm["tournaments"]


async def test_a_tournament_is_what_its_matrix_says(client):
    body = {"groups": [{"prompt": PROMPT, "responses": RESPONSES}], "return": ["matrix"]}
    (row,) = TournamentsAnswer.model_validate(await ask(client, "tournaments", **body)).tournaments
    matrix = np.array(row.matrix)
    assert (matrix + matrix.T == 1).all()
    assert (np.diag(matrix) == 0.5).all()
    expected = summarise(matrix)
    assert row.win_rates == expected.win_rates.tolist() == matrix.mean(axis=1).tolist()
    assert row.ranking == expected.ranking
    assert row.nash == pytest.approx(expected.nash.tolist())
    assert (row.condorcet_winner, row.copeland) == (expected.condorcet_winner, expected.copeland)
    assert row.cyclic_triples == expected.cyclic_triples


async def test_the_matrix_comes_only_when_it_is_asked_for_and_nulls_stay(client):
    answer = await ask(client, "tournaments", groups=[{"prompt": PROMPT, "responses": ["a", "a"]}])
    (row,) = answer["tournaments"]
    assert "matrix" not in row
    assert row["condorcet_winner"] is None
    assert row["win_rates"] == row["nash"] == [0.5, 0.5]


async def test_the_same_response_twice_in_a_request_is_run_once(client):
    answer = await ask(client, "tournaments", groups=[{"prompt": PROMPT, "responses": ["a", "b", "a"]}] * 2)
    assert answer["usage"]["forward_responses"] == 2
    assert answer["usage"]["cached_responses"] == 4


async def test_with_references_the_win_rates_are_against_them(client):
    group = {"prompt": PROMPT, "responses": RESPONSES[:2], "references": RESPONSES[2:]}
    answer = await ask(client, "tournaments", groups=[group], **{"return": ["matrix"]})
    (row,) = answer["tournaments"]
    pairs = [{"prompt": PROMPT, "first": a, "second": b} for a in RESPONSES[:2] for b in RESPONSES[2:]]
    single = [one["probability"] for one in (await ask(client, "preferences", pairs=pairs))["preferences"]]
    assert row["win_rates"] == [(single[0] + single[1]) / 2, (single[2] + single[3]) / 2]
    assert np.array(row["matrix"]).shape == (2, 2)
    assert answer["usage"]["forward_responses"] == 4


async def test_rows_are_in_the_order_of_the_request_whatever_their_length(client):
    responses = ["word " * length for length in (30, 1, 17, 5, 40, 2)]
    together = await ask(client, "rewards", model="bt", items=[{"prompt": PROMPT, "response": r} for r in responses])
    alone = [
        (await ask(client, "rewards", model="bt", items=[{"prompt": PROMPT, "response": r}]))["rewards"][0]
        for r in responses
    ]
    assert together["rewards"] == alone


@pytest.mark.parametrize(
    ("route", "field"), [("preferences", "pairs"), ("rewards", "items"), ("tournaments", "groups"), ("tokens", "items")]
)
async def test_an_empty_batch_has_an_empty_answer(client, route, field):
    answer = await ask(client, route, **{field: []})
    assert answer[route] == []
    assert answer["usage"] == {"forward_responses": 0, "forward_tokens": 0, "cached_responses": 0, "truncated": 0}


async def test_a_request_without_a_model_is_answered_by_the_first_one(client):
    assert (await ask(client, "preferences", pairs=[]))["model"] == "gpm"
    assert (await ask(client, "preferences", pairs=[], model=None))["model"] == "gpm"


async def test_an_empty_response_is_a_response(client):
    answer = await ask(client, "preferences", pairs=[{"prompt": PROMPT, "first": "", "second": "no"}])
    assert math.isfinite(answer["preferences"][0]["logit"])


async def test_a_long_prompt_is_cut_and_said_to_be_and_a_hit_still_says_so(client, hosted):
    long = "word " * 400
    for forwards in (1, 0):
        answer = await ask(client, "rewards", items=[{"prompt": long, "response": "no"}])
        assert answer["usage"]["forward_responses"] == forwards
        assert answer["usage"]["truncated"] == 1
        assert answer["rewards"][0]["truncated_tokens"] > 0
    metrics = (await client.get("/metrics")).text
    assert 'paragone_truncations_total{model="gpm"} 2.0' in metrics
    assert hosted["gpm"].spec.max_length == 256


async def test_two_prompts_that_are_cut_to_the_same_tokens_do_not_share_an_entry(client):
    items = [{"prompt": start + " word" * 400, "response": "no"} for start in ("one", "two")]
    answer = await ask(client, "rewards", items=items)
    assert answer["usage"]["forward_responses"] == 2


async def test_errors_are_reported_in_the_place_of_their_items_and_the_others_are_answered(client):
    pairs = [
        {"prompt": PROMPT, "first": "a", "second": "b"},
        {"prompt": " ", "first": "a", "second": "b"},
        {"prompt": PROMPT, "first": "a", "second": "word " * 500},
        {"prompt": 7, "first": "a", "second": "b"},
        {"prompt": PROMPT, "first": "a\ud800", "second": "b"},
        {"prompt": PROMPT, "first": "b", "second": "a"},
    ]
    import json

    body = json.dumps({"pairs": pairs, "on_error": "report"})  # writes the surrogate as an escape
    response = await client.post("/v1/preferences", content=body, headers={"content-type": "application/json"})
    rows = response.json()["preferences"]
    errors = [(row["error"]["code"], row["error"]["item"]) if "error" in row else None for row in rows]
    assert errors == [
        None, ("empty_prompt", 1), ("response_too_long", 2), ("invalid_request", 3), ("invalid_request", 4), None,
    ]  # fmt: skip
    assert rows[0]["probability"] + rows[5]["probability"] == 1.0
    assert rows[3]["error"]["message"] == "prompt: a prompt is a text or a list of messages"
    assert "lone surrogate" in rows[4]["error"]["message"]


async def test_what_is_wrong_with_the_request_itself_refuses_it_also_where_items_are_reported(client):
    """An item's error came first, and the other one ended as a fault of the server."""
    bad = {"prompt": "p", "first": 5, "second": "b"}
    for items in ([bad], [bad, {"prompt": "p", "first": "a", "second": "b"}]):
        for wrong in ({"return": ["everything"]}, {"references": 3}, {"model": []}):
            answer = await client.post("/v1/preferences", json={"pairs": items, "on_error": "report", **wrong})
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"]["code"] == "invalid_request"
            assert next(iter(wrong)) in answer.json()["error"]["message"]
            assert "item" not in answer.json()["error"]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    spec = ModelSpec(kind="hybrid", dimension=3, temperature=0.5, max_length=256)
    return load_model(make_model(tmp_path_factory.mktemp("hybrid"), spec, make_tokenizer(), 5), device="cpu")


async def test_a_hybrid_model_is_asked_with_another_weight_of_its_skew_form_without_a_forward(hybrid, hosted):
    async with serving({"hybrid": hybrid, "bt": hosted["bt"]}) as client:
        groups = [{"prompt": PROMPT, "responses": RESPONSES[:3]}]
        own = await ask(client, "tournaments", groups=groups, **{"return": ["matrix"]})
        weighed = await ask(client, "tournaments", groups=groups, skew_weight=0.0, **{"return": ["matrix"]})
        pair = await ask(client, "preferences", pairs=pairs_of(RESPONSES[:2])[:1], skew_weight=0.0)
        refused = await client.post("/v1/tournaments", json={"model": "bt", "groups": groups, "skew_weight": 0.0})

    scores = hybrid.score(PROMPT, RESPONSES[:3])
    expected = probability((scores.rewards[:, None] - scores.rewards[None, :]) / 0.5)
    np.testing.assert_allclose(weighed["tournaments"][0]["matrix"], expected, atol=1e-5)
    np.testing.assert_allclose(own["tournaments"][0]["matrix"], scores.probabilities, atol=1e-5)
    assert np.abs(expected - scores.probabilities).max() > 0.01
    assert pair["preferences"][0]["probability"] == pytest.approx(expected[0, 1], abs=1e-5)
    # The same representations, another judge.
    assert weighed["usage"]["forward_responses"] == 0
    assert own["identity"] == weighed["identity"]
    loaded = load_model(hybrid.provenance.source, device="cpu", skew_weight=0.0)
    assert own["fingerprint"] != weighed["fingerprint"] == pair["fingerprint"] == loaded.fingerprint
    assert refused.status_code == 422
    assert "skew_weight weighs the skew form of a hybrid model" in refused.json()["error"]["message"]


async def test_references_and_cohorts_are_weighed_as_pairs_are(hybrid):
    async with serving({"hybrid": hybrid}) as client:
        items = [{"prompt": PROMPT, "response": RESPONSES[0], "references": RESPONSES[1:3]}]
        own = await ask(client, "rewards", items=items)
        weighed = await ask(client, "rewards", items=items, skew_weight=0.0)
        bare = [*items, {"prompt": PROMPT, "response": RESPONSES[0]}]
        refused = await client.post("/v1/rewards", json={"items": bare, "skew_weight": 0.0})
        member = {"group": "g", "size": 2, "prompt": PROMPT, "skew_weight": 0.0}
        posts = [client.post("/v1/cohorts", json=member | {"slot": n, "response": RESPONSES[n]}) for n in range(2)]
        first, second = [answer.json() for answer in await asyncio.gather(*posts)]
        other = {"slot": 0, "response": RESPONSES[0], "skew_weight": 1.0}
        conflict = await client.post("/v1/cohorts", json=member | other)

    rewards = hybrid.score(PROMPT, RESPONSES[:3]).rewards
    logits = (rewards[0] - rewards[1:]) / 0.5
    assert weighed["rewards"][0]["reference_logit"] == pytest.approx(logits.mean(), abs=1e-5)
    assert abs(own["rewards"][0]["reference_logit"] - logits.mean()) > 0.01
    assert weighed["rewards"][0]["reward"] == own["rewards"][0]["reward"]
    # Itself counts as one half.
    assert first["win_rate"] == pytest.approx((0.5 + probability(logits[0])) / 2, abs=1e-5)
    assert second["win_rate"] == pytest.approx((0.5 + probability(-logits[0])) / 2, abs=1e-5)
    assert own["fingerprint"] != weighed["fingerprint"] == first["fingerprint"] == second["fingerprint"]
    assert refused.status_code == 422
    assert refused.json()["error"]["item"] == 1
    assert "skew_weight weighs how a model compares a response with others" in refused.json()["error"]["message"]
    assert conflict.status_code == 409
    assert "began with another skew_weight" in conflict.json()["error"]["message"]
