"""Before the first step: runs that cannot learn, and checkpoints of another run."""

import json

import pytest

from paragone_evaluation.readers import Pair, Rating
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.card import Rows
from paragone_training.preference.train_model import fit, load_rows
from tests.training.arguments import pairs, recipe, row, write

RATES = {"kind": "regression", "attributes": ["clarity"]}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"warmup_steps": 50}}, "the warm-up takes 50 steps, and the run has 2"),
        ({"training": {"warmup_steps": 2}}, "would never reach its peak. Set fewer, or a share below 1"),
    ],
)
def test_a_warm_up_that_is_longer_than_the_run_is_refused(tmp_path, sections, message):
    with pytest.raises(RecipeError, match=message):
        fit(recipe(**sections), Rows(pairs(1)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_share_of_a_single_step_is_no_warm_up_so_that_the_step_counts(tmp_path):
    single = recipe(training={"epochs": 1, "warmup_steps": 0.1})
    history = fit(single, Rows(pairs(1)), tmp_path).history
    assert history[0]["learning_rate"] == single.training.learning_rate


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Pair("p", "a", "b", 0.0)],
        [Pair("p", "a", "a", 1.0)],
    ],
)
def test_pairs_of_which_none_is_preferred_are_refused(tmp_path, rows):
    for ties in ("drop", "keep"):
        with pytest.raises(DataError, match=r"nothing to learn from: none .* \(pairs.jsonl\)"):
            fit(recipe(loss={"name": "soft", "ties": ties}), Rows(rows), tmp_path)


def test_ratings_that_are_all_the_same_are_refused(tmp_path):
    rows = [Rating("p", response, {"clarity": 3.0}) for response in "abc"]
    rating = recipe(model=RATES, data={"ratings": ["ratings.jsonl"]})
    with pytest.raises(DataError, match="nothing to learn clarity from: it is 3 in every row"):
        fit(rating, Rows(ratings=rows), tmp_path)


def test_reading_the_rows_finds_what_cannot_be_learned_so_that_a_dry_run_does(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [row(), row(id="2", prompt="q")])
    with pytest.raises(RecipeError, match="warm-up takes 9 steps, and the run has 2"):
        load_rows(recipe(data={"train": [str(path)]}, training={"warmup_steps": 9}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch."""
    work = tmp_path_factory.mktemp("run")
    fit(recipe(training={"epochs": 1}), Rows(pairs(1)), work)
    return work


@pytest.mark.parametrize(
    ("sections", "rows", "difference"),
    [
        (
            {"model": {"kind": "general-preference", "dimension": 4}},
            1,
            "model.kind was 'bradley-terry' and is 'general",
        ),
        ({"loss": {"name": "scaled"}}, 1, "loss.name was 'regular' and is 'scaled'"),
        ({"backbone": {"layers": 2}}, 1, "backbone.layers was 1 and is 2"),
        ({"training": {"learning_rate": 0.5}}, 1, "training.learning_rate was 0.01 and is 0.5"),
        ({}, 2, "data.pairs was '9 rows, sha256 .*' and is '18 rows, sha256 "),
    ],
)
def test_the_checkpoints_of_another_run_are_not_gone_on_from(run, sections, rows, difference):
    sections = {**sections, "training": {"epochs": 2, **sections.get("training", {})}}
    with pytest.raises(RecipeError, match=f"holds another run: .*{difference}"):
        fit(recipe(**sections), Rows(pairs(rows)), run, resume=True)


def test_a_run_may_be_resumed_for_more_epochs_and_that_is_said(tmp_path, caplog):
    fit(recipe(training={"epochs": 1}), Rows(pairs(1)), tmp_path)
    longer = fit(recipe(training={"epochs": 2, "log_steps": 7}), Rows(pairs(1)), tmp_path, resume=True)
    assert longer.history[-1]["step"] == 2
    assert "training.epochs was 1 and is 2" in caplog.text
    assert json.loads((tmp_path / "run.json").read_bytes())["training.epochs"] == 2


def test_checkpoints_of_no_known_run_are_not_gone_on_from(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(RecipeError, match=r"has checkpoints and no run\.json"):
        fit(recipe(), Rows(pairs(1)), tmp_path, resume=True)
