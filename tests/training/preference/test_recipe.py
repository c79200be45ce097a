"""Recipes: what is refused, in which words, and that every recipe of the repository loads."""

import warnings
from pathlib import Path

import pytest

from paragone_training.errors import RecipeError
from paragone_training.preference.recipe import Recipe, load_recipe
from paragone_training.settings import parse
from tests.training.arguments import recipe

RECIPES = Path(__file__).parents[3] / "training" / "recipes"


def all_recipes() -> list[Path]:
    return sorted(path for path in RECIPES.rglob("*.toml") if "policy" not in path.parts)


def test_there_are_recipes():
    assert len(all_recipes()) >= 2


@pytest.mark.parametrize("path", all_recipes(), ids=lambda path: path.stem)
def test_every_recipe_loads_names_files_that_exist_and_opens_with_what_it_needs(path):
    loaded = load_recipe(path)
    named = [Path(name) for name in (*loaded.data.train, *loaded.data.ratings)]
    assert all(name.is_file() for name in named if name.name.startswith("everyday"))
    header = path.read_text().split("[", 1)[0]
    assert ("# Data: python scripts/fetch_corpora.py" in header) == any(
        name.name.startswith(("convincing", "qa_")) for name in named
    )
    for word in ("Hardware", "Time", "Command", "Expected"):
        assert f"# {word}" in header


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(RecipeError, match=r"unknown key 'training.epoch'; did you mean 'epochs'\?"):
        recipe(training={"epoch": 3})


def test_an_unknown_section_is_refused_with_the_nearest_known_one():
    with pytest.raises(RecipeError, match=r"unknown key 'trainings'; did you mean 'training'\?"):
        parse(Recipe, {"model": {"kind": "bradley-terry"}, "data": {"train": ["x"]}, "trainings": {}})


def test_a_missing_section_is_named():
    with pytest.raises(RecipeError, match="data is missing"):
        parse(Recipe, {"model": {"kind": "bradley-terry"}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"epochs": "two"}}, "training.epochs is 'two'; it must be of type int"),
        ({"training": {"epochs": True}}, "training.epochs is True; it must be of type int"),
        ({"training": {"epochs": 0}}, "training.epochs is 0; it must be at least 1"),
        ({"training": {"batch_responses": 1}}, "training.batch_responses is 1; it must be at least 2"),
        ({"training": {"dropout": 1.0}}, r"training.dropout is 1.0; it must lie in \[0, 1\)"),
        ({"training": {"learning_rate": 0.0}}, r"training.learning_rate is 0.0; it must lie in \(0, 1\)"),
        ({"training": {"betas": [0.9]}}, "training.betas has 1 entries; it must have 2"),
        ({"training": {"schedule": "step"}}, "training.schedule is 'step'; it must be one of linear, cosine"),
        ({"data": {"train": 3}}, "data.train is 3; it must be a list"),
        ({"data": {"train": []}}, "data.train is empty; name at least one file"),
        (
            {"model": {"kind": "bradly-terry"}},
            "model.kind is 'bradly-terry'; it must be one of bradley-terry, regression",
        ),
        ({"model": {"kind": "hybrid", "dimension": 4}}, "model.dimension is 4; .*: use an odd number, 5 say"),
        ({"model": {"dimension": 4}}, "model.dimension is 4; a reward has dimension 1: leave it out"),
        ({"model": {"kind": "process"}}, "model.kind is .process.: no loss trains it here, it is only hosted"),
        ({"model": {"gate": True}}, "model.gate scales general preference blocks"),
        ({"model": {"kind": "general-preference", "dimension": 3}}, "use an even number, 4 say"),
        ({"model": {"temperature": 0.0}}, "model.temperature is 0.0; it must be positive"),
        ({"model": {"max_length": 4}}, "model.max_length is 4; it must be at least 8"),
        ({"loss": {"ties": "keep"}}, "loss.ties = 'keep' needs loss.name = 'soft'"),
        ({"loss": {"name": "scaled", "margin": 1.0}}, "only the regular loss has one"),
        ({"loss": {"certainty": 0.5}}, r"loss.certainty is 0.5; it must lie in \(0.5, 1\]"),
        (
            {"model": {"kind": "general-preference", "dimension": 2}, "loss": {"name": "margin"}},
            "loss.name is 'margin'; a general-preference model has regular, scaled, soft, score",
        ),
        ({"loss": {"label_smoothing": 0.5}}, r"loss.label_smoothing is 0.5; it must lie in \[0, 0.5\)"),
        ({"loss": {"name": "soft", "label_smoothing": 0.1}}, "only the regular loss has one"),
        (
            {"model": {"kind": "general-preference", "dimension": 2}, "loss": {"centre": 0.1}},
            "loss.centre is 0.1; a general-preference model learns no reward",
        ),
        ({"lora": {}}, r"\[lora\] adapts trained weights"),
        ({"lora": {"rank": 0}}, "lora.rank is 0; it must be at least 1"),
        ({"backbone": {"source": "a/b"}, "pretraining": {"epochs": 1}}, "set pretraining.epochs = 0 with a source"),
        ({"backbone": {"source": "a/b"}, "teacher": {}}, r"\[teacher\] helps from-scratch backbones"),
        ({"backbone": {"heads": 3}}, "backbone.hidden_size 16 is no multiple of 3 heads"),
        ({"teacher": {"steps": 0}}, "teacher.steps is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_run_is_refused_with_value_limit_and_remedy(sections, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**sections)


def test_a_gate_over_a_single_block_warns_that_it_does_nothing():
    with pytest.warns(UserWarning, match="model.gate with dimension 2 does nothing"):
        recipe(model={"kind": "general-preference", "dimension": 2, "gate": True})


def test_a_gate_over_two_blocks_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = recipe(model={"kind": "general-preference", "dimension": 4, "gate": True})
    assert built.spec.gate == "softmax"


def test_the_temperature_is_that_of_the_kind_unless_given():
    assert recipe().spec.temperature == 1.0
    assert recipe(model={"kind": "general-preference", "dimension": 2}).spec.temperature == 0.1
    assert recipe(model={"temperature": 2.0}).spec.temperature == 2.0


def test_overrides_replace_values_and_make_sections(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nkind = "bradley-terry"\n[data]\ntrain = ["../pairs.jsonl"]\n')
    loaded = load_recipe(path, ["training.epochs=7", "loss.name=scaled", "training.betas=[0.8, 0.9]"])
    assert (loaded.training.epochs, loaded.loss.name, loaded.training.betas) == (7, "scaled", (0.8, 0.9))
    assert loaded.data.train == (str(tmp_path.parent / "pairs.jsonl"),)
    assert loaded.output.folder == "runs/mine"


@pytest.mark.parametrize("assignment", ["epochs=7", "training.epochs", "=7", "training.=7"])
def test_an_override_of_another_form_is_refused(tmp_path, assignment):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nkind = "bradley-terry"\n')
    with pytest.raises(RecipeError, match=r"not of the form section\.key=value"):
        load_recipe(path, [assignment])


def test_a_recipe_that_is_not_there_or_no_toml_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(RecipeError, match=r"broken\.toml is not a TOML file"):
        load_recipe(broken)
