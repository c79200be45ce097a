"""Cohorts over HTTP: every rule of a group, as its members see it."""

import asyncio

import pytest

from tests.service.cohorts.members import PROMPT, RESPONSES, send, sending

pytestmark = pytest.mark.anyio


async def tournament(client, **fields):
    group = {"prompt": PROMPT, "responses": list(RESPONSES), **fields}
    answer = await client.post("/v1/tournaments", json={"groups": [group], "return": ["matrix"]})
    return answer.json()["tournaments"][0]


async def test_members_are_answered_together_with_what_a_tournament_says(client):
    wanted = await tournament(client)
    answers = await asyncio.gather(*(send(client, slot=slot, **{"return": ["matrix_row"]}) for slot in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    rows = [answer.json() for answer in answers]
    assert [row["win_rate"] for row in rows] == wanted["win_rates"]
    assert [row["matrix_row"] for row in rows] == wanted["matrix"]
    best_first = sorted(range(4), key=lambda slot: rows[slot]["rank"])
    assert best_first == wanted["ranking"]
    for row in rows:
        assert (row["size"], row["present"], row["missing"], row["unscored"]) == (4, 4, [], [])
        assert "reward" not in row
        assert "reference_win_rate" not in row


async def test_nobody_is_answered_before_the_last_has_come(client):
    first = [sending(client, slot=slot) for slot in range(3)]
    await asyncio.wait(first, timeout=0.3)
    assert not any(one.done() for one in first)
    last = await send(client, slot=3)
    assert [last.status_code, *[(await one).status_code for one in first]] == [200] * 4
