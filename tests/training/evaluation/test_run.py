"""Whole evaluations: results, report, benchmark files, comparison, and what is said about doubtful numbers."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, r2_score

from paragone_training.evaluation.errors import EvaluationError
from paragone_training.evaluation.judged import clustering
from paragone_training.evaluation.measures.accuracy import accuracy
from paragone_training.evaluation.measures.benchmarks import REWARDBENCH_SECTIONS
from paragone_training.evaluation.readers import read_evaluation_set
from paragone_training.evaluation.report import words
from paragone_training.evaluation.report.page import render_page
from paragone_training.evaluation.run import default_folder, evaluate_models
from paragone_training.evaluation.scorers import LocalScorer
from paragone_training.evaluation.sections import cross_fitted
from paragone_training.evaluation.summary import Settings, plain
from tests.training.evaluation.conftest import pair, text, write
from tests.training.evaluation.test_asking import FirstPlace, Stops
from tests.training.evaluation.test_readers import GROUP, JUDGEBENCH, RATING, RM_BENCH, TIES

QUICK = Settings(resamples=50)


class Checker(HTMLParser):
    """Notes unclosed tags and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "line", "circle", "polyline", "br"):
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")] + [tag] * (tag == "script")

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def run(tmp_path, rows, scorer, **options):
    data = read_evaluation_set(write(tmp_path / "file.jsonl", rows))
    return evaluate_models(data, scorer, tmp_path / "out", options.pop("settings", QUICK), **options)


def published(folder, part):
    """Return the one result that RewardBench's reader finds: it looks into a folder per organisation."""
    (found,) = [path for organisation in (folder / part).iterdir() for path in organisation.glob("*.json")]
    content = json.loads(found.read_text())
    assert f"{found.parent.name}/{found.stem}" == content["model"]
    return content


def page_of(written):
    page = written.files[0].read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "NaN" not in page
    assert "nan" not in re.sub(r"<[^>]*>", "", page).lower().split()
    return page


@pytest.mark.parametrize("name", ["bt", "gp", "ratings"])
def test_an_evaluation_leaves_answers_results_and_a_self_contained_report(tmp_path, models, name):
    rows = [pair(number) for number in range(96)]
    written = run(tmp_path, rows, LocalScorer(models[name]), command="paragone eval file.jsonl --model tiny")
    assert [path.name for path in written.files] == ["report.html", "results.json"]
    results = json.loads(written.files[1].read_text())
    assert results == written.results
    assert results["model"]["fingerprint"] == models[name].fingerprint
    assert results["data"]["answered"] == 96
    page = page_of(written)
    for told in (
        "paragone eval file.jsonl --model tiny",
        models[name].identity,
        models[name].fingerprint,
        "10 equal-width",
    ):
        assert told in page


def test_the_accuracy_of_the_report_is_that_of_the_answers(tmp_path, models):
    rows = [pair(number) for number in range(48)]
    written = run(tmp_path, rows, LocalScorer(models["bt"]))
    logit, outcome = [], []
    for row in rows:
        rewards = models["bt"].score(row["prompt"], [row["first"], row["second"]]).rewards
        logit.append(rewards[0] - rewards[1])
        outcome.append(1.0 if row["strength"] > 0 else 0.0 if row["strength"] < 0 else 0.5)
    expected = accuracy(logit, outcome)
    found = written.results["measures"]["accuracy"]
    assert found["strict"]["value"] == pytest.approx(expected.strict)
    assert (found["decided"], found["human_ties"]) == (expected.decided, expected.human_ties)
    assert found["strict"]["low"] <= expected.strict <= found["strict"]["high"]


def test_an_interrupted_evaluation_says_what_is_kept_and_goes_on_from_there(tmp_path, models):
    data = read_evaluation_set(write(tmp_path / "f.jsonl", [pair(number) for number in range(24)]))
    shown = io.StringIO()
    scorer = Stops(LocalScorer(models["bt"]), after=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_models(data, scorer, tmp_path / "out", QUICK, console=Console(file=shown, width=60))
    assert f"12 answers are kept in {tmp_path / 'out' / 'answers.jsonl'}: the same command" in shown.getvalue()
    again = Stops(LocalScorer(models["bt"]), after=9)
    assert evaluate_models(data, again, tmp_path / "out", QUICK).results["data"]["answered"] == 24


def test_what_was_left_out_is_told_on_the_page(tmp_path, models):
    rows = [pair(0), pair(1, strength=7), pair(2, first="word " * 400), *(pair(number) for number in range(3, 30))]
    data = read_evaluation_set(write(tmp_path / "f.jsonl", rows), leave_out_bad_rows=True)
    written = evaluate_models(data, LocalScorer(models["gp"]), tmp_path / "out", QUICK)
    reasons = {row["reason"]: row["count"] for row in written.results["left_out"]}
    assert reasons["field 'strength' is 7; it must lie in -3 … 3"] == 1
    assert reasons["gp refused comparisons: response_too_long"] == 1
    assert reasons["judged pairs without an answer by gp"] == 1
    assert any("ties" in reason or "tied" in reason for reason in reasons)
    assert "response_too_long" in page_of(written)


def test_texts_of_a_file_cannot_write_into_the_page(tmp_path, models):
    rows = [pair(number, group=f"<script>alert({number % 2})</script>_x") for number in range(12)]
    page = page_of(run(tmp_path, rows, LocalScorer(models["bt"])))
    assert "&lt;script&gt;" in page


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


def test_one_question_falls_back_to_prompts_and_one_prompt_has_no_interval(tmp_path, models):
    rows = [pair(number, group="same") for number in range(20)]
    written = run(tmp_path, rows, LocalScorer(models["bt"]))
    assert written.results["settings"]["cluster"] == "prompt"
    assert any("one question" in note for note in written.results["notes"])
    (tmp_path / "one").mkdir()
    written = run(tmp_path / "one", [pair(number) for number in range(4)], LocalScorer(models["bt"]))
    assert written.results["measures"]["accuracy"]["strict"]["low"] is None
    assert any("no intervals" in note for note in written.results["notes"])
    page_of(written)


def test_demonstrations_and_uncalibrated_models_say_so(tmp_path, models):
    notes = run(tmp_path, [pair(number) for number in range(8)], LocalScorer(models["bt"])).results["notes"]
    assert any("temperature of bt was not fitted" in note for note in notes)
    assert any("mostly noise" in note for note in notes)


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
    assert "Can it pick the best?" in page_of(written)


def test_rated_attributes_are_compared_with_predictions_of_the_same_name(tmp_path, models):
    rows = [
        {
            **RATING,
            "id": number,
            "prompt": f"P{number // 5}?",
            "group": f"q{number // 5}_s",
            "response": text(number),
            "ratings": {"helpful": number % 4, "style": 1},
        }
        for number in range(40)
    ]
    written = run(tmp_path, rows, LocalScorer(models["ratings"]))
    (row,) = written.results["measures"]["attributes"]
    assert (row["name"], row["responses"]) == ("helpful", 40)
    assert written.results["measures"]["transitivity"] is None
    assert "Does it rate as people rate?" in page_of(written)


@pytest.mark.parametrize("name", ["bt", "gp"])
def test_rewardbench_gives_sections_and_the_two_files_of_its_scripts(tmp_path, models, name):
    subsets = [subset for section in REWARDBENCH_SECTIONS.values() for subset in section]
    rows = [
        {
            "id": number,
            "prompt": f"P{number}?",
            "chosen": text(number),
            "rejected": text(number + 50),
            "subset": subsets[number % 23],
        }
        for number in range(69)
    ]
    written = run(tmp_path, rows, LocalScorer(models[name]))
    scores = written.results["measures"]["benchmark"]["scores"]
    assert list(scores) == ["Chat", "Chat Hard", "Safety", "Reasoning", "Overall"]
    assert written.results["measures"]["transitivity"] is None
    assert scores["Overall"]["value"] == pytest.approx(np.mean([scores[name]["value"] for name in list(scores)[:4]]))
    results, columns = (published(tmp_path / "out", part) for part in ("eval-set", "eval-set-scores"))
    about = {"model", "model_type", "chat_template"}
    assert set(results) == {*subsets, *about}
    each = {"id", "subset", "text_chosen", "text_rejected", "results", "scores_chosen", "scores_rejected"}
    assert set(columns) == {*each, *about}
    assert {len(columns[column]) for column in each} == {69}
    assert columns["id"] == list(range(69))
    assert columns["subset"] == [row["subset"] for row in rows]
    for subset in subsets:
        right = [won for won, where in zip(columns["results"], columns["subset"], strict=True) if where == subset]
        assert results[subset] == sum(right) / 3
    assert results["model"] == columns["model"] == f"local/{name}"
    assert len(columns["results"]) == len(columns["text_chosen"]) == 69
    assert columns["text_chosen"][0] == [{"role": "user", "content": "P0?"}, {"role": "assistant", "content": text(0)}]
    for place, (chosen, rejected) in enumerate(zip(columns["scores_chosen"], columns["scores_rejected"], strict=True)):
        if name == "gp":
            assert chosen is rejected is None
        else:
            rewards = models[name].score(f"P{place}?", [text(place), text(place + 50)]).rewards
            assert (chosen, rejected) == pytest.approx(tuple(rewards), abs=1e-4)
            assert columns["results"][place] == int(chosen > rejected)
    assert results["model_type"] == ("Custom Classifier" if name == "gp" else "Seq. Classifier")
    page_of(written)


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("general-preference/GPM-Llama-3.1-8B", "general-preference/GPM-Llama-3.1-8B"),
        ("builtin:mini-policy", "builtin/mini-policy"),
        ("/models/some where/mine", "local/some__name"),
        ("pyproject.toml", "local/some__name"),
        ("https://hub/model/mine", "local/some__name"),
    ],
)
def test_a_model_is_called_by_its_organisation_as_the_leaderboard_does(tmp_path, models, source, model):
    row = {"id": 1, "prompt": "P?", "chosen": "a", "rejected": "b", "subset": "donotanswer"}
    scorer = LocalScorer(models["bt"])
    scorer.card = replace(scorer.card, source=source, name="some name")
    run(tmp_path, [row], scorer)
    assert published(tmp_path / "out", "eval-set")["model"] == model


@pytest.mark.parametrize("name", ["bt", "gp"])
def test_rewardbench_2_has_best_of_four_and_ties(tmp_path, models, name):
    rows = [
        {
            "id": str(number),
            "prompt": f"P{number}?",
            "chosen": [text(number)],
            "rejected": [text(number + k) for k in (9, 19, 29)],
            "subset": ("Focus", "Math")[number % 2],
        }
        for number in range(10)
    ]
    rows += [TIES, {**TIES, "id": "ref:3", "prompt": "An animal?", "chosen": ["cat"], "rejected": ["red", "blue"]}]
    written = run(tmp_path, rows, LocalScorer(models[name]))
    benchmark = written.results["measures"]["benchmark"]
    assert set(benchmark["scores"]) == {"Focus", "Math", "Ties"}
    right = 0
    for row in rows[:10:2]:
        matrix = models[name].score(row["prompt"], [*row["chosen"], *row["rejected"]]).probabilities
        logit = np.log(matrix / (1 - matrix)).mean(axis=1)
        right += int(np.argmax(logit)) == 0
    assert benchmark["scores"]["Focus"]["value"] == right / 5
    assert set(benchmark["ties"]) >= {"score", "tied_accuracy"}
    assert benchmark["scores"]["Ties"]["low"] is None  # one number alone says nothing about others
    columns = published(tmp_path / "out", "eval-set-scores")
    about = {"model", "model_type", "chat_template"}
    assert set(columns) == {"id", "subset", "text", "scores", "results", "num_correct", *about}
    assert set(published(tmp_path / "out", "eval-set")) == {"Focus", "Math", "Ties", *about}
    assert [len(scores) for scores in columns["scores"]] == [4] * 10 + [3, 3]
    assert columns["results"][-1] is None
    assert columns["num_correct"][-2:] == [2, 1]
    page_of(written)


def test_all_scores_of_rewardbench_2_have_intervals(tmp_path, models):
    subsets = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows = [
        {
            "id": str(number),
            "prompt": f"P{number}?",
            "chosen": [text(number)],
            "rejected": [text(number + 40), text(number + 80), text(number + 120)],
            "subset": subsets[number % 5],
        }
        for number in range(30)
    ]
    for number in range(4):
        rows.append(
            {**TIES, "id": f"tied:{number}", "prompt": f"C{number}?", "chosen": [text(number), text(number + 7)]}
        )
        rows.append({**TIES, "id": f"ref:{number}", "prompt": f"D{number}?", "chosen": [text(number + 9)]})
    scores = run(tmp_path, rows, LocalScorer(models["bt"])).results["measures"]["benchmark"]["scores"]
    assert set(scores) == {*subsets, "Ties", "Overall"}
    parts = [scores[name]["value"] for name in (*subsets, "Ties")]
    assert scores["Overall"]["value"] == pytest.approx(np.mean(parts))
    for score in scores.values():
        assert score["low"] <= score["value"] <= score["high"]
    assert scores["Overall"]["high"] - scores["Overall"]["low"] < 1


def test_rm_bench_and_judgebench_have_their_own_scores(tmp_path, models):
    rows = [
        {
            **RM_BENCH,
            "id": str(number),
            "domain": domain,
            "prompt": f"P{number}?",
            "chosen": [text(number + k) for k in range(3)],
            "rejected": [text(number + k) for k in range(20, 23)],
        }
        for number, domain in enumerate(["chat", "code", "safety-refuse", "safety-response"])
    ]
    scores = run(tmp_path, rows, LocalScorer(models["bt"])).results["measures"]["benchmark"]["scores"]
    assert list(scores) == ["chat", "code", "safety", "Easy", "Normal", "Hard", "Total"]
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    assert scores["Total"]["value"] == pytest.approx(
        np.mean([scores[name]["value"] for name in ("Easy", "Normal", "Hard")])
    )
    (tmp_path / "judge").mkdir()
    rows = [
        {**JUDGEBENCH, "pair_id": str(number), "question": f"P{number}?", "response_A": text(number)}
        for number in range(6)
    ]
    written = run(tmp_path / "judge", rows, LocalScorer(models["gp"]))
    measures = written.results["measures"]
    assert measures["benchmark"]["scores"]["Overall"]["value"] == measures["accuracy"]["strict"]["value"]


def ratings(count):
    return [
        {
            "id": f"r{number}",
            "group": f"q{number // 6}_a",
            "prompt": f"P{number // 3}?",
            "response": text(number),
            "ratings": {"helpful": number % 4, "verbose": (number * 5) % 7},
        }
        for number in range(count)
    ]


def test_a_model_that_only_rates_is_measured_by_its_ratings(tmp_path, models):
    rows = ratings(60)
    written = run(tmp_path, rows, LocalScorer(models["unweighted"]))
    results = written.results
    assert [name for name, section in results["measures"].items() if section] == ["attributes"]
    assert any("only its ratings are measured" in note for note in results["notes"])
    assert not any("calibrat" in note or "People's scores" in note for note in results["notes"])
    predicted = np.concatenate(
        [
            models["unweighted"]
            .score(rows[start]["prompt"], [row["response"] for row in rows[start : start + 3]])
            .attributes["verbose"]
            for start in range(0, 60, 3)
        ]
    )
    rated = np.asarray([row["ratings"]["verbose"] for row in rows], dtype=float)
    found = results["measures"]["attributes"][1]
    assert (found["name"], found["responses"]) == ("verbose", 60)
    for name, expected in {
        "root_mean_squared_error": math.sqrt(mean_squared_error(rated, predicted)),
        "determination": r2_score(rated, predicted),
        "pearson": pearsonr(predicted, rated).statistic,
        "spearman": spearmanr(predicted, rated).statistic,
    }.items():
        assert found[name]["value"] == pytest.approx(expected, abs=1e-4), name
        assert found[name]["low"] < found[name]["high"]
    page = page_of(written)
    assert "Does it rate as people rate?" in page
    assert "judged pairs" not in page


def test_responses_without_siblings_are_enough_for_ratings(tmp_path, models):
    rows = [{**row, "prompt": f"P{number}?"} for number, row in enumerate(ratings(20))]
    for name, why in (
        ("unweighted", "has no weights"),
        ("ratings", "No two responses of a prompt differ in 'helpful'"),
    ):
        (tmp_path / name).mkdir()
        results = run(tmp_path / name, rows, LocalScorer(models[name])).results
        assert results["measures"]["attributes"][0]["responses"] == 20
        assert any(why in note for note in results["notes"])


def test_a_model_that_only_rates_cannot_be_compared_with_another(tmp_path, models):
    for number, (one, other) in enumerate([("unweighted", "bt"), ("bt", "unweighted")]):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(EvaluationError, match=r"unweighted has no weights .*leave out --against"):
            run(tmp_path / str(number), ratings(12), LocalScorer(models[one]), against=LocalScorer(models[other]))
        assert not (tmp_path / str(number) / "out").exists()


def test_the_page_names_the_attribute_that_people_are_judged_by(tmp_path, models):
    written = run(tmp_path, ratings(24), LocalScorer(models["ratings"]))
    assert "People&#x27;s scores are the ratings of &#x27;helpful&#x27;." in page_of(written)
    assert written.results["measures"]["accuracy"]


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
    scaled, factors = cross_fitted(logit, outcome, cluster, seed=0)
    assert len(factors) == 4
    # Turning one cluster's labels around changes the temperatures of all other clusters, and not its own.
    turned, _ = cross_fitted(logit, np.where(cluster == 2, 1 - outcome, outcome), cluster, seed=0)
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


def test_impossible_settings_are_refused_by_value():
    for options, message in (
        ({"bins": 0}, "bins is 0"),
        ({"resamples": 1}, "resamples is 1"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(EvaluationError, match=message):
            Settings(**options)


def test_the_same_seed_gives_the_same_results(tmp_path, models):
    rows = [pair(number) for number in range(48)]
    one = run(tmp_path, rows, LocalScorer(models["bt"])).results
    two = run(tmp_path, rows, LocalScorer(models["bt"])).results
    assert one["measures"] == two["measures"]
    assert (
        run(tmp_path, rows, LocalScorer(models["bt"]), settings=Settings(resamples=50, seed=1)).results["measures"]
        != one["measures"]
    )


def test_numbers_that_are_none_become_null_in_json_and_a_page_can_be_made_of_the_file_again(tmp_path, models):
    assert plain({"a": np.float64("nan"), "b": (np.int64(1), math.inf), "c": np.asarray([1.0])}) == {
        "a": None,
        "b": [1, None],
        "c": [1.0],
    }
    written = run(tmp_path, [pair(number) for number in range(24)], LocalScorer(models["bt"]))
    assert render_page(json.loads(written.files[1].read_text())) == written.files[0].read_text(encoding="utf-8")


def test_the_default_folder_names_file_split_and_model(tmp_path):
    data = read_evaluation_set(write(tmp_path / "my pairs.jsonl", [pair(0, split="test")]), split="test")
    assert default_folder(data, "owner/model").as_posix() == "evaluations/my-pairs-test-owner-model"
