"""A share that a recipe holds out: trained on by nobody, measured at the end, and read again by ``paragone eval``."""

import json
import re
from importlib.metadata import EntryPoint

import pytest

from paragone.cli import main
from paragone_evaluation.errors import DataError as ReaderError
from paragone_evaluation.readers import is_held_out
from paragone_training.errors import RecipeError
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_head import train_heads
from paragone_training.preference.train_model import load_rows, train_model
from paragone_training.settings import parse
from tests.training.arguments import pairs, recipe, write

EVAL = EntryPoint("eval", "paragone_evaluation.eval_command:evaluate", "paragone.commands")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs under thirty prompts, of which no row names a split."""
    rows = [
        {"prompt": one.prompt, "first": one.first, "second": one.second, "strength": one.strength}
        for one in pairs(30, split=None)
    ]
    return write(tmp_path_factory.mktemp("holdout") / "mine.jsonl", rows)


def data(file, **fields):
    return {"data": {"train": [str(file)], "holdout": 0.3, **fields}}


def test_a_share_is_held_out_and_not_trained_on(file, caplog):
    rows = load_rows(recipe(**data(file)))
    assert "No row was held out" not in caplog.text
    learned, apart = ({row.prompt for row in some} for some in (rows.pairs, rows.held_out_pairs))
    assert apart == {row.prompt for row in pairs(30) if is_held_out(row.prompt, 0.3)}
    assert len(apart) > 4
    assert not learned & apart
    assert len(learned) + len(apart) == 30


def test_a_run_that_is_measured_on_nothing_says_so(file, caplog):
    load_rows(recipe(**data(file, holdout=0.0)))
    assert "No row was held out. With data.holdout = 0.1" in caplog.text


def test_the_model_is_measured_on_it_and_the_card_says_what_was_held_out(file, tmp_path, caplog):
    settled = recipe(**data(file), training={"epochs": 1})
    with caplog.at_level("INFO"):
        folder = train_model(settled, tmp_path / "judge")
    apart = len(load_rows(settled).held_out_pairs)
    card = (folder / "README.md").read_text()
    assert "nan" not in card
    prompts = len({row.prompt for row in load_rows(settled).held_out_pairs})
    assert f"* Held out: {apart} pairs under {prompts} prompts, chosen by a hash of the prompt" in card
    assert "`paragone eval FILE --holdout 0.3` reads the same rows" in card
    verdict = re.search(rf"judge (agrees with people on .* of {apart} decided pairs .*: .*)", caplog.text)
    assert verdict
    assert "95 % interval" in verdict[1]
    assert f"It {verdict[1]}" in card
    assert verdict[1].split(":")[0] in (folder / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_eval_reads_the_rows_that_a_head_was_not_fitted_to(file, tmp_path, capsys):
    settled = recipe(
        **data(file),
        model={"max_length": 256},
        backbone={"source": "builtin:mini-bradley-terry"},
        head={"states": str(tmp_path / "states"), "dtype": "float32"},
    )
    (folder,) = train_heads([(settled, tmp_path / "head")])
    card = (folder / "README.md").read_text()
    assert "nan" not in card
    row = re.search(r"on the held-out rows \| (\d+) \| ([\d.]+) \|", card)
    words = ["--holdout", "0.3", "--model", str(folder), "--output", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as end:
        main(["eval", str(file), *words, "--dtype", "float32"], commands=[EVAL])
    assert not end.value.code
    results = json.loads(capsys.readouterr().out)
    accuracy = results["measures"]["accuracy"]
    shown = [f"{100 * accuracy['half_credit'][end]:.1f}" for end in ("low", "high")]
    assert f"(95 % interval {' – '.join(shown)})" in card
    assert (accuracy["decided"], round(accuracy["half_credit"]["value"], 3)) == (int(row[1]), float(row[2]))
    assert (results["data"]["split"], results["data"]["holdout"]) == (None, 0.3)


def test_a_share_that_leaves_too_few_is_refused(file):
    with pytest.raises(ReaderError, match=r"holdout = 0.999 holds out 30 of 30 prompts and leaves 0"):
        load_rows(recipe(**data(file, holdout=0.999)))
    with pytest.raises(ReaderError, match=r"holdout = 0.01 holds out .* of 30 prompts .*take holdout = 0.35,"):
        load_rows(recipe(**data(file, holdout=0.01)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"evaluate": ["other.jsonl"]}, "data.evaluate "),
        ({"evaluate_split": "validation"}, "data.evaluate_split"),
        ({"train_split": "mine"}, "data.train_split"),
        ({"allow_test_rows": True}, "data.allow_test_rows"),
    ],
)
def test_a_recipe_says_once_what_is_held_out(file, fields, named):
    with pytest.raises(RecipeError, match=f"{named}.*leave one of them out"):
        recipe(**data(file, **fields))
    assert recipe(**data(file, evaluate_split="test", train_split="train")).data.holdout == 0.3


def test_a_length_that_nobody_named_is_the_backbones(file):
    tables = {"model": {"kind": "bradley-terry"}, "data": {"train": [str(file)]}}
    unset = parse(Recipe, {**tables, "backbone": {"source": "builtin:mini-bradley-terry"}})
    assert unset.within(1024).spec.max_length == 1024
    assert unset.within(None).spec.max_length == unset.within(4096).spec.max_length == 2048
    with pytest.raises(RecipeError, match=r"model.max_length is 128; the backbone has 64 positions"):
        recipe(**data(file)).within(64)
