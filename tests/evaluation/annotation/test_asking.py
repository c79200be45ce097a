"""How many requests are in flight, and what a service's refusals do to them."""

import asyncio
import json

import httpx2
import pytest

from paragone import AsyncClient, ParagoneError
from paragone.wire import ModelInfo
from paragone_evaluation.annotation.asking import Asker, Window
from paragone_evaluation.annotation.kinds import KINDS
from paragone_evaluation.annotation.rows import Chunk, Entry, chunks_of
from paragone_evaluation.readers.files import FilePass

INFO = ModelInfo.model_validate(
    {
        "id": "m", "kind": "bradley-terry", "source": "s", "identity": "i", "fingerprint": "f", "numerics": {},
        "limits": {"max_tokens": 9, "max_items": 9, "max_body_bytes": 9}, "temperature": 1.0, "calibrated": False,
        "attributes": [], "dimension": 1, "demonstration": False, "engine": "local", "pooling": "last",
        "special_tokens": "escape", "reasoning": "keep",
    }
)  # fmt: skip


class Service(httpx2.AsyncBaseTransport):
    """Answers rewards as ``answer`` says: a status and a body for the responses of a request."""

    def __init__(self, answer):
        self.answer, self.asked, self.flying, self.most = answer, [], 0, 0

    async def handle_async_request(self, request):
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0)
        responses = [item["response"] for item in json.loads(request.content)["items"]]
        self.asked.append(responses)
        self.flying -= 1
        status, body, headers = self.answer(responses)
        return httpx2.Response(status, json=body, headers=headers)


def rewards(responses, fingerprint="f"):
    usage = dict.fromkeys(("forward_responses", "forward_tokens", "cached_responses", "truncated"), 0)
    rows = [{"reward": float(len(one))} for one in responses]
    head = {"model": "m", "identity": "i", "fingerprint": fingerprint, "calibrated": False}
    return 200, {**head, "rewards": rows, "usage": usage}, {}


def refusal(status, code, item=None, **headers):
    return (
        status,
        {"error": {"code": code, "message": f"items[{item}]: no" if item is not None else "no", "item": item}},
        headers,
    )


def chunk(*responses):
    rows = [Entry(number, {}, b"", [{"prompt": "p", "response": one}]) for number, one in enumerate(responses)]
    return Chunk(rows, len(rows))


def asked(service, *chunks, window=None):
    async def run():
        places = window or Window(8)
        client = AsyncClient("http://service", transport=service, sleep=places.sleep, retries=5)
        async with client:
            asker = Asker(client, KINDS["rewards"], INFO, places)
            return [await asker.ask(one) for one in chunks]

    return asyncio.run(run())


def test_a_row_that_the_service_names_fails_alone():
    def answer(responses):
        return refusal(422, "empty_prompt", responses.index("bad")) if "bad" in responses else rewards(responses)

    service = Service(answer)
    ((one, bad, other),) = asked(service, chunk("a", "bad", "bbb"))
    assert (one.fields, other.fields) == ({"rewards": [1.0]}, {"rewards": [3.0]})
    assert [(failure.code, failure.message) for failure in bad.failures] == [("empty_prompt", "no")]
    assert len(service.asked) == 2


@pytest.mark.parametrize(("status", "code"), [(413, "body_too_large"), (500, "engine_failed")])
def test_a_row_that_nobody_names_is_found(status, code):
    def answer(responses):
        return refusal(status, code) if "bad" in responses else rewards(responses)

    (answers,) = asked(Service(answer), chunk(*("a" * n for n in range(1, 8)), "bad"))
    assert [row.fields and row.fields["rewards"] for row in answers] == [*([float(n)] for n in range(1, 8)), None]
    assert answers[-1].failures[0].code == code


def test_a_service_that_refuses_everything_ends_the_run():
    service = Service(lambda responses: refusal(500, "engine_failed"))  # noqa: ARG005
    with pytest.raises(ParagoneError):
        asked(service, chunk(*("a" * n for n in range(1, 60))))
    assert len(service.asked) < 120


def test_another_model_in_the_middle_ends_the_run():
    with pytest.raises(ValueError, match="another model"):
        asked(Service(lambda responses: rewards(responses, "g")), chunk("a"))


def test_retry_after_halves_what_is_in_flight_and_answers_open_it_again():
    refused = 6

    def answer(responses):
        nonlocal refused
        if refused:
            refused -= 1
            return refusal(503, "overloaded", **{"retry-after": "0"})
        return rewards(responses)

    async def run():
        window = Window(16)
        window.limit = 16.0
        service = Service(answer)
        async with AsyncClient("http://service", transport=service, sleep=window.sleep) as client:
            asker = Asker(client, KINDS["rewards"], INFO, window)
            chunks = [chunk("a" * n) for n in range(1, 41)]
            await asyncio.gather(*map(asker.ask, chunks[:8]))
            held = window.limit
            service.most = 0
            await asyncio.gather(*map(asker.ask, chunks[8:]))
        return held, window.limit, service.most

    held, after, most = asyncio.run(run())
    assert 8 <= held < 10  # halved once: those that were refused together are one refusal
    assert held < after < 16
    assert most <= after


def test_no_request_begins_while_one_waits():
    async def run():
        moments = [0.0]
        window = Window(4, clock=lambda: moments[0])
        waiting = asyncio.create_task(window.sleep(0.05))
        await asyncio.sleep(0)
        entered = asyncio.create_task(window.__aenter__())
        await asyncio.sleep(0)
        begun = entered.done()
        moments[0] = 1.0
        await asyncio.gather(waiting, entered)
        return begun

    assert asyncio.run(run()) is False


@pytest.mark.parametrize(("in_pairs", "rows"), [(False, [6, 4]), (True, [2, 2, 2, 2, 2])])
def test_a_request_holds_as_much_work_as_the_model_has_with_it(tmp_path, in_pairs, rows):
    file = tmp_path / "in.jsonl"
    row = {"prompt": "Why?", "responses": ["a", "b", "c", "d"]}
    file.write_text("".join(json.dumps(row | {"id": str(at)}) + "\n" for at in range(10)))
    reading = FilePass(file, unjudged=True)
    chunks = chunks_of(reading, KINDS["tables"], most_forwards=24, most_characters=1 << 20, in_pairs=in_pairs)
    assert [len(chunk.rows) for chunk in chunks] == rows
