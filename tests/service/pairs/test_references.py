"""Reference sets of a model that reads both responses at once: texts, named by every route that compares."""

import pytest

from paragone_service.references.stores import Head, MemorySets
from tests.service.conftest import serving

from .longest import Longest

pytestmark = pytest.mark.anyio

REFERENCES = ["ab", {"role": "assistant", "content": "abcd", "reasoning_content": "Hm."}]
SET = {"name": "s", "items": [{"prompt": "q", "responses": REFERENCES[:1]}, {"prompt": "q", "responses": ["abcd"]}]}
NAMED = {"references": {"set": "s"}}


@pytest.fixture
def source():
    return Longest()


@pytest.fixture
async def client(source, hosted, store_settings):
    async with serving({"bt": hosted["bt"]}, pair_sources=[source], **store_settings) as client:
        yield client


async def post(client, path, **body):
    return await client.post(path, json={"model": "longest", **body})


async def stored(client, **changes):
    answer = await post(client, "/v1/references", **{**SET, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rows(client, path, name, **body):
    answer = await post(client, path, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()[name]


async def test_a_set_answers_as_the_listed_references_do(client, source):
    told = await stored(client)
    assert (told["model"], told["items"], told["responses"]) == ("longest", 1, 2)
    assert source.asked == []
    group, item = {"prompt": "q", "responses": ["abc", "a"]}, {"prompt": "q", "response": "abc"}
    listed = {"references": ["ab", "abcd"]}
    for path, name, field, one in (
        ("/v1/tournaments", "tournaments", "groups", group),
        ("/v1/rewards", "rewards", "items", item),
    ):
        named, wanted = [await rows(client, path, name, **{field: [{**one, **by}]}) for by in (NAMED, listed)]
        assert named == wanted
    assert source.asked == [5, 5, 2, 2]


async def test_messages_come_back_as_they_were_stored(client, source, monkeypatch):
    await stored(client, items=[{"prompt": "q", "responses": REFERENCES}])
    seen = []

    async def noted(duels, call):
        seen.extend(duel.second for duel in duels)
        return await Longest.compare(source, [duel for duel in duels if isinstance(duel.second, str)] * 2, call)

    monkeypatch.setattr(source, "compare", noted)
    await rows(client, "/v1/rewards", "rewards", items=[{"prompt": "q", "response": "abc", **NAMED}])
    assert seen[0] == "ab"
    assert seen[1].model_dump(exclude_none=True) == REFERENCES[1]


async def test_a_set_is_of_no_use_to_another_model_or_after_a_change(client, source):
    await stored(client)
    item = {"prompt": "q", "response": "abc", **NAMED}
    assert (await post(client, "/v1/rewards", items=[item])).status_code == 200
    other = await post(client, "/v1/rewards", model="bt", items=[item])
    assert (other.status_code, other.json()["error"]["code"]) == (409, "reference_stale")
    source.header = {**source.header, "identity": "1" * 64}
    bad = {**item, "prompt": "r"}
    body = {"items": [item, bad, {"prompt": "q", "response": "abc", "references": ["a"]}], "on_error": "report"}
    answer = (await post(client, "/v1/rewards", **body)).json()["rewards"]
    assert [row.get("error", {}).get("code") for row in answer] == ["reference_stale", "reference_stale", None]
    await stored(client)
    answer = (await post(client, "/v1/rewards", **body)).json()["rewards"]
    assert [row.get("error", {}).get("code") for row in answer] == [None, "reference_missing", None]


async def test_comparisons_with_a_set_count_and_cutting_is_said_where_it_is_compared(client):
    await stored(client, items=[{"prompt": "q", "responses": ["a"] * 5_001}])
    group = {"prompt": "q", "responses": ["a", "b"], **NAMED}
    answer = await post(client, "/v1/tournaments", groups=[group])
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items")
    assert "10003 comparisons" in answer.json()["error"]["message"]
    item = {"prompt": "q", "response": "a", **NAMED}
    answer = await post(client, "/v1/rewards", items=[item] * 9_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items")
    assert "45009000 comparisons" in answer.json()["error"]["message"]
    refused = await post(client, "/v1/references", **{**SET, "truncation": "error"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")


async def test_texts_in_memory_count_for_what_they_take():
    store = MemorySets(max_bytes=10_000)
    head = Head("b", "a", "m", "i", dimension=None, items=1, responses=1, created=0.0, expires=None)
    with pytest.raises(Exception, match="12300 bytes of memory"):
        await store.put(None, head, {b"p": b"x" * 10_000})
