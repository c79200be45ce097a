"""Cohorts over HTTP: every rule of a group, as its members see it, with the state in memory and in a real Redis."""

import asyncio
import json
import random

import pytest

from paragone_service.api_keys import hash_of
from paragone_service.http.middleware import Drain
from tests.service.cohorts.members import (
    PROMPT,
    RESPONSES,
    TOO_LONG,
    code,
    member,
    rates,
    send,
    sending,
    tournament,
    whole,
)
from tests.service.conftest import serving
from tests.service.doubles import Leaving, gated

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(store_settings, hosted):
    async with serving(hosted, **store_settings) as client:
        yield client


@pytest.fixture
def shared(shared_redis, raw):
    """What replicas have in common."""
    assert raw.dbsize() == 0
    return {"redis_url": shared_redis.url, "memory_cache_mb": 0}


@pytest.fixture
async def replicas(hosted, shared):
    """Two servers on one Redis."""
    async with serving(hosted, **shared) as first, serving(hosted, **shared) as second:
        yield first, second


async def test_members_are_answered_together_with_what_a_tournament_says(client):
    wanted = await tournament(client)
    answers = await whole(client, **{"return": ["matrix_row"]})
    assert [answer.status_code for answer in answers] == [200] * 4
    rows = [answer.json() for answer in answers]
    assert [row["win_rate"] for row in rows] == wanted["win_rates"]
    assert [row["matrix_row"] for row in rows] == wanted["matrix"]
    assert sorted(range(4), key=lambda slot: rows[slot]["rank"]) == wanted["ranking"]
    for row in rows:
        assert (row["size"], row["present"], row["missing"], row["unscored"]) == (4, 4, [], [])
        assert "reward" not in row
        assert "reference_win_rate" not in row


async def test_nobody_is_answered_before_the_last_has_come(client):
    first = [await sending(client, slot) for slot in range(3)]
    assert not any(one.done() for one in first)
    last = await send(client, 3)
    assert [last.status_code, *[(await one).status_code for one in first]] == [200] * 4


async def test_equal_responses_share_a_rank_and_a_kind_with_rewards_gives_them(client):
    answers = await whole(client, response="Yes.", model="bt", size=4)
    rows = [answer.json() for answer in answers]
    assert [(row["win_rate"], row["rank"]) for row in rows] == [(0.5, 1)] * 4
    item = {"prompt": PROMPT, "response": "Yes."}
    (scored,) = (await client.post("/v1/rewards", json={"model": "bt", "items": [item]})).json()["rewards"]
    assert [row["reward"] for row in rows] == [scored["reward"]] * 4


async def test_a_repeat_joins_while_the_group_waits_and_is_replayed_afterwards(client):
    first = await sending(client, 0)
    again = await sending(client, 0)
    assert not first.done()
    assert not again.done()
    others = await whole(client, [1, 2, 3])
    assert (await first).json()["win_rate"] == (await again).json()["win_rate"]
    # The same response in another form is the same text.
    replayed = await send(client, 0, {"role": "assistant", "content": RESPONSES[0]})
    assert replayed.status_code == 200
    assert replayed.json()["win_rate"] == (await first).json()["win_rate"]
    assert replayed.json()["usage"] == {
        "forward_responses": 0,
        "forward_tokens": 0,
        "cached_responses": 1,
        "truncated": 0,
    }
    assert rates(others) == rates(await whole(client, [1, 2, 3]))


@pytest.mark.parametrize("settled", [False, True])
async def test_a_slot_takes_one_response(client, settled):
    waiting = [await sending(client, slot) for slot in range(4 if settled else 3)]
    assert code(await send(client, 0, "Another answer.")) == (409, "cohort_conflict")
    if not settled:
        waiting.append(await sending(client, 3))
    assert [(await one).status_code for one in waiting] == [200] * 4


DIFFERENT = [
    # Text of its own in each rollout's prompt: refused, and not a group of one.
    ("prompt", {"prompt": PROMPT + " Work in /tmp/rollout-7."}),
    ("prompt", {"tools": [{"type": "function", "function": {"name": "search"}}]}),
    ("size", {"size": 8}),
    ("model", {"model": "bt"}),
    ("list or set of references", {"references": ["No."]}),
    ("on_missing", {"on_missing": "score-present"}),
    ("truncation", {"truncation": "error"}),
    ("signal", {"signal": "nash"}),
]


async def test_members_agree_on_everything_but_their_response(client):
    first = await sending(client, 0)
    for name, fields in DIFFERENT:
        refused = await send(client, 1, **fields)
        assert code(refused) == (409, "cohort_conflict"), name
        assert name in refused.json()["error"]["message"]
    assert not first.done()
    assert [answer.status_code for answer in [*await whole(client, [1, 2, 3]), await first]] == [200] * 4


async def test_groups_are_told_apart_by_their_ids_and_not_by_their_prompts(client):
    first, second = await asyncio.gather(
        whole(client, group="a"), whole(client, range(3), group="b", size=3, response="Yes.")
    )
    assert rates(first) == (await tournament(client))["win_rates"]
    assert rates(second) == [0.5] * 3


async def test_a_higher_attempt_begins_anew_and_ends_the_earlier_one_also_for_those_who_wait(client):
    old = [await sending(client, slot) for slot in range(3)]
    new = [await sending(client, slot, attempt=1) for slot in range(3)]
    for one in old:
        assert code(await one) == (409, "cohort_superseded")
    assert code(await send(client, 3)) == (409, "cohort_superseded")
    assert not any(one.done() for one in new)
    new.append(await sending(client, 3, attempt=1))
    assert [(await one).status_code for one in new] == [200] * 4
    assert code(await send(client, 0)) == (409, "cohort_superseded")
    # The new attempt may have other texts.
    answers = await asyncio.gather(*(send(client, slot, "Yes.", attempt=2) for slot in range(4)))
    assert rates(answers) == [0.5] * 4


async def test_a_lost_member_ends_the_wait_at_the_deadline_which_repeats_do_not_prolong(client):
    async with asyncio.timeout(30):
        waiting = [await sending(client, slot, deadline_s=1) for slot in range(2)]
        waiting.append(await sending(client, 0, deadline_s=500))
        waiting.append(await sending(client, 2, deadline_s=500))
        for one in waiting:
            answer = await one
            assert code(answer) == (504, "cohort_incomplete")
            assert "1 of 4 members" in answer.json()["error"]["message"]
            assert "slots 3" in answer.json()["error"]["message"]
    # It stays so: for repeats, and for the one that was missing.
    assert code(await send(client, 0)) == (504, "cohort_incomplete")
    assert code(await send(client, 3)) == (504, "cohort_incomplete")
    assert rates(await whole(client, attempt=1)) == (await tournament(client))["win_rates"]


async def test_a_member_whose_forward_does_not_end_is_missing(hosted):
    async with gated(hosted) as (client, engine):
        wanted = [await sending(client, slot, deadline_s=3, on_missing="score-present") for slot in range(2)]
        engine.gate.clear()
        late = await send(client, 2, deadline_s=3, on_missing="score-present")
        assert code(late) == (504, "cohort_incomplete")
        assert [(await one).json()["missing"] for one in wanted] == [[2, 3]] * 2


async def test_those_that_came_are_scored_where_all_asked_for_that(client):
    fields = {"deadline_s": 1, "on_missing": "score-present", "return": ["matrix_row"]}
    answers = await whole(client, [0, 2, 3], **fields)
    wanted = await tournament(client, [RESPONSES[slot] for slot in (0, 2, 3)])
    assert rates(answers) == wanted["win_rates"]
    for answer, row in zip(answers, wanted["matrix"], strict=True):
        told = answer.json()
        assert (told["size"], told["present"], told["missing"]) == (4, 3, [1])
        assert told["matrix_row"] == [row[0], None, *row[1:]]
    assert code(await send(client, 1, **fields)) == (504, "cohort_incomplete")
    assert rates([await send(client, 0, **fields)]) == wanted["win_rates"][:1]


async def test_whoever_is_left_alone_has_no_win_rate(client):
    one = (await send(client, 0, size=1, group="one")).json()
    assert (one["win_rate"], one["rank"], one["present"]) == (0.5, 1, 1)  # as a tournament of one
    told = (await send(client, 0, deadline_s=1, on_missing="score-present")).json()
    assert (told["win_rate"], told["rank"], told["missing"]) == (None, None, [1, 2, 3])


async def test_a_client_that_leaves_is_no_member_lost(client):
    leaving = Leaving(client, member(0), "/v1/cohorts")
    await asyncio.wait([leaving.done], timeout=0.05)
    leaving.left.set()
    await leaving.done
    others = await whole(client, [1, 2, 3])
    back = await send(client, 0)
    assert rates([back, *others]) == (await tournament(client))["win_rates"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (json.dumps(TOO_LONG), "response_too_long"),
        (r'"half a pair \ud83d"', "invalid_request"),
        ('{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}', "unsupported_content"),
        ("7", "invalid_request"),
    ],
)
async def test_a_member_that_cannot_be_scored_is_named_and_does_not_vote(client, bad, why):
    others = [await sending(client, slot) for slot in (0, 2, 3)]
    body = json.dumps(member(1)).replace(json.dumps(RESPONSES[1]), bad)
    headers = {"content-type": "application/json"}
    refused = await client.post("/v1/cohorts", content=body.encode(), headers=headers)
    assert code(refused) == (422, why)
    answers = [await one for one in others]
    wanted = await tournament(client, [RESPONSES[slot] for slot in (0, 2, 3)])
    assert rates(answers) == wanted["win_rates"]
    for answer in answers:
        told = answer.json()
        assert (told["present"], told["missing"]) == (4, [])
        assert [(one["slot"], one["code"]) for one in told["unscored"]] == [(1, why)]
    assert code(await client.post("/v1/cohorts", content=body.encode(), headers=headers)) == (422, why)
    assert code(await send(client, 1)) == (409, "cohort_conflict")


async def test_references_give_a_win_rate_of_their_own(client):
    references = ["No.", "It costs money, and nobody cares for it in summer."]
    wanted = await tournament(client, references=references)
    answers = await whole(client, references=references)
    assert [answer.json()["reference_win_rate"] for answer in answers] == pytest.approx(wanted["win_rates"], abs=1e-12)
    assert rates(answers) == rates(await whole(client, group="without"))
    alone = await send(client, 0, references=references, size=1, group="one")
    assert alone.json()["reference_win_rate"] == pytest.approx(wanted["win_rates"][0], abs=1e-12)


async def test_a_reference_that_cannot_be_scored_is_named_and_left_out(client):
    answers = await whole(client, references=["No.", TOO_LONG])
    wanted = await tournament(client, references=["No."])
    for answer, rate in zip(answers, wanted["win_rates"], strict=True):
        told = answer.json()
        assert told["reference_win_rate"] == pytest.approx(rate, abs=1e-12)
        assert [(one["reference"], one["code"]) for one in told["unscored"]] == [(1, "response_too_long")]


async def test_a_signal_is_that_of_a_tournament_also_where_one_does_not_vote(client):
    for signal in ("win_rate", "rank", "anchor", "nash", "elimination", "acyclic"):
        own = {"signal": signal, **({"shaping": {"answer_length_penalty": 0.1}} if signal == "rank" else {})}
        fields = {**own, "references": ["No."], "group": signal}
        bad = {1: TOO_LONG}
        answers = await asyncio.gather(*(send(client, slot, bad.get(slot), **fields) for slot in range(4)))
        group = {"prompt": PROMPT, "responses": [RESPONSES[slot] for slot in (0, 2, 3)], "references": ["No."]}
        (wanted,) = (await client.post("/v1/tournaments", json={"groups": [group], **own})).json()["tournaments"]
        signals = [answers[slot].json()["signal"] for slot in (0, 2, 3)]
        assert signals == pytest.approx(wanted["signal"], abs=1e-9), signal
        assert code(answers[1]) == (422, "response_too_long")


BAD = [
    ({"group": ""}, 422),
    ({"group": "g" * 257}, 422),
    ({"group": 7}, 422),
    ({"slot": 4}, 422),
    ({"slot": -1}, 422),
    ({"slot": "0"}, 422),
    ({"size": 0}, 422),
    ({"size": 1025}, 422),
    ({"size": 2.5}, 422),
    ({"attempt": -1}, 422),
    ({"attempt": None}, 422),
    ({"deadline_s": 0}, 422),
    ({"on_missing": "guess"}, 422),
    ({"references": []}, 422),
    ({"prompt": ""}, 422),
    ({"prompt": 5}, 422),
    ({"unknown": 1}, 422),
    ({"model": "none"}, 404),
    ({"model": "ratings"}, 422),
    ({"signal": "luck"}, 422),
    ({"signal": "anchor"}, 422),
    ({"signal": "reward"}, 422),
    ({"signal": "acyclic", "size": 17}, 422),
    ({"signal": "nash", "size": 257}, 422),
    ({"shaping": {}}, 422),
]


async def test_bad_fields_are_refused_at_once_and_hold_up_nobody(hosted):
    async with serving(hosted) as client:
        for fields, status in BAD:
            async with asyncio.timeout(20):
                answer = await client.post("/v1/cohorts", json={**member(0), **fields})
            assert answer.status_code == status, fields
            assert "garden" not in answer.json()["error"]["message"]
        for body in ("[]", "7", "null", "{}", '{"group": "g"}'):
            answer = await client.post("/v1/cohorts", content=body, headers={"content-type": "application/json"})
            assert code(answer) == (422, "invalid_request")


async def test_tenants_do_not_meet_in_a_group(hosted, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name}:{hash_of(name)} tenant={name}\n" for name in ("acme", "zenith")))
    async with serving(hosted, api_key_file=keys) as client:

        async def as_(name, slot):
            headers = {"authorization": f"Bearer {name}"}
            return await client.post("/v1/cohorts", json=member(slot, size=2, deadline_s=1), headers=headers)

        lonely, *pair = await asyncio.gather(as_("zenith", 0), as_("acme", 0), as_("acme", 1))
        assert code(lonely) == (504, "cohort_incomplete")
        assert [answer.status_code for answer in pair] == [200, 200]


async def test_members_may_come_to_any_replica(replicas):
    first, second = replicas
    answers = await asyncio.gather(*(send(replicas[slot % 2], slot) for slot in range(4)))
    assert rates(answers) == (await tournament(first))["win_rates"]
    assert rates(await whole(second)) == rates(answers)
    # Also the end of an attempt is heard of everywhere, and so is a conflict.
    old = await sending(first, 0, group="h")
    new = await sending(second, 0, group="h", attempt=1)
    assert code(await old) == (409, "cohort_superseded")
    assert code(await send(first, 0, "Another.", group="h", attempt=1)) == (409, "cohort_conflict")
    others = await whole(first, [1, 2, 3], group="h", attempt=1)
    assert rates([await new, *others]) == rates(answers)


async def test_state_that_was_evicted_fails_those_who_wait_and_makes_no_smaller_group(replicas, raw):
    first, second = replicas
    waiting = [await sending(first, 0), await sending(second, 1)]
    raw.flushall()
    # Others begin the group anew before it is noticed.
    late = [await sending(second, slot) for slot in (2, 3)]
    answers = [await one for one in waiting]
    for answer in answers:
        assert code(answer) == (503, "cohort_lost")
        assert answer.headers["retry-after"] == "1"
    assert not any(one.done() for one in late)
    again = await whole(first, [0, 1])
    assert rates([*again, *[await one for one in late]]) == (await tournament(first))["win_rates"]


async def kept(raw, name):
    """Return the key of the only cohort, and what it has under a name once it is there."""
    async with asyncio.timeout(20):
        while True:
            for key in raw.keys("paragone:cohort:*"):
                if (value := raw.hget(key, name)) is not None:
                    return key, value
            await asyncio.sleep(0.01)


async def test_damaged_state_is_never_a_number(replicas, raw):
    first, second = replicas
    wanted = (await tournament(first))["win_rates"]
    seen = set()
    asked = await sending(first, 0, group="probe")
    probe, _ = await kept(raw, b"m0")
    asked.cancel()
    names = {b"attempt", b"terms", b"head", b"state", b"count", b"d0", b"m0", b"d1", b"m1"}
    assert names - {b"d1", b"m1"} == set(raw.hkeys(probe))
    for number, name in enumerate(sorted(names)):
        raw.flushall()
        group = f"g{number}"
        waiting = [await sending(first, slot, group=group, deadline_s=20) for slot in (0, 1, 2)]
        key, value = await kept(raw, name)
        damaged = b"1" if name in (b"attempt", b"count") else value[:-1] + bytes([value[-1] ^ 1])
        raw.hset(key, name, damaged)
        async with asyncio.timeout(30):
            last = await send(second, 3, group=group, deadline_s=20)
            answers = [*[await one for one in waiting], last]
        statuses = {answer.status_code for answer in answers}
        # Either the damage was in what nobody needed any more, or everybody is told.
        if statuses == {200}:
            assert rates(answers) == pytest.approx(wanted, abs=1e-5)
        else:
            assert 200 not in statuses, name
            seen |= {code(answer) for answer in answers}
    assert seen == {(503, "cohort_lost"), (409, "cohort_superseded")} or seen == {(503, "cohort_lost")}


async def test_a_server_that_shuts_down_sends_its_waiting_members_to_another_replica(hosted, shared):
    drain = Drain()
    async with serving(hosted, drain=drain, **shared) as leaving, serving(hosted, **shared) as staying:
        waiting = [await sending(leaving, 0), await sending(leaving, 1)]
        drain.begun = True
        for one in waiting:
            assert code(await one) == (503, "shutting_down")
        assert (await whole(staying, [2, 3, 0, 1]))[0].status_code == 200


async def test_a_thousand_members_in_flight_are_all_answered(replicas):
    client, _ = replicas
    size, groups = 8, 125
    responses = [f"Answer number {slot}." for slot in range(size)]
    wanted = (await tournament(client, responses))["win_rates"]
    places = [(slot, group) for slot in range(size) for group in range(groups)]
    random.Random(0).shuffle(places)
    answers = await asyncio.gather(*(answered(client.app, slot, group, responses) for slot, group in places))
    assert [rate for rate in answers if isinstance(rate, str)] == []
    assert answers == pytest.approx([wanted[slot] for slot, _ in places], abs=1e-6)


async def answered(app, slot, group, responses):
    """Return a member's win rate, or what came instead of it; an HTTP client would take most of the test's time."""
    body = json.dumps(member(slot, responses[slot], group=f"g{group}", size=len(responses))).encode()
    waiting = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent = []

    async def receive():
        message = next(waiting, None)
        return message if message is not None else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": "/v1/cohorts",
        "raw_path": b"/v1/cohorts",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("test", 80),
        "client": ("test", 8 * group + slot),
    }
    await app(scope, receive, send)
    told = json.loads(b"".join(message.get("body", b"") for message in sent))
    return told["win_rate"] if sent[0]["status"] == 200 else str(told)
