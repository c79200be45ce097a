"""The settings of general preference and hybrid models: each one changes what is trained, and what it says it does."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from paragone_evaluation.readers import Pair
from paragone_models import load_model
from paragone_models.kinds import KINDS
from paragone_training.preference.card import Outcome, Rows
from paragone_training.preference.train_model import fit, train_model
from tests.training.arguments import pairs, recipe, row, write

VECTOR = {"kind": "general-preference", "dimension": 4}
HYBRID = {"kind": "hybrid", "dimension": 5}
Change = dict[str, Any]


def trained(folder: Any, model: Change, loss: Change) -> Outcome:
    training = {"epochs": 2, "learning_rate": 1e-2, "batch_responses": 6}
    return fit(recipe(model=model, loss=loss, training=training), Rows(pairs(1)), folder)


def untrained(folder: Any, model: Change) -> Outcome:
    """What training starts from, but for steps too small to see."""
    return fit(recipe(model=model, training={"epochs": 1, "learning_rate": 1e-9}), Rows(pairs(1)), folder)


def farthest(one: Outcome, two: Outcome) -> float:
    """The largest difference of a weight of the two backbones, which start as the same one."""
    first, second = (outcome.model.network.backbone.state_dict() for outcome in (one, two))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module", params=[VECTOR, HYBRID], ids=lambda model: model["kind"])
def plain(request, tmp_path_factory):
    """The kind with its default settings: its [model] section, and what was trained."""
    return request.param, trained(tmp_path_factory.mktemp("plain"), request.param, {})


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ({"dimension": -2}, {}),
        ({"dimension": +2}, {}),
        ({"gate": True}, {}),
        ({"normalise": False}, {}),
        ({"temperature": 1.0}, {}),
        ({}, {"margin": 0.5}),
        ({}, {"name": "scaled"}),
        ({}, {"name": "soft"}),
        ({}, {"name": "soft", "certainty": 0.7}),
        ({}, {"name": "score"}),
        ({}, {"name": "score", "certainty": 0.7}),
    ],
    ids=str,
)
def test_no_setting_of_a_kind_with_vectors_is_ignored_in_training(plain, tmp_path, model, loss):
    section, before = plain
    dimension = section["dimension"] + model.get("dimension", 0)
    found = trained(tmp_path / "changed", {**section, **model, "dimension": dimension}, loss)
    assert found.model.network.head.value_head.weight.shape[0] == dimension
    assert farthest(found, before) > 1e-4
    if "certainty" in loss:
        surer = trained(tmp_path / "surer", section, {"name": loss["name"]})
        assert farthest(found, surer) > 1e-4


def test_the_same_settings_train_the_same_backbone(plain, tmp_path):
    section, before = plain
    assert farthest(trained(tmp_path, section, {}), before) == 0.0


@pytest.mark.parametrize("section", [VECTOR, HYBRID], ids=lambda model: model["kind"])
def test_a_gate_is_trained_and_its_weights_depend_on_the_prompt(tmp_path, section):
    outcome = trained(tmp_path, {**section, "gate": True}, {})
    head = outcome.model.network.head
    start = untrained(tmp_path / "start", {**section, "gate": True})
    moved = (head.prompt_head.weight - start.model.network.head.prompt_head.weight).detach().abs()
    assert bool((moved.amax(dim=-1) > 1e-3).all())
    hidden = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    scales = head.gate_scales(hidden)
    torch.testing.assert_close(scales.sum(dim=-1), torch.ones(3))
    assert not torch.allclose(scales[0], scales[1])


@pytest.mark.parametrize("name", ["soft", "score"])
def test_a_vector_model_learns_from_ties_under_soft_labels_and_scores_where_they_are_kept(tmp_path, name):
    tie = Pair(pairs(1)[0].prompt, "the one", "the other", 0.0, split="train", group="q0_yes")
    kept, dropped = (
        fit(recipe(model=VECTOR, loss={"name": name, "ties": ties}), Rows([*pairs(1), tie]), tmp_path / ties)
        for ties in ("keep", "drop")
    )
    assert farthest(kept, dropped) > 1e-4


def test_a_hybrid_learns_with_reward_and_vector_and_is_saved_as_what_it_is(tmp_path):
    rows = [
        row(id=str(index), prompt=pair.prompt, first=pair.first, second=pair.second, strength=pair.strength)
        for index, pair in enumerate(pairs(2))
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    chosen = recipe(
        model=HYBRID,
        data={"train": [str(file)]},
        training={"epochs": 15, "batch_responses": 12},
    )
    model = load_model(train_model(chosen, tmp_path / "model"), device="cpu")
    assert (model.kind, model.spec.dimension, model.spec.temperature) == ("hybrid", 5, 0.1)
    right = 0
    for pair in pairs(2):
        first, second = model.score(pair.prompt, [pair.first, pair.second]).representations
        right += (float(model.logit(first, second)) > 0) == (pair.strength > 0)
    assert right >= 17


def test_every_row_of_a_hybrid_head_is_trained(tmp_path):
    first, last = untrained(tmp_path / "start", HYBRID), trained(tmp_path / "trained", HYBRID, {})
    moved = (last.model.network.head.value_head.weight - first.model.network.head.value_head.weight).detach().abs()
    assert bool((moved.amax(dim=-1) > 1e-3).all())


def test_no_code_of_training_compares_a_kind_with_a_name():
    files = sorted((Path(__file__).parents[3] / "training" / "paragone_training").rglob("*.py"))
    assert len(files) > 40
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                names = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & set(KINDS)
                assert not names, f"{file}:{node.lineno} asks for {names}: ask paragone_models.kinds"
