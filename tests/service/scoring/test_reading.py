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
        assert truncation == "prompt"
        self.chunks.append([one.response[0]["content"] for one in conversations])
        self.turns.append(turn)
        self.begun.set()
        assert self.goes_on.wait(10)
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


def call_of(client=None, *, rested=False):
    return SimpleNamespace(truncation="prompt", timings=Timings(), client=client, rested=rested)


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


def test_small_questions_of_the_rested_have_every_other_turn(thread, recorder):
    async def ask():
        recorder.goes_on.clear()
        asked = [asyncio.create_task(thread.read(texts("a"), call_of("first")))]
        await until(recorder.begun.is_set)
        for name in "bcdRST":
            task = asyncio.create_task(thread.read(texts(name), call_of(name, rested=name.isupper())))
            asked.append(task)
        await asyncio.sleep(0)
        asked[-1].cancel()
        await asyncio.sleep(0)
        recorder.goes_on.set()
        await asyncio.gather(*asked[:-1])

    asyncio.run(ask())
    assert "".join(chunk[0] for chunk in recorder.chunks) == "aRbScd"


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


def test_a_turn_that_comes_as_its_request_ends_is_passed_on(thread, recorder):
    async def ask():
        thread._held = True  # by somebody else
        late, last = (asyncio.create_task(thread.read(texts(name), call_of(name))) for name in ("late", "last"))
        await asyncio.sleep(0)
        thread._pass_on("somebody", thread._clock(), 0)
        late.cancel()  # before the task hears of its turn
        await asyncio.gather(late, last, return_exceptions=True)
        assert late.cancelled()
        assert recorder.chunks == [["last"]]

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
    assert [chunk[0] for chunk in recorder.chunks[3:]] == ["rested", "looked at", "one", "two", "next"]


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
