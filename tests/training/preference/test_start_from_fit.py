"""Training that starts from a fitted head: on by default with a pretrained backbone, and kept where training loses."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paragone_models import load_model
from paragone_models.files.backbones import save_head
from paragone_training.errors import RecipeError
from paragone_training.preference.card import Rows
from paragone_training.preference.head_fit import FITTED
from paragone_training.preference.train_head import train_heads
from paragone_training.preference.train_model import fit, train_model
from tests.training.arguments import pairs
from tests.training.preference.test_train_head import checkpoint, data, recipe

__all__ = ["checkpoint", "data"]  # fixtures

QUIET = {"epochs": 1, "learning_rate": 1e-6, "batch_responses": 6, "log_steps": 100}


def rows(questions=4):
    some = pairs(questions + 1)
    held_out = [one for one in some if one.group == f"q{questions}_yes"]
    return Rows([one for one in some if one not in held_out], held_out_pairs=held_out)


def trained(checkpoint, data, tmp_path, **sections):
    settled = recipe(checkpoint, data, tmp_path, **{"training": QUIET, **sections})
    return fit(settled, rows(), tmp_path / "work")


@pytest.mark.parametrize("kind", ["bradley-terry", "general-preference"])
def test_training_begins_with_the_fitted_head(checkpoint, data, tmp_path, kind):
    model = {"kind": kind, "dimension": 4 if kind == "general-preference" else 1}
    outcome = trained(checkpoint, data, tmp_path, model=model)
    assert outcome.model.head_origin == FITTED
    assert outcome.before.judged.summary().accuracy == 1.0
    assert outcome.after.judged.summary().accuracy == 1.0
    fitted = outcome.probe.fitted.tensors["value_head.weight"]
    torch.testing.assert_close(outcome.model.network.head.value_head.weight.detach().cpu(), fitted, atol=1e-4, rtol=0)
    assert not outcome.model.spec.normalise


def test_the_first_loss_is_that_of_the_fitted_head(checkpoint, data, tmp_path):
    # One step over all rows, so that the logged loss is the mean over every pair before anything moved.
    training = {**QUIET, "accumulation": 100, "log_steps": 1, "warmup_steps": 0.0}
    outcome = trained(checkpoint, data, tmp_path, training=training)
    fitted = outcome.probe.fitted
    alone = load_model(save_head(tmp_path / "alone", fitted.tensors, fitted.spec, outcome.probe.backbone), device="cpu")
    expected = []
    for pair in rows().pairs:
        preferred, other = (pair.first, pair.second)[:: 1 if pair.strength > 0 else -1]
        expected.append(-np.log(alone.score(pair.prompt, [preferred, other]).probabilities[0, 1]))
    first = next(line["loss"] for line in outcome.history if "loss" in line)
    assert first == pytest.approx(np.mean(expected), rel=1e-3)
    assert first < 0.5 < np.log(2)


@pytest.mark.parametrize("kind", ["bradley-terry", "general-preference"])
def test_a_head_that_was_fitted_before_is_gone_on_from_and_kept_where_training_loses(checkpoint, data, tmp_path, kind):
    model = {"kind": kind, "dimension": 4 if kind == "general-preference" else 1}
    head = train_heads([(recipe(checkpoint, data, tmp_path, model=model), tmp_path / "head")])[0]
    sections = {"model": {**model, "start": str(head)}, "backbone": {"source": None}}
    outcome = trained(checkpoint, data, tmp_path, **sections)
    assert outcome.model.head_origin == f"kept: model.start {head}"
    assert not outcome.model.spec.normalise
    assert outcome.before.judged.summary().accuracy == 1.0
    start = load_file(head / "head.safetensors")["value_head.weight"]
    # Six steps of at most a tenth of the backbone's rate.
    torch.testing.assert_close(outcome.model.network.head.value_head.weight.detach().cpu(), start, atol=1e-5, rtol=0)
    ruin = {"learning_rate": 1e-2, "weight_decay": 100.0, "schedule": "constant", "warmup_steps": 0.0}
    ruined = recipe(checkpoint, data, tmp_path, training={**QUIET, **ruin}, head={"learning_rate": 1e-2}, **sections)
    lost = fit(ruined, rows(), tmp_path / "ruin")
    assert lost.lost is not None
    assert torch.equal(lost.model.network.head.value_head.weight.detach().cpu(), start)


def test_the_head_has_a_learning_rate_of_its_own(checkpoint, data, tmp_path):
    moved = []
    for number, rate in enumerate((None, 1e-9)):
        head = {"states": str(tmp_path / "states"), **({} if rate is None else {"learning_rate": rate})}
        training = {**QUIET, "learning_rate": 1e-3, "warmup_steps": 0.0}
        settled = recipe(checkpoint, data, tmp_path, head=head, training=training)
        outcome = fit(settled, rows(), tmp_path / f"work{number}")
        # A run that lost has its fitted head, which did not move at all.
        assert outcome.lost is None
        weight = outcome.model.network.head.value_head.weight.detach().cpu()
        moved.append(float((weight - outcome.probe.fitted.tensors["value_head.weight"]).abs().max()))
    unless_given, least = moved
    assert least < 1e-6 < 1e-5 < unless_given < 1e-3  # ten steps of at most 1e-4, a tenth of the backbone's rate


def test_a_run_that_loses_to_its_start_says_so_and_keeps_it(checkpoint, data, tmp_path, caplog):
    settled = recipe(
        checkpoint,
        data,
        tmp_path,
        # Decay times rate is 1: after each step no weight is left but what the step adds.
        training={**QUIET, "learning_rate": 1e-2, "weight_decay": 100.0, "schedule": "constant", "warmup_steps": 0.0},
        head={"learning_rate": 1e-2},
    )
    with caplog.at_level(logging.WARNING):
        folder = train_model(settled, tmp_path / "model")
    assert "the head on its backbone is saved" in caplog.text
    saved, source = (load_file(place / "model.safetensors") for place in (folder, checkpoint))
    assert all(torch.equal(saved[name], source[name]) for name in source)
    card = (folder / "README.md").read_text()
    assert "| this model | 1.000 |" in card
    assert "| the fitted head that training started from | 1.000 |" in card
    assert "| what training made of it, which lost and was not kept | " in card
    assert "| prefer the longer response | 1.000 |" in card


def test_random_numbers_are_the_start_where_they_are_asked_for_or_nothing_can_be_fitted(
    checkpoint, data, tmp_path, caplog
):
    asked = trained(checkpoint, data, tmp_path, head={"start": "random"})
    assert asked.probe is None
    assert asked.model.head_origin.startswith("new")
    one = Rows(pairs(1))
    with caplog.at_level(logging.WARNING):
        outcome = fit(recipe(checkpoint, data, tmp_path, training=QUIET), one, tmp_path / "one")
    assert outcome.probe is None
    assert "no head was fitted, and training starts from random numbers: all 6 responses belong to one" in caplog.text
    settled = recipe(checkpoint, data, tmp_path, training=QUIET, head={"start": "fit"})
    with pytest.raises(RecipeError, match="all 6 responses belong to one question"):
        fit(settled, one, tmp_path / "two")
