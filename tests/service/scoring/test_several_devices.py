"""One queue for several devices: who runs what, and what becomes of a device that fails or hangs."""

import asyncio

import numpy as np
import pytest

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.engine.balancing import PlaceSlowError
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from paragone_service.metrics import Metrics
from paragone_service.scoring import workers
from paragone_service.scoring.devices import Device
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job
from paragone_service.scoring.workers import DeviceWatch
from tests.service.conftest import until

pytestmark = pytest.mark.anyio

CANARY = EncodeItem((0, 0), ((1, 2),), 1)


class Part:
    """What a device runs: takes batches when it is let, and remembers their lengths; a canary counts none."""

    def __init__(self):
        self.batches = []
        self.canaries = 0
        self.free = asyncio.Event()
        self.free.set()
        self.error = None

    async def represent(self, jobs):
        lengths = [len(job.item.token_ids) for job in jobs]
        if [job.item for job in jobs] == [CANARY]:
            self.canaries += 1
        else:
            self.batches.append(lengths)
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return np.array([[length] for length in lengths], dtype=np.float32)


class Setup:
    def __init__(self, count=2, **knobs):
        self.parts = [Part() for _ in range(count)]
        self.metrics = Metrics()
        devices = [Device(f"cpu:{n}", part.represent, asyncio.Lock(), 100) for n, part in enumerate(self.parts)]
        options = {"shares_prompts": True, "max_queue_tokens": 5000, **knobs}
        self.scheduler = Scheduler("m", devices, settle, metrics=self.metrics, canary=CANARY, **options)

    def submit(self, *lengths, prompt=0, prompt_length=0):
        items = [EncodeItem((prompt,) * length, ((length - 1, length),), prompt_length) for length in lengths]
        return self.scheduler.submit([Job(None, item, 0) for item in items])

    def hold(self):
        for part in self.parts:
            part.free.clear()

    def let(self):
        for part in self.parts:
            part.free.set()

    def batches(self):
        return [part.batches for part in self.parts]

    async def __aenter__(self):
        self.scheduler.start()
        return self

    async def __aexit__(self, *_):
        self.let()
        await self.scheduler.close()

    def value(self, name, device):
        return self.metrics.registry.get_sample_value(name, {"model": "m", "device": device})


def settle(_, rows):
    return [str(int(row[0])).encode() for row in rows]


async def outcomes(tickets):
    return [await asyncio.wait_for(ticket.outcome, 5) for ticket in tickets]


async def test_idle_devices_share_what_waits_and_a_prompt_stays_whole():
    async with Setup() as setup:
        setup.hold()
        tickets = setup.submit(20, 20, prompt=1, prompt_length=10) + setup.submit(21, 21, prompt=2, prompt_length=10)
        await until(lambda: all(setup.batches()))
        setup.let()
        assert await outcomes(tickets) == [b"20", b"20", b"21", b"21"]
        assert sorted(setup.batches()) == [[[20, 20]], [[21, 21]]]
        assert setup.value("paragone_device_tokens_total", "cpu:0") in (40, 42)


async def test_whoever_is_free_takes_what_came_while_the_other_is_busy():
    async with Setup() as setup:
        setup.hold()
        first = setup.submit(90)
        await until(lambda: any(setup.batches()))
        busy = next(part for part in setup.parts if part.batches)
        free = next(part for part in setup.parts if not part.batches)
        free.free.set()
        later = [setup.submit(50 + number)[0] for number in range(5)]
        assert await outcomes(later) == [str(50 + number).encode() for number in range(5)]
        assert len(free.batches) == 5
        busy.free.set()
        assert await outcomes(first) == [b"90"]


async def test_siblings_wait_for_the_device_that_has_their_prompt_and_others_go_elsewhere():
    async with Setup() as setup:
        setup.hold()
        first = setup.submit(60, prompt=1, prompt_length=50)
        await until(lambda: any(setup.batches()))
        home = next(part for part in setup.parts if part.batches)
        other = next(part for part in setup.parts if not part.batches)
        other.free.set()
        sibling = setup.submit(70, prompt=1, prompt_length=50)  # ten tokens run before it: fewer than its prompt has
        stranger = setup.submit(80, prompt=2, prompt_length=50)
        assert await outcomes(stranger) == [b"80"]
        assert not sibling[0].outcome.done()
        home.free.set()
        assert await outcomes(first + sibling) == [b"60", b"70"]
        assert home.batches == [[60], [70]]
        assert other.batches == [[80]]


async def test_a_prompt_that_everybody_asks_about_keeps_all_devices_busy():
    async with Setup() as setup:
        setup.hold()
        first = setup.submit(99, prompt=1, prompt_length=40)  # 59 tokens of its own run
        await until(lambda: any(setup.batches()))
        other = next(part for part in setup.parts if not part.batches)
        other.free.set()
        siblings = setup.submit(90, prompt=1, prompt_length=40)
        assert await outcomes(siblings) == [b"90"]  # while the home of its prompt is held
        assert other.batches == [[90]]
        setup.let()
        await outcomes(first)


async def test_no_more_than_a_batch_is_held_for_the_home_of_a_prompt():
    async with Setup() as setup:
        setup.hold()
        setup.submit(60, prompt=1, prompt_length=50)
        await until(lambda: any(setup.batches()))
        other = next(part for part in setup.parts if not part.batches)
        tickets = [setup.submit(80, prompt=1, prompt_length=50)[0] for _ in range(6)]  # 30 of its own each
        await until(lambda: other.batches)
        home = next(device for device in setup.scheduler.devices if device.held)
        assert home.held.tokens <= 100
        setup.let()
        assert await outcomes(tickets) == [b"80"] * 6


async def test_what_a_device_fails_runs_on_another_and_it_comes_back_by_a_canary(monkeypatch):
    monkeypatch.setattr(workers, "_FIRST_PAUSE_S", 0.01)
    async with Setup() as setup:
        bad, good = setup.parts
        bad.error = RuntimeError("a kernel went wrong")
        tickets = [ticket for number in range(8) for ticket in setup.submit(60 + number, prompt=number)]
        assert await outcomes(tickets) == [str(60 + number).encode() for number in range(8)]
        assert len(bad.batches) == 1
        assert len(good.batches) == 8
        assert setup.value("paragone_device_up", "cpu:0") == 0
        assert setup.value("paragone_device_failures_total", "cpu:0") == 1
        await until(lambda: bad.canaries > 1)
        bad.error = None
        await until(lambda: setup.value("paragone_device_up", "cpu:0") == 1)
        again = [ticket for number in range(8) for ticket in setup.submit(60 + number, prompt=number)]
        await outcomes(again)
        assert len(bad.batches) > 1


async def test_a_response_that_fails_everywhere_is_an_error_and_the_last_device_serves_on(monkeypatch):
    monkeypatch.setattr(workers, "_FIRST_PAUSE_S", 60)
    async with Setup() as setup:
        for part in setup.parts:
            part.error = RuntimeError("a kernel went wrong")
        (error,) = await outcomes(setup.submit(60))
        assert error.code is ErrorCode.ENGINE_FAILED
        assert sorted(map(len, setup.batches())) == [1, 1]
        for part in setup.parts:
            part.error = None
        assert await outcomes(setup.submit(61)) == [b"61"]


async def test_a_server_that_is_away_passes_its_work_to_the_others():
    async with Setup(3) as setup:
        for part in setup.parts[:2]:
            part.error = EngineUnavailableError("refused")
        tickets = [ticket for number in range(9) for ticket in setup.submit(60 + number, prompt=number)]
        assert await outcomes(tickets) == [str(60 + number).encode() for number in range(9)]


async def test_one_response_that_does_not_fit_on_a_device_is_tried_on_another():
    async with Setup() as setup:
        setup.parts[0].error = setup.parts[1].error = EngineOutOfMemoryError("too long")
        (error,) = await outcomes(setup.submit(60))
        assert error.message == "the device has not enough memory for this response"
        assert sorted(map(len, setup.batches())) == [1, 1]
        assert not any(device.away for device in setup.scheduler.devices)


async def test_want_of_memory_makes_batches_of_that_device_smaller_alone():
    async with Setup() as setup:
        setup.parts[0].error = EngineOutOfMemoryError("too long")
        setup.parts[1].free.clear()
        setup.submit(90, prompt=9)
        await until(lambda: all(part.batches for part in setup.parts) or setup.parts[1].batches)
        setup.submit(30, 31, prompt=1, prompt_length=20)
        await until(lambda: len(setup.parts[0].batches) >= 3)
        budgets = [device.max_batch_tokens for device in setup.scheduler.devices]
        assert budgets[0] < budgets[1] == 100


async def test_what_hangs_is_given_up_and_the_others_serve_on_until_it_comes_back():
    async with Setup() as setup:
        setup.hold()
        hung = setup.submit(60)
        await until(lambda: any(setup.batches()))
        number = next(number for number, part in enumerate(setup.parts) if part.batches)
        device, other = setup.scheduler.devices[number], setup.parts[1 - number]
        watch = DeviceWatch(device.name, [(setup.scheduler.workers, device)])
        assert not watch.fatal
        other.free.set()
        watch.suspend("a forward of model m for 60 s")
        (error,) = await outcomes(hung)
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
        assert error.retry_after_s == 1
        assert await outcomes(setup.submit(61) + setup.submit(62)) == [b"61", b"62"]
        assert setup.parts[number].batches == [[60]]
        assert setup.value("paragone_device_up", device.name) == 0
        assert not setup.scheduler.workers.trouble()
        setup.parts[number].free.set()
        await until(lambda: setup.value("paragone_device_up", device.name) == 1)
        assert setup.parts[number].canaries == 1


async def test_a_worker_that_dies_is_started_again_and_whom_it_ran_for_is_told():
    async with Setup() as setup:
        setup.parts[0].error = asyncio.CancelledError()
        setup.parts[1].free.clear()
        tickets = setup.submit(60, prompt=1) + setup.submit(61, prompt=2)
        device = setup.scheduler.devices[0]
        await until(lambda: device.died)
        watch = DeviceWatch(device.name, [(setup.scheduler.workers, device)])
        assert "has no worker any more" in watch.stuck_worker()
        setup.parts[0].error = None
        watch.suspend(watch.stuck_worker())
        setup.let()
        codes = [one if isinstance(one, bytes) else one.code for one in await outcomes(tickets)]
        assert ErrorCode.ENGINE_UNAVAILABLE in codes
        await until(lambda: not device.trouble())


async def test_the_last_device_is_not_given_up():
    async with Setup() as setup:
        first, second = setup.scheduler.devices
        setup.scheduler.workers.suspend(first, "it hangs")
        setup.scheduler.workers.suspend(second, "it hangs too")
        assert second.away == ""
        assert await outcomes(setup.submit(60)) == [b"60"]


async def test_what_was_too_slow_runs_nowhere_else():
    async with Setup() as setup:
        for part in setup.parts:
            part.error = PlaceSlowError("a minute")
        (error,) = await outcomes(setup.submit(20))
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
        assert sum(map(len, setup.batches())) == 1


async def test_whoever_waits_behind_half_of_a_split_batch_that_hangs_is_told_too():
    async with Setup() as setup:
        setup.hold()
        setup.submit(99)
        await until(lambda: any(setup.batches()))
        number = next(number for number, part in enumerate(setup.parts) if not part.batches)
        device, hangs = setup.scheduler.devices[number], setup.parts[number].represent

        async def represent(items):
            if len(items) > 1:
                raise EngineOutOfMemoryError("too large")
            return await hangs(items)

        device.represent = represent
        tickets = setup.submit(10, 20)
        await until(lambda: setup.parts[number].batches)
        setup.scheduler.workers.suspend(device, "it hangs")
        assert [error.code for error in await outcomes(tickets)] == [ErrorCode.ENGINE_UNAVAILABLE] * 2


async def test_a_device_that_is_back_says_that_more_may_be_read():
    async with Setup() as setup:
        calls = []
        setup.scheduler.when_not_stocked = lambda: calls.append(1)
        setup.hold()
        device = setup.scheduler.devices[0]
        setup.scheduler.workers.suspend(device, "it hangs")
        for _ in range(4):
            setup.submit(90)
        await until(lambda: setup.parts[1].batches)
        assert setup.scheduler.stocked()  # 270 tokens wait, for one device
        setup.parts[0].free.set()
        await until(lambda: not device.away)
        assert calls
