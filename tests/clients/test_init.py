"""``paragone init``: what it writes is taken by the program that reads it, and every setting has a comment."""

import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paragone import cli
from paragone.init import init
from paragone_service.settings_sources import load_settings
from paragone_training.preference.head_fit import check_head_recipe
from paragone_training.preference.recipe import load_recipe

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


@pytest.mark.parametrize("kind", ["bradley-terry", "general-preference"])
@pytest.mark.parametrize(
    ("backbone", "way"), [("none", "full"), ("owner/name", "full"), ("owner/name", "lora"), ("owner/name", "head")]
)
def test_every_recipe_is_one_that_training_takes(kind, backbone, way, tmp_path):
    printed = made("recipe", "--kind", kind, "--backbone", backbone, "--way", way, "--data", "my pairs.jsonl", "--yes")
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.model.kind == kind
    assert recipe.data.train == (str(tmp_path / "my pairs.jsonl"),)
    assert (recipe.backbone.source is None) == (backbone == "none")
    assert (recipe.lora is not None) == (way == "lora")
    if way == "head":
        check_head_recipe(recipe)
    assert f"paragone train {'head' if way == 'head' else 'model'} recipe.toml --dry-run" in printed


def test_four_questions_are_asked_and_a_wrong_choice_once_more(tmp_path):
    printed = made("recipe", typed="mine.jsonl\nowner/name\ngpm\ngeneral-preference\nhead\n")
    assert printed.count("?") + printed.count("]: ") == 5
    assert "'gpm' is none of bradley-terry, general-preference" in printed
    assert load_recipe(tmp_path / "recipe.toml").model.dimension == 8


def test_defaults_are_taken_with_yes_and_with_return(tmp_path):
    made("server", "a.toml", "--yes")
    made("server", "b.toml", typed="\n\n\n\n")
    first, second = ((tmp_path / name).read_text().replace("b.toml", "a.toml") for name in ("a.toml", "b.toml"))
    assert first == second


@pytest.mark.parametrize("words", [("server", "x.toml", "--who", "others"), ("recipe", "x.toml")])
def test_every_table_and_most_settings_are_explained(words, tmp_path):
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
    done = CliRunner().invoke(init, ["recipe", "--way", "magic", "--yes"])
    assert done.exit_code == 2
    assert CliRunner().invoke(init, ["recipe", "--way", "lora", "--backbone", "none", "--yes"]).exit_code == 2


def test_a_recipe_holds_a_split_out_only_where_the_file_has_splits():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    Path("plain.jsonl").write_text(json.dumps(row) + "\n")
    Path("split.jsonl").write_text(json.dumps({**row, "split": "test"}) + "\n")
    for name, held_out in (("plain", False), ("split", True), ("nowhere", False)):
        file = Path(f"{name}.toml")
        assert made("recipe", str(file), "--backbone", "none", "--data", f"{name}.jsonl", "--yes")
        assert ('\nevaluate_split = "test"' in file.read_text()) is held_out
