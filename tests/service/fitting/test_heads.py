"""`/v1/heads`: a head is fitted to labels, hosted beside its model in its memory, and compared on pairs kept back."""

import asyncio
import contextlib
import json
import threading

import numpy as np
import pytest

from paragone.wire import HeadAnswer
from paragone_models import load_model
from paragone_models.files.loading import load_backbone
from paragone_models.fitting import Choices, States, fit_head
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import conversation
from paragone_service.api_keys import hash_of
from paragone_service.cache.keys import prompt_digest
from paragone_service.fitting import features
from tests.service.conftest import make_model, make_tokenizer, serving

pytestmark = pytest.mark.anyio

GOOD, BAD = "Yes, because it keeps people well and brings them together.", "no"
TOPICS = ["sport", "music", "books", "bread", "trains", "maps", "cats", "rain", "tea", "walls", "seas", "games"]
LONG = {"prompt": "?", "first": GOOD * 100, "second": "a", "strength": 1}


def pairs(topics=TOPICS, *, likes=1):
    """Pairs in which the long answer is preferred, at either place."""
    return [
        {"prompt": f"Is {topic} good?", "first": GOOD, "second": BAD, "strength": likes}
        if number % 2
        else {"prompt": f"Is {topic} good?", "first": BAD, "second": GOOD, "strength": -likes}
        for number, topic in enumerate(topics)
    ]


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def client(hosted):
    models = {name: hosted[name] for name in ("gpm", "bt", "ratings", "mute")}
    async with serving(models, device="cpu") as client:
        yield client


async def fit(client, name="mine", **body):
    return await client.post("/v1/heads", json={"name": name, "pairs": pairs(), **body})


async def fitted(client, name="mine", **body):
    response = await fit(client, name, **body)
    assert response.status_code == 200, response.text
    return HeadAnswer.model_validate_json(response.content)


async def logit(client, model, pair):
    body = {"model": model, "pairs": [{key: pair[key] for key in ("prompt", "first", "second")}]}
    response = await client.post("/v1/preferences", json=body)
    assert response.status_code == 200, response.text
    return response.json()["preferences"][0]["logit"]


async def test_the_head_answers_what_was_said_beside_the_old_model_in_its_memory(client, hosted):
    answer = await fitted(client, model="bt")
    assert (answer.base, answer.model.id, answer.model.kind) == ("bt", "mine", "bradley-terry")
    assert (answer.pairs, answer.prompts, answer.agreement.pairs, answer.agreement.prompts) == (9, 9, 3, 3)
    assert answer.agreement.new.share == 1
    right = 0
    kept_back = sorted(pairs(), key=lambda pair: prompt_digest(pair["prompt"], None))[:3]
    for pair in kept_back:  # the very answers of the server
        assert await logit(client, "mine", pair) * pair["strength"] > 0
        right += await logit(client, "bt", pair) * pair["strength"] > 0
    assert answer.agreement.old.share == right / 3
    assert answer.agreement.only_new == 3 - right
    new = client.app.state.registry.find("mine")
    assert new.model.network.backbone is hosted["bt"].network.backbone
    ids = [model["id"] for model in (await client.get("/v1/models")).json()["models"]]
    assert ids[:4] == ["gpm", "bt", "ratings", "mute"]
    assert "mine" in ids


async def test_a_response_that_is_kept_back_is_run_once_for_both_models(client):
    answer = await fitted(client, "counted", model="gpm", pairs=pairs([f"{topic} here" for topic in TOPICS]))
    # Nine prompts with two responses were read for the fit, and three others for both models together.
    assert answer.usage.forward_responses == 2 * 9 + 2 * 3


async def test_each_device_shares_its_own_copy_of_the_backbone(hosted):
    async with serving({"bt": hosted["bt"]}, devices="cpu*2") as client:
        await fitted(client)
        registry = client.app.state.registry
        old, new = (registry.find(name).resources.replicas for name in ("bt", "mine"))
        assert [replica.device for replica in old] == [replica.device for replica in new]
        for before, after in zip(old, new, strict=True):
            assert before.model.network.backbone is after.model.network.backbone
        assert len({id(replica.model.network.backbone) for replica in new}) == 2
        first, second = (replica.model.network.head.value_head.weight for replica in new)
        assert first is not second
        assert first.equal(second)


async def test_the_fit_is_that_of_train_head_on_the_same_states(client, folders, hosted):
    held_out = [{"prompt": "Is it?", "first": GOOD, "second": BAD, "strength": 1}]
    weighed = [{**pair, "weight": 0.5 + number} for number, pair in enumerate(pairs())]
    answer = await fitted(client, "weighed", model="bt", pairs=weighed, held_out=held_out)
    backbone = load_backbone(folders["bt"], device="cpu").module
    spec = ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=256)
    states, questions = [], []
    for number, pair in enumerate(weighed):
        for text in (pair["first"], pair["second"]):
            (reading,) = hosted["bt"].reader.read([conversation(pair["prompt"], text)])
            hidden = backbone(input_ids=_ids(reading)).last_hidden_state[0, reading.prompt_length :].mean(dim=0)
            states.append(hidden.detach().numpy())
            questions.append(number)
    rows = np.arange(len(states)).reshape(-1, 2)
    target = np.array([pair["strength"] > 0 for pair in weighed], dtype=float)
    weight = np.array([pair["weight"] for pair in weighed])
    # The questions' numbers decide the folds; the server numbers them by hash.
    order = np.argsort(np.argsort([prompt_digest(pair["prompt"], None).hex() for pair in weighed]))
    expected = fit_head(
        spec,
        States(np.stack(states), order[np.array(questions)]),
        Choices(rows, target, np.zeros(len(rows)), weight),
    )
    assert answer.penalties == pytest.approx(expected.penalties)
    head = client.app.state.registry.find("weighed").model.network.head
    np.testing.assert_allclose(
        head.value_head.weight.numpy(), expected.tensors["value_head.weight"].numpy(), rtol=2e-2, atol=1e-3
    )


def _ids(reading):
    import torch

    return torch.tensor([reading.token_ids])


async def test_the_saved_folder_is_the_same_model_after_a_restart(hosted, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"ops:{hash_of('boss')} admin=yes\nuser:{hash_of('user')}\n")
    settings = {"models_dir": tmp_path / "models", "api_key_file": keys, "device": "cpu"}
    async with serving({"gpm": hosted["gpm"]}, **settings) as client:
        client.headers["authorization"] = "Bearer user"
        refused = await fit(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")
        assert "key of an admin" in refused.json()["error"]["message"]
        client.headers["authorization"] = "Bearer boss"
        answer = await fitted(client, kind="general-preference", dimension=2)
        expected = await logit(client, "mine", pairs()[0])
    assert not answer.temporary
    assert answer.folder == str(tmp_path / "models" / "mine")
    again = load_model(answer.folder, device="cpu")
    assert (again.identity, again.fingerprint) == (answer.model.identity, answer.model.fingerprint)
    scores = again.score(pairs()[0]["prompt"], [BAD, GOOD])
    assert float(again.logit(scores.representations[0], scores.representations[1])) == pytest.approx(expected, abs=1e-4)
    async with serving({"gpm": hosted["gpm"]}, **settings) as client:
        client.headers["authorization"] = "Bearer boss"
        refused = (await fit(client)).json()["error"]
        assert refused["code"] == "model_refused"
        assert "there is a folder mine below models_dir already" in refused["message"]
        loaded = await client.post("/v1/models/mine:load", json={"source": "mine"})
        assert loaded.json()["identity"] == answer.model.identity


async def test_a_head_is_unloaded_and_its_folder_goes_with_the_server(hosted):
    async with serving({"bt": hosted["bt"]}, device="cpu") as client:
        answer = await fitted(client)
        assert answer.temporary
        assert (await fit(client)).json()["error"]["code"] == "model_refused"  # the name is taken
        assert (await client.post("/v1/models/mine:unload")).status_code == 200
        assert (await client.post("/v1/models/bt:unload")).status_code == 403
        folder = await asyncio.to_thread(load_model, answer.folder, device="cpu")
        assert folder.identity == answer.model.identity
        await fitted(client, "second")
        assert await logit(client, "bt", pairs()[0]) != await logit(client, "second", pairs()[0])
    with pytest.raises(Exception, match="no folder"):
        load_model(answer.folder, device="cpu")


@pytest.mark.parametrize("moment", ["fitting", "comparing"])
async def test_a_request_that_ends_before_its_answer_leaves_no_head(hosted, tmp_path, moment):
    async with serving({"bt": hosted["bt"]}, device="cpu", models_dir=tmp_path) as client:
        registry = client.app.state.registry
        base = registry.find("bt")
        began = {
            "fitting": lambda: any(thread.name.startswith("fitting") for thread in threading.enumerate()),
            "comparing": lambda: "mine" in registry.names,
        }[moment]
        request = asyncio.create_task(fit(client))
        while not began():
            assert not request.done()
            await asyncio.sleep(0)
        assert base.under_way > 0  # so that nobody lets go of the backbone meanwhile
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        for _ in range(3_000):  # the thread runs on
            if not base.under_way and "mine" not in registry.names:
                break
            await asyncio.sleep(0.01)
        assert "mine" not in registry.names
        assert not (tmp_path / "mine").exists()
        await fitted(client)  # the name is free
        assert base.under_way == 0


async def test_a_head_takes_over_no_name_that_dialects_send(hosted):
    models = {name: hosted[name] for name in ("bt", "gpm")}
    async with serving(models, device="cpu", aliases={"gpt-4": "bt", "*": "bt"}) as client:
        refused = await fit(client, "gpt-4", model="gpm")
        assert "clients that send 'gpt-4' mean model bt" in refused.json()["error"]["message"]
        await fitted(client, model="bt")
        asked = {"query": "a", "documents": ["b", "c"]}
        for name, model in (("mine", "mine"), ("/models/mine", "bt"), ("anything", "bt"), (None, "bt")):
            answer = await client.post("/v1/rerank", json={**asked, "model": name})
            assert (answer.status_code, answer.json()["model"]) == (200, model), name


async def test_ties_hold_a_head_back_and_identical_texts_are_read_once(client):
    tied = [{"prompt": f"Is {topic} dull?", "first": GOOD, "second": BAD, "strength": 0} for topic in TOPICS]
    answer = await fitted(client, "tied", model="bt", pairs=[*pairs(), *tied])
    plain = await fitted(client, "plain", model="bt")
    pair = pairs()[0]
    assert 0 < abs(await logit(client, "tied", pair)) < abs(await logit(client, "plain", pair))
    assert (answer.pairs, plain.pairs) == (21, 9)
    # 12 prompts of ties and 9 of preferences have two responses each; three were kept back, of which both models know.
    assert answer.usage.forward_responses - plain.usage.forward_responses >= 2 * 12


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"name": "gpm"}, "model_refused", "there is a model 'gpm' already"),
        ({"name": "reward_model"}, "model_refused", "clients that send 'reward_model' mean model gpm"),
        ({"name": "default"}, "model_refused", "mean model gpm"),
        ({"name": "../up"}, "invalid_request", "name"),
        ({"model": "mute"}, "text_unavailable", "has no tokenizer"),
        ({"model": "nobody"}, "unknown_model", "is not hosted here"),
        ({"pairs": pairs(TOPICS[:2])}, "invalid_request", "preferences on 1 prompts are left to learn from"),
        ({"pairs": pairs(likes=0)}, "invalid_request", "judge responses to more prompts"),
        ({"held_out": pairs()[:1]}, "invalid_request", "have a prompt that is held out too"),
        (
            {"pairs": [*pairs(), {**LONG, "second": LONG["first"]}]},
            "invalid_request",
            "pairs[12]: both responses are the",
        ),
        ({"held_out": [{"prompt": "?", "first": "a", "second": "a", "strength": 0}]}, "invalid_request", "held_out[0]"),
        ({"dimension": 4}, "invalid_request", "leave dimension out"),
        ({"kind": "regression"}, "invalid_request", "'bradley-terry' or 'general-preference'"),
        ({"pairs": [{**pairs()[0], "strength": 4}]}, "invalid_request", "less than or equal to 3"),
        ({"pairs": [*pairs(), LONG]}, "response_too_long", "pairs[12]"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(client, body, code, words):
    before = client.app.state.registry.names
    response = await fit(client, **{"model": "bt", "name": "never", **body})
    error = response.json()["error"]
    assert (error["code"], words in error["message"]) == (code, True), error
    assert client.app.state.registry.names == before


async def test_what_a_model_finds_level_is_no_agreement_at_either_place(folders):
    level = load_model(folders["bt"], device="cpu")
    level.network.head.value_head.weight.data.zero_()
    held_out = [
        {"prompt": f"Is {topic} so?", "first": GOOD, "second": BAD, "strength": strength}
        for topic, strength in (("snow", 1), ("ice", -1))
    ]
    async with serving({"level": level}, device="cpu") as client:
        answer = await fitted(client, held_out=held_out)
    assert answer.agreement.old.share == 0
    assert answer.agreement.new.share == 0.5


async def test_states_are_made_block_by_block_in_order(client, monkeypatch):
    await fitted(client, "whole", model="bt")
    monkeypatch.setattr(features, "_BLOCK", 5)
    await fitted(client, "blocks", model="bt")
    find = client.app.state.registry.find
    first, second = (find(name).model.network.head.value_head.weight.numpy() for name in ("whole", "blocks"))
    np.testing.assert_allclose(first, second, rtol=2e-2, atol=1e-3)


async def test_more_states_than_memory_is_meant_for_are_refused_before_anything_is_read(client, monkeypatch):
    monkeypatch.setattr(features, "_MOST_BYTES", 18 * 32 * 4 - 1)  # nine pairs are fitted to, of a hidden size of 32
    error = (await fit(client, "large", model="bt")).json()["error"]
    assert error["code"] == "invalid_request"
    assert "the hidden states of 18 responses take 0.0023 MB, over the limit" in error["message"]
    monkeypatch.setattr(features, "_MOST_BYTES", 18 * 32 * 4)
    await fitted(client, "large", model="bt")


async def test_a_model_that_only_rates_has_no_agreement_and_can_have_a_head(client):
    answer = await fitted(client, "rated", model="ratings")
    assert answer.agreement.old is None
    assert answer.agreement.new.share == 1
    assert answer.model.attributes == []


async def test_one_head_at_a_time_and_others_are_answered_meanwhile(client):
    first = asyncio.create_task(fit(client, "one", model="bt"))
    await asyncio.sleep(0)
    more = (fit(client, f"more-{number}", model="bt") for number in range(3))
    answers = await asyncio.gather(*more, logit(client, "gpm", pairs()[0]))
    assert isinstance(answers[-1], float)
    codes = [answer.status_code for answer in [await first, *answers[:-1]]]
    assert 200 in codes
    assert set(codes) <= {200, 409}
    assert 409 in codes


async def test_prompts_of_several_turns_are_learned_from(client):
    turns = [
        {"prompt": [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": "Hm."},
                    {"role": "user", "content": "Well?"}], **{k: pair[k] for k in ("first", "second", "strength")}}
        for pair in pairs()
    ]  # fmt: skip
    assert (await fitted(client, "turns", model="bt", pairs=turns)).agreement.new.share == 1


async def test_the_built_in_default_model_learns_what_somebody_prefers():
    model = load_model("builtin:mini-general-preference", device="cpu")
    async with serving({"mini-general-preference": model}, device="cpu") as client:
        answer = await fitted(client)
        assert answer.base == "mini-general-preference"
        assert answer.agreement.new.share == 1
        assert answer.model.demonstration
        opposite = await fitted(client, "opposite", pairs=pairs(likes=-1))
        assert opposite.agreement.new.share == 1
        assert opposite.agreement.old.share == 1 - answer.agreement.old.share
        assert await logit(client, "mine", pairs()[0]) * await logit(client, "opposite", pairs()[0]) < 0


def test_another_backbone_than_the_files_name_is_noticed(tmp_path):
    from paragone_models.errors import ModelLoadError
    from paragone_models.files.loading import reference_of

    spec = ModelSpec(kind="bradley-terry", dimension=1, max_length=256)
    folder = make_model(tmp_path / "one", spec, make_tokenizer(), 3)
    model = load_model(folder, device="cpu")
    assert reference_of(model).source == str(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    with pytest.raises(ModelLoadError, match="others than those that it was loaded from"):
        reference_of(model)
