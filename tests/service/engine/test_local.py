"""The engine in this process: one thread a device, and what it makes of torch's errors."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch

from paragone_models.text.reader import conversation
from paragone_service.engine.contract import EngineOutOfMemoryError
from paragone_service.engine.local import DeviceThread, LocalEngine

pytestmark = pytest.mark.anyio


class Failing:
    """A model whose backbone raises what it is told to."""

    def __init__(self, error):
        self.error = error
        self.local = SimpleNamespace(batching="padded: a double")

    def encode(self, _):
        raise self.error


@pytest.fixture
async def thread():
    thread = DeviceThread("test")
    yield thread
    thread.close()


async def test_hidden_states_are_the_models_own_for_every_read_in_the_order_given(hosted, thread):
    model = hosted["gpm"]
    readings = model.reader.read([conversation("Why?", "word " * length) for length in (9, 1, 30)])
    items = [reading.item for reading in readings]
    hidden = await LocalEngine(model, thread).encode(items)
    assert hidden.shape == (3, 2, 32)
    assert torch.equal(hidden, model.encode(items))


async def test_an_engine_that_packs_shares_prompts(hosted, thread):
    assert hosted["gpm"].local.batching == "packed"
    assert LocalEngine(hosted["gpm"], thread).shares_prompts
    assert not LocalEngine(Failing(RuntimeError()), thread).shares_prompts


async def test_a_device_has_one_thread_of_its_own(thread):
    names = await asyncio.gather(*(thread.run(lambda: threading.current_thread().name) for _ in range(20)))
    assert set(names) == {"device-test_0"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
async def test_want_of_memory_is_told_apart_from_other_errors(thread, error):
    engine = LocalEngine(Failing(error), thread)
    with pytest.raises(EngineOutOfMemoryError):
        await engine.encode([])
    assert (await engine.health()).healthy


async def test_a_device_that_only_a_restart_can_help_is_unhealthy_from_then_on(thread):
    engine = LocalEngine(Failing(RuntimeError("CUDA error: an illegal memory access was encountered")), thread)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        await engine.encode([])
    health = await engine.health()
    assert not health.healthy
    assert "until the process is restarted" in health.detail


async def test_any_other_error_is_passed_on_and_changes_nothing(thread):
    engine = LocalEngine(Failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), thread)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        await engine.encode([])
    assert (await engine.health()).healthy


def test_the_contract_stays_short():
    from pathlib import Path

    from paragone_service.engine import contract

    assert len(Path(contract.__file__).read_text(encoding="utf-8").splitlines()) < 100
