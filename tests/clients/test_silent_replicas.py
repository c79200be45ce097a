"""A replica that accepts requests and says nothing is left after seconds; one that takes long and lives is not."""

import asyncio
import contextlib
import socket
import threading
import time

import httpx2
import pytest

import paragone.addresses
import paragone.transport
from paragone import AsyncClient, Client
from paragone.addresses import LIFE_TIMEOUT_S, Addresses, Doubt
from paragone.exceptions import UnavailableError
from tests.clients.oracle import Clock, Oracle, listening, probability

A, B = "http://a", "http://b"
PROMPTS = [f"prompt {place}" for place in range(6)]  # so many that some prefer either address


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Let a tenth of a second be what seconds are."""
    monkeypatch.setattr(paragone.addresses, "_SILENCE_S", 0.1)
    monkeypatch.setattr(paragone.addresses, "LIFE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(paragone.transport, "LIFE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(paragone.transport, "_LOOK_S", 0.02)


@contextlib.contextmanager
def stopped():
    """Yield the address of what is to its clients a stopped process: the kernel accepts, and nobody reads."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def ask_all(kind, urls, **settings):
    """Return the answers to all prompts, asked at once."""
    if kind is AsyncClient:

        async def main():
            async with AsyncClient(urls, **settings) as client:
                return await asyncio.gather(*(client.prefer(prompt, "longer", "b") for prompt in PROMPTS))

        return asyncio.run(main())
    answers = {}
    with Client(urls, **settings) as client:

        def ask(prompt):
            answers[prompt] = client.prefer(prompt, "longer", "b")

        threads = [threading.Thread(target=ask, args=[prompt]) for prompt in PROMPTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [answers.get(prompt) for prompt in PROMPTS]


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_request_to_a_stopped_process_is_answered_by_the_other_address(kind):
    with stopped() as silent, listening(Oracle()) as url:
        began = time.monotonic()
        assert ask_all(kind, [silent, url]) == [probability("longer", "b")] * len(PROMPTS)
        assert time.monotonic() - began < 60  # its share of the 300 s would be 150


@both
def test_an_address_that_takes_long_and_lives_is_not_left(kind):
    oracle, other = Oracle(), Oracle()

    def slow(request):
        if request.url.path.startswith("/v1"):
            time.sleep(0.6)  # six times as long as it may say nothing
        return oracle(request)

    with listening(slow) as url, listening(other) as quick:
        assert ask_all(kind, [url, quick]) == [probability("longer", "b")] * len(PROMPTS)
    asked = [request.url.path for request in oracle.seen + other.seen]
    assert asked.count("/v1/preferences") == len(PROMPTS)
    assert "/livez" in asked
    assert asked.count("/livez") < 2 * 6  # they ask for one another, and not each for itself


@both
def test_an_address_that_drains_refuses_the_question_whether_it_lives_and_is_not_left(kind):
    refused = []

    def draining(request):
        if request.url.path == "/livez":
            refused.append(request)
            raise httpx2.ConnectError("refused")
        time.sleep(0.4)
        return oracle(request)

    oracle = Oracle()
    # Its connection breaks at /livez, as that of a server that listens no more and still answers.
    with listening(draining) as url, listening(oracle) as other:
        assert ask_all(kind, [url, other]) == [probability("longer", "b")] * len(PROMPTS)
    assert refused
    assert len([one for one in oracle.seen if one.url.path == "/v1/preferences"]) == len(PROMPTS)


def test_where_all_are_silent_the_retry_time_is_used_and_the_reason_said():
    with (
        stopped() as one,
        stopped() as other,
        Client([one, other], retry_s=1) as client,
        pytest.raises(UnavailableError, match="does not answer /livez either"),
    ):
        client.prefer("p", "a", "b")


def test_one_request_asks_whether_an_address_lives_and_the_others_hear_of_it():
    clock = Clock()
    addresses = Addresses([A, B], clock)
    since = clock()
    assert addresses.doubt(A, since) is Doubt.NONE
    clock.now += 0.11
    assert addresses.doubt(A, since) is Doubt.ASK
    assert addresses.doubt(A, since) is Doubt.NONE  # while the first one asks
    addresses.heard(A)
    assert addresses.doubt(A, since) is Doubt.NONE
    clock.now += LIFE_TIMEOUT_S
    assert addresses.doubt(A, since) is Doubt.ASK
    addresses.failed(A, silent=True)
    assert addresses.doubt(A, since) is Doubt.SILENT
    clock.now += 0.01
    assert addresses.doubt(A, clock()) is Doubt.NONE  # a request that began later finds out for itself
    assert addresses.doubt(B, clock()) is Doubt.NONE


def test_requests_that_wait_for_a_stopped_process_leave_room_for_others():
    with stopped() as silent, listening(Oracle()) as url:

        async def main():
            async with AsyncClient([silent, url]) as client:
                asked = (client.prefer(f"prompt {place}", "longer", "b") for place in range(300))
                return await asyncio.gather(*asked)

        assert asyncio.run(main()) == [probability("longer", "b")] * 300
