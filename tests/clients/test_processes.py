"""Clients and adapters in other threads, event loops and processes than those that made them."""

import asyncio
import functools
import gc
import inspect
import multiprocessing
import pickle
import threading
import warnings
from operator import attrgetter

import httpx2
import pytest

from paragone import AsyncClient, Client
from paragone.adapters import slime, tinker, trl, verl
from paragone.exceptions import ParagoneError
from tests.clients.oracle import Oracle, listening, probability


@pytest.fixture
def url():
    with listening(Oracle()) as url:
        yield url


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def test_an_asynchronous_client_outlives_the_loop_of_asyncio_run_and_leaves_nothing_open(url):
    client = AsyncClient(url)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            assert asyncio.run(client.prefer("p", "longer", "b")) == probability("longer", "b")
        asyncio.run(client.close())
        gc.collect()
    assert not warned


def test_one_asynchronous_client_serves_loops_in_several_threads_and_closes_them_all(url):
    client = AsyncClient(url)
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    try:

        async def main():
            here = client.prefer("p", "longer", "b")
            there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.prefer("p", "longer", "b"), running))
            answers = await asyncio.gather(here, there)
            await client.close()
            return answers

        assert asyncio.run(main()) == [probability("longer", "b")] * 2
    finally:
        running.call_soon_threadsafe(running.stop)
        thread.join()
        running.close()


def test_a_transport_of_a_loop_that_is_closed_is_a_clear_error(url):
    transport = httpx2.AsyncHTTPTransport()
    client = AsyncClient(url, transport=transport, retry_s=0)

    def run(ask):  # without the end of asynchronous generators that asyncio.run brings
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(ask)
        finally:
            loop.close()

    assert run(client.prefer("p", "longer", "b")) == probability("longer", "b")
    with pytest.raises(ParagoneError, match="make a new client") as caught:
        run(client.prefer("p", "longer", "b"))
    assert type(caught.value) is not RuntimeError
    with warnings.catch_warnings():  # the socket of the closed loop can only be dropped
        warnings.simplefilter("ignore", ResourceWarning)
        del client, transport, caught
        gc.collect()


def test_a_closed_client_says_that_it_is_closed(url):
    client = Client(url)
    client.close()
    with pytest.raises(ParagoneError, match="closed"):
        client.prefer("p", "a", "b")
    with pytest.raises(ParagoneError, match="closed"):
        client.models()
    asking = AsyncClient(url)

    async def main():
        await asking.close()
        await asking.prefer("p", "a", "b")

    with pytest.raises(ParagoneError, match="closed"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (Client, attrgetter("_channel.connection", "_channel.memory.size")),
        (AsyncClient, attrgetter("_connection", "_memory.size")),
    ],
)
def test_a_client_is_pickled_with_all_of_its_settings(kind, kept):
    made = kind(
        ["http://a", "http://b"],
        api_key="k",
        model="m",
        timeout_s=9,
        retry_s=3,
        retries=2,
        max_items_per_request=4,
        max_bytes_per_request=5,
        concurrency=6,
        remembered_ids=7,
    )
    again = pickled(made)
    assert kept(again) == kept(made)
    assert kept(again)[1] == 7
    assert repr(again) == repr(made)


def test_a_pickled_client_asks(url):
    with Client(url) as client:
        client.prefer("p", "a", "b")
        with pickled(client) as again:
            assert again.prefer("p", "longer", "b") == probability("longer", "b")
    asking = AsyncClient(url)
    asyncio.run(asking.prefer("p", "a", "b"))
    assert asyncio.run(pickled(asking).prefer("p", "longer", "b")) == probability("longer", "b")


def _question(sample):
    return sample.prompt


class Sample:
    prompt = "p"

    def __init__(self, response):
        self.response = response


def test_adapters_are_pickled_and_hosts_still_see_coroutine_functions():
    # A transport that opens nothing, since nobody can close the client inside a pickled adapter.
    client, asking = Client(transport=Oracle().transport()), AsyncClient(transport=Oracle().transport())
    texts = {"prompts": ["p", "p"], "completions": ["longer", "b"], "client": "a column", "signal": ["x"]}
    rates = [(0.5 + probability("longer", "b")) / 2, (0.5 + probability("b", "longer")) / 2]
    waits, awaits = pickled([trl.reward_function(client), trl.async_reward_function(asking)])
    assert waits(**texts) == pytest.approx(rates)
    assert asyncio.run(awaits(**texts)) == pytest.approx(rates)
    assert waits.__name__ == awaits.__name__ == "paragone_win_rate"
    assert not inspect.iscoroutinefunction(waits)

    score = pickled(verl.compute_score(asking))
    # verl binds its own keywords around the function
    hosted = functools.partial(score, client="theirs", model="theirs")
    answer = asyncio.run(
        hosted(data_source="d", solution_str="four", ground_truth="t", extra_info={"prompt": "p"}, reward_router="r")
    )
    assert answer == {"score": 0.4}

    reward = pickled(slime.custom_rm(asking, prompt_of=_question))
    assert asyncio.run(reward(None, [Sample("longer"), Sample("b")], evaluation=True)) == pytest.approx(rates)
    assert all(inspect.iscoroutinefunction(one) for one in (awaits, score, hosted, reward))

    judges = pickled([trl.PairwiseJudge(client, seed=3), trl.RankJudge(client), tinker.PreferenceModel(asking)])
    assert judges[0].judge(["p"], [["longer", "b"]]) == [0]
    assert judges[1].judge(["p"], [["b", "longer"]]) == [[1, 0]]


def _ask_in_a_child(client, place, answers, together=None):
    if together is not None:
        together.wait()
    try:
        answers.put((place, [client.prefer("p", "x" * place, "y" * step) for step in range(50)]))
    except ParagoneError as error:
        answers.put((place, error))


def test_forked_processes_do_not_get_one_anothers_answers(url):
    client = Client(url, retry_s=0)  # whatever goes wrong is not mended by a retry
    client.prefer("p", "a", "b")  # a connection is open, and each child inherits it
    context = multiprocessing.get_context("fork")
    answers, together = context.SimpleQueue(), context.Barrier(4)
    children = [context.Process(target=_ask_in_a_child, args=(client, place, answers, together)) for place in range(4)]
    for child in children:
        child.start()
    got = dict(answers.get() for _ in children)
    for child in children:
        child.join()
    assert got == {place: [probability("x" * place, "y" * step) for step in range(50)] for place in range(4)}
    assert client.prefer("p", "longer", "b") == probability("longer", "b")
    client.close()


def test_spawned_processes_get_clients(url):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    child = context.Process(target=_ask_in_a_child, args=(Client(url), 3, answers))
    child.start()
    assert answers.get() == (3, [probability("xxx", "y" * step) for step in range(50)])
    child.join()
