"""Reference sets over HTTP: stored, named by every scoring route, bound to a model, in memory and in a real Redis."""

import asyncio
import dataclasses

import httpx2
import pytest

from paragone import AsyncClient
from paragone.exceptions import UnknownReferencesError
from paragone_service.api_keys import hash_of
from paragone_service.http.errors import ServiceError
from paragone_service.references.stores import Head, MemorySets
from tests.service.cohorts.members import PROMPT, RESPONSES, TOO_LONG, code, send, tournament, whole
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

REFERENCES = ["No.", "It costs money, and nobody cares for it in summer."]
TOOLS = [{"type": "function", "function": {"name": "search"}}]
SET = {"name": "policy-0", "items": [{"prompt": PROMPT, "responses": REFERENCES}]}
NAMED = {"references": {"set": "policy-0"}}


@pytest.fixture
async def client(store_settings, hosted):
    async with serving(hosted, **store_settings) as client:
        yield client


async def store(client, **changes):
    answer = await client.post("/v1/references", json={**SET, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_set_answers_as_the_listed_references_do_and_costs_no_forward(client):
    stored = await store(client)
    assert (stored["name"], stored["model"], stored["items"], stored["responses"]) == ("policy-0", "gpm", 1, 2)
    assert stored["expires"] is None
    listed = await tournament(client, references=REFERENCES)
    assert await tournament(client, **NAMED) == listed
    # The prompt in its long form is the same prompt.
    long = [{"role": "user", "content": PROMPT}]
    group = {"prompt": long, "responses": list(RESPONSES), **NAMED}
    body = {"groups": [group], "signal": "anchor", "shaping": {"answer_length_penalty": 0.1}}
    answer = (await client.post("/v1/tournaments", json=body)).json()
    assert answer["tournaments"][0]["win_rates"] == listed["win_rates"]
    assert answer["usage"]["cached_responses"] == len(RESPONSES)
    rows = []
    for references in (REFERENCES, {"set": "policy-0"}):
        item = {"prompt": PROMPT, "response": RESPONSES[0], "references": references}
        plain = {"prompt": PROMPT, "response": RESPONSES[1]}
        body = {"items": [plain, item, plain]}
        rows.append((await client.post("/v1/rewards", json=body)).json()["rewards"])
    assert rows[0] == rows[1]
    assert "reference_logit" in rows[1][1]
    members = [answer.json() for answer in await whole(client, **NAMED)]
    rates = [member["reference_win_rate"] for member in members]
    assert rates == pytest.approx(listed["win_rates"], abs=1e-12)


async def test_a_short_request_does_not_become_gigabytes_of_references(hosted):
    async with serving(hosted) as client:
        await store(client, items=[{"prompt": PROMPT, "responses": ["No."] * 10_000}])
        item = {"prompt": PROMPT, "response": "Yes.", **NAMED}
        refused = await client.post("/v1/rewards", json={"items": [item] * 1_700})
        assert code(refused) == (413, "too_many_items")
        assert "17000000 stored references, 272000000 bytes" in refused.json()["error"]["message"]
        group = {"prompt": PROMPT, "responses": ["Yes."], **NAMED}
        assert code(await client.post("/v1/tournaments", json={"groups": [group] * 1_700})) == (413, "too_many_items")
        assert (await client.post("/v1/rewards", json={"items": [item] * 2})).status_code == 200


async def test_what_does_not_fit_a_set_is_an_error_of_its_item(client):
    await store(client)
    item = {"prompt": PROMPT, "response": "Yes."}
    items = [
        {**item, **NAMED},
        {**item, "prompt": "Another?", **NAMED},
        {**item, "tools": TOOLS, **NAMED},
        {**item, "references": {"set": "nothing"}},
        {**item, "references": ["No."]},
    ]
    answer = (await client.post("/v1/rewards", json={"items": items, "on_error": "report"})).json()
    codes = [row.get("error", {}).get("code") for row in answer["rewards"]]
    assert codes == [None, "reference_missing", "reference_missing", "reference_unknown", None]
    for bad, expected in zip(items[1:4], [(422, codes[1]), (422, codes[2]), (404, codes[3])], strict=True):
        refused = await client.post("/v1/rewards", json={"items": [items[0], bad]})
        assert code(refused) == expected
        assert refused.json()["error"]["item"] == 1
        assert code(await send(client, 0, **{**bad, "response": "Yes."})) == expected
    other = await client.post("/v1/rewards", json={"model": "bt", "items": [items[0]]})
    assert code(other) == (409, "reference_stale")
    assert "gpm" in other.json()["error"]["message"]


async def test_sets_are_listed_shown_replaced_and_deleted(client):
    assert (await client.get("/v1/references")).json() == {"references": []}
    first = await store(client)
    await store(client, name="another", items=[*SET["items"], {"prompt": "p", "responses": ["a"]}, *SET["items"]])
    listed = (await client.get("/v1/references")).json()["references"]
    assert [(one["name"], one["items"], one["responses"]) for one in listed] == [("another", 2, 5), ("policy-0", 1, 2)]
    assert (await client.get("/v1/references/policy-0")).json() == first
    await store(client, items=[{"prompt": "p", "responses": ["a"]}])
    group = {"prompt": PROMPT, "responses": ["a", "b"], **NAMED}
    assert code(await client.post("/v1/tournaments", json={"groups": [group]})) == (422, "reference_missing")
    assert (await client.delete("/v1/references/policy-0")).json()["items"] == 1
    for asked in (client.get, client.delete):
        assert code(await asked("/v1/references/policy-0")) == (404, "reference_unknown")
    assert code(await client.post("/v1/tournaments", json={"groups": [group]})) == (404, "reference_unknown")
    assert [one["name"] for one in (await client.get("/v1/references")).json()["references"]] == ["another"]


async def test_a_set_is_forgotten_when_its_time_is_over(client):
    stored = await store(client, ttl_s=0.2)
    assert stored["expires"] == pytest.approx(stored["created"] + 0.2)
    await asyncio.sleep(0.25)
    assert code(await client.get("/v1/references/policy-0")) == (404, "reference_unknown")
    assert (await client.get("/v1/references")).json() == {"references": []}


BAD = [
    ({"name": ""}, 422),
    ({"name": "a/b"}, 422),
    ({"name": "n" * 129}, 422),
    ({"items": []}, 422),
    ({"items": [{"prompt": "p", "responses": []}]}, 422),
    ({"items": [{"prompt": "p", "response": "a"}]}, 422),
    ({"ttl_s": 0}, 422),
    ({"model": "none"}, 404),
    ({"items": [{"prompt": "p", "responses": ["a"]}] * 10_001}, 413),
    # Nothing is stored in parts.
    ({"items": [*SET["items"], {"prompt": "p", "responses": ["a", TOO_LONG]}]}, 422),
]


async def test_bad_sets_are_refused_whole(client):
    for changes, status in BAD:
        answer = await client.post("/v1/references", json={**SET, **changes})
        assert answer.status_code == status, changes
    assert answer.json()["error"]["message"].startswith("items[1].responses[1]: ")
    assert (await client.get("/v1/references")).json() == {"references": []}


async def test_tenants_have_sets_of_their_own(hosted, tmp_path, store_settings):
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name}:{hash_of(name)} tenant={name}\n" for name in ("acme", "zenith")))
    async with serving(hosted, api_key_file=keys, **store_settings) as client:
        acme, zenith = ({"authorization": f"Bearer {name}"} for name in ("acme", "zenith"))
        assert (await client.post("/v1/references", json=SET, headers=acme)).status_code == 200
        assert len((await client.get("/v1/references", headers=acme)).json()["references"]) == 1
        assert (await client.get("/v1/references", headers=zenith)).json() == {"references": []}
        assert code(await client.get("/v1/references/policy-0", headers=zenith)) == (404, "reference_unknown")


async def test_replicas_share_sets_and_damaged_ones_are_never_numbers(hosted, shared_redis, raw):
    settings = {"redis_url": shared_redis.url}
    async with serving(hosted, **settings) as first, serving(hosted, **settings) as second:
        await store(first)
        wanted = await tournament(first, references=REFERENCES)
        assert await tournament(second, **NAMED) == wanted
        (key,) = raw.keys("paragone:references:*:*")
        for name in raw.hkeys(key):
            value = raw.hget(key, name)
            raw.hset(key, name, value[:-1] + bytes([value[-1] ^ 1]))
            group = {"prompt": PROMPT, "responses": list(RESPONSES), **NAMED}
            answer = await second.post("/v1/tournaments", json={"groups": [group]})
            assert code(answer) == (404, "reference_unknown")
            raw.hset(key, name, value)
        raw.delete(key)  # evicted
        assert (await first.get("/v1/references")).json() == {"references": []}


@pytest.mark.usefixtures("raw")
async def test_a_set_that_is_replaced_while_it_is_looked_up_is_still_there(hosted, shared_redis):
    async with serving(hosted, redis_url=shared_redis.url) as client:
        await store(client)
        group = {"prompt": PROMPT, "responses": list(RESPONSES), **NAMED}
        asked = [client.post("/v1/tournaments", json={"groups": [group]}) for _ in range(60)]
        answers, _ = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*(store(client) for _ in range(20))))
    assert {answer.status_code for answer in answers} == {200}


async def test_small_sets_in_memory_count_for_what_they_take():
    store = MemorySets(max_bytes=10_000)
    one = Head("b", "", "m", "i", dimension=1, items=1, responses=1, created=0.0, expires=None)
    contents = {b"p": bytes(4)}
    for name in "abcdabcd":
        await store.put(None, dataclasses.replace(one, name=name), contents)
    with pytest.raises(ServiceError, match="10000 are the most"):
        await store.put(None, dataclasses.replace(one, name="e"), contents)
    await store.delete(None, "a")
    await store.put(None, dataclasses.replace(one, name="e"), contents)


async def test_the_client_stores_lists_names_and_deletes(hosted):
    async with serving(hosted) as raw_client:
        transport = httpx2.ASGITransport(app=raw_client.app)
        async with AsyncClient("http://localhost", transport=transport) as client:
            stored = await client.add_references("policy-0", [(PROMPT, REFERENCES)], ttl_s=60)
            assert stored.responses == 2
            assert await client.references() == [stored]
            named = await client.tournament(PROMPT, RESPONSES, references={"set": "policy-0"})
            assert named.win_rates == (await client.tournament(PROMPT, RESPONSES, references=REFERENCES)).win_rates
            members = [
                client.cohort(PROMPT, response, group="g", slot=slot, size=4, references={"set": "policy-0"})
                for slot, response in enumerate(RESPONSES)
            ]
            rates = [member.reference_win_rate for member in await asyncio.gather(*members)]
            assert rates == pytest.approx(named.win_rates, abs=1e-12)
            assert (await client.delete_references("policy-0")).name == "policy-0"
            with pytest.raises(UnknownReferencesError):
                await client.delete_references("policy-0")
