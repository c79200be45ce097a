"""One engine of several places. The places here are real engines of this process behind something to hold or break."""

import asyncio
from collections import Counter

import pytest
import torch

from paragone_models.text.reader import EncodeItem
from paragone_service.engine import balancing
from paragone_service.engine.balancing import BalancedEngine, PlaceSlowError
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from tests.service.conftest import until

pytestmark = pytest.mark.anyio


class Desk:
    """A place that runs the model in this process, one call at a time, and can be held, broken and mended."""

    def __init__(self, name, model):
        self.name = name
        self.model = model
        self.calls = []
        self.error = None
        self.open = asyncio.Event()
        self.open.set()
        self.most = self.running = 0
        self.checked = self.mended = 0
        self.closed = False

    async def encode(self, items):
        self.calls.append(items)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
            if self.error is not None:
                raise self.error
            return self.model.encode(items)
        finally:
            self.running -= 1

    async def check(self):
        self.checked += 1
        if self.error is not None and not isinstance(self.error, EngineOutOfMemoryError):
            raise EngineUnavailableError(str(self.error))

    async def mend(self):
        self.mended += 1

    async def close(self):
        self.closed = True


@pytest.fixture
def desks(hosted):
    return [Desk(f"grpc://gpu-{number}:8001", hosted["gpm"]) for number in range(3)]


@pytest.fixture
async def engine(desks, monkeypatch):
    monkeypatch.setattr(balancing, "_FIRST_PAUSE_S", 0.01)
    engine = BalancedEngine("triton", desks, shares_prompts=True)
    yield engine
    await engine.close()
    assert all(desk.closed for desk in desks)


def siblings(prompt, count=4, length=6):
    """Responses to one prompt of 30 tokens."""
    head = [prompt] * 30
    return [
        EncodeItem([*head, *range(40 + number, 40 + number + length)], ((29, 30), (30 + length - 1, 30 + length)), 30)
        for number in range(count)
    ]


def prompts_of(desk):
    return Counter(item.token_ids[0] for call in desk.calls for item in call)


async def test_a_batch_is_spread_and_comes_back_in_its_order(engine, desks, hosted):
    items = [item for number in range(12) for item in siblings(3 + number)]
    mixed = items[::3] + items[1::3] + items[2::3]
    torch.testing.assert_close(await engine.encode(mixed), hosted["gpm"].encode(mixed), atol=1e-5, rtol=1e-5)
    loads = [sum(len(item.token_ids) for call in desk.calls for item in call) for desk in desks]
    assert max(loads) <= 1.3 * sum(loads) / 3
    assert all(count == 4 for desk in desks for count in prompts_of(desk).values())  # no family was parted


async def test_siblings_of_later_batches_go_where_their_prompt_is(engine, desks):
    for _ in range(3):
        for prompt in range(3, 15):
            await engine.encode(siblings(prompt, 1))
    homes = {prompt: [desk.name for desk in desks if prompts_of(desk)[prompt]] for prompt in range(3, 15)}
    assert all(len(names) == 1 for names in homes.values())
    assert len({names[0] for names in homes.values()}) == 3  # and the prompts are spread


async def test_every_replica_of_the_service_knows_the_same_home(hosted, engine, desks):
    others = [Desk(desk.name, hosted["gpm"]) for desk in reversed(desks)]
    replica = BalancedEngine("triton", others, shares_prompts=True)
    for prompt in range(3, 9):
        await engine.encode(siblings(prompt, 1))
        await replica.encode(siblings(prompt, 1))
    assert {d.name: prompts_of(d) for d in desks} == {d.name: prompts_of(d) for d in others}
    await replica.close()


async def test_a_hot_prompt_leaves_no_place_idle(engine, desks):
    await engine.encode(siblings(7, 24, length=20))
    assert all(desk.calls for desk in desks)


async def test_a_place_has_two_calls_at_a_time(engine, desks):
    for desk in desks:
        desk.open.clear()
    calls = [asyncio.create_task(engine.encode(siblings(3 + number, 2))) for number in range(12)]
    await until(lambda: all(desk.running == 2 for desk in desks))
    await asyncio.sleep(0.01)
    assert [desk.most for desk in desks] == [2, 2, 2]
    for desk in desks:
        desk.open.set()
    await asyncio.gather(*calls)
    assert [desk.most for desk in desks] == [2, 2, 2]


async def test_what_a_place_loses_the_others_run_and_it_gets_nothing_until_a_check_succeeds(engine, desks, hosted):
    desks[0].error = EngineUnavailableError("its cable was pulled")
    items = [item for number in range(9) for item in siblings(3 + number)]
    torch.testing.assert_close(await engine.encode(items), hosted["gpm"].encode(items), atol=1e-5, rtol=1e-5)
    tries = len(desks[0].calls)
    assert tries == 1
    await engine.encode(items)
    assert len(desks[0].calls) == tries
    health = await engine.health()
    assert (health.healthy, health.detail) == (True, "grpc://gpu-0:8001: its cable was pulled")
    await until(lambda: desks[0].mended)
    desks[0].error = None
    await until(lambda: desks[0].checked > desks[0].mended)
    await asyncio.sleep(0)
    await engine.encode(items)
    assert len(desks[0].calls) == tries + 1


async def test_calls_that_wait_for_a_place_that_fails_go_elsewhere(engine, desks):
    home = desks[0]
    prompts = [prompt for prompt in range(3, 60) if await is_home(engine, home, prompt)][:4]
    home.open.clear()
    calls = [asyncio.create_task(engine.encode(siblings(prompt, 1))) for prompt in prompts]
    await until(lambda: home.running >= 1)
    home.error = EngineUnavailableError("gone")
    home.open.set()
    await asyncio.gather(*calls)


async def is_home(engine, home, prompt):
    await engine.encode(siblings(prompt, 1))
    return prompts_of(home)[prompt] > 0


async def test_with_no_place_left_the_engine_is_away_and_says_which_and_why(engine, desks):
    for desk in desks:
        desk.error = EngineUnavailableError("no power")
    with pytest.raises(EngineUnavailableError, match="no power"):
        await engine.encode(siblings(3))
    health = await engine.health()
    assert not health.healthy
    assert health.detail.count("no power") == 3
    desks[1].error = None
    await until(lambda: not engine._seats[1].away)
    assert (await engine.health()).healthy
    await engine.encode(siblings(3))


async def test_a_place_that_is_too_slow_is_not_followed_by_others(engine, desks):
    for desk in desks:
        desk.error = PlaceSlowError("a minute")
    with pytest.raises(PlaceSlowError):
        await engine.encode(siblings(3, 1))
    assert sum(len(desk.calls) for desk in desks) == 1


async def test_a_place_that_fails_batches_gets_none_until_it_is_checked_and_another_runs_them(engine, desks, hosted):
    desks[0].error = RuntimeError("device-side assert")
    items = [item for number in range(9) for item in siblings(3 + number)]
    torch.testing.assert_close(await engine.encode(items), hosted["gpm"].encode(items), atol=1e-5, rtol=1e-5)
    assert "device-side assert" in engine._seats[0].away
    await engine.encode(items)
    assert len(desks[0].calls) == 1
    desks[0].error = None
    await until(lambda: not engine._seats[0].away)


async def test_a_batch_that_two_places_failed_has_failed(engine, desks):
    for desk in desks:
        desk.error = RuntimeError("a token that breaks kernels")
    with pytest.raises(RuntimeError, match="breaks kernels"):
        await engine.encode(siblings(3, 1))
    assert sum(len(desk.calls) for desk in desks) == 2


async def test_want_of_memory_is_nobody_elses_work(engine, desks):
    for desk in desks:
        desk.error = EngineOutOfMemoryError("too large")
    with pytest.raises(EngineOutOfMemoryError):
        await engine.encode([item for number in range(9) for item in siblings(3 + number)])
    assert all(len(desk.calls) == 1 for desk in desks)
    assert (await engine.health()).healthy


async def test_a_place_that_nobody_has_used_is_asked_before_it_counts_as_well(engine, desks):
    assert (await engine.health()).healthy
    assert [desk.checked for desk in desks] == [1, 1, 1]
    assert (await engine.health()).healthy
    assert [desk.checked for desk in desks] == [1, 1, 1]  # a moment ago is good enough
