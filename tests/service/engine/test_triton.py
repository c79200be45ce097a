"""The engine that asks Triton, against a real Triton server: its own binary, its Python backend, gRPC on loopback."""

import asyncio
import json
import re

import numpy as np
import pytest
import torch
import tritonclient.grpc
from serving_setup import free_port
from triton_server import Triton

from paragone_models import load_model
from paragone_models.files.triton_export import export_triton
from paragone_models.text.reader import EncodeItem
from paragone_models.triton import IDENTITY, INPUTS, to_tensors
from paragone_service.config import ConfigError
from paragone_service.engine import parse_remote
from paragone_service.engine.balancing import PlaceSlowError
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from paragone_service.engine.triton import TritonEngineError, TritonPlace, open_triton
from paragone_service.settings_sources import load_settings
from tests.service.conftest import SPECS, make_model, make_tokenizer, serving, until

pytestmark = [pytest.mark.anyio, pytest.mark.triton]

NAME = "judge"
GROUP = {"prompt": "Close the street to cars?", "responses": ["Yes, cars are loud.", "Buses can stay!", "x"]}
REWARD = {"items": [{"prompt": "Close the street to cars?", "response": "never asked before"}]}
FAULTS = {
    "full": 'error("Exceeds maximum queue size", pb.TritonError.UNAVAILABLE)',
    "broken": 'error("matrix is singular", pb.TritonError.INTERNAL)',
    "cramped": 'error("out of memory", pb.TritonError.UNSUPPORTED)',
    "narrow": 'pb.InferenceResponse([pb.Tensor.from_dlpack("HIDDEN", np.zeros((1, 2, 5), dtype=np.float32))])',
    "slow": 'time.sleep(1.5) or error("too late", pb.TritonError.INTERNAL)',
}
FAULTY = """
import time
import numpy as np
import triton_python_backend_utils as pb

def error(message, code):
    return pb.InferenceResponse(error=pb.TritonError(message, code))

class TritonPythonModel:
    def execute(self, requests):
        return [{answer} for request in requests]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("triton") / "gpm", SPECS["gpm"], make_tokenizer(), 3)


@pytest.fixture(scope="module")
def here(folder):
    """The model in this process."""
    return load_model(folder, name=NAME, device="cpu")


@pytest.fixture(scope="module")
def away(folder):
    """The model without its backbone."""
    return load_model(folder, name=NAME, elsewhere=True)


@pytest.fixture(scope="module")
def triton(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    repository = root / "repository"
    _, exported = export_triton(str(folder), repository, name=NAME, max_batch_tokens=64)
    config = (exported / "config.pbtxt").read_text()
    for name, answer in FAULTS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(FAULTY.replace("{answer}", answer))
        faulty = config.replace(f'name: "{NAME}"', f'name: "{name}"').replace('key: "format"', 'key: "other"')
        (repository / name / "config.pbtxt").write_text(faulty)
    with Triton(repository, NAME, *FAULTS, log=root / "log") as server:
        yield server


@pytest.fixture
async def place(triton, away):
    place = TritonPlace(away, triton.url, timeout_s=60)
    yield place
    await place.close()


def sequences(count, seed=0):
    """Items of several prompts, with a read inside the prompt and one that is a mean."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(3, 400, size).tolist() for size in (40, 7, 19)]
    items = []
    for number in range(count):
        prompt = prompts[number % 3]
        response = draw.integers(3, 400, draw.integers(1, 30)).tolist()
        reads = ((len(prompt) - 1, len(prompt)), (len(prompt), len(prompt) + len(response)))
        items.append(EncodeItem([*prompt, *response], reads, len(prompt)))
    return items


async def matrix(client):
    answer = await client.post("/v1/tournaments", json={"groups": [GROUP], "return": ["matrix"]})
    assert answer.status_code == 200, answer.text
    return answer.json()["tournaments"][0]["matrix"]


async def test_a_model_answers_on_triton_as_it_does_in_this_process(triton, here, away):
    async with serving({NAME: here}) as client:
        expected = await matrix(client)
    async with serving({NAME: away}, engines={NAME: open_triton(away, [triton.url])}) as client:
        assert (await client.get("/readyz")).status_code == 200
        np.testing.assert_allclose(await matrix(client), expected, atol=1e-5)
        info = (await client.get(f"/v1/models/{NAME}")).json()
    assert (info["engine"], info["batching"], info["identity"]) == ("triton", "elsewhere", here.identity)


async def test_states_of_many_passes_come_back_in_the_order_of_the_call(place, here):
    items = sequences(40)  # the server was told to run 64 tokens a pass
    torch.testing.assert_close(await place.encode(items), here.encode(items), atol=1e-5, rtol=1e-5)


async def test_a_call_of_another_identity_is_never_answered(place):
    place._identity = "f" * 64
    with pytest.raises(EngineUnavailableError, match=r"the model here has the identity \w{64}, and the call is for f+"):
        await place.encode(sequences(1))


async def test_an_export_of_another_model_is_refused_at_start_with_both_identities(triton, away, folder):
    other = load_model(folder, name=NAME, elsewhere=True, max_length=99)
    message = f"has the identity {away.identity}, and the one that is served here {other.identity}"
    with pytest.raises(ConfigError, match=message):
        open_triton(other, [triton.url])
    nameless = load_model(folder, name="rival", elsewhere=True)
    with pytest.raises(ConfigError, match=r"has no model rival; it has .*judge.*: export it under that name"):
        open_triton(nameless, [triton.url])
    old = load_model(folder, name="full", elsewhere=True)
    with pytest.raises(ConfigError, match="has the format None, and this version of paragone speaks 1"):
        open_triton(old, [triton.url])
    large = load_model(folder, name=NAME, elsewhere=True, max_batch_tokens=100_000)
    with pytest.raises(ConfigError, match=r"max_batch_tokens is 100000, and model judge at .* takes 65536 a call"):
        open_triton(large, [triton.url])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TOKENS": [5, 400]}, r"token ids reach from 5 to 400; they must lie in \[0, \d+\)"),
        ({"OFFSETS": [0, 1]}, "OFFSETS must rise from 0 to the 2 entries of TOKENS"),
        ({"OFFSETS": [0, 1, 2]}, "OFFSETS has 3 entries, PROMPTS 1 and READS"),
        ({"READS": [[[0, 1], [1, 3]]]}, r"read \(1, 3\) does not lie inside the 2 tokens"),
        ({"TOKENS": [5] * 70_000, "OFFSETS": [0, 70_000]}, "70000 tokens and the limit is 65536: send fewer"),
        ({"PROMPTS": None}, "expected 4 inputs but got 3"),
    ],
)
async def test_bad_tensors_are_refused_by_name_and_the_model_lives_on(triton, away, place, change, message):
    tensors = to_tensors([EncodeItem([5, 6], ((0, 1), (1, 2)), 1)])
    inputs = []
    for name, (dtype, kind, _) in INPUTS.items():
        values = change.get(name, tensors[name])
        if values is not None:
            values = np.asarray(values, dtype=kind)
            inputs.append(tritonclient.grpc.InferInput(name, values.shape, dtype))
            inputs[-1].set_data_from_numpy(values)
    with (
        tritonclient.grpc.InferenceServerClient(triton.url.removeprefix("grpc://")) as client,
        pytest.raises(tritonclient.grpc.InferenceServerException, match=message) as refused,
    ):
        client.infer(NAME, inputs, parameters={IDENTITY: away.identity})
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert not re.search(r"Traceback|\.py|/work|/tmp", refused.value.message())
    await place.check()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("full", EngineUnavailableError, "is UNAVAILABLE: Exceeds maximum queue size"),
        ("broken", TritonEngineError, "is INTERNAL: matrix is singular"),
        ("cramped", EngineOutOfMemoryError, "is UNIMPLEMENTED: out of memory"),
        ("narrow", TritonEngineError, r"answered \('float32', \(1, 2, 5\)\) to a call for float32 states of shape"),
        ("missing", EngineUnavailableError, "is NOT_FOUND"),
        ("slow", PlaceSlowError, "took more than 0.2 s"),
    ],
)
async def test_each_status_is_an_error_of_the_contract(triton, folder, name, error, message):
    place = TritonPlace(load_model(folder, name=name, elsewhere=True), triton.url, timeout_s=0.2)
    with pytest.raises(error, match=message):
        await place.encode(sequences(1))
    await place.close()


async def test_a_server_without_room_is_503_with_a_time_to_come_back(triton, folder):
    full = load_model(folder, name="full", elsewhere=True)
    engine = open_triton_unchecked(full, triton.url)
    async with serving({"full": full}, engines={"full": engine}) as client:
        refused = await client.post("/v1/rewards", json=REWARD)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert refused.headers["retry-after"] == "5"


def open_triton_unchecked(model, *addresses, timeout_s=60):
    from paragone_service.engine.balancing import BalancedEngine

    places = [TritonPlace(model, address, timeout_s=timeout_s) for address in addresses]
    return BalancedEngine("triton", places, shares_prompts=True)


async def test_a_slow_server_costs_requests_their_deadline_and_does_not_pile_up_calls(triton, folder):
    slow = load_model(folder, name="slow", elsewhere=True)
    engine, calls = open_triton_unchecked(slow, triton.url), []
    place = engine._seats[0].place
    encode = place.encode

    def counted(items):
        calls.append(items)
        return encode(items)

    place.encode = counted
    async with serving({"slow": slow}, engines={"slow": engine}) as client:
        requests = [
            client.post("/v1/rewards", json={"items": [{"prompt": "p", "response": str(n)}], "deadline_s": 0.4})
            for n in range(12)
        ]
        answers = await asyncio.gather(*requests)
        codes = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}
        assert codes <= {(504, "deadline_exceeded"), (503, "overloaded")}
        assert (504, "deadline_exceeded") in codes
    assert len(calls) <= 2


async def test_a_call_that_is_cancelled_ends_with_its_pass(triton, place):
    items = [EncodeItem([5] * 200, ((0, 1), (199, 200)), 1)] * 300  # 300 passes
    call = asyncio.create_task(place.encode(items))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await place.check()
    assert re.search(r"cancelled after \d+ of 300 passes", triton.log())


async def test_what_one_server_lacks_another_runs(triton, away, here, caplog):
    nobody = f"grpc://127.0.0.1:{free_port()}"
    engine = open_triton(away, [nobody, triton.url])
    assert "is not ready yet" in caplog.text
    items = sequences(12)
    torch.testing.assert_close(await engine.encode(items), here.encode(items), atol=1e-5, rtol=1e-5)
    health = await engine.health()
    assert health.healthy
    assert nobody in health.detail
    await engine.close()


async def test_a_dead_process_of_the_model_is_found_by_a_real_call_and_mended(triton, away):
    async with serving({NAME: away}, engines={NAME: open_triton(away, [triton.url])}) as client:
        expected = await matrix(client)
        triton.kill_stub(NAME)
        assert triton.answers()  # which is why readiness must not ask Triton for it
        refused = await client.post("/v1/rewards", json=REWARD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert (await client.get("/readyz")).status_code == 503
        assert await matrix(client) == expected  # from the cache

        async def ready():
            return (await client.get("/readyz")).status_code == 200

        await until(ready, timeout_s=120)
        assert (await client.post("/v1/rewards", json=REWARD)).status_code == 200


async def test_a_server_that_comes_later_or_again_is_taken_up(triton, away):
    triton.end()
    async with serving({NAME: away}, engines={NAME: open_triton(away, [triton.url])}) as client:
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.post("/v1/rewards", json=REWARD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        await asyncio.to_thread(triton.start)

        async def ready():
            return (await client.get("/readyz")).status_code == 200

        await until(ready, timeout_s=60)
        assert (await client.post("/v1/rewards", json=REWARD)).status_code == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sglang:http://gpu", "write vllm:http://HOST:PORT or triton:grpc://HOST:PORT"),
        ("triton:http://gpu:8001", "write vllm:"),
        ("triton:grpc://gpu:8001,", "'' is no HOST:PORT"),
        ("triton:grpc://gpu:8001,grpc://gpu:8001", "gpu:8001 comes twice"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        load_settings({"models": {"judge": {"source": "x"}}, "engines": {"judge": text}})


def test_several_addresses_share_the_scheme():
    assert parse_remote("triton:grpcs://a:1,b:2,grpcs://c:3")[1] == ("grpcs://a:1", "grpcs://b:2", "grpcs://c:3")


def test_the_exported_files_name_no_path_of_this_machine(triton, folder):
    exported = triton.repository / NAME
    texts = [(exported / "config.pbtxt").read_text(), (exported / "1" / "model.py").read_text()]
    assert not any(re.search(r"/(work|tmp|root|home)\b", text) or str(folder) in text for text in texts)
    assert json.loads((exported / "1" / "model" / "paragone.json").read_text())["kind"] == "general-preference"


async def test_a_batch_that_is_longer_than_a_call_is_several(place, here):
    place._call_tokens = 100
    items, calls, whole = sequences(30), [], place._call

    async def call(items, timeout_s):
        calls.append(sum(len(item.token_ids) for item in items))
        return await whole(items, timeout_s)

    place._call = call
    torch.testing.assert_close(await place.encode(items), here.encode(items), atol=1e-5, rtol=1e-5)
    assert len(calls) > 1
    assert max(calls) <= 100
