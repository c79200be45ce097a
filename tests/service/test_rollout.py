"""Models that are loaded and unloaded while the server runs: checked, exchanged at one moment, and let go."""

import asyncio
import shutil
import weakref

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from paragone import AsyncClient
from paragone.codes import ErrorCode
from paragone.exceptions import OracleChangedError
from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.golden import check_golden
from paragone_models.model import PreferenceModel
from paragone_service import memory, rollout
from paragone_service.api_keys import hash_of
from paragone_service.config import Settings
from paragone_service.hosting import Devices
from paragone_service.memory import available_bytes, weight_bytes
from paragone_service.metrics import Metrics
from paragone_service.registry import Registry
from tests.service.conftest import serving, until
from tests.service.doubles import Gated, metric

pytestmark = pytest.mark.anyio

PAIR = {"prompt": "Is it?", "first": "Yes.", "second": "No, it is not."}


@pytest.fixture
def models_dir(folders, tmp_path):
    """The folder ``next``, a model like bt with other weights, and ``bad``, whose weights overflow."""
    root = tmp_path / "models"
    for name, factor in (("next", 1.5), ("bad", 1e30)):
        shutil.copytree(folders["bt"], root / name)
        changed = next(file for file in (root / name).glob("*.safetensors") if "value_head" in str(load_file(file)))
        tensors = load_file(changed)
        for key in tensors:
            if "value_head" in key or "down_proj" in key:
                tensors[key] = tensors[key] * factor
        save_file(tensors, changed, metadata={"format": "pt"})
    return root


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"ops:{hash_of('boss')} admin=yes\nuser:{hash_of('user')}\n")
    return file


@pytest.fixture
async def client(folders, models_dir, keys):
    model = load_model(folders["bt"], name="bt", device="cpu")
    settings = {"models_dir": models_dir, "api_key_file": keys, "device": "cpu"}
    async with serving({"bt": model}, headers={"authorization": "Bearer boss"}, **settings) as client:
        del model
        yield client


async def post(client, path, body=None, *, key="boss"):
    headers = {"authorization": f"Bearer {key}"}
    return await client.post(f"/v1/models/{path}", json=body, headers=headers)


async def asked(client, **more):
    answer = (await client.post("/v1/preferences", json={"pairs": [PAIR], **more})).json()
    return answer["identity"], answer["preferences"][0]["logit"]


async def test_another_revision_takes_over_and_its_answers_are_its_own(client, models_dir):
    before = await asked(client)
    answer = await post(client, "bt:load", {"source": "next"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["source"] == str(models_dir / "next")
    after = await asked(client)
    assert after[0] == answer.json()["identity"] != before[0]
    assert after[1] != before[1]  # cached entries are kept by identity
    expected = load_model(models_dir / "next", device="cpu").score(PAIR["prompt"], [PAIR["first"], PAIR["second"]])
    assert after[1] == pytest.approx(float(expected.rewards[0] - expected.rewards[1]), abs=1e-4)
    assert (await client.get("/readyz")).status_code == 200


async def test_a_request_under_way_ends_on_the_old_model_and_then_that_is_let_go(
    folders, models_dir, keys, monkeypatch
):
    monkeypatch.setattr(rollout, "_LINGER_S", 0.2)
    model = load_model(folders["bt"], name="bt", device="cpu")
    engine, old, identity = Gated(model), weakref.ref(model.network), model.identity
    headers = {"authorization": "Bearer boss"}
    settings = {"models_dir": models_dir, "api_key_file": keys, "device": "cpu"}
    models, engines = {"bt": model}, {"bt": engine}
    async with serving(models, engines=engines, headers=headers, **settings) as client:
        del model
        models.clear()
        engines.clear()
        engine.gate.clear()
        under_way = asyncio.create_task(asked(client))
        await until(lambda: engine.calls)
        assert (await post(client, "bt:load", {"source": "next"})).status_code == 200
        later = asyncio.create_task(asked(client))
        await asyncio.sleep(0.01)
        assert not under_way.done()
        engine.gate.set()
        assert (await under_way)[0] == identity
        assert (await later)[0] == (await client.get("/v1/models/bt")).json()["identity"] != identity
        engine = under_way = None
        await until(lambda: old() is None)


async def test_our_client_says_so_when_a_batch_is_answered_by_two_models(client):
    class Exchanging(httpx2.ASGITransport):
        async def handle_async_request(self, request):
            answer = await super().handle_async_request(request)
            if request.url.path == "/v1/rewards" and not exchanged:
                exchanged.append((await post(client, "bt:load", {"source": "next"})).status_code)
            return answer

    exchanged = []
    transport = Exchanging(app=client.app)
    options = {"api_key": "boss", "max_items_per_request": 1, "concurrency": 1, "transport": transport}
    async with AsyncClient("http://localhost", **options) as ours:
        items = [("Is it?", "Yes."), ("Is it?", "No.")]
        with pytest.raises(OracleChangedError, match="the identity changed within one batch"):
            await ours.rewards(items)
        assert exchanged == [200]
        assert len((await ours.rewards(items)).rewards) == 2


async def test_a_model_whose_numbers_are_not_sound_changes_nothing(client):
    before = await asked(client)
    answer = await post(client, "bt:load", {"source": "bad"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == ErrorCode.MODEL_REFUSED
    assert await asked(client) == before


@pytest.mark.parametrize("source", ["../models-of-others", "/etc", ".", "nothing", "next/../..", "a\0b"])
async def test_only_folders_below_the_folder_of_models_are_loaded(client, source):
    answer = await post(client, "bt:load", {"source": source})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_refused")
    assert "is no folder of models_dir" in answer.json()["error"]["message"]


async def test_a_link_out_of_the_folder_is_not_followed(client, models_dir, folders):
    (models_dir / "link").symlink_to(folders["gpm"])
    assert (await post(client, "bt:load", {"source": "link"})).status_code == 409


async def test_a_new_model_takes_over_no_name_that_dialects_send(client):
    answer = await post(client, "reward_model:load", {"source": "next"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_refused")
    assert "clients that send 'reward_model' mean model bt" in answer.json()["error"]["message"]


async def test_a_model_comes_and_goes(client, monkeypatch):
    monkeypatch.setattr(rollout, "_LINGER_S", 0.1)
    assert (await post(client, "other:load", {"source": "next"})).status_code == 200
    identity, _ = await asked(client, model="other")
    assert [model["id"] for model in (await client.get("/v1/models")).json()["models"]] == ["bt", "other"]
    assert await metric(client, 'paragone_device_up{device="cpu",model="other"}') == 1
    gone = await post(client, "other:unload")
    assert (gone.status_code, gone.json()["identity"]) == (200, identity)
    answer = await client.post("/v1/preferences", json={"pairs": [PAIR], "model": "other"})
    assert answer.json()["error"]["code"] == "unknown_model"
    assert 'model="other"} 1' not in (await client.get("/metrics")).text.split("paragone_device_up")[-1]


async def test_the_default_model_stays(client):
    answer = await post(client, "bt:unload")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_refused")
    assert (await post(client, "nobody:unload")).status_code == 404


async def test_one_model_at_a_time(client):
    one, other = await asyncio.gather(*(post(client, f"{name}:load", {"source": "next"}) for name in ("a", "b")))
    assert sorted((one.status_code, other.status_code)) == [200, 409]
    refused = one if one.status_code == 409 else other
    assert "is being loaded" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "5"


async def test_a_key_that_is_no_admins_may_not(client):
    for path, body in (("bt:load", {"source": "next"}), ("bt:unload", None)):
        answer = await post(client, path, body, key="user")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
    assert (await post(client, "bt:load", {"source": "next"}, key="nobody")).status_code == 403


async def test_without_a_folder_of_models_nobody_may(hosted, keys):
    async with serving({"bt": hosted["bt"]}, api_key_file=keys) as client:
        for path, body in (("bt:load", {"source": "next"}), ("bt:unload", None)):
            answer = await post(client, path, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
            assert "--models-dir" in answer.json()["error"]["message"]


async def test_memory_that_does_not_suffice_is_said_before(client, monkeypatch):
    monkeypatch.setattr(rollout, "available_bytes", lambda _: 1_000)
    answer = await post(client, "bt:load", {"source": "next"})
    assert answer.status_code == 409
    assert "and 0 MB are left: unload another model first" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{"source": 7}, {"sauce": "next"}, []])
async def test_another_body_is_refused(client, body):
    assert (await post(client, "bt:load", body)).status_code == 422


async def test_a_name_that_fits_into_no_url_is_refused(client):
    answer = await post(client, "b%20t:load", {"source": "next"})
    assert answer.status_code == 409
    assert "is no name of a model" in answer.json()["error"]["message"]


def test_weights_take_what_their_files_say(folders, tmp_path):
    model = load_model(folders["bt"], device="cpu", dtype="float32")
    numbers = sum(parameter.numel() for parameter in model.network.parameters())
    assert weight_bytes(folders["bt"], 4) == 4 * numbers
    (tmp_path / "model.bin").write_bytes(b"0" * 123)
    assert weight_bytes(tmp_path, 4) == 123
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="is no safetensors file"):
        weight_bytes(tmp_path, 4)


def test_what_is_left_is_within_the_limit_of_the_control_group(tmp_path, monkeypatch):
    whole = available_bytes(torch.device("cpu"))
    assert 1e6 < whole < 1 << 50
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 1e6


def test_the_built_in_texts_find_numbers_that_depend_on_company(folders, monkeypatch):
    model = load_model(folders["gpm"], device="cpu")
    assert check_golden(model) == 12
    assert check_golden(load_model(folders["gpm"], device="cpu", deterministic=True)) == 12
    assert check_golden(load_model(folders["mute"], device="cpu")) == 4
    model = load_model(folders["bt"], device="cpu")
    whole = model.encode
    monkeypatch.setattr(model, "encode", lambda items: whole(items) * (1 + 0.01 * (len(items) > 1)))
    with pytest.raises(ModelLoadError, match="run one by one, 12 built-in texts are off by"):
        check_golden(model)
    calls = iter([1.0, 1.1, *[1.0] * 12])
    monkeypatch.setattr(model, "encode", lambda items: whole(items) * next(calls))
    with pytest.raises(ModelLoadError, match="run a second time"):
        check_golden(model)
    monkeypatch.setattr(model, "encode", lambda items: whole(items) * float("nan"))
    with pytest.raises(ModelLoadError, match="12 of 12 built-in texts have NaN"):
        check_golden(model)


async def test_a_member_of_an_ensemble_stays(folders, models_dir, keys):
    names = ("bt", "gpm")
    held = {name: load_model(folders[name], name=name, device="cpu") for name in names}
    models = {**{name: {"source": str(folders[name])} for name in names}, "both": {"source": "ensemble:bt+gpm"}}
    settings = {"models_dir": models_dir, "api_key_file": keys, "device": "cpu", "models": models}
    async with serving(held, headers={"authorization": "Bearer boss"}, **settings) as client:
        answer = await post(client, "gpm:unload")
        assert answer.status_code == 409
        assert "is a member of both" in answer.json()["error"]["message"]
        assert (await client.get("/readyz")).status_code == (await client.get("/v1/models")).status_code == 200


def test_what_a_device_refused_leaves_no_copies(folders, monkeypatch):
    model = load_model(folders["bt"], name="bt", device="cpu")

    def fails_half_way(self, there, moved):
        self.network.on(there, moved)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PreferenceModel, "replica", fails_half_way)
    devices = Devices(Settings(devices="cpu*2"))
    with pytest.raises(ModelLoadError, match="no replica on cpu:1"):
        devices.replicas("bt", model)
    assert not devices._moved
    devices.close()


async def test_a_pairwise_model_comes_and_goes(client):
    hosted = client.app.state.registry
    assert (await post(client, "other:load", {"source": "next"})).status_code == 200
    # As a model that reads pairs is: under its name in both.
    hosted.pair_sources["other"] = hosted.loaded("other")
    assert (await post(client, "other:load", {"source": "next"})).status_code == 200
    hosted.pair_sources["other"] = hosted.loaded("other")
    assert (await post(client, "other:unload")).status_code == 200
    assert "other" not in hosted.names


async def test_without_a_revision_the_one_that_was_pinned_holds(folders, models_dir):
    models = {"bt": {"source": str(folders["bt"]), "revision": "v1"}}
    settings = Settings(models_dir=models_dir, models=models)
    registry = Registry({}, "bt", settings, None, Metrics())
    options = rollout.Rollout(settings, registry, lambda: None)._options_of
    assert options("bt", None, None).revision == "v1"
    assert options("bt", None, "v2").revision == "v2"
