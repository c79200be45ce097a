"""Images over HTTP: what a model that sees makes of them, its cache, and who refuses them."""

import hashlib

import numpy as np
import pytest
import torch

from paragone_models import load_model
from paragone_models.files.backbones import reference_to, save_head
from paragone_models.images import data_of
from paragone_models.text.reader import conversation
from tests.models import tiny
from tests.models.seeing import data_url, part, picture, save_seeing, text, user
from tests.service.conftest import serving

pytestmark = pytest.mark.anyio

FIRST, SECOND = data_url(picture(seed=1)), data_url(picture(seed=2))
RESPONSES = ["Families walk through it.", "no"]


def prompt(url=FIRST, **fields):
    return [user(text("Close the street of "), part(url, **fields), text("?"))]


def item(response=0, url=FIRST, **fields):
    return {"prompt": prompt(url, **fields), "response": RESPONSES[response]}


@pytest.fixture(scope="module")
def models(tmp_path_factory, hosted):
    root = tmp_path_factory.mktemp("seeing")
    seeing, gated = root / "seeing", root / "gated"
    for folder in (seeing, gated):
        folder.mkdir()
    save_seeing(seeing)
    save_seeing(gated, "value_head.weight", rows=4, gate=True)
    return {
        "seeing": load_model(seeing, name="seeing", device="cpu"),
        "gated": load_model(gated, name="gated", device="cpu"),
        "bt": hosted["bt"],
    }


@pytest.fixture
async def client(models):
    async with serving(models) as client:
        yield client


async def ask(client, route="rewards", **body):
    response = await client.post(f"/v1/{route}", json={"model": "seeing", **body})
    assert response.status_code == 200, response.text
    return response.json()


def rewards(answer):
    return [row["reward"] for row in answer["rewards"]]


async def test_rewards_and_pairs_are_those_of_the_model_in_process(client, models):
    answer = await ask(client, items=[item(row, url) for url in (FIRST, SECOND) for row in range(2)])
    expected = np.concatenate([models["seeing"].score(prompt(url), RESPONSES).rewards for url in (FIRST, SECOND)])
    assert rewards(answer) == pytest.approx(expected.tolist(), abs=1e-5)
    assert abs(expected[0] - expected[2]) > 1e-3, "the image counts"
    pair = {"prompt": prompt(), "first": RESPONSES[0], "second": RESPONSES[1]}
    compared = await ask(client, "preferences", pairs=[pair])
    assert compared["preferences"][0]["logit"] == pytest.approx(expected[0] - expected[1], abs=1e-5)
    assert compared["usage"]["cached_responses"] == 2


async def test_an_image_is_cached_by_its_bytes_however_they_are_written(client):
    await ask(client, items=[item()])
    again = await ask(client, items=[item(url=FIRST.replace("image/png", "image/PNG"))])
    assert again["usage"]["cached_responses"] == 1
    other = await ask(client, items=[item(url=SECOND)])
    assert other["usage"]["cached_responses"] == 0


async def test_tokens_tell_how_many_an_image_has(client, models):
    answer = await ask(client, "tokens", items=[item()])
    image = models["seeing"].reader.images
    (row,) = answer["tokens"]
    assert row["token_ids"].count(image.token) == image.read(part(FIRST)).tokens == 30
    assert "<|vision_start|><|image_pad|><|vision_end|>" in row["text"]


async def test_a_gate_tells_two_images_apart_that_have_as_many_tokens(client, models):
    items = [item(url=FIRST), item(url=SECOND), item(url=FIRST)]
    answer = await ask(client, model="gated", items=items, **{"return": ["gate_scales"]})
    first, second, third = (row["gate_scales"] for row in answer["rewards"])
    assert first == third
    assert abs(first[0] - second[0]) > 1e-4
    model = models["gated"]
    items = [model.reader.read([conversation(prompt(url), RESPONSES[0])])[0].item for url in (FIRST, SECOND)]
    expected = model.gate_scales(model.encode(items))
    torch.testing.assert_close(torch.tensor([first, second]), expected, atol=1e-5, rtol=1e-5)


async def test_what_cannot_be_read_stands_in_its_items_place(client):
    bad = [
        item(url="https://host/a.png"),
        item(url="data:image/png;base64,AAAA"),
        item(detail="high"),
        {"prompt": "Why?", "response": "no"},
    ]
    answer = await ask(client, items=bad, on_error="report")
    codes = [row.get("error", {}).get("code") for row in answer["rewards"]]
    assert codes == ["unsupported_content"] * 3 + [None]
    refused = await client.post("/v1/rewards", json={"model": "seeing", "items": bad})
    assert refused.status_code == 422
    assert "items[0]: an image is sent as a data URL in base64" in refused.json()["error"]["message"]
    assert "host" not in refused.text


async def test_a_hash_cannot_be_sent_in_the_place_of_the_image_that_has_it(client):
    await ask(client, items=[item()])
    digest = hashlib.sha256(data_of(FIRST)).hexdigest()
    for forged in (
        {"type": "image_url", "image_url": {"image_sha256": digest}},
        {"type": "image_url", "image_url": {}, "image_sha256": digest},
        {"type": "image_url", "image_url": {"url": digest}},
    ):
        body = {"prompt": [user(text("Close the street of "), forged, text("?"))], "response": RESPONSES[0]}
        response = await client.post("/v1/rewards", json={"model": "seeing", "items": [body]})
        assert response.status_code == 422, forged


async def test_a_model_of_text_refuses_images_as_before(client):
    response = await client.post("/v1/rewards", json={"model": "bt", "items": [item()]})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "unsupported_content"
    assert "this model reads text; a content part has type 'image_url'" in response.json()["error"]["message"]


async def test_heads_of_one_backbone_see_an_image_in_one_pass_of_an_ensemble(models, tmp_path):
    spec, source = models["seeing"].spec, reference_to(models["seeing"].provenance.source)
    residents, heads = {}, {}
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        save_head(tmp_path / name, {"value_head.weight": torch.randn(1, tiny.HIDDEN)}, spec, source)
        heads[name] = load_model(tmp_path / name, name=name, device="cpu", residents=residents)
    settings = {name: {"source": "loaded"} for name in heads} | {"both": {"source": "ensemble:one+two"}}
    pairs = [{"prompt": prompt(url), "first": RESPONSES[0], "second": RESPONSES[1]} for url in (FIRST, SECOND)]
    async with serving(heads, models=settings) as client:
        answer = await ask(client, "preferences", model="both", pairs=pairs)
    assert answer["usage"]["forward_responses"] == 4
    scores = [[one.score(prompt(url), RESPONSES).rewards for url in (FIRST, SECOND)] for one in heads.values()]
    expected = np.mean([[first - second for first, second in head] for head in scores], axis=0)
    np.testing.assert_allclose([row["logit"] for row in answer["preferences"]], expected, atol=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3, "the image counts"
