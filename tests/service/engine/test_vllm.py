"""The engine that asks a vLLM server, against a small server that speaks its JSON, and against vLLM itself.

``PARAGONE_TEST_VLLM`` names the python of an environment with vLLM (a CPU build will do); without it one test skips.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from serving_setup import free_port
from transformers import LlamaConfig, LlamaModel

from paragone_models import load_model
from paragone_models.files.saving import export_backbone, save_model
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem
from paragone_service.config import ConfigError
from paragone_service.engine.vllm import VllmError, open_vllm
from paragone_service.hosting import Devices
from paragone_service.settings_sources import load_settings, parse_engine
from tests.service.conftest import make_model, make_tokenizer, serving, until
from tests.service.pooling import PoolingServer

pytestmark = pytest.mark.anyio

VLLM = os.environ.get("PARAGONE_TEST_VLLM")
VLLM_FLAGS = [
    "--runner",
    "pooling",
    "--convert",
    "embed",
    "--dtype",
    "float32",
    "--host",
    "127.0.0.1",
    "--max-model-len",
    "256",
    "--enforce-eager",
]
VLLM_START_S = 1_800
"""It takes half a minute; on two busy cores its three processes were still importing after eight."""
KINDS = {
    "reward": ModelSpec(kind="bradley-terry", dimension=1, max_length=256),
    "gpm": ModelSpec(
        kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.1, max_length=256
    ),
    "ratings": ModelSpec(
        kind="regression", dimension=2, attributes=("helpful", "verbose"), weights=(1.0, -0.5), max_length=256
    ),
    "helpsteer": ModelSpec(kind="helpsteer", dimension=2, attributes=("helpful",), max_length=256),
    "hybrid": ModelSpec(kind="hybrid", dimension=3, normalise=True, max_length=256),
}
REWARD = {"items": [{"prompt": "Close the street to cars?", "response": "never asked before"}]}
GROUP = {"prompt": "Close the street to cars?", "responses": ["Yes, cars are loud.", "Buses can stay!", "x"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vllm")
    tokenizer = make_tokenizer()
    return {name: make_model(root / name, spec, tokenizer, 3) for name, spec in KINDS.items()}


@pytest.fixture(scope="module")
def backbone(folders, tmp_path_factory):
    """The bare backbone of one of them."""
    return export_backbone(str(folders["gpm"]), tmp_path_factory.mktemp("backbone") / "bare")


@pytest.fixture
def server(backbone):
    return PoolingServer(backbone)


@contextlib.asynccontextmanager
async def engine_of(server, folder, **options):
    model = load_model(folder, elsewhere=True)
    engine = open_vllm(model, ["http://vllm"], transport=httpx2.ASGITransport(app=server.app), **options)
    yield engine
    await engine.close()


def items_of(folder):
    reads = ((6, 7), (11, 12)) if folder.name == "gpm" else ((11, 12),)
    return [EncodeItem([*range(7), *range(20 + row, 25 + row)], reads, 7) for row in range(3)]


async def tournament(client):
    answer = await client.post("/v1/tournaments", json={"groups": [GROUP], "return": ["matrix"]})
    assert answer.status_code == 200, answer.text
    return answer.json()["tournaments"][0]["matrix"]


@pytest.mark.parametrize("name", KINDS)
async def test_every_kind_answers_as_it_does_in_this_process(folders, tmp_path, name):
    server = PoolingServer(export_backbone(str(folders[name]), tmp_path / "bare"))
    here = load_model(folders[name], name=name, device="cpu")
    away = load_model(folders[name], name=name, elsewhere=True)
    assert away.identity == here.identity
    engine = open_vllm(away, ["http://vllm"], transport=httpx2.ASGITransport(app=server.app))
    async with serving({name: here}) as client:
        expected = await tournament(client)
    async with serving({name: away}, engines={name: engine}) as client:
        assert (await client.get("/readyz")).status_code == 200
        np.testing.assert_allclose(await tournament(client), expected, atol=1e-4)
        info = (await client.get(f"/v1/models/{name}")).json()
    assert (info["engine"], info["batching"], info["max_batch_tokens"]) == ("vllm", "elsewhere", 16384)


async def test_the_prompt_of_siblings_is_sent_once(server, folders):
    async with engine_of(server, folders["gpm"]) as engine:
        hidden = await engine.encode(items_of(folders["gpm"]))
    (body, _), *others = server.requests
    assert not others
    assert [len(ids) for ids in body["input"]] == [7, 12, 12, 12]
    assert hidden.shape == (3, 2, 32)
    assert np.array_equal(hidden[0, 0], hidden[2, 0])
    assert (body["task"], body["use_activation"]) == ("embed", False)


async def test_a_server_that_answers_lists_is_understood_too(server, folders):
    async with engine_of(server, folders["gpm"]) as engine:
        expected = await engine.encode(items_of(folders["gpm"]))
        server.lists = True
        np.testing.assert_allclose(await engine.encode(items_of(folders["gpm"])), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"always_activate": True}, "scaled its hidden states to length 1"),
        ({"cut": 2}, "read 30 tokens of the 36 that were sent"),
        ({"drop": 1}, "answered 2 rows for 3 sequences"),
        ({"first": [(200, {"data": [{"index": 0}]})]}, "answered in another shape"),
        ({"first": [(200, {"data": [], "usage": {"prompt_tokens": 0}})]}, "answered 0 rows for 3 sequences"),
        ({"first": [(400, {"error": {"message": "too long"}})]}, "is 400: .*too long"),
        ({"first": [(503, {})] * 3}, "is 503, 3 times"),
    ],
)
async def test_an_answer_to_another_question_is_never_a_number(server, folders, wrong, message):
    vars(server).update(wrong)
    async with engine_of(server, folders["reward"]) as engine:
        with pytest.raises(VllmError, match=message):
            await engine.encode(items_of(folders["reward"]))


async def test_another_backbone_is_refused(server, folders):
    async with engine_of(server, folders["reward"]) as engine:
        engine._seats[0].place._hidden_size = 64
        with pytest.raises(VllmError, match="returns 32 numbers a sequence and the model's hidden size is 64"):
            await engine.encode(items_of(folders["reward"]))


async def test_a_server_that_is_busy_for_a_moment_is_asked_again(server, folders):
    server.first = [(503, {}), (429, {})]
    async with engine_of(server, folders["reward"]) as engine:
        assert (await engine.encode(items_of(folders["reward"]))).shape == (3, 1, 32)
    assert len(server.requests) == 3


class ByHost(httpx2.AsyncBaseTransport):
    """Carry each request to the application of its host."""

    def __init__(self, servers):
        self.applications = {host: httpx2.ASGITransport(app=server.app) for host, server in servers.items()}

    async def handle_async_request(self, request):
        return await self.applications[request.url.host].handle_async_request(request)


async def test_several_servers_share_a_batch_and_one_that_is_away_is_done_without(folders, backbone):
    servers = {host: PoolingServer(backbone) for host in ("one", "two")}
    model = load_model(folders["gpm"], elsewhere=True)
    engine = open_vllm(model, ["http://one", "http://two"], transport=ByHost(servers))
    items = [
        EncodeItem([prompt] * 7 + [*range(20, 25 + row)], ((6, 7), (11, 12)), 7)
        for row in range(2)
        for prompt in range(3, 15)
    ]
    expected = load_model(folders["gpm"], device="cpu").encode(items)
    torch.testing.assert_close(await engine.encode(items), expected, atol=1e-4, rtol=1e-4)
    assert all(len(server.requests) == 1 for server in servers.values())
    servers["one"].well = False
    torch.testing.assert_close(await engine.encode(items), expected, atol=1e-4, rtol=1e-4)
    assert len(servers["one"].requests) == 2
    assert (await engine.health()).detail == "http://one: http://one/pooling is 503"
    servers["one"].well = True
    await until(lambda: not engine._seats[0].away)
    await engine.close()


async def test_batches_for_several_servers_are_as_large_as_all_of_theirs_and_two_are_on_their_way(folders):
    def lanes(addresses):
        engines = {"gpm": f"vllm:{addresses}"}
        settings = load_settings({"models": {"gpm": {"source": str(folders["gpm"])}}, "engines": engines})
        devices = Devices(settings)
        replicas = devices.replicas("gpm", load_model(folders["gpm"], name="gpm", elsewhere=True))
        devices.close()
        assert len({replica.engine for replica in replicas}) == 1
        return [(replica.device.name, replica.max_batch_tokens) for replica in replicas]

    assert lanes("http://one") == [("gpm", 16_384)]
    assert lanes("http://one,http://two") == [("gpm, lane 1", 32_768), ("gpm, lane 2", 32_768)]


async def test_a_proxy_gets_its_key(server, folders):
    async with engine_of(server, folders["reward"], api_key="sesame") as engine:
        await engine.encode(items_of(folders["reward"]))
    assert server.requests[0][1]["authorization"] == "Bearer sesame"


async def test_a_failure_fails_its_request_and_readiness_follows_the_server(server, folders):
    away = load_model(folders["reward"], name="reward", elsewhere=True)
    engine = open_vllm(away, ["http://vllm"], transport=httpx2.ASGITransport(app=server.app))
    async with serving({"reward": away}, engines={"reward": engine}) as client:
        server.first = [(400, {"error": "no"})]
        answer = await client.post("/v1/tournaments", json={"groups": [GROUP]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
        server.well = False
        assert (await client.get("/readyz")).status_code == 503
        server.well = True

        async def ready():
            return (await client.get("/readyz")).status_code == 200

        await until(ready)


async def test_a_server_that_is_not_there_is_named(folders):
    engine = open_vllm(load_model(folders["reward"], elsewhere=True), [f"http://127.0.0.1:{free_port()}"])
    health = await engine.health()
    assert (health.healthy, "cannot be reached" in health.detail) == (False, True)
    with pytest.raises(VllmError, match="cannot be reached"):
        await engine.encode(items_of(folders["reward"]))
    await engine.close()


async def reset_in_the_middle(reader, writer):
    """Read the beginning of a request and reset the connection: a server that dies."""
    await reader.read(100)
    writer.transport.abort()


@pytest.mark.parametrize("dying", [False, True], ids=["nobody listens", "it dies in the middle"])
async def test_a_server_that_is_away_is_503_until_it_is_back_and_what_is_cached_is_answered(
    folders, backbone, dying, caplog
):
    away = load_model(folders["gpm"], name="gpm", elsewhere=True)
    with socket.socket() as listener:  # held, so that nobody else gets the port in between
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        engine = open_vllm(away, [f"http://127.0.0.1:{port}"])
        async with serving({"gpm": away}, engines={"gpm": engine}) as client:
            async with listening(PoolingServer(backbone).app, port):
                expected = await tournament(client)
            if dying:
                async with await asyncio.start_server(reset_in_the_middle, "127.0.0.1", port, reuse_port=True):
                    refused = await client.post("/v1/rewards", json=REWARD)
            else:
                refused = await client.post("/v1/rewards", json=REWARD)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert refused.headers["retry-after"] == "5"
            started = time.perf_counter()
            assert (await client.post("/v1/rewards", json=REWARD)).status_code == 503
            assert time.perf_counter() - started < 1  # asked once, without the waits in between
            assert (await client.get("/readyz")).status_code == 503
            assert await tournament(client) == expected
            assert "is away, 1 responses wait" in caplog.text
            assert "Traceback" not in caplog.text
            async with listening(PoolingServer(backbone).app, port):
                assert (await client.post("/v1/rewards", json=REWARD)).status_code == 200
                assert (await client.get("/readyz")).status_code == 200


@contextlib.asynccontextmanager
async def listening(app, port):
    """Serve an application on a port of the loopback."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(("127.0.0.1", port))
        task = asyncio.create_task(server.serve(sockets=[own]))
        await until(lambda: server.started)
        yield
        server.should_exit = True
        await task


async def test_reads_that_vllm_does_not_return_are_refused_by_name(server, folders, tmp_path):
    spec = ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=64)
    pooled = make_model(tmp_path / "mean", spec, None, 0)
    with pytest.raises(ConfigError, match="model mean cannot run on vLLM: its pooling is mean"):
        open_vllm(load_model(pooled, elsewhere=True), ["http://vllm"])
    async with engine_of(server, folders["reward"]) as engine:
        with pytest.raises(ValueError, match="a mean over the positions 2 to 4"):
            await engine.encode([EncodeItem([1, 2, 3, 4, 5], ((2, 5),), 2)])
        with pytest.raises(ValueError, match="content beside the tokens"):
            await engine.encode([EncodeItem([1, 2], ((1, 2),), 1, content_key=b"image")])


def test_an_engine_is_named_by_model_and_address():
    assert parse_engine("judge=vllm:http://gpu:8123/") == ("judge", "vllm:http://gpu:8123/")
    settings = load_settings({"models": {"judge": {"source": "x"}}, "engines": {"judge": "vllm:https://gpu:8123"}})
    assert (settings.remote_engine("judge"), settings.remote_engine("other")) == (("vllm", ("https://gpu:8123",)), None)


@pytest.mark.parametrize(
    ("model", "engines", "message"),
    [
        ({}, {"judge": "sglang:http://gpu"}, "write vllm:http://HOST:PORT"),
        ({}, {"other": "vllm:http://gpu"}, "engine of 'other': there is no such model, these are: judge"),
        ({"dtype": "bfloat16"}, {"judge": "vllm:http://gpu"}, "dtype of judge: its backbone runs on another server"),
    ],
)
def test_an_engine_that_does_not_fit_its_model_is_refused(model, engines, message):
    with pytest.raises(ConfigError, match=message):
        load_settings({"models": {"judge": {"source": "x", **model}}, "engines": engines})
    with pytest.raises(ConfigError, match="--engine 'judge': write NAME="):
        parse_engine("judge")


@pytest.fixture
def wide(tmp_path):
    """A model whose heads are 64 wide: vLLM's attention on a CPU ends with an error where they are 16."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **sizes)
    head = RepresentationHead(128, KINDS["gpm"])
    return save_model(tmp_path / "wide", PreferenceNetwork(LlamaModel(config), head), KINDS["gpm"], tokenizer)


@pytest.fixture
def vllm(wide, tmp_path):
    """A real vLLM that serves the bare backbone: its address, and its process, the first of a group of its own."""
    backbone = export_backbone(str(wide), tmp_path / "bare")
    port = free_port()
    command = [str(Path(VLLM).parent / "vllm"), "serve", str(backbone), *VLLM_FLAGS, "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("PYTHONPATH", None)
    log = tmp_path / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + VLLM_START_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, f"vLLM ended: {log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"vLLM did not start in {VLLM_START_S} s: {log.read_text()[-4000:]}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address):
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(address, timeout=5, trust_env=False).status_code == 200
    return False


@pytest.mark.skipif(VLLM is None, reason="PARAGONE_TEST_VLLM names no python with vLLM")
async def test_vllm_itself_gives_the_preferences_of_this_process_until_it_is_killed(wide, vllm):
    url, process = vllm
    away = load_model(wide, name="gpm", elsewhere=True)
    here = load_model(wide, name="gpm", device="cpu")
    items = [EncodeItem([*range(7), *range(20 + row, 60 + row)], ((6, 7), (46, 47)), 7) for row in range(3)]
    engine = open_vllm(away, [url])
    hidden = await engine.encode(items)
    np.testing.assert_allclose(hidden, here.encode(items), atol=1e-3)
    async with serving({"gpm": here}) as client:
        expected = await tournament(client)
    async with serving({"gpm": away}, engines={"gpm": engine}) as client:
        np.testing.assert_allclose(await tournament(client), expected, atol=1e-3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        refused = await client.post("/v1/rewards", json=REWARD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert refused.headers["retry-after"] == "5"
        np.testing.assert_allclose(await tournament(client), expected, atol=1e-3)
