"""Sections of a report: comparison, groups, position, subsets, and temperatures."""

import math

import numpy as np
import pytest

from paragone_evaluation.asking import AnswerStore, ask_model
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.pair_results import _cross_fitted, clustering
from paragone_evaluation.readers import read_evaluation_set
from paragone_evaluation.report import words
from paragone_evaluation.temperature import fitted_temperature
from tests.evaluation.conftest import pair, text, write
from tests.evaluation.readers.test_evaluation_sets import GROUP
from tests.evaluation.runs import QUICK, page_of, run
from tests.evaluation.test_asking import FirstPlace


def test_two_models_are_compared_on_the_same_pairs_and_few_clusters_give_no_verdict(tmp_path, models):
    rows = [pair(number) for number in range(48)]
    written = run(tmp_path, rows, LocalScorer(models["bt"]), against=LocalScorer(models["gp"]))
    found = written.results["comparison"]
    assert found["pairs"] == 48
    assert found["accuracy_difference"]["value"] == pytest.approx(
        found["accuracy"]["value"] - found["accuracy_against"]["value"], abs=0.02
    )
    assert (tmp_path / "out" / "answers-against.jsonl").exists()
    page = page_of(written)
    assert "Against gp" in page
    assert "From 6 questions no interval can tell" in page
    (tmp_path / "many").mkdir()
    many = [pair(number) for number in range(160)]
    written = run(tmp_path / "many", many, LocalScorer(models["bt"]), against=LocalScorer(models["bt"]))
    assert "inside the noise" in page_of(written)


def test_groups_are_ranked_and_best_of_n_is_drawn(tmp_path, models):
    rows = [
        {**GROUP, "id": number, "prompt": f"P{number}?", "responses": [text(number + k) for k in range(3)]}
        for number in range(12)
    ]
    written = run(tmp_path, rows, LocalScorer(models["gp"]))
    groups = written.results["measures"]["groups"]
    assert groups["groups"] == 12
    assert groups["best_of_n"]["n"] == [1, 2, 3]
    assert groups["best_of_n"]["kl"][-1] == pytest.approx(math.log(3) - 2 / 3)
    assert groups["best_of_n"]["people"][-1] == pytest.approx(1.0)
    assert groups["regret"]["value"] == pytest.approx(1.0 - groups["best_of_n"]["model"][-1])
    assert "12 groups of responses that people scored" in page_of(written)


def test_a_pairwise_model_has_a_position_bias_on_the_page(tmp_path, models):
    written = run(tmp_path, [pair(number) for number in range(24)], FirstPlace(LocalScorer(models["bt"]).card))
    position = written.results["measures"]["position"]
    assert position["first_win_excess"]["value"] >= 0
    asymmetry = position["asymmetry"]
    assert 0 < asymmetry["low"] < asymmetry["value"] < asymmetry["high"]
    page = page_of(written)
    assert "Does the order of the responses matter?" in page
    assert f'{words.number(asymmetry["value"])}</td><td><span class="w">{words.interval(asymmetry)}</span>' in page


def test_subsets_have_the_intervals_of_a_slow_bootstrap_and_count_ties_in_the_nll_alone(tmp_path, models):
    rows = [pair(place, subset=("odd", "even")[place // 4 % 2]) for place in range(96)]
    rows.append(pair(200, subset="alone", strength=2, prompt="Alone?", group="alone_x"))
    written = run(tmp_path, rows, LocalScorer(models["bt"]))
    data = read_evaluation_set(tmp_path / "file.jsonl")
    resampler = clustering(data, "question", resamples=QUICK.resamples, seed=QUICK.seed).resampler
    where, _ = data.clusters("question")
    by_row = [
        (row, models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards, where[data.node_prompt[node]])
        for row, node in zip(rows, data.first, strict=True)
    ]

    def slow(name, weight):
        """Return accuracy and NLL of one subset, each row as often as its cluster was drawn."""
        right, losses = [], []
        for row, rewards, cluster in by_row:
            if row["subset"] != name:
                continue
            logit, strength = (rewards[0] - rewards[1]) / models["bt"].spec.temperature, row["strength"]
            outcome = 0.5 if strength == 0 else float(strength > 0)
            loss = outcome * math.log1p(math.exp(-logit)) + (1 - outcome) * math.log1p(math.exp(logit))
            losses += [loss] * int(weight[cluster])
            right += [float((logit > 0) == (strength > 0))] * int(weight[cluster] * (strength != 0))
        return (np.mean(right), np.mean(losses)) if right else (np.nan, np.nan)

    alone, *both = written.results["measures"]["subsets"]
    assert [row["name"] for row in (alone, *both)] == ["alone", "even", "odd"]
    for row in both:
        drawn = np.asarray([slow(row["name"], counts) for counts in resampler.counts])
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        value = slow(row["name"], np.ones(resampler.clusters))
        for place, measure in enumerate(("accuracy", "nll")):
            expected = {"value": value[place], "low": low[place], "high": high[place]}
            assert row[measure] == pytest.approx(expected, abs=1e-5)
        assert row["pairs"] + row["ties"] == 48
        assert row["ties"] > 0
    assert (alone["accuracy"]["low"], alone["nll"]["high"]) == (None, None)
    page = page_of(written)
    assert (
        f'{words.number(both[0]["nll"]["value"])}</td><td><span class="w">{words.interval(both[0]["nll"])}</span>'
        in page
    )


def test_a_cross_fitted_temperature_never_sees_the_cluster_that_it_scales():
    draw = np.random.default_rng(0)
    cluster = np.repeat(np.arange(4), 60)
    logit = draw.normal(size=240) * 2
    outcome = (draw.random(240) < 1 / (1 + np.exp(-logit))).astype(float)
    scaled, factors = _cross_fitted(logit, outcome, cluster, seed=0)
    assert len(factors) == 4
    # Turning one cluster's labels around changes the temperatures of all other clusters, and not its own.
    turned, _ = _cross_fitted(logit, np.where(cluster == 2, 1 - outcome, outcome), cluster, seed=0)
    assert (turned[cluster == 2] == scaled[cluster == 2]).all()
    assert (turned[cluster != 2] != scaled[cluster != 2]).all()


def test_a_model_whose_temperature_cannot_be_fitted_is_reported_and_not_hidden(tmp_path, models):
    scorer = LocalScorer(models["bt"])
    rows = [pair(number) for number in range(24)]
    for row in rows:
        rewards = models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards
        row["strength"] = 2 if rewards[0] < rewards[1] else -2
    written = run(tmp_path, rows, scorer)
    assert written.results["measures"]["probabilities"]["after"] is None
    assert "No temperature could be fitted" in page_of(written)


def test_a_fold_without_a_best_temperature_loses_the_cross_fit_and_not_the_fit(tmp_path, models):
    rows = [pair(number) for number in range(30)]
    for number, row in enumerate(rows):
        gap = np.subtract(*models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards)
        row["strength"] = 2 if (gap > 0) != (number == 0) else -2
    # Thirty choices, one of them wrong: without its cluster the model is never wrong.
    data = read_evaluation_set(write(tmp_path / "file.jsonl", rows))
    chances = run(tmp_path, rows, LocalScorer(models["bt"])).results["measures"]["probabilities"]
    assert chances["after"] is None
    assert "never wrong" in chances["no_cross_fit"]
    assert math.isfinite(chances["temperature_factor"])
    scorer = LocalScorer(models["bt"])
    with AnswerStore(tmp_path / "answers.jsonl", scorer.card) as store:
        answers = ask_model(data, scorer, store)
    fitted = fitted_temperature(data, answers, QUICK)
    assert fitted["temperature"].value == pytest.approx(chances["temperature_factor"] * scorer.card.temperature)
    assert fitted["temperature"].low == 0.0  # resamples without the wrong pair, a third of them
    assert fitted["after"] is None
    assert "not known" in fitted["notes"][-1]


def test_a_temperature_that_some_resamples_would_take_to_infinity_has_no_upper_end(tmp_path, models):
    rows = [pair(number) for number in range(32)]
    for number, row in enumerate(rows):
        gap = np.subtract(*models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards)
        row["strength"] = 2 if (gap > 0) != (number < 8) else -2  # of four questions it is wrong on all of one
    data, scorer = read_evaluation_set(write(tmp_path / "file.jsonl", rows)), LocalScorer(models["bt"])
    with AnswerStore(tmp_path / "answers.jsonl", scorer.card) as store:
        answers = ask_model(data, scorer, store)
    fitted = fitted_temperature(data, answers, QUICK)
    assert math.isfinite(fitted["temperature"].value)
    assert fitted["temperature"].high == math.inf
    assert "The interval has no upper end" in fitted["notes"][-1]
