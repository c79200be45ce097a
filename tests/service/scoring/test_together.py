"""Models of one backbone that a request asks about the same responses: one pass, each model's own numbers and keys."""

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from paragone_models import load_model
from paragone_models.files.backbones import reference_to, save_head
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_service.app import create_app
from paragone_service.config import Settings

SPECS = {
    "ratings": ModelSpec(kind="bradley-terry", dimension=1, max_length=256),
    "mean": ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=256),
    "gated": ModelSpec(
        kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.1, max_length=256
    ),
    "short": ModelSpec(kind="bradley-terry", dimension=1, max_length=48),
}
TEXTS = ["Close it, because children walk there.", "No.", "Families like it on market day.", "Never ever."]
PAIRS = [{"prompt": "Close it?", "first": a, "second": b} for a in TEXTS for b in TEXTS if a != b]


@pytest.fixture(scope="module")
def heads(folders, tmp_path_factory):
    """Heads that read one backbone at different places, with different limits."""
    torch.manual_seed(5)
    root, residents, loaded = tmp_path_factory.mktemp("heads"), {}, {}
    for name, spec in SPECS.items():
        head = RepresentationHead(32, spec)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_head(root / name, head.state_dict(), spec, reference_to(str(folders["bt"])))
        loaded[name] = load_model(root / name, name=name, device="cpu", dtype="float32", residents=residents)
    return loaded


def serving(heads, members, **knobs) -> TestClient:
    options = {key: knobs.pop(key) for key in ("weights", "margin") if key in knobs}
    models = {name: {"source": f"/models/{name}"} for name in members}
    both = {"source": f"ensemble:{'+'.join(members)}", **options}
    settings = Settings(models={**models, "both": both}, **knobs)
    return TestClient(create_app(settings, {name: heads[name] for name in members}), "http://localhost")


def asked(client, model="both", pairs=PAIRS, **fields) -> tuple[np.ndarray, dict]:
    answer = client.post("/v1/preferences", json={"model": model, "pairs": pairs, **fields}).json()
    return np.array([row.get("logit", np.nan) for row in answer["preferences"]]), answer["usage"]


@pytest.mark.parametrize("memory_cache_mb", [0, 8])
def test_an_ensemble_of_three_heads_runs_each_response_once_and_gives_their_own_numbers(heads, memory_cache_mb):
    names = ("ratings", "mean", "gated")
    with serving(heads, names, memory_cache_mb=memory_cache_mb) as client:
        alone = [asked(client, name)[0] for name in names]
    with serving(heads, names, memory_cache_mb=memory_cache_mb) as client:
        together, usage = asked(client)
        np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=2e-5, atol=1e-6)
        assert usage["forward_responses"] == len(TEXTS)
        assert usage["cached_responses"] == 3 * len(2 * PAIRS) - len(TEXTS)
        batches = [line for line in client.get("/metrics").text.splitlines() if "batch_tokens_count" in line]
        assert [line.split()[-1] for line in batches] == ["1.0"]  # of the first member, and none of the others
        if memory_cache_mb:
            # Every head's values lie under its own model's keys.
            for name, logits in zip(names, alone, strict=True):
                again, cost = asked(client, name)
                np.testing.assert_allclose(again, logits, rtol=2e-5, atol=1e-6)
                assert cost["forward_responses"] == 0


def test_on_several_devices_a_pass_serves_the_heads_that_are_on_its_own(heads):
    names = ("ratings", "gated")
    pairs = [{**pair, "prompt": f"Close it, {number}?"} for number in range(6) for pair in PAIRS]
    with serving(heads, names) as client:
        alone = [asked(client, name, pairs)[0] for name in names]
    with serving(heads, names, devices="cpu*2") as client:
        together, usage = asked(client, pairs=pairs)
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=2e-5, atol=1e-6)
    assert usage["forward_responses"] == 6 * len(TEXTS)


def test_what_the_first_knows_already_is_run_once_for_the_others(heads):
    with serving(heads, ("ratings", "mean", "gated")) as client:
        asked(client, "ratings", PAIRS[:1])  # two of the four texts
        _, usage = asked(client)
        assert usage["forward_responses"] == 4  # the two for mean and gated, the two others for all


def test_a_head_that_one_pass_cannot_serve_runs_its_own(heads, hosted):
    with serving({**heads, "bt": hosted["bt"]}, ("ratings", "bt")) as client:
        assert asked(client)[1]["forward_responses"] == 2 * len(TEXTS)


def test_with_a_margin_the_others_ride_with_the_first(heads):
    with serving(heads, ("ratings", "gated")) as client:
        first, second = asked(client, "ratings")[0], asked(client, "gated")[0]
    margin = float(np.median(np.abs(first)))
    unsure = np.abs(first) < margin
    with serving(heads, ("ratings", "gated"), margin=margin, weights={"ratings": 0}) as client:
        logits, usage = asked(client)
    np.testing.assert_allclose(logits, np.where(unsure, second, first), rtol=2e-5, atol=1e-6)
    assert 0 < usage["escalated"] < len(PAIRS)
    assert usage["forward_responses"] == len(TEXTS)


def test_each_member_keeps_its_own_limit_of_tokens(heads):
    fits = {"prompt": "Close it?", "first": "Yes.", "second": "No."}
    cut = {"prompt": f"Close it? {TEXTS[0] * 2}", "first": "Yes.", "second": "No."}
    refused = {"prompt": "Close it?", "first": TEXTS[0] * 3, "second": "No."}
    names = ("ratings", "short")
    with serving(heads, names) as client:
        alone = [asked(client, name, [fits, cut])[0] for name in names]
    with serving(heads, names) as client:
        logits, usage = asked(client, pairs=[fits, cut])
        np.testing.assert_allclose(logits, np.mean(alone, axis=0), rtol=2e-5, atol=1e-6)
        # What is cut for the shorter one is another text: it has two passes, and the answer says so.
        assert (usage["forward_responses"], usage["truncated"]) == (2 + 4, 2)
        rows = client.post(
            "/v1/preferences", json={"model": "both", "pairs": [fits, refused], "on_error": "report"}
        ).json()["preferences"]
        assert "logit" in rows[0]
        assert rows[1]["error"]["code"] == "response_too_long"
        assert "limit" in rows[1]["error"]["message"]


def test_numbers_that_are_not_finite_are_an_error_of_the_head_that_gave_them_alone(heads):
    weight = heads["gated"].network.head.value_head.weight
    whole = weight.clone()
    with serving(heads, ("ratings", "gated")) as client:
        try:
            weight.fill_(torch.nan)
            answer = client.post("/v1/preferences", json={"model": "both", "pairs": PAIRS[:1]}).json()
        finally:
            weight.copy_(whole)
        assert answer["error"]["code"] == "non_finite_score"
        assert "gated" in answer["error"]["message"]
        assert asked(client, "ratings", PAIRS[:1])[1]["forward_responses"] == 0
        assert asked(client, "gated", PAIRS[:1])[1]["forward_responses"] == 2  # nothing of it was kept


def test_a_head_that_fails_does_not_fail_the_pass_of_another(heads):
    def fail(*_):
        raise RuntimeError("a broken head")

    with serving(heads, ("ratings", "gated")) as client:
        hook = heads["gated"].network.head.register_forward_pre_hook(fail)
        try:
            answer = client.post("/v1/preferences", json={"model": "both", "pairs": PAIRS[:1]})
        finally:
            hook.remove()
        assert answer.status_code == 500
        assert asked(client, "ratings", PAIRS[:1])[1]["forward_responses"] == 0  # its numbers stood, and were kept
        assert asked(client, "gated", PAIRS[:1])[1]["forward_responses"] == 2
