import asyncio
import inspect

import httpx2
import pytest

from paragone import AsyncClient, Client
from paragone.exceptions import OracleChangedError, TextError, UnknownModelError
from paragone.wire import ItemError
from tests.clients.oracle import Clock, Oracle, error, listening, probability


def run(oracle, ask, **arguments):
    """Return what a coroutine function makes of a client."""

    async def main():
        async with AsyncClient(transport=httpx2.MockTransport(oracle), **arguments) as client:
            return await ask(client)

    return asyncio.run(main())


def test_both_clients_have_the_same_methods_with_the_same_parameters_and_words():
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncClient) if not name.startswith("_")}
    for name in public:
        waits, awaits = getattr(Client, name), getattr(AsyncClient, name)
        if isinstance(waits, property):
            assert awaits.__doc__ == waits.__doc__
            continue
        assert inspect.signature(waits) == inspect.signature(awaits)
        assert awaits.__doc__ == waits.__doc__ or f"``Client.{name}``" in awaits.__doc__
        assert inspect.iscoroutinefunction(awaits)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def test_every_route_is_answered():
    async def ask(client):
        assert await client.prefer("p", "longer", "b") == probability("longer", "b")
        assert len((await client.preferences([("p", "a", "b")])).preferences) == 1
        assert (await client.rewards([("p", "four")])).rewards[0].reward == 0.4
        assert (await client.tournament("p", ["a", "bbb"])).ranking == [1, 0]
        assert (await client.tournaments([])).tournaments == []
        assert (await client.tokens([("p", "r")])).tokens[0].token_ids == [1, 2]
        assert [info.id for info in await client.models()] == ["longer"]
        assert (await client.model("longer")).domain == "the length of a text"
        with pytest.raises(UnknownModelError):
            await client.model("other")

    run(Oracle(), ask)


def test_a_large_batch_is_split_and_its_order_kept():
    oracle = Oracle()
    batch = [(f"p{place % 5}", "x" * place) for place in range(100)]
    answer = run(oracle, lambda client: client.rewards(batch), max_items_per_request=7)
    assert [row.reward for row in answer.rewards] == [place / 10 for place in range(100)]
    assert len(oracle.seen) == 15


def test_no_more_parts_are_in_flight_than_allowed():
    oracle, flying, most = Oracle(), [0], [0]

    async def busy(request):
        flying[0] += 1
        most[0] = max(most[0], flying[0])
        for _ in range(5):
            await asyncio.sleep(0)
        flying[0] -= 1
        return oracle(request)

    batch = [(f"p{place}", "r") for place in range(20)]
    run(busy, lambda client: client.rewards(batch), max_items_per_request=1, concurrency=3)
    assert most[0] == 3


def test_a_bad_item_is_named_by_its_place_and_drops_the_other_parts():
    oracle, dropped = Oracle(), []

    async def answer(request):
        if b"bad" not in request.content:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                dropped.append(request)
                raise
        return oracle(request)

    batch = [("p", "good"), ("q", "good"), ("r", "bad")]
    with pytest.raises(TextError) as caught:
        run(answer, lambda client: client.rewards(batch), max_items_per_request=1)
    assert caught.value.item == 2
    assert len(dropped) == 2


def test_a_call_that_is_cancelled_drops_its_parts():
    begun, dropped, both_begun = [], [], asyncio.Event()

    async def never(request):
        begun.append(request)
        if len(begun) == 2:
            both_begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            dropped.append(request)
            raise

    async def ask(client):
        call = asyncio.create_task(client.rewards([("p", "a"), ("q", "b")]))
        await both_begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(never, ask, max_items_per_request=1)
    assert dropped == begun


def test_a_bad_item_may_be_reported_in_its_place():
    batch = [("p", "good"), ("q", "bad")]
    rows = run(Oracle(), lambda client: client.rewards(batch, on_error="report")).rewards
    assert [isinstance(row, ItemError) for row in rows] == [False, True]


def test_an_oracle_that_changes_within_a_batch_is_an_error():
    answers = iter([Oracle(), Oracle(identity="c" * 64)])
    with pytest.raises(OracleChangedError, match="identity"):
        run(
            lambda request: next(answers)(request),
            lambda client: client.rewards([("p", "a"), ("q", "b")]),
            max_items_per_request=1,
        )


def test_over_a_real_socket_an_overloaded_server_is_asked_again():
    oracle, clock = Oracle(), Clock()
    answers = iter([error(503, "overloaded", "m", retry_after="3"), None])

    async def main(url):
        async with AsyncClient(url, sleep=clock.sleep_async) as client:
            return await client.prefer("p", "longer", "b")

    with listening(lambda request: next(answers) or oracle(request)) as url:
        assert asyncio.run(main(url)) > 0.5
    assert clock.waits[0] >= 3
