"""The thread that reads texts: in turns, fair among clients, and let go of by whoever has left."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from paragone_models.text.reader import conversation
from paragone_service.scoring.reading import ReadingThread
from paragone_service.scoring.request import Timings
from tests.service.conftest import until


class Recorder:
    """A reader that remembers what it was given at once, waits where it is told to, and may stop after a few."""

    def __init__(self, most=1_000):
        self.most = most
        self.chunks = []
        self.turns = []
        self.begun = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()

    @property
    def sizes(self):
        return [len(chunk) for chunk in self.chunks]

    def read(self, conversations, *, truncation, turn):
        chunk = [one.response[0]["content"] for one in conversations]
        self.chunks.append(chunk if truncation == "prompt" else [truncation, *chunk])
        self.turns.append(turn)
        self.begun.set()
        assert self.goes_on.wait(10)
        if "bad" in chunk:
            raise RuntimeError(chunk)
        return list(conversations)[: self.most]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def thread(recorder):
    thread = ReadingThread("m", SimpleNamespace(reader=recorder))
    yield thread
    recorder.goes_on.set()
    thread.close()


def call_of(client=None, *, rested=False, truncation="prompt"):
    return SimpleNamespace(truncation=truncation, timings=Timings(), client=client, rested=rested)


def texts(*responses):
    return [conversation("p", response) for response in responses]


def sizes_of(thread, recorder, lengths):
    conversations = texts(*("x" * length for length in lengths))
    assert asyncio.run(thread.read(conversations, call_of())) == conversations
    return recorder.sizes


def test_a_chunk_has_at_most_128_conversations(thread, recorder):
    assert sizes_of(thread, recorder, [10] * 300) == [128, 128, 44]


def test_a_chunk_of_long_texts_has_few_of_them(thread, recorder):
    assert sizes_of(thread, recorder, [50_000] * 5) == [2, 2, 1]


def test_a_text_over_the_size_of_a_chunk_is_read_alone(thread, recorder):
    assert sizes_of(thread, recorder, [10, 500_000, 10, 10]) == [1, 1, 2]


def test_nothing_is_read_of_nothing(thread, recorder):
    assert sizes_of(thread, recorder, []) == []


def test_what_a_turn_did_not_come_to_is_read_in_the_next(thread, recorder):
    recorder.most = 2
    assert sizes_of(thread, recorder, [10] * 5) == [5, 3, 1]


def test_clients_take_turns_whatever_they_have_sent(thread, recorder):
    async def ask():
        recorder.most = 1  # every text takes a turn
        recorder.goes_on.clear()
        large = asyncio.create_task(thread.read(texts(*"abcdef"), call_of("large")))
        await until(recorder.begun.is_set)
        others = [asyncio.create_task(thread.read(texts(name), call_of(name))) for name in ("one", "two")]
        await asyncio.sleep(0)
        recorder.goes_on.set()
        await asyncio.gather(*others)
        assert not large.done()
        await large

    asyncio.run(ask())
    order = [chunk[0] for chunk in recorder.chunks]
    assert order[0] == "a"
    assert {*order[1:3]} == {"one", "two"}
    assert order[3:] == [*"bcdef"]


async def behind_the_first(thread, recorder, *requests):
    """Ask while a first request is read, and return the outcomes once all are done."""
    recorder.goes_on.clear()
    first = asyncio.create_task(thread.read(texts("first"), call_of("first")))
    await until(recorder.begun.is_set)
    asked = [asyncio.create_task(thread.read(conversations, call)) for conversations, call in requests]
    await asyncio.sleep(0)
    recorder.goes_on.set()
    await first
    return await asyncio.gather(*asked, return_exceptions=True)


def test_small_questions_of_the_rested_have_every_other_turn(thread, recorder):
    requests = [(texts(name * 20_000), call_of(name, rested=name.isupper())) for name in "bcdRS"]
    asyncio.run(behind_the_first(thread, recorder, *requests))
    assert "".join(chunk[0][0] for chunk in recorder.chunks[1:]) == "RbScd"


def test_small_requests_share_a_turn_and_each_has_its_own_texts(thread, recorder):
    requests = [(texts(*f"{name}{name.upper()}"), call_of(name, rested=name in "xy")) for name in "axbyc"]
    outcomes = asyncio.run(behind_the_first(thread, recorder, *requests))
    assert outcomes == [conversations for conversations, _ in requests]
    assert recorder.chunks[1:] == [[*"xXyY"], [*"aAbBcC"]]


@pytest.mark.parametrize(("length", "number", "sizes"), [(10, 70, [32, 32, 6]), (10_000, 8, [3, 3, 2])])
def test_a_turn_is_shared_by_so_many_texts(thread, recorder, length, number, sizes):
    requests = [(texts("x" * length), call_of(client)) for client in range(number)]
    asyncio.run(behind_the_first(thread, recorder, *requests))
    assert recorder.sizes[1:] == sizes


def test_for_the_queue_no_more_is_read_at_once_than_it_lacks(recorder):
    queue = SimpleNamespace(stocked=True)
    thread = ReadingThread("m", SimpleNamespace(reader=recorder), lambda: queue.stocked, lacking=lambda: 100)

    async def ask():
        chunks = [thread.chunks(texts("x" * 30), call_of(client), for_queue=True) for client in range(4)]
        asked = [asyncio.ensure_future(anext(chunk)) for chunk in chunks]
        await asyncio.sleep(0)
        queue.stocked = False
        thread.go_on()
        await asyncio.gather(*asked)

    asyncio.run(ask())
    thread.close()
    assert len(recorder.sizes) > 1
    assert sum(recorder.sizes) == 4


def test_what_is_cut_otherwise_shares_no_turn(thread, recorder):
    requests = [(texts(name), call_of(name, truncation="error" if name == "b" else "prompt")) for name in "abc"]
    asyncio.run(behind_the_first(thread, recorder, *requests))
    assert recorder.chunks[1:] == [["a"], ["error", "b"], ["c"]]


def test_a_text_that_breaks_the_reader_fails_its_own_request_alone(thread, recorder):
    requests = [(texts(name), call_of(name)) for name in ("a", "bad", "c")]
    one, bad, three = asyncio.run(behind_the_first(thread, recorder, *requests))
    assert [one, three] == [requests[0][0], requests[2][0]]
    assert isinstance(bad, RuntimeError)
    assert recorder.chunks[1:] == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


def test_a_shared_turn_ends_with_the_last_request_that_waits_for_it(recorder):
    queue = SimpleNamespace(stocked=True)
    thread = ReadingThread("m", SimpleNamespace(reader=recorder), stocked=lambda: queue.stocked)

    async def ask():
        recorder.goes_on.clear()
        chunks = [thread.chunks(texts(name), call_of(name), for_queue=True) for name in "ab"]
        asked = [asyncio.ensure_future(anext(chunk)) for chunk in chunks]
        await asyncio.sleep(0)
        queue.stocked = False
        thread.go_on()
        await until(recorder.begun.is_set)
        ended = []
        for task in asked:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            ended.append(recorder.turns[0].ended)
        recorder.goes_on.set()
        assert (recorder.chunks, ended) == ([["a", "b"]], [False, True])
        await thread.read(texts("next"), call_of("next"))

    asyncio.run(ask())
    thread.close()


def test_a_request_that_ends_ends_its_turn_and_the_next_one_waits_for_the_thread(thread, recorder):
    async def ask():
        recorder.goes_on.clear()
        leaving = asyncio.create_task(thread.read(texts("a"), call_of("leaves")))
        await until(recorder.begun.is_set)
        waiting = [asyncio.create_task(thread.read(texts(name), call_of(name))) for name in ("gone", "stays")]
        await asyncio.sleep(0)
        for task in (leaving, waiting[0]):
            task.cancel()
        await asyncio.gather(leaving, waiting[0], return_exceptions=True)
        assert recorder.turns[0].ended
        assert recorder.chunks == [["a"]]
        assert thread.expected_wait_s(100, "new") > 0
        recorder.goes_on.set()
        await waiting[1]
        assert recorder.chunks == [["a"], ["stays"]]
        assert thread.expected_wait_s(100, "new") == 0

    asyncio.run(ask())


def test_while_the_queue_has_enough_to_do_only_bulk_and_small_questions_and_what_is_not_for_it_are_read(recorder):
    queue = SimpleNamespace(stocked=True)
    thread = ReadingThread("m", SimpleNamespace(reader=recorder), stocked=lambda: queue.stocked)

    async def for_queue(call, *responses):
        return [reading async for chunk in thread.chunks(texts(*responses), call, for_queue=True) for reading in chunk]

    async def ask():
        waiting = {name: asyncio.create_task(for_queue(call_of(name), name)) for name in ("gone", "one", "two")}
        await asyncio.sleep(0)
        await for_queue(call_of("bulk"), *300 * ["bulk"])
        await for_queue(call_of("rested", rested=True), "rested")
        await thread.read(texts("looked at"), call_of("other"))
        assert recorder.sizes == [128, 128, 44, 1, 1]
        waiting["gone"].cancel()
        await asyncio.sleep(0)
        thread.go_on()  # for nothing: the queue is as full as before
        assert not any(task.done() for task in (waiting["one"], waiting["two"]))
        queue.stocked = False
        thread.go_on()
        await waiting["one"]
        await waiting["two"]
        await for_queue(call_of("next"), "next")

    asyncio.run(ask())
    thread.close()
    assert recorder.chunks[3:] == [["rested"], ["looked at"], ["one", "two"], ["next"]]


def test_a_wait_for_a_turn_is_no_reading(recorder):
    now = [0.0]
    thread = ReadingThread("m", SimpleNamespace(reader=recorder), stocked=lambda: now[0] < 5, clock=lambda: now[0])
    call = call_of()

    async def ask():
        reading = anext(thread.chunks(texts("a"), call, for_queue=True))
        task = asyncio.ensure_future(reading)
        await asyncio.sleep(0)
        now[0] = 5.0
        thread.go_on()
        await task

    asyncio.run(ask())
    thread.close()
    assert (call.timings.queue_s, call.timings.tokenize_s) == (5.0, 0.0)


def test_the_wait_counts_what_is_unread_of_others_up_to_as_much_as_ones_own(thread, recorder):
    async def ask():
        recorder.goes_on.clear()
        task = asyncio.create_task(thread.read(texts("x" * 800_000), call_of("other")))
        await until(recorder.begun.is_set)
        assert thread.expected_wait_s(400_000, "new") == pytest.approx(1.0)  # of the usual speed
        assert thread.expected_wait_s(4_000, "new") == pytest.approx(0.01)
        assert thread.expected_wait_s(1, "other") == pytest.approx(2.0, rel=1e-3)
        recorder.goes_on.set()
        await task

    asyncio.run(ask())
