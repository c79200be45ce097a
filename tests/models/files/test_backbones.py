"""Heads saved alone: the same numbers as with their backbone beside them, one backbone in memory, and refusals."""

import json
import shutil

import pytest
import torch

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.backbones import reference_to, save_head
from paragone_models.files.loading import load_backbone
from paragone_models.files.options import load_options, named_source
from paragone_models.files.saving import export_backbone
from paragone_models.spec import ModelSpec
from tests.models import tiny

REWARD = ModelSpec(kind="bradley-terry", dimension=1, max_length=tiny.POSITIONS)
VECTOR = ModelSpec(
    kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.1, max_length=tiny.POSITIONS
)
ANSWERS = ["Families walk through it.", "no"]


@pytest.fixture
def whole(tmp_path):
    return tiny.save_own(tmp_path / "whole", REWARD)


def head_of(folder, spec, target):
    """Save the head of a whole model alone, for the backbone of a folder."""
    return save_head(target, tiny.make_network(spec).head.state_dict(), spec, reference_to(str(folder)))


def scores(source, **options):
    return load_model(source, device="cpu", **options).score("Close the street?", ANSWERS)


def test_a_head_alone_says_what_it_says_beside_its_backbone(whole, tmp_path):
    alone = head_of(whole, REWARD, tmp_path / "alone")
    assert sum(path.stat().st_size for path in alone.iterdir()) < 4000
    torch.testing.assert_close(scores(alone).representations, scores(whole).representations, rtol=0, atol=0)


def test_heads_of_one_backbone_share_it_in_memory(whole, tmp_path):
    residents = {}
    models = [
        load_model(head_of(whole, spec, tmp_path / spec.kind), device="cpu", residents=residents)
        for spec in (REWARD, VECTOR)
    ]
    assert models[0].network.backbone is models[1].network.backbone
    assert len(residents) == 1
    # Another dtype is another backbone, and heads have identities of their own.
    other = load_model(tmp_path / "bradley-terry", device="cpu", dtype="bfloat16", residents=residents)
    assert other.network.backbone is not models[0].network.backbone
    assert models[0].identity != models[1].identity
    assert models[0].fingerprint != other.fingerprint
    assert bool(torch.isfinite(models[1].score("Close it?", ANSWERS).representations).all())


def test_what_was_proven_of_a_resident_backbone_is_not_tried_for_every_head(whole, tmp_path, monkeypatch):
    residents = {}
    places = [head_of(whole, spec, tmp_path / spec.kind) for spec in (REWARD, VECTOR)]
    first = load_model(places[0], device="cpu", residents=residents)
    expected = scores(places[1]).representations

    def tried(*_):
        raise AssertionError("the backbone was tried again")

    monkeypatch.setattr("paragone_models.packing.backend._trial", tried)
    second = load_model(places[1], device="cpu", residents=residents)
    assert second.local.batching == first.local.batching == "packed"
    assert second.local.attention == first.local.attention
    torch.testing.assert_close(second.score("Close the street?", ANSWERS).representations, expected, rtol=0, atol=0)
    # The head is its own, and is looked at.
    broken = tiny.make_network(REWARD).head
    broken.value_head.weight.data[0, 0] = float("nan")
    save_head(tmp_path / "broken", broken.state_dict(), REWARD, reference_to(str(whole)))
    with pytest.raises(ModelLoadError, match=r"broken has NaN or infinity in value_head\.weight"):
        load_model(tmp_path / "broken", device="cpu", residents=residents)


def test_a_backbone_of_another_reward_model_is_used_without_its_head(tmp_path):
    published = tiny.save_published(tmp_path / "published", text=True)
    alone = head_of(published, REWARD, tmp_path / "alone")
    expected = load_model(published, device="cpu").network.backbone.state_dict()
    for name, tensor in load_model(alone, device="cpu").network.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert load_backbone(published, device="cpu").reference == reference_to(str(published))


def test_head_and_backbone_that_were_moved_together_find_each_other(whole, tmp_path):
    head_of(whole, REWARD, tmp_path / "alone")
    expected = scores(tmp_path / "alone").representations
    (tmp_path / "elsewhere").mkdir()
    for name in ("alone", "whole"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    torch.testing.assert_close(scores(tmp_path / "elsewhere" / "alone").representations, expected, rtol=0, atol=0)
    shutil.move(tmp_path / "elsewhere" / "whole", tmp_path / "gone")
    with pytest.raises(
        ModelLoadError, match=r"is a head, and its backbone cannot be had: .*in paragone\.json \(backbone\.source\)"
    ):
        load_model(tmp_path / "elsewhere" / "alone", device="cpu")


def test_a_backbone_that_is_elsewhere_is_given_and_has_to_be_the_one(whole, tmp_path):
    alone = head_of(whole, REWARD, tmp_path / "alone")
    expected = scores(alone).representations
    shutil.move(whole, tmp_path / "far" / "renamed")
    with pytest.raises(ModelLoadError, match=r"cannot be had: .* say where it is, by the setting backbone"):
        load_model(alone, device="cpu")
    given = load_options(named_source(f"one={alone},backbone={tmp_path / 'far' / 'renamed'}").settings)
    torch.testing.assert_close(scores(alone, **given).representations, expected, rtol=0, atol=0)
    other = tiny.save_own(tmp_path / "other", REWARD)
    tiny.make_network(REWARD, seed=1).backbone.save_pretrained(other)
    with pytest.raises(ModelLoadError, match=r"is a head for the backbone .* and .*other has identity"):
        load_model(alone, device="cpu", backbone=str(other))
    with pytest.raises(ModelLoadError, match=r"is no head alone, and has its own backbone: leave .*renamed out"):
        load_model(other, device="cpu", **given)


@pytest.mark.parametrize("what", ["weights", "template"])
def test_a_changed_backbone_is_refused_with_both_identities(whole, tmp_path, what):
    alone = head_of(whole, REWARD, tmp_path / "alone")
    before = reference_to(str(whole)).identity
    if what == "weights":
        tiny.make_network(REWARD, seed=1).backbone.save_pretrained(whole)
    else:
        (whole / "chat_template.jinja").write_text(tiny.CHATML + " ")
    after = reference_to(str(whole)).identity
    with pytest.raises(ModelLoadError) as refused:
        load_model(alone, device="cpu")
    assert before in str(refused.value)
    assert after in str(refused.value)


def test_a_head_is_no_backbone_and_a_wrong_reference_is_refused(whole, tmp_path):
    alone = head_of(whole, REWARD, tmp_path / "alone")
    with pytest.raises(ModelLoadError, match=f"is a head alone; name its backbone, {whole}"):
        reference_to(str(alone))
    path = alone / "paragone.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"backbone": {"source": "x"}}))
    with pytest.raises(ModelLoadError, match=r"backbone is .* it must be source, revision and identity"):
        load_model(alone, device="cpu")


def test_what_is_exported_for_another_server_is_the_backbone_that_a_head_names(whole, tmp_path):
    alone = head_of(whole, REWARD, tmp_path / "alone")
    exported = export_backbone(str(alone), tmp_path / "exported")
    assert (exported / "model.safetensors").is_file()
    assert (exported / "tokenizer.json").is_file()
    elsewhere = load_model(alone, elsewhere=True)
    assert elsewhere.identity == load_model(alone, device="cpu").identity
