"""cohere's and Jina's rerank: the recorded requests at both paths, cohere's own clients, and errors that each reads."""

import math

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS

pytestmark = pytest.mark.anyio

ASKED = {"model": "mini-bradley-terry", "query": PROMPT, "documents": RESPONSES}
SCORES = [1 / (1 + math.exp(-reward)) for reward in REWARDS]


def documents(results):
    return [result.get("document") for result in results]


async def test_both_versions_rank_by_the_sigmoid_of_the_reward(ask_mini):
    for version in ("1", "2"):
        body = (await ask_mini.post(f"/v{version}/rerank", json=ASKED)).json()
        assert [result["index"] for result in body["results"]] == [2, 0, 1]
        assert [row["relevance_score"] for row in body["results"][1:]] == pytest.approx(SCORES, abs=1e-4)
        assert body["meta"]["api_version"]["version"] == version
        raw = (await ask_mini.post(f"/v{version}/rerank", json={**ASKED, "use_activation": False})).json()
        assert [row["relevance_score"] for row in raw["results"][1:]] == pytest.approx(REWARDS, abs=1e-4)
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0


async def test_documents_come_back_where_each_version_has_them(ask_mini):
    shown = [{"text": RESPONSES[2]}, {"text": RESPONSES[0]}]
    for version, more, expected in [
        (1, {}, shown), (1, {"return_documents": True}, shown), (1, {"return_documents": False}, [None, None]),
        (2, {}, [None, None]), (2, {"return_documents": True}, shown), (2, {"max_tokens_per_doc": None}, [None, None]),
    ]:  # fmt: skip
        answer = await ask_mini.post(f"/v{version}/rerank", json={**ASKED, "top_n": 2, **more})
        assert documents(answer.json()["results"]) == expected


async def test_documents_may_be_objects_and_a_model_without_a_scalar_holds_them_against_each_other(hosted):
    asked = {"query": PROMPT, "documents": [{"text": text} for text in RESPONSES]}
    async with serving({"gpm": hosted["gpm"]}, dialects={"scalar": "group"}) as client:
        results = (await client.post("/v1/rerank", json=asked)).json()["results"]
        native = {"groups": [{"prompt": PROMPT, "responses": RESPONSES}]}
        (group,) = (await client.post("/v1/tournaments", json=native)).json()["tournaments"]
        assert {result["index"] for result in results} == set(group["ranking"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "query must be a text"),
        ({**ASKED, "documents": []}, 400, "documents is empty"),
        ({**ASKED, "documents": "one"}, 400, "documents must be a list"),
        ({**ASKED, "documents": [3]}, 400, "documents[0] must be a text"),
        ({**ASKED, "documents": ["a"] * 10_001}, 413, "the limit is 10000"),
        ({**ASKED, "query": "é" * 6_401, "documents": ["a"] * 10_000}, 413, "query is read once for each of 10000"),
        ({**ASKED, "documents": ["word " * 2_000]}, 400, "documents[0]"),
        ({**ASKED, "top_n": -1}, 400, "top_n"),
        ({**ASKED, "model": "nobody"}, 404, "[aliases]"),
    ],
)
async def test_errors_have_the_fields_of_either_client(ask_mini, path, body, status, said):
    answer = await ask_mini.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["message"] == answer.json()["detail"] == answer.json()["error"]["message"]


def test_coheres_clients_read_answers_and_errors(address):
    import cohere
    from cohere.errors import BadRequestError

    for client in (cohere.Client("none", base_url=address), cohere.ClientV2("none", base_url=address)):
        with client:
            answer = client.rerank(**ASKED, top_n=2)
            assert [result.index for result in answer.results] == [2, 0]
            assert answer.results[1].relevance_score == pytest.approx(SCORES[0], abs=1e-4)
            with pytest.raises(BadRequestError, match="documents is empty"):
                client.rerank(**{**ASKED, "documents": []})
