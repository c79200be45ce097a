"""The page of a trained model: what it shows is what the run measured, in the one look of all reports."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from paragone_training.preference.agreement import Judged
from paragone_training.preference.report import _reliability
from paragone_training.preference.train_model import train_model
from tests.evaluation.runs import Checker
from tests.training.arguments import pairs, recipe, write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained model."""
    folder = tmp_path_factory.mktemp("run")
    held_out = [replace(pair, prompt="Go?") for pair in pairs(1, split="test")]
    names = ("group", "prompt", "first", "second", "strength", "split")
    rows = [{name: getattr(pair, name) for name in names} for pair in (*pairs(3), *held_out)]
    rows = [{"id": str(number), **row} for number, row in enumerate(rows)]
    made = recipe(
        data={"train": [str(write(folder / "<pairs>.jsonl", rows))]},
        training={"epochs": 3, "batch_responses": 6, "log_steps": 1},
    )
    return train_model(made, folder / "judge")


def test_the_page_has_the_numbers_of_the_run_and_fetches_nothing(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert (checker.open, checker.fetched) == ([], [])
    history = json.loads((run / "checkpoints" / "history.json").read_text())
    accuracy = [row["eval_accuracy"] for row in history if "eval_accuracy" in row][-1]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.replace("\N{NO-BREAK SPACE}", " ")))
    assert f"Agreement {100 * accuracy:.1f} %" in text
    assert "“The longer one”" in text
    assert "&lt;pairs&gt;.jsonl" in text
    assert "training.batch_responses = 6" in text
    assert str(run.parent) not in page
    assert page.count("<svg") >= 2
    assert "nan" not in text.lower().split()


def test_dots_of_the_reliability_chart_are_pairs_of_about_one_confidence():
    logit = np.concatenate([np.full(20, 0.1), np.full(10, 5.0), np.full(10, -5.0), np.full(3, 1.2)])
    ones = np.ones(len(logit))
    judged = Judged(logit, ones, ones, ones.astype(bool), np.asarray(["q"] * len(logit)))
    low, high = _reliability(judged)  # three pairs are too few for a dot
    assert low == pytest.approx((100 / (1 + np.exp(-0.1)), 100.0, 20))
    assert high == pytest.approx((100 / (1 + np.exp(-5.0)), 50.0, 20))
