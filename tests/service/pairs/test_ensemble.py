"""Models that are made of others: their arithmetic, whom they ask, and what the server says of them."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from paragone_models.ensembles import combined
from paragone_service.app import create_app
from paragone_service.config import ConfigError, Settings
from paragone_service.settings_sources import parse_model

TEXTS = ["Close it, because children walk there.", "No.", "Families like it on market day.", "Never ever."]


def settings(**models) -> Settings:
    loaded = {name: {"source": f"/models/{name}"} for name in ("bt", "gpm")}
    return Settings(models={**loaded, **models})


def serving(hosted, **models) -> TestClient:
    return TestClient(
        create_app(settings(**models), {name: hosted[name] for name in ("bt", "gpm")}), "http://localhost"
    )


def pairs() -> list[dict]:
    return [{"prompt": "Close it?", "first": a, "second": b} for a in TEXTS for b in TEXTS if a != b]


def logits(client, model) -> np.ndarray:
    answer = client.post("/v1/preferences", json={"model": model, "pairs": pairs()}).json()
    return np.array([row["logit"] for row in answer["preferences"]])


def test_the_mean_of_two_members(hosted):
    with serving(hosted, both={"source": "ensemble:bt+gpm", "weights": {"gpm": 3.0}}) as client:
        expected = (logits(client, "bt") + 3 * logits(client, "gpm")) / 4
        np.testing.assert_allclose(logits(client, "both"), expected, rtol=1e-12)
        answer = client.post("/v1/preferences", json={"model": "both", "pairs": pairs()[:1]}).json()
        row = answer["preferences"][0]
        members = [logits(client, name)[0] for name in ("bt", "gpm")]
        assert row["spread"] == pytest.approx(np.sqrt(3) / 4 * abs(members[0] - members[1]))
        assert "escalated" not in answer["usage"]
        groups = [{"prompt": "Close it?", "responses": TEXTS}]
        tournament = client.post("/v1/tournaments", json={"model": "both", "groups": groups}).json()["tournaments"][0]
        assert sorted(tournament["ranking"]) == [0, 1, 2, 3]


def test_with_a_margin_the_others_are_asked_where_the_first_is_unsure(hosted):
    with serving(hosted) as client:
        first, second = logits(client, "bt"), logits(client, "gpm")
    margin = float(np.median(np.abs(first))) + 1e-9
    unsure = np.abs(first) < margin
    assert 0 < unsure.sum() < len(first)
    with serving(hosted, routed={"source": "ensemble:bt+gpm", "margin": margin, "weights": {"bt": 0}}) as client:
        answer = client.post("/v1/preferences", json={"model": "routed", "pairs": pairs()}).json()
    got = np.array([row["logit"] for row in answer["preferences"]])
    np.testing.assert_allclose(got, np.where(unsure, second, first), rtol=1e-12)
    assert answer["usage"]["escalated"] == unsure.sum()
    assert [("spread" in row) for row in answer["preferences"]] == unsure.tolist()
    # Each of the four texts once by the first, and by the second only those that unsure pairs hold.
    held = {
        text for pair, open_ in zip(pairs(), unsure, strict=True) if open_ for text in (pair["first"], pair["second"])
    }
    assert answer["usage"]["forward_responses"] == 4 + len(held)


def test_an_error_of_a_member_stands_in_its_place(hosted):
    items = [*pairs()[:1], {"prompt": "Close it?", "first": "long " * 2000, "second": "No."}]
    with serving(hosted, both={"source": "ensemble:bt+gpm"}) as client:
        rows = client.post("/v1/preferences", json={"model": "both", "pairs": items, "on_error": "report"}).json()
        assert "logit" in rows["preferences"][0]
        assert rows["preferences"][1]["error"]["code"] == "response_too_long"


def test_it_is_described_and_its_identity_is_made_of_its_members(hosted):
    one, other = {"source": "ensemble:bt+gpm"}, {"source": "ensemble:bt+gpm", "pessimism": 1.0}
    with serving(hosted, one=one, same=one, other=other) as client:
        infos = {info["id"]: info for info in client.get("/v1/models").json()["models"]}
        assert infos["one"]["kind"] == "ensemble"
        assert infos["one"]["identity"] == infos["same"]["identity"] != infos["other"]["identity"]
        assert client.get("/readyz").status_code == 200


def test_pessimism_by_log_mean_exp_is_that_of_the_members_log_odds_and_sums_to_1(hosted):
    model = {"source": "ensemble:bt+gpm", "pessimism": 2.0, "pessimism_form": "log-mean-exp"}
    with serving(hosted, both=model) as client:
        members = np.array([logits(client, name) for name in ("bt", "gpm")])
        answer = client.post("/v1/preferences", json={"model": "both", "pairs": pairs()}).json()["preferences"]
        info = client.get("/v1/models/both").json()["ensemble"]
    expected, _ = combined(members, [1, 1], pessimism=2.0, form="log-mean-exp")
    np.testing.assert_allclose([row["logit"] for row in answer], expected, rtol=1e-12)
    swapped = {(pair["first"], pair["second"]): row for pair, row in zip(pairs(), answer, strict=True)}
    for (first, second), row in swapped.items():
        assert row["probability"] + swapped[second, first]["probability"] == 1
    assert info == {
        "members": ["bt", "gpm"],
        "weights": [1, 1],
        "margin": None,
        "pessimism": 2,
        "pessimism_form": "log-mean-exp",
        "abstain": None,
    }


def test_it_abstains_below_a_threshold_and_says_so_wherever_it_compares(hosted):
    with serving(hosted, both={"source": "ensemble:bt+gpm"}) as client:
        plain = logits(client, "both")
    least = float(np.median(np.abs(plain))) + 1e-9
    unsure = np.abs(plain) < least
    assert 0 < unsure.sum() < len(plain)
    with serving(hosted, both={"source": "ensemble:bt+gpm", "abstain": least}) as client:
        rows = client.post("/v1/preferences", json={"model": "both", "pairs": pairs()}).json()["preferences"]
        group = {"prompt": "Close it?", "responses": TEXTS}
        body = {"model": "both", "groups": [group], "return": ["matrix"]}
        tournament = client.post("/v1/tournaments", json=body).json()["tournaments"][0]
        items = [{"prompt": "Close it?", "response": TEXTS[0], "references": TEXTS[1:]}]
        reward = client.post("/v1/rewards", json={"model": "both", "items": items}).json()["rewards"][0]
    np.testing.assert_allclose([row["logit"] for row in rows], plain, rtol=1e-9)  # what it had to say stays
    assert [row.get("abstained", False) for row in rows] == unsure.tolist()
    asked = [(pair["first"], pair["second"]) for pair in pairs()]
    places = [(TEXTS.index(first), TEXTS.index(second)) for first, second in asked]
    expected = sorted([i, j] for (i, j), one in zip(places, unsure, strict=True) if one and i < j)
    assert tournament["abstained"] == expected
    assert tournament["matrix"][0][1] == pytest.approx(rows[0]["probability"], abs=1e-9)
    assert reward.get("abstained", 0) == sum(pair[0] == 0 for pair in expected)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"source": "ensemble:bt"}, "at least two names"),
        ({"source": "ensemble:bt+bt"}, "each once"),
        ({"source": "ensemble:bt+gpm", "weights": {"nobody": 1}}, "weights name nobody"),
        ({"source": "ensemble:bt+gpm", "weights": {"bt": 0, "gpm": 0}}, "not all of them 0"),
        ({"source": "ensemble:bt+gpm", "pessimism_form": "log-mean-exp"}, "needs a pessimism above 0"),
        ({"source": "ensemble:bt+gpm", "pessimism": 1e-15}, "pessimism is 1e-15: give 0"),
        ({"source": "ensemble:bt+gpm", "pessimism": 1e308}, "pessimism is 1e"),
        ({"source": "ensemble:bt+gpm", "abstain": 0}, "greater than 0"),
        ({"source": "ensemble:bt+nobody"}, "'nobody' is not hosted"),
        ({"source": "ensemble:bt+ratings"}, "ratings"),
        ({"source": "ensemble:bt+again"}, "is an ensemble itself"),
    ],
)
def test_what_cannot_be_an_ensemble_does_not_start(hosted, model, reason):
    models = {"ratings": {"source": "/models/ratings"}, "bt": {"source": "/bt"}, "gpm": {"source": "/gpm"}}
    if "again" in model["source"]:
        models["again"] = {"source": "ensemble:bt+gpm"}
    with pytest.raises((ConfigError, ValueError), match=reason):
        create_app(
            Settings(models={**models, "both": model}), {name: hosted[name] for name in ("bt", "gpm", "ratings")}
        )


def test_the_flag_says_the_same():
    name, ensemble = parse_model('routed=ensemble:bt+judge,margin=0.5,weights={"bt": 0}')
    assert (name, ensemble.members, ensemble.margin, ensemble.weight("bt")) == ("routed", ["bt", "judge"], 0.5, 0)
