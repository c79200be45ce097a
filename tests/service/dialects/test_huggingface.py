"""Hugging Face's text classification and text-embeddings-inference: recorded requests, the Hub's client, errors."""

import math

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS, rendered

pytestmark = pytest.mark.anyio

TEXTS = [rendered(PROMPT, response) for response in RESPONSES[:2]]
SCORES = [1 / (1 + math.exp(-reward)) for reward in REWARDS]


def classes(*scores):
    return [[{"label": "LABEL_0", "score": pytest.approx(score, abs=1e-4)}] for score in scores]


@pytest.mark.parametrize("path", ["/", "/predict"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": TEXTS[0], "parameters": {}}, classes(SCORES[0])),
        ({"inputs": TEXTS, "parameters": {"function_to_apply": "none"}}, classes(*REWARDS)),
        ({"inputs": TEXTS[0]}, classes(SCORES[0])[0]),
        ({"inputs": TEXTS[0], "raw_scores": True}, classes(REWARDS[0])[0]),
        ({"inputs": [PROMPT, RESPONSES[0]], "raw_scores": True}, classes(REWARDS[0])[0]),
        ({"inputs": [[TEXTS[0]], [PROMPT, RESPONSES[1]]], "raw_scores": True}, classes(*REWARDS)),
    ],
)
async def test_classes_have_the_form_that_the_client_reads(ask_mini, path, body, expected):
    answer = await ask_mini.post(path, json=body)
    assert (answer.status_code, answer.json()) == (200, expected), answer.text


@pytest.mark.parametrize(("more", "scores"), [({}, SCORES), ({"raw_scores": True, "return_text": True}, REWARDS)])
async def test_texts_are_ranked_where_the_body_has_texts(ask_mini, more, scores):
    asked = {"query": PROMPT, "texts": RESPONSES[:2], "truncation_direction": "Right", **more}
    answer = (await ask_mini.post("/rerank", json=asked)).json()
    assert [row["index"] for row in answer] == [0, 1]
    assert [row["score"] for row in answer] == pytest.approx(scores, abs=1e-4)
    assert [row.get("text") for row in answer] == (RESPONSES[:2] if more else [None, None])
    documents = (await ask_mini.post("/rerank", json={"query": PROMPT, "documents": RESPONSES[:2]})).json()
    assert documents["results"][0]["index"] == 0


async def test_a_text_is_cut_only_for_a_client_that_wants_it(last):
    async with serving(last) as client:
        refused = await client.post("/predict", json={"inputs": "word " * 100})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
        answer = await client.post("/predict", json={"inputs": "word " * 100, "truncate": True})
        assert answer.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/", {}, 422, "inputs must be a list"),
        ("/", {"inputs": []}, 422, "inputs is empty"),
        ("/", {"inputs": [], "parameters": {}}, 422, "inputs is empty"),
        ("/", {"inputs": ["a", "b", "c"]}, 422, "a list of a prompt and a response"),
        ("/", {"inputs": [["a"], 3]}, 422, "inputs[1] must be a text"),
        ("/", {"inputs": [3], "parameters": {}}, 422, "inputs[0] must be a text"),
        ("/", {"inputs": "a", "parameters": []}, 422, "parameters must be an object"),
        ("/", {"inputs": "a", "parameters": {"function_to_apply": "softmax"}}, 422, "always 1"),
        ("/", {"inputs": "a", "parameters": {"function_to_apply": "tanh"}}, 422, "sigmoid or none"),
        ("/predict", {"inputs": "a", "raw_scores": "yes"}, 422, "raw_scores must be true or false"),
        ("/predict", {"inputs": [["a"]] * 10_001}, 413, "the limit is 10000"),
        ("/rerank", {"query": "é" * 6_401, "texts": ["a"] * 10_000}, 413, "query is read once for each of 10000"),
        ("/rerank", {"texts": ["a"]}, 422, "query must be a text"),
        ("/rerank", {"query": "a", "texts": []}, 422, "texts is empty"),
        ("/rerank", {"query": "a", "texts": None}, 422, "texts must be a list"),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "nobody"}, 404, "[aliases]"),
    ],
)
async def test_errors_are_texts_with_a_type(ask_mini, path, body, status, said):
    answer = await ask_mini.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert answer.json()["error_type"] == "Validation"


def test_the_hubs_client_reads_answers_and_errors(address, monkeypatch):
    from huggingface_hub import InferenceClient, close_session, constants
    from huggingface_hub.errors import HfHubHTTPError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which refuses loopback too
    close_session()
    for url in (address, f"{address}/predict"):
        (found,) = InferenceClient(url).text_classification(TEXTS[0])
        assert (found.label, found.score) == ("LABEL_0", pytest.approx(SCORES[0], abs=1e-4))
        (raw,) = InferenceClient(url).text_classification(TEXTS[0], function_to_apply="none")
        assert raw.score == pytest.approx(REWARDS[0], abs=1e-4)
        with pytest.raises(HfHubHTTPError, match="a softmax of one score is always 1"):
            InferenceClient(url).text_classification(TEXTS[0], function_to_apply="softmax")
    close_session()
