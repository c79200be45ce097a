"""A server with several devices: one queue, the same answers from each, and what it says of them."""

import asyncio

import numpy as np
import pytest

from paragone.wire import ModelInfo, RewardsAnswer
from paragone_models.errors import ModelLoadError
from paragone_service.config import ConfigError
from paragone_service.engine.names import device_names
from paragone_service.hosting import named_devices
from paragone_service.settings_sources import load_settings
from tests.service.conftest import serving
from tests.service.doubles import metric

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ("all",)),
        ("cpu", ("cpu",)),
        ("cpu*2", ("cpu:0", "cpu:1")),
        ("cuda:0,cuda:3", ("cuda:0", "cuda:3")),
        ("cuda, cuda:1", ("cuda:0", "cuda:1")),
    ],
)
def test_devices_have_names(text, names):
    assert device_names(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "'gpu' is no device: write all, or cuda:0,cuda:1, or cpu"),
        ("cpu*0", "from 1 to 64 replicas share a CPU"),
        ("cpu*65", "from 1 to 64"),
        ("cuda:0,cuda", "cuda:0 comes twice"),
        ("cpu,cuda:0", "of one kind"),
        ("", "'' is no device"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(text, message):
    with pytest.raises(ConfigError, match="devices: "):
        load_settings({"devices": text})
    with pytest.raises(ValueError, match=message):
        device_names(text)


def test_a_model_has_its_own_devices_or_those_of_the_service():
    models = {
        "all": {"source": "a"},
        "one": {"source": "b", "device": "cpu"},
        "own": {"source": "c", "devices": "cpu*3"},
        "away": {"source": "d"},
    }
    settings = load_settings({"devices": "cpu*2", "models": models, "engines": {"away": "vllm:http://x:1"}})
    assert settings.devices_of("all") == ("cpu:0", "cpu:1")
    assert settings.devices_of("one") == settings.devices_of("away") == ()
    assert settings.devices_of("own") == ("cpu:0", "cpu:1", "cpu:2")


@pytest.mark.parametrize(
    "values",
    [{"device": "cpu", "devices": "cpu*2"}, {"models": {"m": {"source": "s", "device": "cpu", "devices": "cpu"}}}],
)
def test_a_device_and_devices_are_not_both_set(values):
    with pytest.raises(ConfigError, match=r"device and .*devices are both set: keep one"):
        load_settings(values)


def test_all_is_the_cpu_where_there_is_no_gpu():
    assert named_devices(("all",))[0] in ("cpu", "cuda:0")
    assert named_devices(("cpu:0", "cpu:1")) == ("cpu:0", "cpu:1")


def rewards(prompts, each=3):
    return {
        "model": "bt",
        "items": [
            {"prompt": f"{prompt} " * 40, "response": f"Answer {number}. " * (number + 1)}
            for prompt in prompts
            for number in range(each)
        ],
    }


async def test_two_devices_answer_as_one_does_and_both_work(hosted):
    prompts = ["Is it raining", "Who sings", "When is lunch", "Where to", "Why not", "How far"]
    models = {"bt": hosted["bt"]}
    async with serving(models) as one:
        expected = RewardsAnswer.model_validate((await one.post("/v1/rewards", json=rewards(prompts))).json())
    async with serving(models, devices="cpu*2") as two:
        answer = await two.post("/v1/rewards", json=rewards(prompts))
        assert answer.status_code == 200, answer.text
        got = RewardsAnswer.model_validate(answer.json())
        np.testing.assert_allclose(
            [row.reward for row in got.rewards], [row.reward for row in expected.rewards], rtol=1e-4, atol=1e-4
        )
        await asyncio.gather(
            *(two.post("/v1/rewards", json=rewards([f"{number} {p}" for p in prompts])) for number in range(4))
        )
        for device in ("cpu:0", "cpu:1"):
            labels = f'{{device="{device}",model="bt"}}'
            assert await metric(two, "paragone_device_tokens_total" + labels) > 0
            assert await metric(two, "paragone_device_up" + labels) == 1
        info = ModelInfo.model_validate((await two.get("/v1/models/bt")).json())
        assert [(device.name, device.serves, device.max_batch_tokens) for device in info.devices] == [
            ("cpu:0", True, info.max_batch_tokens),
            ("cpu:1", True, info.max_batch_tokens),
        ]
        assert (await two.get("/readyz")).status_code == 200


async def test_a_device_that_is_in_ruins_is_set_aside_and_the_server_stays_ready(hosted):
    async with serving({"gpm": hosted["gpm"]}, devices="cpu*2") as client:
        registry = client.app.state.registry
        device = registry.find("gpm").scheduler.devices[0]
        whole, device.represent = device.represent, failing
        pairs = [{"prompt": f"{number} is it?", "first": "Yes.", "second": "No."} for number in range(20)]
        answers = await asyncio.gather(*(client.post("/v1/preferences", json={"pairs": [pair]}) for pair in pairs))
        assert {answer.status_code for answer in answers} == {200}
        info = ModelInfo.model_validate((await client.get("/v1/models/gpm")).json())
        assert [one.serves for one in info.devices] == [False, True]
        assert info.devices[0].problem == "cpu:0 failed a batch with RuntimeError"
        assert (await client.get("/readyz")).status_code == 200
        device.represent = whole


async def failing(_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


async def test_a_single_device_is_called_what_it_is(client):
    info = ModelInfo.model_validate((await client.get("/v1/models/bt")).json())
    assert [device.name for device in info.devices] == ["cpu"]


async def test_a_second_gpu_that_is_not_there_is_refused_at_start(hosted):
    with pytest.raises(ModelLoadError, match=r"model bt has no replica on cuda:62: "):
        async with serving({"bt": hosted["bt"]}, devices="cuda:61,cuda:62"):
            pass
