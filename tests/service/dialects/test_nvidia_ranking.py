"""NVIDIA's ranking: the recorded requests under both paths."""

import pytest

from tests.service.conftest import serving

from .conftest import PROMPT, RESPONSES, REWARDS

pytestmark = pytest.mark.anyio

ASKED = {"model": "mini-bradley-terry", "query": {"text": PROMPT}, "passages": [{"text": text} for text in RESPONSES]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/ranking",
        "/v1/retrieval/mini-bradley-terry/reranking",
        "/v1/retrieval/elsewhere/mini-bradley-terry/reranking",
    ],
)
async def test_rankings_are_logits_the_best_first(ask_mini, path):
    asked = ASKED if path == "/v1/ranking" else {**ASKED, "model": None}
    answer = await ask_mini.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    rankings = answer.json()["rankings"]
    assert [row["index"] for row in rankings] == [2, 0, 1]
    assert [row["logit"] for row in rankings[1:]] == pytest.approx(REWARDS, abs=1e-4)


async def test_a_passage_over_the_limit_is_refused_unless_the_client_wants_it_cut(last):
    asked = {"query": {"text": "word " * 100}, "passages": [{"text": "a"}]}
    async with serving(last) as client:
        for more, status in (({}, 422), ({"truncate": "NONE"}, 422), ({"truncate": "END"}, 200)):
            answer = await client.post("/v1/ranking", json={**asked, **more})
            assert answer.status_code == status, answer.text
        assert answer.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "query.text must be a text"),
        ({**ASKED, "passages": []}, 422, "passages is empty"),
        ({**ASKED, "passages": {"text": "a"}}, 422, "passages must be a list"),
        ({**ASKED, "passages": [{"image": "a"}]}, 422, "passages[0].text must be a text"),
        ({**ASKED, "passages": [{"text": "a"}] * 10_001}, 413, "the limit is 10000"),
        ({"query": {"text": "é" * 6_401}, "passages": ["a"] * 10_000}, 413, "query.text is read once for each"),
        ({**ASKED, "truncate": "MIDDLE"}, 422, "truncate must be NONE"),
        ({**ASKED, "truncate": []}, 422, "truncate must be NONE"),
        ({**ASKED, "model": "nobody"}, 404, "[aliases]"),
    ],
)
async def test_errors_are_problem_documents_too(ask_mini, body, status, said):
    answer = await ask_mini.post("/v1/ranking", json=body)
    assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
    assert said in answer.json()["detail"]
    assert answer.json()["title"] == answer.json()["error"]["code"]
