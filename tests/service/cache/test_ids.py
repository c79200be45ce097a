"""Ids of responses: what they stand for, who may use them, and what happens when their representation is gone."""

import base64
import contextlib
import itertools

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from paragone_service.cache.keys import NO_SECRET, Ids, secret_of
from tests.service.conftest import serving, until
from tests.service.doubles import metric

pytestmark = pytest.mark.anyio

PROMPT = "Close the street to cars?"
RESPONSES = ["Yes, the air gets cleaner.", "no", "Buses can still stop!"]
PAIRS = [{"prompt": PROMPT, "first": a, "second": b} for a, b in itertools.permutations(RESPONSES, 2)]
SPACE, PROMPT_DIGEST, KEY = b"12345678", bytes(range(16)), b"12345678" + bytes(range(50, 66))


async def ask(client, **body):
    return await client.post("/v1/preferences", json=body)


async def answered(client, **body):
    response = await ask(client, **body)
    assert response.status_code == 200, response.text
    return response.json()


async def ids_of(client, pairs=PAIRS, **more):
    """Return pairs as an answer names them, by two ids each."""
    rows = (await answered(client, pairs=pairs, **{"return": ["ids"]}, **more))["preferences"]
    return [{"first_id": row["first_id"], "second_id": row["second_id"]} for row in rows]


def numbers(answer):
    return [(row["probability"], row["logit"]) for row in answer["preferences"]]


def test_an_id_leads_to_its_prompt_and_key_and_is_the_same_each_time():
    ids = Ids(secret_of(b"key"), SPACE)
    name = ids.id_of(PROMPT_DIGEST, KEY)
    assert (len(name), name) == (64, Ids(secret_of(b"key"), SPACE).id_of(PROMPT_DIGEST, KEY))
    target = ids.read(name)
    assert (target.prompt, target.key) == (PROMPT_DIGEST, KEY)


@pytest.mark.parametrize(
    ("key", "space"), [(b"other", SPACE), (None, SPACE), (b"key", b"another ")], ids=["key", "no key", "model"]
)
def test_an_id_of_another_key_or_model_leads_to_nothing(key, space):
    name = Ids(secret_of(b"key"), SPACE).id_of(PROMPT_DIGEST, KEY)
    target = Ids(secret_of(key), space).read(name)
    assert target.prompt is None
    assert target.key[8:] != KEY[8:]


def test_an_id_that_differs_in_any_bit_leads_to_nothing():
    ids = Ids(secret_of(b"key"), SPACE)
    raw = base64.urlsafe_b64decode(ids.id_of(PROMPT_DIGEST, KEY))
    for bit in range(8 * len(raw)):
        changed = (int.from_bytes(raw, "big") ^ 1 << bit).to_bytes(len(raw), "big")
        assert ids.read(base64.urlsafe_b64encode(changed).decode()).prompt is None


@pytest.mark.parametrize("name", ["", "x", "é" * 64, "A" * 64, "A" * 63 + "=", "!" * 64, "A" * 256])
def test_what_is_no_id_leads_to_nothing(name):
    assert Ids(NO_SECRET, SPACE).read(name).prompt is None


def test_an_id_does_not_show_the_digests_to_who_has_no_key():
    raw = base64.urlsafe_b64decode(Ids(secret_of(b"key"), SPACE).id_of(PROMPT_DIGEST, KEY))
    assert PROMPT_DIGEST[:4] not in raw
    assert KEY[8:12] not in raw


@pytest.mark.parametrize("model", ["gpm", "bt"])
async def test_a_pair_of_ids_has_the_numbers_of_its_texts(client, model):
    in_full = await answered(client, pairs=PAIRS, model=model)
    by_ids = await answered(client, pairs=await ids_of(client, model=model), model=model)
    assert numbers(by_ids) == numbers(in_full)
    assert by_ids["usage"] == {
        "forward_responses": 0, "forward_tokens": 0, "cached_responses": 2 * len(PAIRS), "truncated": 0,
    }  # fmt: skip


async def test_answers_name_nothing_unless_they_are_asked_to(client):
    (row,) = (await answered(client, pairs=PAIRS[:1]))["preferences"]
    assert set(row) == {"probability", "logit", "first_reward", "second_reward"}


async def test_one_side_may_be_in_full(client):
    (named, *_) = await ids_of(client)
    (expected,) = numbers(await answered(client, pairs=PAIRS[:1]))
    one = {"prompt": PROMPT, "first": RESPONSES[0], "second_id": named["second_id"]}
    other = {"prompt": PROMPT, "first_id": named["first_id"], "second": RESPONSES[1]}
    assert numbers(await answered(client, pairs=[one, other])) == [expected, expected]
    fresh = await answered(client, pairs=[{"prompt": PROMPT, "first": "new here", "second_id": named["second_id"]}])
    assert fresh["usage"]["forward_responses"] == 1


async def test_rewards_and_tournaments_give_the_same_ids(client):
    body = {"model": "gpm", "return": ["ids"]}
    (pair, *_) = await ids_of(client)
    items = [{"prompt": PROMPT, "response": response, "references": ["x", "y"]} for response in RESPONSES]
    rewards = (await client.post("/v1/rewards", json={**body, "items": items})).json()["rewards"]
    groups = [{"prompt": "q", "responses": ["a"]}, {"prompt": PROMPT, "responses": RESPONSES, "references": ["x"]}]
    tournaments = (await client.post("/v1/tournaments", json={**body, "groups": groups})).json()["tournaments"]
    assert [row["id"] for row in rewards] == tournaments[1]["ids"]
    assert len(tournaments[0]["ids"]) == 1
    assert tournaments[1]["ids"][:2] == [pair["first_id"], pair["second_id"]]


async def test_an_id_of_another_model_is_unknown_and_one_of_the_same_weights_is_not(hosted):
    twins = {"gpm": hosted["gpm"], "again": hosted["gpm"], "bt": hosted["bt"]}
    async with serving(twins) as client:
        pairs = await ids_of(client, model="gpm")
        assert (await ask(client, pairs=pairs, model="again")).status_code == 200
        refused = await ask(client, pairs=pairs, model="bt")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_id")


async def test_responses_to_different_prompts_are_not_compared(client):
    (here, *_) = await ids_of(client)
    (there,) = await ids_of(client, [{**PAIRS[0], "prompt": "Ban cars?"}])
    mixed = [
        {"first_id": here["first_id"], "second_id": there["second_id"]},
        {"prompt": "Ban cars?", "first": RESPONSES[0], "second_id": here["second_id"]},
        {"prompt": PROMPT, "tools": [{"name": "search"}], "first": RESPONSES[0], "second_id": here["second_id"]},
    ]
    for pair in mixed:
        error = (await ask(client, pairs=[here, pair])).json()["error"]
        assert (error["code"], error["item"]) == ("invalid_request", 1)
        assert "answer different prompts" in error["message"]
    reported = await answered(client, pairs=[mixed[0], here], on_error="report")
    assert reported["preferences"][0]["error"]["code"] == "invalid_request"
    assert 0 < reported["preferences"][1]["probability"] < 1


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"first_id": "x"}, "pairs[0]: give either 'second' or 'second_id', and not both"),
        ({"prompt": "p", "first": "a", "first_id": "x", "second": "b"}, "give either 'first' or 'first_id'"),
        ({"first": "a", "second_id": "x"}, "a response in full needs its prompt beside it"),
        ({"prompt": "p", "first_id": "x", "second_id": "y"}, "two ids know their prompt and tools"),
        ({"first_id": 3, "second_id": "y"}, "pairs[0].first_id: "),
        ({"first_id": "x" * 257, "second_id": "y"}, "pairs[0].first_id: "),
        ({"first_id": "x", "second_id": "y", "third_id": "z"}, "pairs[0].third_id: unknown field"),
        ({"prompt": "p", "first": "a"}, "pairs[0].second: Field required"),
    ],
)
async def test_a_pair_that_says_a_thing_twice_or_not_at_all_is_refused(client, pair, message):
    error = (await ask(client, pairs=[pair])).json()["error"]
    assert (error["code"], error["item"]) == ("invalid_request", 0)
    assert message in error["message"]


async def test_unknown_ids_are_all_named_before_anything_is_run(client):
    (known, *_) = await ids_of(client)
    pairs = [
        known,
        {"first_id": known["first_id"], "second_id": "never"},
        {"prompt": PROMPT, "first": "not run", "second_id": "A" * 64},
        {"first_id": "never", "second_id": "seen"},
    ]
    ran = await metric(client, 'paragone_cache_responses_total{tier="miss"}')
    refused = await ask(client, pairs=pairs)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["item"]) == (404, "unknown_id", 1)
    assert error["ids"] == ["never", "A" * 64, "seen"]
    assert error["message"].startswith("pairs[1]: 3 ids are not known here")
    assert await metric(client, 'paragone_cache_responses_total{tier="miss"}') == ran
    reported = await answered(client, pairs=pairs, on_error="report")
    errors = [row.get("error") for row in reported["preferences"]]
    assert errors[0] is None
    assert [(error["item"], error["ids"]) for error in errors[1:]] == [
        (1, ["never"]), (2, ["A" * 64]), (3, ["never", "seen"]),
    ]  # fmt: skip


async def test_an_id_is_known_if_its_text_comes_in_the_same_request(hosted):
    async with serving(hosted) as one:
        (named, *_) = await ids_of(one)
    async with serving(hosted) as other:
        by_id, in_full = numbers(await answered(other, pairs=[named, PAIRS[0]]))
        assert by_id == in_full


async def test_a_cut_prompt_is_refused_by_its_id_too_where_cutting_is_not_allowed(client):
    (named,) = await ids_of(client, [{"prompt": "word " * 400, "first": "x", "second": "y"}])
    assert (await answered(client, pairs=[named]))["usage"]["truncated"] == 2
    refused = (await ask(client, pairs=[named], truncation="error")).json()["error"]
    assert (refused["code"], refused["item"]) == ("conversation_truncated", 0)


async def test_replicas_with_one_redis_and_one_key_know_each_others_ids_and_others_do_not(hosted, redis_server):
    shared = {"redis_url": redis_server.url}
    mine, theirs = {"authorization": "Bearer mine"}, {"authorization": "Bearer theirs"}
    async with serving(hosted, api_key="mine", headers=mine, **shared) as first:
        pairs = await ids_of(first)
        expected = numbers(await answered(first, pairs=PAIRS))
    async with serving(hosted, api_key="mine", headers=mine, **shared) as second:
        assert numbers(await answered(second, pairs=pairs)) == expected
    async with serving(hosted, api_key="theirs", headers=theirs, **shared) as stranger:
        assert (await ask(stranger, pairs=pairs)).json()["error"]["code"] == "unknown_id"


async def test_what_redis_evicts_is_unknown_until_its_text_comes_again(hosted, redis_server):
    redis = Redis(port=redis_server.port)
    async with serving(hosted, redis_url=redis_server.url, memory_cache_mb=0) as client:
        pairs = await ids_of(client)
        await until(lambda: _holds(redis, len(RESPONSES)))
        assert (await ask(client, pairs=pairs)).status_code == 200
        await _squeeze(redis)
        refused = (await ask(client, pairs=pairs)).json()["error"]
        assert (refused["code"], len(refused["ids"])) == ("unknown_id", len(RESPONSES))
        await redis.flushall()
        await redis.config_set("maxmemory", 0)
        await answered(client, pairs=PAIRS)
        await until(lambda: _holds(redis, len(RESPONSES)))
        assert (await ask(client, pairs=pairs)).status_code == 200
    await redis.aclose()


async def _holds(redis, entries):
    return await redis.dbsize() == entries


async def _squeeze(redis):
    """Have Redis evict everything that it holds, by its own policy, to make room for something else."""
    held = await redis.keys("*")
    await redis.config_set("maxmemory-policy", "volatile-ttl")  # what is written next has no time to live, and stays
    await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] + 500_000)
    for number in range(300):
        with contextlib.suppress(OutOfMemoryError):  # refused once nothing is left to evict
            await redis.set(f"something else {number}", bytes(10_000))
        if not await redis.exists(*held):
            break
    assert (await redis.info("stats"))["evicted_keys"] == len(held)


async def test_what_memory_evicts_is_unknown(hosted):
    async with serving(hosted, memory_cache_mb=0.001) as client:
        pairs = await ids_of(client, PAIRS[:1])
        assert (await ask(client, pairs=pairs)).status_code == 200
        await answered(client, pairs=[{"prompt": PROMPT, "first": f"{n}", "second": f"-{n}"} for n in range(10)])
        refused = (await ask(client, pairs=pairs)).json()["error"]
        assert refused["ids"] == [pairs[0]["first_id"], pairs[0]["second_id"]]
        assert await metric(client, 'paragone_errors_total{code="unknown_id"}') == 1


async def test_a_server_that_keeps_nothing_gives_no_ids(hosted):
    async with serving(hosted, memory_cache_mb=0) as client:
        (row,) = (await answered(client, pairs=PAIRS[:1], **{"return": ["ids"]}))["preferences"]
        assert (row["first_id"], row["second_id"]) == (None, None)


async def test_ten_thousand_pairs_of_unknown_ids_are_all_told_of(client):
    pairs = [{"first_id": f"a{n}", "second_id": f"b{n}"} for n in range(10_000)]
    error = (await ask(client, pairs=pairs)).json()["error"]
    assert len(error["ids"]) == 20_000
    reported = await answered(client, pairs=pairs, on_error="report")
    assert {row["error"]["code"] for row in reported["preferences"]} == {"unknown_id"}


async def test_a_model_that_compares_nothing_refuses_ids_as_it_refuses_texts(client):
    items = [{"prompt": "p", "response": "r"}]
    answer = await client.post("/v1/rewards", json={"model": "ratings", "items": items, "return": ["ids"]})
    name = answer.json()["rewards"][0]["id"]
    refused = await ask(client, model="ratings", pairs=[{"first_id": name, "second_id": name}])
    assert refused.json()["error"]["code"] == "preferences_unavailable"
