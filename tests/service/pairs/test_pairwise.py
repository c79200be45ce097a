"""A pairwise model of this server, by every route that compares."""

import asyncio

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from paragone_models import load_model
from paragone_models.text.pairs import PairText
from paragone_service.app import create_app
from paragone_service.config import Settings

from ..conftest import make_tokenizer, serving

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["Yes, close it.", "No.", "Families walk there."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("letters"), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, name="letters", kind="pairwise", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def client(model):
    with TestClient(create_app(Settings(), {"letters": model}), "http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def expected(model):
    """Return the log-odds of every ordered pair, averaged over both orders by their probabilities."""

    def chance(first, second):
        messages = [({"role": "user", "content": "Close it?"},)]
        messages += [({"role": "assistant", "content": text},) for text in (first, second)]
        (reading,) = model.reader.read([PairText(*messages)])
        logit = float(model.represent(model.encode([reading.item]))[0, 0])
        return 1 / (1 + np.exp(-logit))

    return np.array([[(chance(a, b) + 1 - chance(b, a)) / 2 for b in TEXTS] for a in TEXTS])


def test_preferences_are_of_both_orders_and_cached(client, expected):
    pairs = [{"prompt": "Close it?", "first": TEXTS[0], "second": TEXTS[1]}]
    pairs.append({"prompt": [{"role": "user", "content": "Close it?"}], "first": TEXTS[1], "second": TEXTS[0]})
    answer = client.post("/v1/preferences", json={"pairs": pairs}).json()
    chances = [row["probability"] for row in answer["preferences"]]
    assert sum(chances) == 1
    np.testing.assert_allclose(chances[0], expected[0, 1], atol=1e-5)
    # A text is one message of the user's, so the swapped pair is the same two sequences.
    assert (answer["usage"]["forward_responses"], answer["usage"]["cached_responses"]) == (2, 2)
    again = client.post("/v1/preferences", json={"pairs": pairs}).json()
    assert again["preferences"] == answer["preferences"]
    assert again["usage"]["forward_responses"] == 0


def test_a_tournament_and_rewards(client, expected):
    groups = [{"prompt": "Close it?", "responses": TEXTS}]
    answer = client.post("/v1/tournaments", json={"groups": groups, "return": ["matrix"]}).json()
    np.testing.assert_allclose(answer["tournaments"][0]["matrix"], expected, atol=1e-5)
    items = [{"prompt": "Close it?", "response": TEXTS[0], "references": TEXTS[1:]}]
    reward = client.post("/v1/rewards", json={"items": items}).json()["rewards"][0]
    odds = np.log(expected / (1 - expected))[0, 1:]
    assert reward["reference_logit"] == pytest.approx(odds.mean(), abs=1e-4)


@pytest.mark.anyio
async def test_a_cohort_has_the_table_of_a_tournament(model, expected):
    async with serving({"letters": model}) as client:
        fields = {"group": "g", "size": 3, "prompt": "Close it?", "return": ["matrix_row"]}
        members = [{**fields, "slot": slot, "response": text} for slot, text in enumerate(TEXTS)]
        answers = await asyncio.gather(*(client.post("/v1/cohorts", json=member) for member in members))
        rows = [answer.json() for answer in answers]
        np.testing.assert_allclose([row["matrix_row"] for row in rows], expected, atol=1e-5)
        assert sorted(row["usage"]["forward_responses"] for row in rows) == [0, 0, 6]
        # Its text is too long for every comparison with it: the others are compared without it.
        members = [{**one, "group": "h"} for one in members]
        members[2]["response"] = "a " * 2000
        answers = await asyncio.gather(*(client.post("/v1/cohorts", json=member) for member in members))
        assert [answer.status_code for answer in answers] == [200, 200, 422]
        assert answers[0].json()["matrix_row"] == pytest.approx([0.5, expected[0, 1], None], abs=1e-5)


def test_errors_stand_in_their_places(client):
    pairs = [
        {"prompt": "Close it?", "first": "a", "second": "b"},
        {"prompt": "Close it?", "first": "a " * 2000, "second": "b"},
        {"prompt": "Close it?", "first": "a", "second": "b", "tools": [{"type": "function"}]},
    ]
    refused = client.post("/v1/preferences", json={"pairs": pairs})
    assert refused.json()["error"]["item"] == 1
    rows = client.post("/v1/preferences", json={"pairs": pairs, "on_error": "report"}).json()["preferences"]
    codes = [row.get("error", {}).get("code") for row in rows]
    assert codes == [None, "conversation_truncated", "unsupported_content"]


def test_what_needs_single_responses_is_refused_and_it_is_listed_once(client):
    refused = client.post("/v1/tokens", json={"items": [{"prompt": "q", "response": "a"}]})
    assert refused.json()["error"]["code"] == "return_unavailable"
    (info,) = client.get("/v1/models").json()["models"]
    assert (info["kind"], info["dimension"], info["cyclic"]) == ("pairwise", None, True)
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("how", ["mean-logit", "sum", "none"])
def test_symmetrise_is_a_setting_of_the_model(model, how):
    other = load_model(model.provenance.source, kind="pairwise", device="cpu", dtype="float32", symmetrise=how)
    assert other.identity == model.identity
    assert other.fingerprint != model.fingerprint
    with TestClient(create_app(Settings(), {"letters": other}), "http://localhost") as client:
        pairs = [{"prompt": "q", "first": "a", "second": "b"}, {"prompt": "q", "first": "b", "second": "a"}]
        first, second = client.post("/v1/preferences", json={"pairs": pairs}).json()["preferences"]
    if how == "none":
        assert first["logit"] != -second["logit"]
    else:
        assert first["logit"] == -second["logit"]
