"""Groups as clients send them: members as bodies, and what came back."""

import asyncio

PROMPT = "Should every school have a garden? Argue for."
RESPONSES = (
    "A school garden keeps children busy, and they learn to share the work.",
    "Because it is fun.",
    "Nobody should be forced to run, but a garden is no race.",
    "Yes.",
)


def member(slot, response=None, **fields):
    size = fields.pop("size", len(RESPONSES))
    given = RESPONSES[slot % len(RESPONSES)] if response is None else response
    return {"group": "g", "slot": slot, "size": size, "prompt": PROMPT, "response": given, **fields}


async def send(client, **fields):
    return await client.post("/v1/cohorts", json=member(**fields))


def sending(client, **fields):
    return asyncio.create_task(send(client, **fields))


def code(response):
    return response.status_code, response.json()["error"]["code"]
