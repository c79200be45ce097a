"""Recipes as pydantic models: which key an unknown one means, where data is looked up, and tables in the documents."""

from pathlib import Path

import pytest

from paragone_training.errors import RecipeError
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.preference.recipe import Recipe, load_recipe
from paragone_training.scratch.language import LanguageRecipe
from paragone_training.settings import _ELSEWHERE, _settings_of, load, parse
from paragone_training.settings_tables import _rewritten

ROOT = Path(__file__).parents[2]
GOOD = {"model": {"kind": "bradley-terry"}, "data": {"train": ["x"]}}


@pytest.mark.parametrize(
    ("sections", "meant"),
    [
        ({"training": {"per_device_train_batch_size": 8}}, "training.batch_responses"),
        ({"training": {"gradient_accumulation_steps": 8}}, "training.accumulation"),
        ({"training": {"num_train_epochs": 1}}, "training.epochs"),
        ({"training": {"lr_scheduler_type": "cosine"}}, "training.schedule"),
        ({"training": {"warmup_ratio": 0.1}}, "training.warmup_steps"),
        ({"training": {"max_seq_length": 512}}, "model.max_length"),
        ({"model_name_or_path": "a/b"}, "backbone.source"),
        ({"lora": {"lora_r": 8}}, "lora.rank"),
        ({"backbone": {"learning_rate": 1e-4}}, "training.learning_rate"),
        ({"backbone": {"hidden_sizes": 8}}, "hidden_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_setting_that_it_means(sections, meant):
    with pytest.raises(RecipeError, match=rf"unknown key '.*'; did you mean '{meant}'\?"):
        parse(Recipe, GOOD | sections)


def test_a_name_of_another_trainer_means_the_setting_that_the_recipe_at_hand_has():
    with pytest.raises(RecipeError, match=r"did you mean 'training\.batch_tokens'\?"):
        parse(LanguageRecipe, {"data": {}, "training": {"epochs": 1, "per_device_train_batch_size": 8}})


def test_an_unknown_key_that_is_like_none_is_refused_with_those_that_are_known():
    with pytest.raises(RecipeError, match=r"unknown key 'lora\.zzz'; known are alpha, dropout, rank, targets"):
        parse(Recipe, GOOD | {"lora": {"zzz": 1}})


def test_every_setting_that_another_trainers_name_leads_to_exists_in_some_recipe():
    known = {".".join(path) for recipe in (Recipe, LanguageRecipe, PolicyRecipe) for path, _ in _settings_of(recipe)}
    for places in _ELSEWHERE.values():
        assert places
        assert all(place in known for place in places)


def test_every_setting_is_described():
    for recipe in (Recipe, LanguageRecipe, PolicyRecipe):
        for path, field in _settings_of(recipe):
            section = len(path) == 1 and path[0] not in ("max_length", "seed", "method")
            assert section or field.description, path


def test_infinite_and_missing_numbers_are_refused():
    with pytest.raises(RecipeError, match=r"training\.weight_decay is nan; it must be finite"):
        parse(Recipe, GOOD | {"training": {"weight_decay": float("nan")}})


def test_data_is_looked_up_beside_the_recipe_or_in_the_folder_that_is_given(tmp_path):
    path = tmp_path / "recipes" / "mine.toml"
    path.parent.mkdir()
    path.write_text('[model]\nkind = "bradley-terry"\n[data]\ntrain = ["../a.jsonl", "b/c.jsonl", "/d.jsonl"]\n')
    assert load_recipe(path).data.train == (str(tmp_path / "a.jsonl"), str(path.parent / "b/c.jsonl"), "/d.jsonl")
    moved = load_recipe(path, data=tmp_path / "x").data.train
    assert moved == (str(tmp_path / "x/a.jsonl"), str(tmp_path / "x/b/c.jsonl"), "/d.jsonl")


def test_the_texts_of_a_language_recipe_are_looked_up_in_the_folder_that_is_given(tmp_path):
    path = ROOT / "training" / "recipes" / "policy" / "mini-policy.toml"
    data = load(LanguageRecipe, path, data=tmp_path).data
    assert Path(data.groups[0]).parent == tmp_path
    assert Path(str(data.held_out)).parent == tmp_path


@pytest.mark.parametrize("name", ["training.md", "policies.md"])
def test_the_tables_of_the_documents_are_those_of_the_fields(name):
    document = (ROOT / "docs" / name).read_text(encoding="utf-8")
    remedy = f"run python -m paragone_training.settings_tables docs/{name}"
    assert _rewritten(document) == document, remedy


def test_a_table_shows_the_default_that_a_factory_makes():
    document = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (row,) = [line for line in document.splitlines() if line.startswith("| `map` |")]
    assert row.startswith("| `map` | dict[str, str] |  | Columns")
