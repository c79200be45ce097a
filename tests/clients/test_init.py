"""``paragone init``: what it writes is taken by the program that reads it, and every setting has a comment."""

import hashlib
import json
import re
import shlex
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from transformers import Qwen3Config, Qwen3Model
from typer.testing import CliRunner

from paragone import cli
from paragone.init import init
from paragone_models import load_model
from paragone_service.app import create_app
from paragone_service.hosting import load_models
from paragone_service.settings_sources import load_settings
from paragone_training.command import train
from paragone_training.preference.head_fit import check_head_recipe
from paragone_training.preference.recipe import load_recipe
from paragone_training.scratch.decoder import train_tokenizer
from tests.training.arguments import pairs, write

COMMAND = EntryPoint("init", "paragone.init:init", "paragone.commands")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PARAGONE_REDIS_URL", "PARAGONE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def made(*words, typed=""):
    """Return what the command printed, having written its file."""
    done = CliRunner().invoke(init, list(words), input=typed)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("who", ["me", "others"])
@pytest.mark.parametrize("redis", ["none", "redis://cache:6379/1"])
@pytest.mark.parametrize("device", ["auto", "cpu", "all"])
def test_every_server_file_is_one_that_serve_takes(who, redis, device, tmp_path):
    words = ["--who", who, "--redis", redis, "--device", device, "--source", 'owner/"odd" name', "--yes"]
    printed = made("server", *words)
    settings = load_settings({}, tmp_path / "paragone.toml")
    assert settings.models["judge"].source == 'owner/"odd" name'
    assert settings.host == ("127.0.0.1" if who == "me" else "0.0.0.0")
    assert (settings.redis_url is None) == (redis == "none")
    assert (settings.devices or settings.device) == device
    assert ("paragone key new first --file keys.txt" in printed) == (who == "others")
    assert "paragone serve --config paragone.toml" in printed


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--redis", "cache:6379"], "redis_url: it is no address of a Redis"),
        (["--source", "builtin:nope"], "there is no built-in model 'nope'; built in are mini-bradley-terry,"),
    ],
)
def test_what_serve_would_refuse_is_refused_and_no_file_is_written(words, why):
    done = CliRunner().invoke(init, ["server", *words, "--yes"])
    assert done.exit_code == 2
    assert why in re.sub(r"[\s│]+", " ", done.output)
    assert not Path("paragone.toml").exists()


def test_an_address_that_serve_would_refuse_is_asked_for_once_more():
    printed = made("server", typed="\n\ncache:6379\nredis://cache:6379\n\n")
    assert "it is no address of a Redis" in printed
    assert load_settings({}, Path("paragone.toml")).redis_url.get_secret_value() == "redis://cache:6379"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A backbone from random weights with few positions, as a folder of Hugging Face's."""
    folder = tmp_path_factory.mktemp("backbone")
    config = Qwen3Config(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    train_tokenizer([one.first for one in pairs()], 320, max_length=128).save_pretrained(folder)
    return str(folder)


def preferences(name, prompts=30, **fields):
    """Write pairs under so many prompts, which name no split unless the fields do."""
    rows = [
        {"prompt": one.prompt, "first": one.first, "second": one.second, "strength": one.strength, **fields}
        for one in pairs(prompts, split=None)
    ]
    return str(write(Path(name), rows))


@pytest.mark.parametrize(
    ("kind", "way", "trained"),
    [
        ("bradley-terry", "full", False),
        ("general-preference", "full", True),
        ("bradley-terry", "lora", True),
        ("general-preference", "head", True),
        ("bradley-terry", "head", True),
    ],
)
def test_every_recipe_runs_and_gives_a_model_that_is_loaded(kind, way, trained, checkpoint, tmp_path):
    data, file = preferences("my pairs.jsonl"), Path("recipes/mine.toml")
    backbone = checkpoint if trained else "none"
    printed = made("recipe", str(file), "--kind", kind, "--backbone", backbone, "--way", way, "--data", data, "--yes")
    command = "head" if way == "head" else "model"
    assert f"paragone train {command} {file} --dry-run" in printed
    assert f"paragone eval '{data}' --holdout 0.3 --model runs/mine" in printed
    smaller = ["backbone.layers=1", "backbone.hidden_size=16", "backbone.intermediate_size=32"] if not trained else []
    smaller += [] if way == "head" else ["training.batch_responses=64"]
    words = [command, str(file), *(word for one in smaller for word in ("--set", one))]
    done = CliRunner().invoke(train, words)
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "runs" / "mine", device="cpu")
    assert model.spec.kind == kind
    assert model.spec.max_length == (128 if trained else 2048)
    assert "`data.holdout = 0.3`" in Path("runs/mine/README.md").read_text()


@pytest.mark.parametrize("who", ["me", "others"])
def test_a_server_file_hosts_its_model(who, tmp_path):
    made("server", "--who", who, "--source", "builtin:mini-bradley-terry", "--device", "cpu", "--yes")
    (tmp_path / "keys.txt").write_text("first:" + hashlib.sha256(b"secret").hexdigest() + "\n")
    settings = load_settings({"api_key_file": tmp_path / "keys.txt"} if who == "others" else {}, Path("paragone.toml"))
    with TestClient(create_app(settings, load_models(settings)), base_url="http://127.0.0.1:8000") as client:
        headers = {"Authorization": "Bearer secret"} if who == "others" else {}
        (model,) = client.get("/v1/models", headers=headers).json()["models"]
    assert model["id"] == "judge"


def test_questions_are_asked_and_a_wrong_answer_once_more(tmp_path):
    preferences("mine.jsonl")
    answers = ["nowhere.jsonl", "mine.jsonl", "owner/name", "gpm", "general-preference", "head", "much", "0.25"]
    printed = made("recipe", typed="\n".join(answers) + "\n")
    assert printed.count("]: ") == len(answers)
    assert "'gpm' is none of bradley-terry, general-preference" in printed
    assert "cannot read nowhere.jsonl" in printed
    assert "mine.jsonl: 270 pairs, 30 prompts, no splits" in printed
    assert "the share to hold out is 'much'" in printed
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert (recipe.model.dimension, recipe.data.holdout) == (8, 0.25)
    check_head_recipe(recipe)


def test_a_file_that_holds_no_preferences_is_refused_and_no_recipe_is_written():
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n')
    Path("broken.jsonl").write_text('{"prompt": "Tea?", "chosen": "a"\n')
    for name, why in (("prompts", "no preferences, only prompts"), ("broken", "broken.jsonl"), ("none", "none.jsonl")):
        done = CliRunner().invoke(init, ["recipe", "--yes", "--data", f"{name}.jsonl"])
        assert done.exit_code == 2
        assert why in re.sub(r"[\s│]+", " ", done.output)
    assert not Path("recipe.toml").exists()


def test_data_is_named_from_the_recipes_folder(tmp_path):
    preferences("mine.jsonl")
    made("recipe", "deep/down/recipe.toml", "--data", "mine.jsonl", "--yes")
    assert load_recipe("deep/down/recipe.toml").data.train == (str(tmp_path / "mine.jsonl"),)


@pytest.mark.parametrize("name", ["tea \U0001f375", 'a"b', "back\\slash", "del\x7f", "$HOME; true"])
def test_odd_names_stand_in_the_recipe_as_they_are_and_as_one_word_in_what_comes_next(name):
    data = preferences(f"{name}.jsonl")
    printed = json.loads(made("recipe", f"{name}.toml", "--data", data, "--yes", "--json"))
    recipe = load_recipe(f"{name}.toml")
    assert recipe.data.train == (str(Path(data).absolute()),)
    assert recipe.output.folder.endswith(f"runs/{name}")
    words = [shlex.split(command) for command in printed["next"]]
    assert words[0] == ["paragone", "data", data]
    assert words[1] == ["paragone", "train", "model", f"{name}.toml", "--dry-run"]
    assert words[-1] == ["paragone", "serve", "--model", f"judge=runs/{name}"]


def test_a_head_without_a_backbone_gets_one_and_from_random_weights_is_refused():
    preferences("mine.jsonl")
    made("recipe", "--data", "mine.jsonl", "--way", "head", "--yes")
    check_head_recipe(load_recipe("recipe.toml"))
    done = CliRunner().invoke(init, ["recipe", "x.toml", "--data", "mine.jsonl", "--way", "head", "--backbone", "none"])
    assert done.exit_code == 2
    assert "--way head needs a trained backbone" in re.sub(r"[\s│]+", " ", done.output)


def test_defaults_are_taken_with_yes_and_with_return(tmp_path):
    made("server", "a.toml", "--yes")
    made("server", "b.toml", typed="\n\n\n\n")
    first, second = ((tmp_path / name).read_text().replace("b.toml", "a.toml") for name in ("a.toml", "b.toml"))
    assert first == second


@pytest.mark.parametrize("words", [("server", "x.toml", "--who", "others"), ("recipe", "x.toml")])
def test_every_table_and_most_settings_are_explained(words, tmp_path):
    preferences("pairs.jsonl")
    made(*words, "--yes")
    lines = (tmp_path / "x.toml").read_text().splitlines()
    settings = [number for number, line in enumerate(lines) if re.match(r"\w+ =", line)]
    assert len([number for number in settings if lines[number - 1].startswith("#")]) * 2 >= len(settings)
    assert tomllib.loads("\n".join(lines))


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path, capsys):
    (tmp_path / "paragone.toml").write_text("mine")
    with pytest.raises(SystemExit) as end:
        cli.main(["init", "server", "--yes"], commands=[COMMAND])
    assert end.value.code == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "paragone.toml").read_text() == "mine"
    made("server", "--yes", "--force")
    assert (tmp_path / "paragone.toml").read_text() != "mine"


def test_json_needs_yes_and_is_one_object():
    assert CliRunner().invoke(init, ["server", "--json"]).exit_code == 2
    found = json.loads(made("server", "--json", "--yes"))
    assert found["file"] == "paragone.toml"
    assert found["next"][-1] == "paragone serve --config paragone.toml"


def test_a_choice_that_there_is_not_is_refused():
    preferences("pairs.jsonl")
    done = CliRunner().invoke(init, ["recipe", "--way", "magic", "--yes"])
    assert done.exit_code == 2


def test_what_is_held_out_is_the_files_split_or_a_share_by_its_prompts():
    for name, prompts, fields, expected in (
        ("test", 6, {"split": "test"}, 'evaluate_split = "test"'),
        ("val", 6, {"split": "val"}, 'evaluate_split = "validation"'),
        ("words", 30, {"reason": "split the bill"}, "holdout = 0.3"),
        ("many", 100, {}, "holdout = 0.2"),
        ("few", 6, {}, "# holdout = 0.1"),
    ):
        data, file = preferences(f"{name}.jsonl", prompts, **fields), Path(f"{name}.toml")
        made("recipe", str(file), "--data", data, "--yes")
        assert f"\n{expected}\n" in file.read_text()
    done = CliRunner().invoke(init, ["recipe", "x.toml", "--data", "many.jsonl", "--holdout", "0.01", "--yes"])
    assert done.exit_code == 2
    assert "of 100 prompts and leaves" in re.sub(r"[\s│]+", " ", done.output)
    assert not Path("x.toml").exists()
    done = CliRunner().invoke(init, ["recipe", "x.toml", "--data", "test.jsonl", "--holdout", "0.1", "--yes"])
    assert "leave out --holdout" in re.sub(r"[\s│]+", " ", done.output)
