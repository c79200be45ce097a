"""Published benchmarks: their scores, and the files that their own scripts read."""

from dataclasses import replace

import numpy as np
import pytest

from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.measures.benchmarks import REWARDBENCH_SECTIONS
from tests.evaluation.conftest import text
from tests.evaluation.readers.test_evaluation_sets import JUDGEBENCH, RM_BENCH, TIES
from tests.evaluation.runs import page_of, published, run


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
