"""``paragone train model``: dry runs, overrides, and refusals in one line."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paragone import cli
from paragone_models import load_model
from paragone_training.command import train
from paragone_training.errors import RecipeError
from paragone_training.preference.recipe import Recipe, load_recipe
from paragone_training.settings import as_toml, parse
from tests.training.arguments import pairs, write

RECIPE = """
[model]
kind = "bradley-terry"
max_length = 128
[backbone]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32
[tokenizer]
vocabulary_size = 320
[data]
train = ["pairs.jsonl"]
[training]
epochs = 1
learning_rate = 1e-2
batch_responses = 6
"""


@pytest.fixture
def mine(tmp_path):
    rows = [*pairs(2), *pairs(1, split="test")]
    write(
        tmp_path / "pairs.jsonl",
        [
            {
                "id": str(number),
                "split": one.split,
                "group": one.group,
                "prompt": one.prompt if one.split == "train" else "Go?",
                "first": one.first,
                "second": one.second,
                "strength": one.strength,
            }
            for number, one in enumerate(rows)
        ],
    )
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_a_dry_run_says_what_would_be_done_and_does_nothing(mine):
    result = CliRunner().invoke(train, ["model", str(mine), "--dry-run", "--set", "training.epochs=9"])
    assert result.exit_code == 0, result.output
    assert "epochs = 9" in result.output
    assert "18 pairs to train on, 9 held out; the model would go to runs/mine" in result.output
    assert {path.name for path in mine.parent.iterdir()} == {"mine.toml", "pairs.jsonl"}


def test_a_dry_run_shows_the_recipe_without_what_it_does_not_read(mine):
    result = CliRunner().invoke(train, ["model", str(mine), "--dry-run", "--offline"])
    shown, _, plan = result.stdout.partition("\n\n")
    tables = tomllib.loads(shown)
    assert parse(Recipe, tables) == load_recipe(mine)
    assert not {"pretraining", "head", "lora"} & set(tables)
    assert "18 pairs to train on" in plan


def test_a_dry_run_of_a_head_shows_no_training(mine):
    words = ["head", str(mine), "--dry-run", "--set", "backbone.source=builtin:mini-bradley-terry"]
    result = CliRunner().invoke(train, words)
    assert result.exit_code == 0, result.output
    tables = tomllib.loads(result.stdout.partition("\n\n")[0])
    assert set(tables) == {"model", "data", "backbone", "loss", "training", "head", "output"}
    assert tables["training"] == {"seed": 0}
    assert "hidden_size" not in tables["backbone"]


def test_settings_are_written_as_toml_reads_them():
    tables = {
        "data": {"train": ("a \U0001f375.jsonl", 'b"\x7f'), "map": {"prompt": "q", "odd key": "x"}, "none": None},
        "training": {"learning_rate": 1e-5, "bf16": True, "names": ()},
        "seed": 3,
        "lora": None,
        "empty": {"none": None},
    }
    expected = {
        "data": {"train": list(tables["data"]["train"]), "map": tables["data"]["map"]},
        "training": {"learning_rate": 1e-5, "bf16": True, "names": []},
        "seed": 3,
    }
    assert tomllib.loads(as_toml(tables)) == expected


def test_a_trained_folder_is_a_model_that_answers(mine, tmp_path):
    result = CliRunner().invoke(train, ["model", str(mine), "--output", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "model", device="cpu")
    scores = model.score("Should school 0 teach chess?", ["because studies show that it saves money", "lol no"])
    assert scores.probabilities is not None
    assert scores.probabilities[0, 1] + scores.probabilities[1, 0] == 1.0


def test_json_is_all_that_is_printed(mine, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "model", str(mine), "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["folder"] == "runs/mine"
    assert plan["recipe"]["training"]["epochs"] == 1
    assert plan["plan"][0].startswith("18 pairs to train on")


def test_a_wrong_recipe_ends_in_one_line_and_exit_code_two(mine, capsys):
    code = cli.main(["train", "model", str(mine), "--set", "training.epoch=9"])
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert said == "paragone train model: unknown key 'training.epoch'; did you mean 'epochs'?"


def test_test_rows_in_training_end_in_one_line_that_says_how_to_force_it(mine, capsys):
    code = cli.main(["train", "model", str(mine), "--dry-run", "--set", "data.train_split=test"])
    assert code == 2
    assert "marked 'test' and would be trained on" in capsys.readouterr().err


def test_a_data_file_that_is_not_there_ends_in_one_line(mine, capsys):
    Path(mine.parent / "pairs.jsonl").unlink()
    assert cli.main(["train", "model", str(mine)]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--ranks", "4"], ["--offline"]])
def test_flags_of_the_dry_run_do_not_start_a_run(tmp_path, flags):
    result = CliRunner().invoke(train, ["policy", str(tmp_path / "none.toml"), *flags])
    assert isinstance(result.exception, RecipeError)
    assert "--dry-run" in str(result.exception)
