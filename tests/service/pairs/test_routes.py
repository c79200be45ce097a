"""The scoring routes for a model that reads both responses at once, here one that prefers what is longer."""

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from paragone.wire import Group
from paragone_models.comparisons import plan_named
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.pairs.tables import GroupTable

from .longest import Longest


@pytest.fixture
def source():
    return Longest()


@pytest.fixture
def client(source, hosted):
    with TestClient(create_app(Settings(), {"bt": hosted["bt"]}, pair_sources=[source]), "http://localhost") as client:
        yield client


def posted(client, path, **body) -> httpx2.Response:
    return client.post(path, json={"model": "longest", **body})


def test_preferences(client, source):
    pairs = [{"prompt": "q", "first": "abc", "second": "a"}, {"prompt": "q", "first": "a", "second": "abc"}]
    answer = posted(client, "/v1/preferences", pairs=pairs).json()
    assert [row["logit"] for row in answer["preferences"]] == [2.0, -2.0]
    assert sum(row["probability"] for row in answer["preferences"]) == 1
    assert answer["preferences"][0]["first_reward"] is None
    assert answer["usage"]["forward_responses"] == 2
    assert source.asked == [2]


def test_a_tournament_compares_each_pair_once(client, source):
    group = {"prompt": "q", "responses": ["a", "abc", "ab"]}
    answer = posted(client, "/v1/tournaments", groups=[group, group], **{"return": ["matrix"]}, signal="rank").json()
    first = answer["tournaments"][0]
    assert first["ranking"] == [1, 2, 0]
    assert first["signal"] == [0.0, 1.0, 0.5]
    assert first["condorcet_winner"] == 1
    assert first["compared"] == [[0, 1], [0, 2], [1, 2]]
    assert "intervals" not in first
    assert first["matrix"][1][0] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-15)
    assert source.asked == [6]
    assert answer["usage"]["forward_responses"] == 6


def test_a_bracket_asks_in_rounds_for_all_groups_at_a_time(client, source):
    groups = [{"prompt": str(n), "responses": ["a" * (k + n) for k in range(1, 9)]} for n in range(3)]
    answer = posted(client, "/v1/tournaments", groups=groups, comparisons="bracket").json()
    assert source.asked == [12, 6, 3, 9]
    row = answer["tournaments"][0]
    assert len(row["compared"]) == 10
    assert row["ranking"][0] == 7
    for rate, (low, high) in zip(row["win_rates"], row["intervals"], strict=True):
        assert low <= rate <= high
    assert any(low < high for low, high in row["intervals"])


def test_preferences_in_circles_are_inferred_by_the_fit_that_can_say_them(hosted):
    # By the place on a circle that the length is: each beats those less than half a turn ahead.
    circle = Longest(lambda first, second: 3 * np.sin((len(second) - len(first)) * 2 * np.pi / 11))
    order = np.random.default_rng(0).permutation(11).tolist()
    group = {"prompt": "q", "responses": ["a" * (place + 1) for place in order]}
    truth = np.array([[3 * np.sin((j - i) * 2 * np.pi / 11) for j in order] for i in order])
    wrong = {}
    with TestClient(create_app(Settings(), {"bt": hosted["bt"]}, pair_sources=[circle]), "http://localhost") as client:
        for fit in ("bradley-terry", "general-preference"):
            body = {"groups": [group], "comparisons": "budget:42", "fit": fit, "return": ["matrix"]}
            row = posted(client, "/v1/tournaments", **body).json()["tournaments"][0]
            assert row["fit"] == fit
            asked = {tuple(pair) for pair in row["compared"]}
            gaps = [(i, j) for i in range(11) for j in range(i) if (j, i) not in asked]
            wrong[fit] = np.mean([(row["matrix"][i][j] > 0.5) != (truth[i, j] > 0) for i, j in gaps])
            assert all(
                low <= rate <= high for rate, (low, high) in zip(row["win_rates"], row["intervals"], strict=True)
            )
        whole = posted(client, "/v1/tournaments", groups=[group]).json()["tournaments"][0]
        assert "fit" not in whole  # nothing is inferred
    assert wrong["bradley-terry"] > 0.3
    assert wrong["general-preference"] < 0.06


def test_a_failed_comparison_refuses_or_leaves_a_gap(client):
    group = {"prompt": "q", "responses": ["fail", "failed", "a", "ab"]}
    refused = posted(client, "/v1/tournaments", groups=[group])
    assert refused.status_code == 500
    error = refused.json()["error"]
    assert (error["item"], error["response"], error["opponent"]) == (0, 0, 1)
    row = posted(client, "/v1/tournaments", groups=[group], on_error="report").json()["tournaments"][0]
    assert [0, 1] not in row["compared"]
    assert len(row["compared"]) == 5
    assert None not in row["win_rates"]
    assert row["errors"] == [
        {"code": "engine_failed", "message": "no verdict", "item": 0, "response": 0, "opponent": 1}
    ]
    assert row["ranking"][-1] == 2


def test_a_response_without_any_comparison_does_not_vote(client):
    # Of two, the one comparison fails: nobody was compared.
    group = {"prompt": "q", "responses": ["fail", "failed"]}
    answer = posted(client, "/v1/tournaments", groups=[group], on_error="report").json()
    assert answer["tournaments"][0]["error"]["code"] == "engine_failed"


def test_references_meet_every_response(client, source):
    group = {"prompt": "q", "responses": ["abc", "a"], "references": ["ab", "fail"]}
    row = posted(client, "/v1/tournaments", groups=[group], signal="anchor").json()["tournaments"][0]
    assert source.asked == [5]
    expected = [np.mean([1 / (1 + np.exp(-z)) for z in zs]) for zs in ([1, -1], [-1, -3])]
    np.testing.assert_allclose(row["win_rates"], expected)
    assert row["signal"] == row["win_rates"]


def test_a_reference_that_was_not_compared_with_all_counts_for_nobody(client):
    group = {"prompt": "q", "responses": ["fail", "a"], "references": ["ab", "failing"]}
    row = posted(client, "/v1/tournaments", groups=[group], on_error="report").json()["tournaments"][0]
    np.testing.assert_allclose(row["win_rates"], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    assert [error.get("reference") for error in row["errors"]] == [1, 1]


def test_a_table_has_no_rows_for_references():
    table = GroupTable(0, Group(prompt="q", responses=["a"], references=["b"] * 9_999), plan_named("all", 1))
    assert table.logits.shape == (1, 10_000)
    assert table.next_round(first=True) == [(0, place) for place in range(1, 10_000)]


def test_win_rates_against_references_have_no_intervals_of_other_win_rates(client):
    group = {"prompt": "q", "responses": ["a", "ab", "abc", "abcd"], "references": ["x" * 20]}
    row = posted(client, "/v1/tournaments", groups=[group], comparisons="circular").json()["tournaments"][0]
    assert max(row["win_rates"]) < 1e-6
    assert "intervals" not in row


def test_rewards_are_what_references_say(client):
    items = [{"prompt": "q", "response": "abcd", "references": ["a", "ab"]}]
    assert posted(client, "/v1/rewards", items=items).json()["rewards"] == [{"reward": None, "reference_logit": 2.5}]
    refused = posted(client, "/v1/rewards", items=[{"prompt": "q", "response": "a"}])
    assert refused.json()["error"]["code"] == "reference_required"


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/preferences", {"pairs": [], "return": ["ids"]}, "return_unavailable"),
        ("/v1/preferences", {"pairs": [{"first_id": "a" * 64, "second_id": "b" * 64}]}, "invalid_request"),
        ("/v1/preferences", {"pairs": [], "skew_weight": 1}, "invalid_request"),
        (
            "/v1/tournaments",
            {"groups": [{"prompt": "q", "responses": ["a"]}], "signal": "reward"},
            "return_unavailable",
        ),
        ("/v1/tournaments", {"groups": [{"prompt": "q", "responses": ["a"] * 200}]}, "too_many_items"),
        ("/v1/tournaments", {"groups": [{"prompt": "q", "responses": ["a"] * 9}], "comparisons": "budget:3"}, None),
        (
            "/v1/tournaments",
            {"groups": [{"prompt": "q", "responses": ["a"] * 256}], "comparisons": "budget:10001"},
            "too_many_items",
        ),
        (
            "/v1/tournaments",
            {
                "groups": [{"prompt": "q", "responses": ["a"] * 2, "references": ["b"] * 5000}],
                "comparisons": "circular",
            },
            "too_many_items",
        ),
        ("/v1/tournaments", {"groups": [], "comparisons": "swiss"}, "invalid_request"),
        ("/v1/rewards", {"items": [], "return": ["representation"]}, "return_unavailable"),
        ("/v1/tokens", {"items": []}, "return_unavailable"),
    ],
)
def test_what_it_cannot_do_is_refused(client, path, body, code):
    if path == "/v1/tournaments" and len(body.get("groups", [])) and len(body["groups"][0]["responses"]) == 200:
        body = {"groups": body["groups"]}
    answer = posted(client, path, **body)
    assert answer.status_code in (400, 413, 422)
    assert answer.json()["error"]["code"] == (code or "invalid_request")


def test_it_is_listed_and_found(client):
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["models"]] == ["bt", "longest"]
    assert [card["id"] for card in models["data"]] == ["bt", "longest"]
    assert client.get("/v1/models/longest").json()["dimension"] is None
    assert client.get("/readyz").status_code == 200
    unknown = client.post("/v1/preferences", json={"model": "nobody", "pairs": []})
    assert "bt, longest" in unknown.json()["error"]["message"]


def test_models_that_represent_answer_all_pairs_whatever_is_asked_for(client):
    body = {"model": "bt", "groups": [{"prompt": "q", "responses": ["a", "b", "c"]}]}
    assert (
        client.post("/v1/tournaments", json={**body, "comparisons": "bracket"}).json()["tournaments"]
        == client.post("/v1/tournaments", json=body).json()["tournaments"]
    )


def test_what_was_exchanged_while_it_was_asked_has_no_answer(client, source, monkeypatch):
    asked = source.compare

    async def exchanged(duels, call):
        compared = await asked(duels, call)
        source.header = {**source.header, "identity": f"{len(source.asked):064}"}
        return compared

    monkeypatch.setattr(source, "compare", exchanged)
    pair, group = {"prompt": "q", "first": "abc", "second": "a"}, {"prompt": "q", "responses": ["a", "abc"]}
    for path, body in (("/v1/preferences", {"pairs": [pair]}), ("/v1/tournaments", {"groups": [group]})):
        answer = posted(client, path, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert answer.headers["retry-after"] == "1"
