import json
import threading

import httpx2
import pytest

from paragone import Client
from paragone.batches import prompt_hash
from paragone.exceptions import (
    KeyRefusedError,
    OracleChangedError,
    RequestError,
    TextError,
    UnknownModelError,
    checked,
)
from paragone.wire import Criterion, Item, ItemError, ModelInfo, Shaping, Tournament
from tests.clients.oracle import MODEL, Clock, Oracle, error, listening, probability


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def client(oracle):
    with Client(transport=oracle.transport()) as client:
        yield client


def test_the_server_is_told_the_deadline_that_the_caller_chose_and_no_other(oracle):
    for settings in ({}, {"timeout_s": 9}):
        with Client(transport=oracle.transport(), **settings) as client:
            client.prefer("p", "a", "b")
    assert [request.headers.get("x-deadline-s", "") for request in oracle.seen] == ["", "9.000"]


def test_prefer_is_the_probability_that_the_first_is_preferred(client):
    assert client.prefer("p", "a longer one", "short") == probability("a longer one", "short") > 0.5
    assert client.prefer("p", "short", "a longer one") < 0.5


def test_preferences_come_in_the_order_of_the_pairs(client):
    answer = client.preferences([("p", "x" * place, "xxx") for place in range(6)])
    assert [row.probability for row in answer.preferences] == [probability("x" * place, "xxx") for place in range(6)]
    assert (answer.model, answer.identity, answer.fingerprint) == ("longer", "a" * 64, "b" * 16)


def test_pairs_may_be_a_generator(client):
    assert len(client.preferences(("p", "a", "b") for _ in range(3)).preferences) == 3


def test_rewards_come_with_what_was_asked_for(client):
    answer = client.rewards([("p", "four"), Item(prompt="p", response="")], return_=["representation"])
    assert [(row.reward, row.representation) for row in answer.rewards] == [(0.4, [0.4]), (0.0, [0.0])]
    assert client.rewards([("p", "four")]).rewards[0].representation is None


def test_a_tournament_ranks_the_responses_of_one_prompt(client):
    answer = client.tournament("p", ["a", "the longest", "middle"], return_=["matrix"])
    assert isinstance(answer, Tournament)
    assert answer.ranking == [1, 2, 0]
    assert len(answer.matrix) == 3


def test_a_tournament_may_be_against_references(client, oracle):
    answer = client.tournament("p", ["four"], references=["four", "four"])
    assert answer.win_rates == [0.5]
    assert oracle.bodies()[0]["groups"][0]["references"] == ["four", "four"]


def test_tournaments_come_in_the_order_of_the_groups(client):
    answer = client.tournaments([("p", ["a", "bbb"]), {"prompt": "q", "responses": ["ccc", "d"]}])
    assert [row.ranking for row in answer.tournaments] == [[1, 0], [0, 1]]


def test_tournaments_say_which_pairs_a_model_of_pairs_is_to_compare(client, oracle):
    client.tournaments([("p", ["a", "bbb"])], comparisons="budget:1", fit="general-preference")
    client.tournaments([("p", ["a", "bbb"])])
    assert [body.get("comparisons") for body in oracle.bodies()] == ["budget:1", None]
    assert [body.get("fit") for body in oracle.bodies()] == ["general-preference", None]


def test_single_calls_say_what_a_batch_can_say_and_nothing_that_was_not_said(client, oracle):
    criteria = [{"name": "kind", "text": "be kind", "weight": 2.0}]
    plan = {"comparisons": "circular", "fit": "general-preference"}
    numbers = {"skew_weight": 0.5, "weights": {"length": 1.0}, "aggregation": "min"}
    client.prefer("p", "a", "b", principle="be brief", **numbers)
    client.prefer("p", "a", "b", criteria=[Criterion(name="kind", text="be kind", weight=2.0)])
    client.tournament("p", ["a", "b"], principle="be brief", **plan, **numbers)
    client.tournament("p", ["a", "b"], criteria=criteria)
    pair, group = {"prompt": "p", "first": "a", "second": "b"}, {"prompt": "p", "responses": ["a", "b"]}
    assert oracle.bodies() == [
        {"pairs": [{**pair, "principle": "be brief"}], **numbers},
        {"pairs": [{**pair, "criteria": criteria}]},
        {"groups": [{**group, "principle": "be brief"}], **plan, **numbers},
        {"groups": [{**group, "criteria": criteria}]},
    ]


def test_tokens_are_what_the_model_sees(client):
    (row,) = client.tokens([("p", "r")]).tokens
    assert (row.text, row.token_ids, row.reads, row.truncated_tokens) == ('"p""r"', [1, 2], [(1, 2)], 0)


def test_models_are_listed_and_described(client):
    assert client.models() == [client.model("longer")]
    assert isinstance(client.model("longer"), ModelInfo)
    assert client.model("longer").demonstration


def test_a_model_id_is_one_step_of_the_path(client, oracle):
    with pytest.raises(UnknownModelError):
        client.model("../tokens?x")
    assert oracle.seen[-1].url.raw_path == b"/v1/models/..%2Ftokens%3Fx"


def test_an_empty_batch_is_asked_and_answered(client):
    assert client.preferences([]).preferences == []
    assert client.rewards([]).rewards == []
    assert client.tournaments([]).tournaments == []


def test_the_model_of_the_call_goes_before_the_model_of_the_client(oracle):
    with Client(transport=oracle.transport(), model="longer") as client:
        client.prefer("p", "a", "b")
        client.prefer("p", "a", "b", model="other")
    with Client(transport=oracle.transport()) as client:
        client.prefer("p", "a", "b")
    assert [body.get("model") for body in oracle.bodies()] == ["longer", "other", None]


def test_requests_carry_the_key_and_the_hash_of_the_prompt(oracle):
    client = Client("http://host/prefix/", api_key="k", transport=oracle.transport())
    with client, pytest.raises(LookupError):
        client.prefer("p", "a", "b")
    (request,) = oracle.seen
    assert str(request.url) == "http://host/prefix/v1/preferences"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["x-paragone-prompt"] == prompt_hash("p")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("paragone/")


def test_a_large_batch_is_split_and_its_order_kept(oracle):
    with Client(transport=oracle.transport(), max_items_per_request=7, concurrency=3) as client:
        answer = client.rewards([(f"p{place % 5}", "x" * place) for place in range(100)])
    assert [row.reward for row in answer.rewards] == [place / 10 for place in range(100)]
    assert answer.usage.forward_responses == 100
    assert len(oracle.seen) == 15
    assert all(len(body["items"]) <= 7 for body in oracle.bodies())


def test_no_more_parts_are_in_flight_than_allowed():
    oracle = Oracle()
    lock, flying, most = threading.Lock(), [0], [0]
    two_are_here = threading.Barrier(2, timeout=30)

    def busy(request):
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        two_are_here.wait()
        answer = oracle(request)
        with lock:
            flying[0] -= 1
        return answer

    with Client(transport=httpx2.MockTransport(busy), max_items_per_request=1, concurrency=2) as client:
        client.rewards([(f"p{place}", "r") for place in range(8)])
    assert most[0] == 2


def test_one_bad_item_refuses_the_batch_and_is_named_by_its_place(oracle):
    batch = [("p", "good")] * 9 + [("q", "bad")]
    client = Client(transport=oracle.transport(), max_items_per_request=3, concurrency=1)
    with client, pytest.raises(TextError) as caught:
        client.rewards(batch)
    assert caught.value.item == 9
    assert caught.value.message.startswith("items[9]")


def test_a_bad_response_is_reported_beside_the_numbers_of_its_group(oracle):
    groups = [("p", ["a", "b"]), ("q", ["a", "bad", "ccc"]), ("r", ["bad", "bad"])]
    with Client(transport=oracle.transport(), max_items_per_request=2, concurrency=1) as client:
        whole, partial, none = client.tournaments(groups, on_error="report", return_=["matrix"]).tournaments
    assert whole.errors is None
    assert isinstance(none, ItemError)
    assert (partial.win_rates[1], partial.ranking, partial.nash[1], partial.copeland[1]) == (None, [2, 0], None, None)
    assert partial.win_rates[0] == (0.5 + probability("a", "ccc")) / 2
    assert partial.matrix[1] == [None] * 3
    (error,) = partial.errors
    assert (error.code, error.item, error.response) == ("response_too_long", 1, 1)
    assert error.message.startswith("groups[1]")  # in the batch, and not in the part
    with pytest.raises(TextError) as caught:
        checked([whole, partial])
    assert (caught.value.item, caught.value.response, caught.value.reference) == (1, 1, None)


def test_signals_and_shaping_are_asked_for_where_they_are_wanted(client, oracle):
    client.tournament("p", ["a", "b"])
    client.tournament("p", ["a", "b"], signal="rank", shaping={"answer_bonus": 0.1})
    client.tournaments([("p", ["a", "b"])], signal="nash", shaping=Shaping(style_penalty=0.2))
    plain, dictionary, typed = oracle.bodies()
    assert not {"signal", "shaping"} & plain.keys()
    assert (dictionary["signal"], dictionary["shaping"]) == ("rank", {"answer_bonus": 0.1})
    assert (typed["signal"], typed["shaping"]) == ("nash", {"style_penalty": 0.2})


@pytest.mark.parametrize(
    "wrong",
    [
        {"signal": "best"},
        {"shaping": {"answer_bonus": 0.1}},  # of no signal
        {"signal": "rank", "shaping": {"bonus": 1}},
        {"signal": "rank", "shaping": {"answer_bonus": -1}},
        {"signal": "rank", "shaping": {"top_percentile": 0}},
    ],
)
def test_a_signal_that_there_is_not_is_refused_before_anything_is_sent(client, oracle, wrong):
    with pytest.raises(RequestError, match=r"signal|shaping"):
        client.tournaments([("p", ["a", "b"])], **wrong)
    assert oracle.seen == []


def test_or_it_is_reported_in_its_place(oracle):
    batch = [("p", "good")] * 9 + [("q", "bad")]
    with Client(transport=oracle.transport(), max_items_per_request=3) as client:
        rows = client.rewards(batch, on_error="report").rewards
    assert [isinstance(row, ItemError) for row in rows] == [False] * 9 + [True]
    assert (rows[9].error.item, rows[9].error.message) == (9, "items[9]: too long")


def test_a_failed_part_is_the_error_of_the_batch_and_ends_the_tries_of_the_others():
    def answer(request):
        if "bad" in request.content.decode():
            return error(422, "empty_prompt", "items[0]: the prompt is empty", 0)
        return error(503, "overloaded", "m")

    batch = [(f"p{place}", "good") for place in range(5)] + [("q", "bad")]
    transport = httpx2.MockTransport(answer)
    sleep = Clock().sleep
    client = Client(transport=transport, max_items_per_request=1, concurrency=6, sleep=sleep)
    with client, pytest.raises(TextError) as caught:
        client.rewards(batch)
    assert caught.value.item == 5


def test_an_oracle_that_changes_within_a_batch_is_an_error():
    answers = iter([Oracle(), Oracle(fingerprint="c" * 16)])
    transport = httpx2.MockTransport(lambda request: next(answers)(request))
    client = Client(transport=transport, max_items_per_request=1, concurrency=1)
    with client, pytest.raises(OracleChangedError, match="fingerprint"):
        client.rewards([("p", "a"), ("q", "b")])


def test_a_lone_surrogate_never_leaves_the_client(client, oracle):
    with pytest.raises(RequestError, match="lone surrogate"):
        client.prefer("p", "a\ud800", "b")
    assert oracle.seen == []


def test_a_wrong_key_is_a_permission_error():
    transport = httpx2.MockTransport(lambda _: error(403, "wrong_key", "this key is not known"))
    with Client(transport=transport, api_key="k") as client:
        with pytest.raises(KeyRefusedError):
            client.models()
        with pytest.raises(PermissionError):
            client.prefer("p", "a", "b")


def test_a_server_that_is_not_there_is_a_connection_error():
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):
        client.prefer("p", "a", "b")


def test_over_a_real_socket_an_overloaded_server_is_asked_again():
    oracle, clock = Oracle(), Clock()
    answers = iter([error(503, "overloaded", "m", retry_after="3"), None])
    with listening(lambda request: next(answers) or oracle(request)) as url, Client(url, sleep=clock.sleep) as client:
        assert client.prefer("p", "é日", "b") > 0.5
    assert clock.waits[0] >= 3
    assert json.loads(oracle.seen[0].content)["pairs"][0]["first"] == "é日"


def test_a_service_on_this_machine_is_not_asked_through_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with listening(Oracle()) as url, Client(url, retries=0) as client:
        assert client.prefer("p", "a", "b") == 0.5


def test_one_client_serves_many_threads(client):
    answers = {}

    def ask(place):
        answers[place] = client.prefer("p", "x" * place, "xxx")

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {place: probability("x" * place, "xxx") for place in range(8)}


def test_the_description_of_a_model_has_every_field_of_the_contract(client):
    assert set(client.model("longer").model_dump()) == set(MODEL)
