"""Cohorts of a model that reads both responses at once: compared once when the group is whole, whoever does it."""

import asyncio
import contextlib

import httpx2
import numpy as np
import pytest

from paragone import AsyncClient
from paragone.codes import ErrorCode
from paragone.exceptions import RequestError
from tests.service.cohorts.members import PROMPT, code, member, rates, send, sending, whole
from tests.service.conftest import serving, until

from .longest import Longest

pytestmark = pytest.mark.anyio

TEXTS = ("a", "abcd", "ab", "abc")


@pytest.fixture
def source():
    return Longest()


@pytest.fixture
async def client(source, hosted, store_settings):
    async with serving({"gpm": hosted["gpm"]}, pair_sources=[source], **store_settings) as client:
        yield client


@pytest.fixture
async def replicas(hosted, shared_redis, raw):
    """Two servers on one Redis, each with a source of its own."""
    assert raw.dbsize() == 0
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            source = Longest()
            serve = serving({"gpm": hosted["gpm"]}, pair_sources=[source], redis_url=shared_redis.url)
            made.append((await stack.enter_async_context(serve), source))
        yield made


def fields(**changes):
    return {"model": "longest", **changes}


async def group_of(client, texts=TEXTS, **changes):
    return await asyncio.gather(
        *(send(client, slot, text, size=len(texts), **fields(**changes)) for slot, text in enumerate(texts))
    )


async def first_three(client, **changes):
    return [await sending(client, slot, TEXTS[slot], **fields(**changes)) for slot in range(3)]


async def table(client, texts=TEXTS, *, status=200, **changes):
    """Return what a tournament says of the same texts."""
    own = {name: changes.pop(name) for name in ("references", "criteria", "principle") if name in changes}
    body = {"groups": [{"prompt": PROMPT, "responses": list(texts), **own}], "return": ["matrix"], **fields(**changes)}
    answer = await client.post("/v1/tournaments", json=body)
    assert answer.status_code == status
    return answer.json()["tournaments"][0]


async def test_members_are_answered_with_what_a_tournament_says_and_compared_once(client, source):
    wanted = await table(client, signal="rank", shaping={"answer_length_penalty": 0.1})
    shaped = {"signal": "rank", "shaping": {"answer_length_penalty": 0.1}, "return": ["matrix_row"]}
    rows = [answer.json() for answer in await group_of(client, **shaped)]
    assert [row["win_rate"] for row in rows] == wanted["win_rates"]
    assert [row["matrix_row"] for row in rows] == wanted["matrix"]
    assert [row["signal"] for row in rows] == wanted["signal"]
    assert [row["rank"] for row in rows] == [4, 1, 3, 2]
    assert [row["compared"] for row in rows] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert [row["identity"] for row in rows] == ["0" * 64] * 4
    for row in rows:
        assert not {"interval", "failed", "reward", "criteria"} & row.keys()
    # One of them has begun it, and says what it has cost.
    assert sorted(row["usage"]["forward_responses"] for row in rows) == [0, 0, 0, 6]
    assert source.asked == [6, 6]
    replayed = await send(client, 1, {"role": "assistant", "content": TEXTS[1]}, **fields(**shaped))
    assert replayed.json()["win_rate"] == wanted["win_rates"][1]
    assert source.asked == [6, 6]


async def test_nothing_is_compared_before_the_last_has_come(client, source):
    waiting = await first_three(client)
    assert not any(one.done() for one in waiting)
    assert source.asked == []
    assert code(await send(client, 0, "another", **fields())) == (409, "cohort_conflict")
    last = await send(client, 3, TEXTS[3], **fields())
    assert rates([*[await one for one in waiting], last]) == (await table(client))["win_rates"]


async def test_members_agree_on_the_plan_and_what_is_judged_by(client):
    waiting = await first_three(client)
    for changes, name in (
        ({"comparisons": "circular"}, "plan of comparisons"),
        ({"references": ["x"]}, "list or set of references"),
        ({"model": "gpm"}, "model"),
    ):
        refused = await send(client, 3, TEXTS[3], **fields(**changes))
        assert code(refused) == (409, "cohort_conflict")
        assert name in refused.json()["error"]["message"]
    assert (await send(client, 3, TEXTS[3], **fields())).status_code == 200
    assert [(await one).status_code for one in waiting] == [200] * 3


async def test_references_listed_or_of_a_set_give_a_win_rate_of_their_own(client, source):
    references = ["ab", "abcdef"]
    wanted = await table(client, references=references, signal="anchor")
    body = {"name": "s", "items": [{"prompt": PROMPT, "responses": references}]}
    assert (await client.post("/v1/references", json=fields(**body))).status_code == 200
    inside = (await table(client))["win_rates"]
    for group, given in (("listed", references), ("named", {"set": "s"})):
        rows = [one.json() for one in await group_of(client, references=given, signal="anchor", group=group)]
        assert [row["reference_win_rate"] for row in rows] == pytest.approx(wanted["win_rates"], abs=1e-12)
        assert [row["signal"] for row in rows] == pytest.approx(wanted["win_rates"], abs=1e-12)
        assert [row["win_rate"] for row in rows] == inside
    assert source.asked == [14, 6, 14, 14]
    unknown = await send(client, 0, **fields(references={"set": "t"}))
    assert code(unknown) == (404, "reference_unknown")


async def test_a_plan_compares_less_and_says_what_and_how_sure_the_rest_is(client, source):
    texts = ["x" * length for length in (1, 4, 2, 3, 6, 5)]
    wanted = await table(client, texts, comparisons="circular")
    rows = [one.json() for one in await group_of(client, texts, comparisons="circular")]
    assert source.asked == [6, 6]
    assert [row["win_rate"] for row in rows] == wanted["win_rates"]
    assert [row["interval"] for row in rows] == wanted["intervals"]
    assert [row["compared"] for row in rows] == [[1, 5], [0, 2], [1, 3], [2, 4], [3, 5], [0, 4]]


async def test_who_was_compared_with_nobody_does_not_vote_and_another_gap_is_inferred(client, source):
    source.code = ErrorCode.JUDGE_UNPARSED
    texts = ["fail", "failed", "broken", "ab", "abc"]
    wanted = await table(client, texts, on_error="report")
    answers = await group_of(client, texts, **{"return": ["matrix_row"]})
    assert code(answers[2]) == (500, "judge_unparsed")
    rows = [answer.json() for answer in answers if answer.status_code == 200]
    assert [row["win_rate"] for row in rows] == [rate for rate in wanted["win_rates"] if rate is not None]
    assert [row["matrix_row"][2] for row in rows] == [None] * 4
    for row in rows:
        assert [(one["slot"], one["code"]) for one in row["unscored"]] == [(2, "judge_unparsed")]
        assert (row["present"], row["missing"]) == (5, [])
    gaps = [[(one["slot"], one["code"]) for one in row.get("failed", [])] for row in rows]
    assert gaps == [[(1, "judge_unparsed")], [(0, "judge_unparsed")], [], []]
    assert rows[0]["interval"][0] < rows[0]["win_rate"] < rows[0]["interval"][1]
    # It is as final as the others' answers.
    assert code(await send(client, 2, "broken", size=5, **fields(**{"return": ["matrix_row"]}))) == (
        500,
        "judge_unparsed",
    )
    assert source.asked == [10, 10]


async def test_if_no_comparison_succeeds_nobody_has_an_answer(client, source):
    source.code = ErrorCode.RESPONSE_TOO_LONG
    assert [code(one) for one in await group_of(client, ["fail", "failed"])] == [(422, "response_too_long")] * 2
    # A reference that was not compared with all counts for nobody.
    references = {"references": ["broken", "x"], "group": "h"}
    for row in [one.json() for one in await group_of(client, TEXTS, **references)]:
        assert [(one["reference"], one["code"]) for one in row["unscored"]] == [(0, "response_too_long")]
    alone = await group_of(client, TEXTS, references=["broken"], group="i")
    assert [code(one) for one in alone] == [(422, "response_too_long")] * 4


async def test_what_passes_fails_all_who_wait_and_is_tried_again_for_whoever_comes_back(client, source):
    source.code = ErrorCode.JUDGE_UNAVAILABLE
    texts = ["fail", "failed", "ab"]
    assert [code(one) for one in await group_of(client, texts)] == [(503, "judge_unavailable")] * 3
    source.code = ErrorCode.JUDGE_UNPARSED
    rows = [one.json() for one in await group_of(client, texts)]
    assert [row["failed"][0]["code"] for row in rows[:2]] == ["judge_unparsed"] * 2
    assert source.asked == [3, 3]


async def test_an_unreadable_member_is_named_at_once_and_the_others_are_compared(client):
    others = [await sending(client, slot, TEXTS[slot], **fields()) for slot in (0, 2, 3)]
    assert code(await send(client, 1, 7, **fields())) == (422, "invalid_request")
    answers = [await one for one in others]
    assert rates(answers) == (await table(client, [TEXTS[slot] for slot in (0, 2, 3)]))["win_rates"]
    assert [[one["slot"] for one in answer.json()["unscored"]] for answer in answers] == [[1]] * 3
    assert [answer.json()["compared"] for answer in answers] == [[2, 3], [0, 3], [0, 2]]


async def test_those_that_came_in_time_are_compared_and_one_alone_has_met_nobody(client, source):
    late = {"deadline_s": 0.5, "on_missing": "score-present"}
    three = await asyncio.gather(*(send(client, slot, TEXTS[slot], **fields(**late)) for slot in (0, 2, 3)))
    assert rates(three) == (await table(client, [TEXTS[slot] for slot in (0, 2, 3)]))["win_rates"]
    assert three[0].json()["missing"] == [1]
    one = (await send(client, 1, TEXTS[1], **fields(group="h", **late))).json()
    assert (one["win_rate"], one["rank"], one["compared"]) == (None, None, [])
    assert source.asked == [3, 3]


async def test_a_client_that_leaves_while_its_group_is_compared_may_come_back(client, source):
    source.gate.clear()
    waiting = [asyncio.ensure_future(send(client, slot, TEXTS[slot], **fields())) for slot in range(4)]
    await until(lambda: source.asked)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    back = asyncio.ensure_future(send(client, 0, TEXTS[0], **fields()))
    source.gate.set()
    assert rates([await back]) == (await table(client))["win_rates"][:1]
    assert source.asked == [6, 6]


async def test_a_request_whose_time_is_over_while_its_group_is_compared_is_sent_again(client, source):
    source.gate.clear()
    headers = {"x-deadline-s": "0.5"}
    bodies = [member(slot, TEXTS[slot], **fields()) for slot in range(4)]
    late = await asyncio.gather(*(client.post("/v1/cohorts", json=body, headers=headers) for body in bodies))
    assert [code(one) for one in late] == [(504, "deadline_exceeded")] * 4
    source.gate.set()
    again = await asyncio.gather(*(client.post("/v1/cohorts", json=body) for body in bodies))
    assert rates(again) == (await table(client))["win_rates"]
    assert source.asked == [6, 6]


async def test_a_higher_attempt_ends_what_is_being_compared(client, source):
    source.gate.clear()
    old = [asyncio.ensure_future(send(client, slot, TEXTS[slot], **fields())) for slot in range(4)]
    await until(lambda: source.asked)
    new = await sending(client, 0, "other", **fields(attempt=1))
    assert [code(await one) for one in old] == [(409, "cohort_superseded")] * 4
    source.gate.set()
    others = await asyncio.gather(*(send(client, slot, TEXTS[slot], **fields(attempt=1)) for slot in (1, 2, 3)))
    assert [answer.status_code for answer in [*others, await new]] == [200] * 4


async def test_a_model_that_is_exchanged_while_its_group_waits_compares_nothing(client, source):
    waiting = await first_three(client)
    before = source.header
    source.header = {**before, "identity": "1" * 64}
    assert code(await send(client, 3, TEXTS[3], **fields())) == (409, "cohort_conflict")
    source.header = before
    source.gate.clear()
    last = asyncio.ensure_future(send(client, 3, TEXTS[3], **fields()))
    await until(lambda: source.asked)
    source.header = {**before, "identity": "1" * 64}
    source.gate.set()
    answers = [await one for one in [*waiting, last]]
    assert [code(one) for one in answers] == [(409, "cohort_conflict")] * 4
    assert "exchanged" in answers[0].json()["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"signal": "reward"}, (422, "return_unavailable")),
        ({"skew_weight": 1.0}, (422, "invalid_request")),
        ({"principle": "be kind"}, (422, "invalid_request")),
        ({"criteria": [{"name": "kind", "text": "be kind"}]}, (422, "invalid_request")),
        ({"comparisons": "budget:2"}, (422, "invalid_request")),
        ({"comparisons": "swiss"}, (422, "invalid_request")),
        ({"size": 200}, (413, "too_many_items")),
        ({"references": ["x"] * 5_000}, (413, "too_many_items")),
        ({"signal": "acyclic", "size": 17}, (422, "invalid_request")),
    ],
)
async def test_what_it_cannot_do_is_refused_at_once(hosted, source, changes, expected):
    async with serving({"gpm": hosted["gpm"]}, pair_sources=[source]) as client:
        assert code(await send(client, 0, **fields(**changes))) == expected


async def test_members_may_come_to_any_replica_and_one_of_them_compares(replicas):
    (first, one), (second, two) = replicas
    sent = [send((first, second)[slot % 2], slot, text, **fields()) for slot, text in enumerate(TEXTS)]
    rows = [answer.json() for answer in await asyncio.gather(*sent)]
    assert sorted([*one.asked, *two.asked]) == [6]
    assert [row["win_rate"] for row in rows] == (await table(first))["win_rates"]
    assert sorted(row["usage"]["forward_responses"] for row in rows) == [0, 0, 0, 6]
    # A repeat reads what is kept, wherever it comes to.
    again = [await send(client, 0, TEXTS[0], **fields()) for client in (first, second)]
    assert rates(again) == [rows[0]["win_rate"]] * 2
    assert sorted([*one.asked, *two.asked]) == [6, 6]


async def test_while_one_replica_compares_the_others_wait_for_it(replicas):
    (first, one), (second, two) = replicas
    one.gate.clear()
    own = [asyncio.ensure_future(send(first, slot, TEXTS[slot], **fields())) for slot in range(4)]
    await until(lambda: one.asked)
    waiting = await sending(second, 1, TEXTS[1], **fields())
    assert not waiting.done()
    one.gate.set()
    assert rates([await waiting]) == rates([await own[1]])
    assert (one.asked, two.asked) == ([6], [])


async def test_a_replica_that_was_killed_while_it_compared_leaves_the_group_to_another(replicas, raw):
    (first, one), (second, two) = replicas
    waiting = [await sending(second, slot, TEXTS[slot], **fields()) for slot in range(3)]
    # A process that was killed gives nothing back: its lease is what is left of it, here with a second to go.
    (key,) = raw.keys("paragone:cohort:*")
    now, _ = raw.time()
    raw.hset(key, mapping={"who": "killed", "until": f"{now + 2}.000"})
    waiting.append(await sending(second, 3, TEXTS[3], **fields()))
    assert two.asked == []
    assert rates([await answer for answer in waiting]) == (await table(first))["win_rates"]
    assert (one.asked, two.asked) == ([6], [6])


async def test_state_that_is_lost_or_damaged_while_it_is_compared_is_never_a_number(replicas, raw):
    (first, one), (second, _) = replicas
    one.gate.clear()
    waiting = [asyncio.ensure_future(send(first, slot, TEXTS[slot], **fields())) for slot in range(4)]
    await until(lambda: one.asked)
    raw.flushall()
    one.gate.set()
    assert [code(await answer) for answer in waiting] == [(503, "cohort_lost")] * 4
    assert rates(await group_of(second)) == (await table(second))["win_rates"]
    (key,) = raw.keys("paragone:cohort:*")
    kept = raw.hget(key, "table")
    raw.hset(key, "table", kept[:-1] + bytes([kept[-1] ^ 1]))
    assert code(await send(first, 0, TEXTS[0], **fields())) == (503, "cohort_lost")
    # A lease of nonsense holds up nobody.
    raw.flushall()
    waiting = [await sending(first, slot, TEXTS[slot], **fields()) for slot in range(3)]
    (key,) = raw.keys("paragone:cohort:*")
    raw.hset(key, mapping={"who": "nobody", "until": "9e99"})
    answers = [await send(second, 3, TEXTS[3], **fields()), *[await answer for answer in waiting]]
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_an_ensemble_says_on_whom_it_abstains(hosted):
    loaded = {name: hosted[name] for name in ("bt", "gpm")}
    models = {name: {"source": f"/models/{name}"} for name in loaded}
    models["both"] = {"source": "ensemble:bt+gpm"}
    async with serving(loaded, models=models) as client:
        matrix = np.array((await table(client, model="both"))["matrix"])
    models["both"]["abstain"] = float(np.median(np.abs(np.log(matrix / matrix.T))[np.triu_indices(4, 1)]))
    async with serving(loaded, models=models) as client:
        rows = [one.json() for one in await group_of(client, model="both")]
        wanted = await table(client, model="both")
    assert [row["win_rate"] for row in rows] == pytest.approx(wanted["win_rates"], abs=1e-12)
    pairs = wanted["abstained"]
    assert 0 < len(pairs) < 6
    others = [[sum(pair) - slot for pair in pairs if slot in pair] for slot in range(4)]
    assert [row.get("abstained", []) for row in rows] == others


async def test_the_client_says_what_is_to_be_compared(hosted, source):
    async with serving({"gpm": hosted["gpm"]}, pair_sources=[source]) as served:
        transport = httpx2.ASGITransport(app=served.app)
        async with AsyncClient("http://localhost", transport=transport, model="longest") as client:
            given = {"group": "g", "size": 4, "comparisons": "circular"}
            members = [client.cohort("q", text, slot=slot, **given) for slot, text in enumerate(TEXTS)]
            assert [one.compared for one in await asyncio.gather(*members)] == [[1, 3], [0, 2], [1, 3], [0, 2]]
            with pytest.raises(RequestError, match="leave criteria out"):
                await client.cohort("q", "a", slot=0, **given, criteria=[{"name": "kind", "text": "be kind"}])
            with pytest.raises(RequestError, match="leave principle out"):
                await client.cohort("q", "a", slot=0, **given, principle="be kind")


async def test_models_with_representations_compare_all_pairs_whatever_the_plan_and_take_no_principle(client):
    all_pairs = await whole(client, model="gpm")
    assert rates(await whole(client, model="gpm", comparisons="circular", group="h")) == rates(all_pairs)
    assert "compared" not in all_pairs[0].json()
    for by in ({"principle": "be kind"}, {"criteria": [{"name": "kind", "text": "be kind"}]}):
        assert code(await send(client, 0, model="gpm", group="i", **by)) == (422, "invalid_request")
