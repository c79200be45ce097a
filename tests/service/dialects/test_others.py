"""slime, SGLang and infinity: the recorded requests, and bodies that share a path."""

import math

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS, rendered

pytestmark = pytest.mark.anyio

TEXTS = [rendered(PROMPT, response) for response in RESPONSES[:2]]
ACTIVATED = [1 / (1 + math.exp(-reward)) for reward in REWARDS]


@pytest.mark.parametrize(
    "prompt",
    [PROMPT, [{"role": "user", "content": PROMPT}], f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"],
)
async def test_slimes_answer_is_the_reward_itself(ask_mini, prompt):
    answer = await ask_mini.post("/rm", json={"prompt": prompt, "response": RESPONSES[0], "label": "a label"})
    assert (answer.status_code, answer.json()) == (200, pytest.approx(REWARDS[0], abs=1e-4))
    assert answer.headers["content-type"] == "application/json"


async def test_the_end_of_turn_that_slime_keeps_is_no_part_of_a_response(ask_mini):
    for prompt in ([{"role": "user", "content": PROMPT}], f"<|im_start|>user\n{PROMPT}<|im_end|>\n"):
        answer = await ask_mini.post("/rm", json={"prompt": prompt, "response": RESPONSES[0] + "<|im_end|>\n"})
        assert answer.json() == pytest.approx(REWARDS[0], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "prompt must be a text"),
        ({"prompt": "a"}, "response must be a text"),
        ({"prompt": "a", "response": [3]}, "response must be a text"),
        ({"prompt": "", "response": "b"}, "prompt is empty"),
        ({"prompt": [{"role": "user"}, 3], "response": "b"}, "prompt must be a list of messages"),
        ({"prompt": "<|odd|>a", "response": "b"}, "chat template that is not known"),
    ],
)
async def test_slimes_bad_samples_are_refused_for_good(ask_mini, body, said):
    answer = await ask_mini.post("/rm", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


async def test_sglangs_own_route_gives_the_logit(ask_mini, mini):
    ids = mini["mini-bradley-terry"].reader.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    for body in ({"text": TEXTS}, {"input_ids": ids}):
        answer = (await ask_mini.post("/classify", json=body)).json()
        assert [row["embedding"] for row in answer] == [[pytest.approx(reward, abs=1e-4)] for reward in REWARDS]
    one = (await ask_mini.post("/classify", json={"text": TEXTS[0]})).json()
    assert one[0]["meta_info"] == {"prompt_tokens": 19}
    bad = await ask_mini.post("/classify", json={"text": []})
    assert (bad.status_code, bad.json()["error"]["type"]) == (400, "BadRequestError")


@pytest.mark.parametrize(("raw", "expected"), [(True, REWARDS), (False, ACTIVATED)])
async def test_infinity_is_told_by_its_flag_and_has_classes_of_its_own(ask_mini, raw, expected):
    answer = (await ask_mini.post("/classify", json={"input": TEXTS, "model": "dummy", "raw_scores": raw})).json()
    assert answer["object"] == "classify"
    assert answer["data"] == [[{"score": pytest.approx(score, abs=1e-4), "label": "LABEL_0"}] for score in expected]
    body = {"query": PROMPT, "documents": RESPONSES[:2], "return_documents": False, "raw_scores": raw, "model": "dummy"}
    results = (await ask_mini.post("/rerank", json=body)).json()["results"]
    assert results[0] == {"index": 0, "relevance_score": pytest.approx(expected[0], abs=1e-4), "document": None}
    results = (await ask_mini.post("/rerank", json={**body, "return_documents": True})).json()["results"]
    assert results[0]["document"] == RESPONSES[0]


async def test_infinitys_models_say_how_busy_they_are(ask_mini):
    (model,) = (await ask_mini.get("/models")).json()["data"]
    assert (model["id"], model["owned_by"], model["capabilities"]) == ("mini-bradley-terry", "infinity",
                                                                     ["classify", "rerank"])  # fmt: skip
    assert model["stats"]["queue_fraction"] == 0.0
    assert {"queue_absolute", "results_pending", "batch_size"} < set(model["stats"])


async def test_a_body_of_a_dialect_that_is_off_is_answered_by_one_that_is_on(mini):
    async with serving(mini, dialects="vllm") as client:
        answer = await client.post("/classify", json={"input": TEXTS[0], "raw_scores": True})
        assert answer.json()["data"][0]["probs"]
        assert (await client.get("/models")).status_code == 404
    async with serving(mini, dialects="infinity,sglang") as client:
        answer = await client.post("/classify", json={"input": TEXTS[0], "raw_scores": True})
        assert answer.json()["object"] == "classify"
