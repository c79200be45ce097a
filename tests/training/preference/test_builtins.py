"""The models that ship inside: small, honest about what they are, and better than a coin on what they never saw."""

import json
from pathlib import Path

import numpy as np
import pytest

from paragone_evaluation.readers import read_pairs, read_ratings
from paragone_models import load_model
from paragone_models.files.sources import NAMES, builtin_folder, tokenizer_folder
from paragone_training.data import group_pairs, read_groups
from paragone_training.preference.agreement import judge, represented
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings import rating_errors
from tests.corpora import corpus, needs_corpora

ROOT = Path(__file__).parents[3]


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_model_is_at_most_four_megabytes_with_its_tokenizer(name):
    assert size(builtin_folder(name)) + size(tokenizer_folder()) <= 4 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_model_says_that_it_is_a_demonstration_and_what_it_knows(name):
    model = load_model(f"builtin:{name}", device="cpu")
    assert model.spec.demonstration
    assert model.spec.domain == "which of two short arguments for the same stance is more convincing, English"
    card = (builtin_folder(name) / "README.md").read_text()
    assert "A demonstration" in card
    assert "none of them trained on" in card
    assert model.provenance.numerics["dtype"] == "float32"


@needs_corpora
@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_model_agrees_with_people_on_the_test_split_as_its_card_says(name):
    model = load_model(f"builtin:{name}", device="cpu")
    rows = read_pairs(corpus("convincing_pairs"))
    groups = group_pairs(pair for pair in rows if pair.split == "test")
    assert model.reader is not None
    judged = judge(
        model.network,
        Objective(model.kind, model.spec.temperature, weights=model.spec.weights),
        groups,
        read_groups(groups, model.reader),
        budget=64,
        pad_id=0,
    )
    summary = judged.summary()
    assert summary.pairs == 2042
    assert summary.accuracy > 0.65
    assert summary.matched_accuracy > 0.52
    card = (builtin_folder(name) / "README.md").read_text()
    stated = float(card.split("## Agreement")[1].split("| this model | ")[1].split(" ")[0])
    # the card was written before the weights were rounded to float16
    assert summary.accuracy == pytest.approx(stated, abs=0.003)


@needs_corpora
@pytest.mark.parametrize("name", ["mini-regression", "mini-helpsteer"])
def test_a_built_in_model_that_rates_is_closer_to_people_than_their_mean_rating_as_its_card_says(name):
    model = load_model(f"builtin:{name}", device="cpu")
    assert model.reader is not None
    rows = [row for row in read_ratings(corpus("convincing_ratings")) if row.split == "test"]
    groups = group_pairs([], rows, model.spec.attributes)
    found = [represented(model.network, seen, pad_id=0).numpy() for seen in read_groups(groups, model.reader)]
    given = np.array([row for group in groups for row in group.ratings])
    errors = rating_errors(np.concatenate(found)[:, -2:], given, model.spec.attributes)
    card = (builtin_folder(name) / "README.md").read_text()
    for attribute, error, explained in zip(errors.attributes, errors.error, errors.explained, strict=True):
        cells = card.split(f"| {attribute} | ")[-1].split("\n")[0].split(" | ")
        assert float(cells[-3]) == pytest.approx(error, abs=0.003)
        assert explained > {"convincingness": 0.05, "verbosity": 0.8}[attribute]


def test_the_helpsteer_model_went_on_from_the_regression_model():
    card = (builtin_folder("mini-helpsteer") / "README.md").read_text()
    start = load_model("builtin:mini-regression", device="cpu")
    assert f"builtin:mini-regression (`regression`, identity {start.identity[:12]})" in card
    assert load_model("builtin:mini-helpsteer", device="cpu").spec.temperature == start.spec.temperature


def test_all_built_in_models_are_at_most_sixteen_megabytes_together():
    assert sum(size(builtin_folder(name)) for name in NAMES) + size(tokenizer_folder()) <= 16 * 10**6


def test_the_general_preference_model_has_a_gate_that_depends_on_the_prompt():
    model = load_model("builtin:mini-general-preference", device="cpu")
    assert model.spec.gate == "softmax"
    assert model.reader is not None
    one, two = (
        model.score(prompt, ["Yes, because it helps.", "no"]) for prompt in ("Chess?", "Close the street to cars?")
    )
    assert not np.allclose(one.representations.numpy(), two.representations.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_model_was_trained_without_a_row_of_the_test_split(name):
    recipe = (ROOT / "training" / "recipes" / f"{name}.toml").read_text()
    assert "allow_test_rows" not in recipe
    assert "train_split" not in recipe
    spec = json.loads((builtin_folder(name) / "paragone.json").read_text())
    assert spec["calibrated"] is False
