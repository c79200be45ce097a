"""Dialects of a model that reads both responses at once: against the others of the request, or against a set."""

import numpy as np
import pytest

from paragone.codes import ErrorCode
from tests.service.conftest import serving
from tests.service.pairs.longest import Longest

from .conftest import PROMPT, rendered

pytestmark = pytest.mark.anyio

TEXTS = ["a", "abcd", "ab"]
QUERY = {"query": [PROMPT + text for text in TEXTS], "prompts": [PROMPT] * 3}
OTHERS = [(1 - 4 + 1 - 2) / 2, (4 - 1 + 4 - 2) / 2, (2 - 1 + 2 - 4) / 2]
"""Mean log-odds of each against the two others: a letter is a nat."""


@pytest.fixture
def source():
    return Longest()


def asking(source, hosted, **settings):
    return serving({"bt": hosted["bt"]}, pair_sources=[source], aliases={"*": "longest"}, **settings)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


async def test_without_a_setting_it_refuses_and_says_what_to_set(source, hosted):
    async with asking(source, hosted) as client:
        refused = await client.post("/get_reward", json=QUERY)
        assert code(refused) == (422, "reference_required")
        assert 'scalar = "group"' in refused.json()["error"]["message"]
        assert (await client.post("/get_reward", json={**QUERY, "model": "bt"})).status_code == 200
    assert source.asked == []


async def test_the_others_of_a_request_are_compared_once_for_both(source, hosted):
    async with asking(source, hosted, dialects={"scalar": "group"}) as client:
        more = {"query": [*QUERY["query"], "Q?xx", "Q?x"], "prompts": [*QUERY["prompts"], "Q?", "Q?"]}
        answer = await client.post("/get_reward", json=more)
        assert answer.json()["rewards"] == [*OTHERS, 1.0, -1.0]
        assert source.asked == [4]
        reranked = await client.post("/v1/rerank", json={"query": PROMPT, "documents": TEXTS, "model": "dummy"})
        assert [row["index"] for row in reranked.json()["results"]] == [1, 2, 0]
        scores = {row["index"]: row["relevance_score"] for row in reranked.json()["results"]}
        assert [scores[place] for place in range(3)] == pytest.approx(1 / (1 + np.exp(-np.array(OTHERS))))
        classified = await client.post("/v1/ranking", json={"query": {"text": PROMPT}, "passages": TEXTS})
        assert [row["logit"] for row in classified.json()["rankings"]] == sorted(OTHERS, reverse=True)
        assert classified.json()["usage"]["prompt_tokens"] == 6  # of its three comparisons
        for body in (
            {"query": QUERY["query"][:1], "prompts": [PROMPT]},
            {"query": [rendered("a", "b"), rendered("a", "c")]},
        ):
            assert code(await client.post("/get_reward", json=body)) == (422, "reference_required")
        chat = {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "a"}]}
        assert (await client.post("/v1/chat/completions", json=chat)).json()["error"]["code"] == "reference_required"


async def test_a_reference_set_is_what_single_texts_are_held_against(source, hosted):
    async with asking(source, hosted, dialects={"scalar": "references:s"}) as client:
        assert code(await client.post("/get_reward", json=QUERY)) == (404, "reference_unknown")
        body = {"model": "longest", "name": "s", "items": [{"prompt": PROMPT, "responses": ["ab", "abcdef"]}]}
        assert (await client.post("/v1/references", json=body)).status_code == 200
        assert (await client.post("/get_reward", json=QUERY)).json()["rewards"] == [-3.0, 0.0, -2.0]
        assert (await client.post("/rm", json={"prompt": PROMPT, "response": "abcd"})).json() == 0.0
        chat = {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "abcde"}]}
        answer = (await client.post("/v1/chat/completions", json=chat)).json()
        assert answer["choices"][0]["message"]["content"] == "reward:1.0"
        assert source.asked == [6, 2, 2]
        missing = {"query": ["Q?a"], "prompts": ["Q?"]}
        assert code(await client.post("/get_reward", json=missing)) == (422, "reference_missing")
        source.header = {**source.header, "identity": "1" * 64}
        assert code(await client.post("/get_reward", json=QUERY)) == (409, "reference_stale")


async def test_a_comparison_that_fails_refuses_the_request_and_no_text_is_half_compared(source, hosted):
    source.code = ErrorCode.JUDGE_UNPARSED
    async with asking(source, hosted, dialects={"scalar": "group"}) as client:
        body = {"query": [PROMPT + text for text in ("a", "fail", "failed")], "prompts": [PROMPT] * 3}
        refused = await client.post("/get_reward", json=body)
        assert code(refused) == (500, "judge_unparsed")
        assert refused.json()["error"]["message"].startswith("query[1]: ")
        many = {"query": [PROMPT + "a"] * 200, "prompts": [PROMPT] * 200}
        refused = await client.post("/get_reward", json=many)
        assert code(refused) == (413, "too_many_items")
        assert "19900 comparisons for 200 texts" in refused.json()["error"]["message"]


async def test_what_is_about_the_tokens_of_one_text_is_refused(source, hosted):
    async with asking(source, hosted, dialects={"scalar": "group"}) as client:
        for body in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
            refused = await client.post("/tokenize", json=body)
            assert refused.json()["error"]["code"] == "return_unavailable"
        assert (await client.get("/v2/models/longest")).json()["name"] == "longest"
