"""Groups as clients send them: members as bodies, and what came back."""

import asyncio

PROMPT = "Should every school have a garden? Argue for."
RESPONSES = (
    "A school garden keeps children busy, and they learn to share the work.",
    "Because it is fun.",
    "Nobody should be forced to run, but a garden is no race.",
    "Yes.",
)
TOO_LONG = "word " * 400


def member(slot, response=None, **fields):
    size = fields.pop("size", len(RESPONSES))
    given = RESPONSES[slot % len(RESPONSES)] if response is None else response
    return {"group": "g", "slot": slot, "size": size, "prompt": PROMPT, "response": given, **fields}


async def send(client, slot, response=None, **fields):
    return await client.post("/v1/cohorts", json=member(slot, response, **fields))


async def sending(client, slot, response=None, **fields):
    """Return a member's request, under way and not answered at once."""
    task = asyncio.create_task(send(client, slot, response, **fields))
    await asyncio.wait([task], timeout=0.05)
    return task


async def whole(client, slots=range(4), **fields):
    """Return the answers of members that are sent together."""
    return await asyncio.gather(*(send(client, slot, **fields) for slot in slots))


def code(response):
    return response.status_code, response.json()["error"]["code"]


def rates(answers):
    return [answer.json()["win_rate"] for answer in answers]


async def tournament(client, responses=RESPONSES, **fields):
    group = {"prompt": PROMPT, "responses": list(responses), **fields}
    answer = await client.post("/v1/tournaments", json={"groups": [group], "return": ["matrix"]})
    return answer.json()["tournaments"][0]
