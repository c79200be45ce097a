"""What training goes on from: heads that are kept, heads that are new, and which of them is said."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from paragone_models import load_model
from paragone_models.spec import ModelSpec
from paragone_training.errors import RecipeError
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.train_model import fit, train_model
from tests.models import tiny
from tests.training.arguments import pairs, recipe, row, write

SPECS = [
    ModelSpec(kind="bradley-terry", dimension=1, max_length=128, temperature=2.0, bos="as-published"),
    ModelSpec(kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.3, max_length=128),
    ModelSpec(kind="hybrid", dimension=3, normalise=True, temperature=0.1, max_length=128),
    ModelSpec(kind="regression", dimension=2, attributes=("x", "y"), weights=(1.0, 0.5), max_length=128),
]


def settings(spec, **more):
    model = {"kind": spec.kind, "max_length": 128, **more}
    if spec.rules.has_vector:
        model |= {"dimension": spec.dimension, "gate": spec.gate == "softmax"}
    if spec.attributes:
        model["attributes"] = list(spec.attributes)
    data = {"ratings": ["ratings.jsonl"]} if spec.attributes else {}
    return {"model": model, "data": data}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_every_kind_goes_on_from_a_trained_folder_as_it_answers(tmp_path, spec):
    folder = tiny.save_own(tmp_path / "model", spec)
    built = build_model(recipe(**settings(spec, start=str(folder))), [])
    loaded = load_model(folder, device="cpu", dtype="float32")
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(built.network.state_dict()[name], tensor), name
    assert (built.spec.temperature, built.spec.bos) == (spec.temperature, spec.bos)
    assert built.head_origin == f"kept: model.start {folder}"
    assert all(weight.requires_grad for weight in built.network.parameters())


def test_a_built_in_model_is_a_backbone_here_as_it_is_for_heads():
    chosen = {"kind": "bradley-terry", "pooling": "mean", "max_length": 512}
    source = "builtin:mini-bradley-terry"
    built = build_model(recipe(model=chosen, backbone={"source": source}), [])
    assert built.head_origin == f"kept: backbone.source {source}"
    loaded = load_model(source, device="cpu", dtype="float32")
    assert built.tokenizer("a word").input_ids == loaded.reader.tokenizer("a word").input_ids
    with pytest.raises(RecipeError, match="from builtin:mini: there is no built-in model 'mini'; built in"):
        build_model(recipe(model=chosen, backbone={"source": "builtin:mini"}), [])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A reward model of transformers, and its tokenizer."""
    folder = tiny.save_own(tmp_path_factory.mktemp("texts") / "own", SPECS[0])
    loaded = load_model(folder, device="cpu", dtype="float32")
    config = Qwen3Config.from_dict({**loaded.network.config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    torch.manual_seed(1)
    target = tmp_path_factory.mktemp("classifier")
    Qwen3ForSequenceClassification(config).save_pretrained(target)
    loaded.reader.tokenizer.save_pretrained(target)
    return target


def test_the_reward_head_of_a_source_is_kept_where_the_kind_is_the_same_and_new_where_it_is_asked_for(classifier):
    head = Qwen3ForSequenceClassification.from_pretrained(classifier).score.weight
    source = {"backbone": {"source": str(classifier)}}
    kept = build_model(recipe(**source), [])
    assert torch.equal(kept.network.head.value_head.weight, head)
    assert kept.head_origin == f"kept: backbone.source {classifier}"
    new = build_model(recipe(**source, model={"head": "new"}), [])
    assert not torch.equal(new.network.head.value_head.weight, head)
    assert new.head_origin == "new, as asked"
    other = build_model(recipe(**source, model={"kind": "general-preference", "dimension": 4}), [])
    assert (
        other.head_origin
        == f"new: backbone.source {classifier} has kind bradley-terry, and the recipe general-preference"
    )
    means = build_model(recipe(**source, model={"pooling": "mean"}), [])
    assert "has pooling last, and the recipe mean" in means.head_origin


def test_a_source_without_a_head_gets_a_new_one_that_nobody_can_keep(classifier, tmp_path):
    bare = load_model(classifier, device="cpu", dtype="float32")
    bare.network.backbone.save_pretrained(tmp_path)
    bare.reader.tokenizer.save_pretrained(tmp_path)
    built = build_model(recipe(backbone={"source": str(tmp_path)}), [])
    assert "without a value head" in built.head_origin
    with pytest.raises(RecipeError, match=r"model.head is 'keep', and backbone.source .* without a value head"):
        build_model(recipe(backbone={"source": str(tmp_path)}, model={"head": "keep"}), [])


def test_a_head_that_means_something_else_is_not_kept(tmp_path):
    folder = tiny.save_own(tmp_path / "model", SPECS[0])
    other = settings(SPECS[1], start=str(folder), head="keep")
    with pytest.raises(RecipeError, match="has kind bradley-terry, and the recipe general-preference: make the recipe"):
        build_model(recipe(**other), [])
    with pytest.raises(RecipeError, match="a backbone from random weights has no head"):
        recipe(model={"head": "keep"})


def test_card_and_log_say_that_the_head_was_kept_and_what_the_start_said(tmp_path, caplog):
    caplog.set_level("INFO", "paragone_training")
    start = tiny.save_own(tmp_path / "start", SPECS[0])
    rows = [row(id=str(n), prompt=f"p{n}", split=split) for n, split in enumerate(("train", "train", "test"))]
    path = write(tmp_path / "pairs.jsonl", rows)
    chosen = recipe(model={"start": str(start)}, data={"train": [str(path)]}, training={"epochs": 1})
    card = (train_model(chosen, tmp_path / "model") / "README.md").read_text()
    assert f"* Head: kept: model.start {start}." in card
    assert "The model that it started from: " in card
    assert f"head kept: model.start {start}" in caplog.text
    outcome = fit(chosen, Rows(pairs(1), held_out_pairs=pairs(1)), tmp_path / "work")
    assert outcome.before.judged is not None
