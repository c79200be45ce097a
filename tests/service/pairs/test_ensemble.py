"""Models that are made of others: their arithmetic, whom they ask, and what the server says of them."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from paragone_service.app import create_app
from paragone_service.config import ConfigError, Settings
from paragone_service.pairs.ensemble import combined
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


def test_combined_by_hand():
    table = np.array([[2.0, -4.0, 1.0], [4.0, 0.0, -1.0]])
    mean, spread = combined(table, [1, 1], 0)
    np.testing.assert_allclose([mean, spread], [[3, -2, 0], [1, 2, 1]])
    np.testing.assert_allclose(combined(table, [1, 1], 0.5)[0], [2.5, -1, 0])
    np.testing.assert_allclose(combined(table, [3, 1], 0)[0], [2.5, -3, 0.5])
    np.testing.assert_allclose(combined(table, [1, 1], 9)[0], [0, 0, 0])


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


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"source": "ensemble:bt"}, "at least two names"),
        ({"source": "ensemble:bt+bt"}, "each once"),
        ({"source": "ensemble:bt+gpm", "weights": {"nobody": 1}}, "weights name nobody"),
        ({"source": "ensemble:bt+gpm", "weights": {"bt": 0, "gpm": 0}}, "not all of them 0"),
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
