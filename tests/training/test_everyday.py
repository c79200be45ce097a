"""The recipes on the texts that ship run as they are written, but for fewer steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from paragone_models import load_model
from paragone_models.files.sources import builtin_folder
from paragone_training.command import train
from paragone_training.errors import DataError

DATA = Path(__file__).parents[2] / "data"
RECIPES = Path(__file__).parents[2] / "training" / "recipes"


def run(*arguments):
    outcome = CliRunner().invoke(train, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output or outcome.exception


@pytest.mark.parametrize("name", ["everyday-reward", "everyday-ratings"])
def test_a_recipe_on_the_shipped_texts_gives_a_model_that_compares(name, tmp_path):
    run("model", RECIPES / f"{name}.toml", "--set", "training.epochs=1", "--output", tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert model.spec.demonstration
    assert model.score("May I freeze bread?", ["Yes, sliced.", "No."]).probabilities.shape == (2, 2)


def test_the_head_recipe_on_the_shipped_texts_beats_length_on_the_test_split(tmp_path):
    states = ("--set", f"head.states={tmp_path / 'states'}")
    run("head", RECIPES / "everyday-head.toml", *states, "--output", tmp_path / "head")
    card = (tmp_path / "head" / "README.md").read_text()
    assert "| this head, on the held-out rows | 48 | 0.7" in card
    assert "**A demonstration.**" in card
    # What ships under this name is what the recipe gives.
    fitted, shipped = (
        load_file(path / "head.safetensors") for path in (tmp_path / "head", builtin_folder("everyday-head"))
    )
    torch.testing.assert_close(fitted, shipped, rtol=0.02, atol=0.02)


def test_the_recipe_of_vectors_gives_the_head_that_ships_which_runs_in_circles_on_a_question_it_never_saw(tmp_path):
    states = ("--set", f"head.states={tmp_path / 'states'}")
    run("head", RECIPES / "everyday-preferences.toml", *states, "--output", tmp_path / "head")
    groups = [json.loads(line) for line in (DATA / "everyday_groups.jsonl").read_text().splitlines()]
    (nap,) = [group for group in groups if group["prompt"].startswith("How long should a nap be")]
    assert nap["split"] == "test"
    fitted, shipped = (
        load_model(source, device="cpu").score(nap["prompt"], nap["responses"]).probabilities
        for source in (str(tmp_path / "head"), "builtin:everyday-preferences")
    )
    assert abs(fitted - shipped).max() < 0.01
    assert min(shipped[0, 2], shipped[2, 3], shipped[3, 0]) > 0.6


def test_the_student_of_the_distilling_recipe_keeps_what_its_header_says(tmp_path):
    teachers = [load_model(name, device="cpu") for name in ("builtin:everyday-preferences", "builtin:everyday-head")]
    rows = [json.loads(line) for line in (DATA / "everyday_groups.jsonl").read_text().splitlines()]
    for row in rows:
        # As `ensemble:` does: the mean of the members' log-odds.
        chances = [teacher.score(row["prompt"], row["responses"]).probabilities for teacher in teachers]
        logit = sum(np.log(one) - np.log1p(-one) for one in chances) / 2
        row["matrix"] = (1 / (1 + np.exp(-logit))).tolist()
    tables = tmp_path / "tables.jsonl"
    tables.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        "head", RECIPES / "everyday-distil.toml", "--set", f"data.train={[str(tables)]}", "--set",
        f"head.states={tmp_path / 'states'}", "--output", tmp_path / "head",
    )  # fmt: skip
    card = (tmp_path / "head" / "README.md").read_text()
    assert re.search(r"the teacher's winner \| 0\.8[89]", card)
    distance, coin = re.search(r"\(KL, nats\) \| ([\d.]+) \| ([\d.]+)", card).groups()
    assert (float(distance), float(coin)) == pytest.approx((0.0198, 0.1535), abs=1e-3)
    assert "| cycles of the teacher's, of 64 triples | 0 of 2 |" in card


def test_the_policy_recipe_on_the_shipped_prompts_makes_a_policy_and_compares_it(tmp_path):
    steps = ("--set", "sampling.max_new_tokens=4", "--set", "sampling.responses=2")
    run("policy", RECIPES / "policy" / "everyday-sppo.toml", *steps, "--output", tmp_path / "run")
    assert (tmp_path / "run" / "iteration-01" / "step-1" / "policy" / "config.json").is_file()
    assert list((tmp_path / "run").glob("evaluation-01*"))


@pytest.mark.parametrize(
    "arguments",
    [("model", "mini-regression.toml"), ("language", "policy/mini-policy.toml"), ("policy", "policy/mini-sppo.toml")],
)
def test_a_recipe_whose_corpora_are_not_there_says_how_to_name_them(arguments):
    command, name = arguments
    with pytest.raises(DataError, match=r"recipes/.*\.jsonl: No such file.* by --data \(data/README\.md\)"):
        CliRunner().invoke(train, [command, str(RECIPES / name), "--dry-run"], catch_exceptions=False)


def test_files_in_the_folder_of_data_may_be_gzipped(tmp_path):
    import gzip

    from paragone_training.preference.recipe import load_recipe

    path = RECIPES / "everyday-reward.toml"
    text = (RECIPES.parents[1] / "data" / "everyday_pairs.jsonl").read_bytes()
    (tmp_path / "everyday_pairs.jsonl.gz").write_bytes(gzip.compress(text))
    assert load_recipe(path, data=tmp_path).data.train == (str(tmp_path / "everyday_pairs.jsonl.gz"),)
    (tmp_path / "everyday_pairs.jsonl").write_bytes(text)
    assert load_recipe(path, data=tmp_path).data.train == (str(tmp_path / "everyday_pairs.jsonl"),)
