"""Ids in the client: long texts travel once, and again when the service has dropped what an id stood for.

Against the real service over a socket; the transport is the network's, and writes down what it carries.
"""

import asyncio
import json
import pickle

import httpx2
import pytest
from processes import Redis as RedisServer

from paragone import AsyncClient, Client, checked
from paragone.exceptions import RequestError, TextError, UnknownIdError
from paragone.ids import IdMemory
from paragone.wire import ItemError, PairById
from paragone_models import load_model
from tests.service.conftest import SPECS, make_model, make_tokenizer

from .test_against_the_service import serving

PROMPT = "Should every school have a garden?"
FIT = "A school garden keeps children busy, and they learn to share the work. " * 8
LONG = [f"{start} {FIT}" for start in ("It is fun.", "No! Let them read.", "x")]
PAIRS = [(PROMPT, LONG[0], LONG[1]), (PROMPT, LONG[1], LONG[2]), (PROMPT, LONG[2], LONG[0])]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """Two models that read long texts."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    return {
        name: load_model(make_model(root / name, SPECS[name], tokenizer, seed), name=name, device="cpu", max_length=512)
        for seed, name in enumerate(["gpm", "bt"])
    }


class Noted(httpx2.HTTPTransport):
    """The network, with the bodies and statuses that went over it."""

    def __init__(self):
        super().__init__()
        self.bodies = []
        self.statuses = []

    def handle_request(self, request):
        self.bodies.append(json.loads(request.content))
        response = super().handle_request(request)
        self.statuses.append(response.status_code)
        return response


class NotedAsync(httpx2.AsyncHTTPTransport):
    """The same for coroutines."""

    def __init__(self):
        super().__init__()
        self.bodies = []

    async def handle_async_request(self, request):
        self.bodies.append(json.loads(request.content))
        return await super().handle_async_request(request)


def size(body):
    return len(json.dumps(body))


def logits(answer):
    return [row.logit for row in checked(answer.preferences)]


def test_a_long_text_travels_once_and_the_numbers_stay(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, remembered_ids=100, transport=network) as client, Client(url) as plain:
        expected = logits(plain.preferences(PAIRS))
        assert logits(client.preferences(PAIRS)) == expected
        again = client.preferences(PAIRS)
        assert logits(again) == expected
        assert again.usage.cached_responses == 6
    cold, warm = network.bodies
    assert cold["return"] == ["ids"]
    assert [set(pair) for pair in warm["pairs"]] == [{"first_id", "second_id"}] * 3
    assert size(cold) > 3_000 > 700 > size(warm)


def test_without_being_asked_a_client_sends_and_gets_no_ids(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, transport=network) as client:
        for _ in range(2):
            (row,) = checked(client.preferences(PAIRS[:1]).preferences)
            assert row.first_id is None
    assert (
        network.bodies[0] == network.bodies[1] == {"pairs": [{"prompt": PROMPT, "first": LONG[0], "second": LONG[1]}]}
    )


def test_a_new_response_to_a_known_prompt_goes_with_the_others_id(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, remembered_ids=100, transport=network) as client:
        client.preferences(PAIRS[:1])
        fresh = "Families walk through it on every market day. " * 11
        one = client.prefer(PROMPT, fresh, LONG[1])
        assert one == 1 - client.prefer(PROMPT, LONG[1], fresh)
    assert set(network.bodies[1]["pairs"][0]) == {"prompt", "first", "second_id"}
    assert set(network.bodies[2]["pairs"][0]) == {"first_id", "second_id"}


def test_short_pairs_are_told_in_full(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, remembered_ids=100, transport=network) as client:
        for _ in range(2):
            client.prefer(PROMPT, "Yes.", "No.")
    assert [body["pairs"][0]["first"] for body in network.bodies] == ["Yes.", "Yes."]


def test_a_pair_that_says_what_it_is_judged_by_is_told_in_full(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, remembered_ids=100, transport=network) as client:
        client.prefer(*PAIRS[0])
        for by in ({"principle": "be brief"}, {"criteria": [{"name": "kind", "text": "be kind"}]}):
            with pytest.raises(RequestError, match=next(iter(by))):  # this model goes by none
                client.prefer(*PAIRS[0], **by)
            assert set(network.bodies[-1]["pairs"][0]) == {"prompt", "first", "second", *by}


@pytest.mark.parametrize("on_error", ["refuse", "report"])
def test_what_the_service_has_evicted_is_sent_again_and_only_that(hosted, on_error):
    network = Noted()
    with serving(hosted, memory_cache_mb=0.0021) as url, Client(url, remembered_ids=100, transport=network) as client:
        expected = logits(client.preferences(PAIRS))
        client.preferences([("q", f"{n}", f"-{n}") for n in range(4)])  # there is room for eight: the three go
        client.prefer(PROMPT, LONG[2], LONG[0])  # told by ids, and then in full
        del network.bodies[:], network.statuses[:]
        answer = client.preferences(PAIRS, on_error=on_error)
        assert logits(answer) == pytest.approx(expected, abs=1e-4)
        assert not any(isinstance(row, ItemError) for row in answer.preferences)
        told = [[set(pair) & {"first", "second"} for pair in body["pairs"]] for body in network.bodies]
        assert told[0] == [set(), set(), set()]
        assert told[1] == [{"second"}, {"first"}, set()]
        assert network.statuses == [404 if on_error == "refuse" else 200, 200]


def test_a_service_that_was_restarted_is_told_everything_once_more(hosted):
    network = Noted()
    with serving(hosted) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, remembered_ids=100, transport=network)
        expected = logits(client.preferences(PAIRS))
    with serving(hosted, port=port):
        assert logits(client.preferences(PAIRS)) == pytest.approx(expected, abs=1e-4)
        assert network.statuses == [200, 404, 200]
    client.close()


def test_a_replica_with_the_same_redis_knows_the_ids_until_redis_forgets(hosted):
    redis = RedisServer()
    redis.start()
    shared = {"redis_url": redis.url, "memory_cache_mb": 0}
    network = Noted()
    try:
        with serving(hosted, **shared) as url:
            port = int(url.rpartition(":")[2])
            client = Client(url, remembered_ids=100, transport=network)
            expected = logits(client.preferences(PAIRS))
        with serving(hosted, port=port, **shared):
            assert logits(client.preferences(PAIRS)) == expected
            assert network.statuses == [200, 200]
            redis.end()
            assert logits(client.preferences(PAIRS)) == pytest.approx(expected, abs=1e-4)
            assert network.statuses == [200, 200, 404, 200]
        client.close()
    finally:
        redis.end()


def test_models_prompts_and_tools_are_kept_apart(hosted):
    network = Noted()
    with serving(hosted) as url, Client(url, remembered_ids=100, transport=network) as client:
        client.preferences(PAIRS[:1], model="gpm")
        client.preferences(PAIRS[:1], model="bt")
        client.preferences([("Another prompt?", *PAIRS[0][1:])], model="gpm")
        with pytest.raises(TextError, match="no place for tools"):
            client.preferences([{**network.bodies[0]["pairs"][0], "tools": [{"name": "search"}]}], model="gpm")
    assert all("first" in body["pairs"][0] for body in network.bodies)
    assert network.statuses == [200, 200, 200, 422]


def test_a_split_batch_is_told_part_by_part_and_a_bad_pair_keeps_its_place(hosted):
    pairs = [(f"{PROMPT} {place}", LONG[0], LONG[1]) for place in range(6)]
    with serving(hosted) as url, Client(url, remembered_ids=100, max_items_per_request=2) as client:
        expected = logits(client.preferences(pairs))
        assert logits(client.preferences(pairs)) == expected
    with (
        serving(hosted, port=int(url.rpartition(":")[2])),
        Client(url, remembered_ids=100, max_items_per_request=2) as client,
    ):
        client.preferences(pairs[:4])
        rows = client.preferences([*pairs[:5], ("", *LONG[:2])], on_error="report").preferences
        assert [place for place, row in enumerate(rows) if isinstance(row, ItemError)] == [5]
        assert rows[5].error.item == 5


def test_both_clients_do_it(hosted):
    async def twice(url, network):
        async with AsyncClient(url, remembered_ids=100, transport=network) as client:
            return [logits(await client.preferences(PAIRS)) for _ in range(2)]

    network = NotedAsync()
    with serving(hosted) as url:
        one, other = asyncio.run(twice(url, network))
    assert one == other
    assert set(network.bodies[1]["pairs"][0]) == {"first_id", "second_id"}
    network = NotedAsync()
    with serving(hosted, memory_cache_mb=0.0001) as url:
        assert asyncio.run(twice(url, network))[1] == pytest.approx(one, abs=1e-4)
    assert len(network.bodies) == 3


def test_ids_of_ones_own_are_told_as_they_are_and_raise_when_they_are_unknown(hosted):
    with serving(hosted) as url, Client(url, remembered_ids=100) as client, Client(url) as plain:
        for asking in (client, plain):
            (row,) = checked(asking.preferences(PAIRS[:1], return_=["ids"]).preferences)
            by_id = asking.preferences([PairById(first_id=row.first_id, second_id=row.second_id)])
            assert by_id.preferences[0].probability == row.probability
            with pytest.raises(UnknownIdError) as caught:
                asking.preferences([PAIRS[0], {"first_id": row.first_id, "second_id": "gone"}])
            assert (caught.value.item, caught.value.ids, caught.value.status) == (1, ["gone"], 404)
            copied = pickle.loads(pickle.dumps(caught.value))
            assert (type(copied), copied.ids) == (UnknownIdError, ["gone"])


def test_no_more_ids_are_remembered_than_was_said():
    memory = IdMemory(3)
    for number in range(5):
        memory.remember(bytes([number]), f"id {number}")
        memory.read([bytes([2])])
    assert len(memory) == 3
    assert memory.read([bytes([number]) for number in range(5)]) == [None, None, "id 2", "id 3", "id 4"]
    memory.forget(["id 3", "never"])
    assert memory.read([bytes([3]), bytes([4])]) == [None, "id 4"]
    with pytest.raises(ValueError, match="remembered_ids=-1 must be 0 or more"):
        Client(remembered_ids=-1)
