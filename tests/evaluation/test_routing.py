"""Accuracy against cost of an ensemble that asks others where it is unsure: arithmetic on what its members answered."""

import json

import numpy as np
import pytest

from paragone import Client
from paragone_evaluation.asking import Answers
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.evaluation import Evaluation
from paragone_evaluation.pair_results import clustering
from paragone_evaluation.readers import read_evaluation_set
from paragone_evaluation.results import plain
from paragone_evaluation.routing import Member, routing_section
from paragone_evaluation.scorers import ModelCard
from tests.evaluation.conftest import listening, pair, served, write
from tests.evaluation.runs import page_of
from tests.evaluation.test_eval_command import typed
from tests.service.judge.scripted import Scripted
from tests.service.judge.test_hosted_judge import longer_wins

__all__ = ["typed"]

RULES = {"members": ["cheap", "dear"], "weights": [0.0, 1.0], "margin": 1.0, "pessimism": 0.0}
RULES |= {"pessimism_form": "spread", "abstain": None}


def card(name, kind="bradley-terry"):
    fields = {"source": "s", "where": "here", "identity": "0", "fingerprint": "0", "temperature": 1.0}
    return ModelCard.of_kind(kind, None, name=name, calibrated=False, attributes=(), pairwise=False, **fields)


def answers(name, logit):
    return Answers(card(name), np.asarray(logit), None, np.zeros(0), {}, {}, {})


@pytest.fixture
def data(tmp_path):
    rows = [pair(number, strength=1) for number in range(8)]
    return read_evaluation_set(write(tmp_path / "f.jsonl", rows))


def section(data, cheap, dear, calls=(0.0, 2.0), **rules):
    clusters = clustering(data, "prompt", resamples=50, seed=0)
    members = [Member(answers("cheap", cheap), calls[0]), Member(answers("dear", dear), calls[1])]
    return plain(routing_section(data, {**RULES, **rules}, members, clusters))


def test_each_margin_has_its_share_its_calls_and_its_accuracy(data):
    cheap = [0.1, -0.2, 0.5, -0.9, 2.0, 3.0, -4.0, 5.0]  # right where it is above 0
    dear = [1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0]
    found = section(data, cheap, dear)
    assert [one["accuracy"]["value"] for one in found["alone"]] == [5 / 8, 6 / 8]
    points = {point["escalated"]: point for point in found["points"]}
    assert points[0]["accuracy"]["value"] == 5 / 8
    own = points[4]
    assert own["own"]
    assert own["margin"] == 1.0
    assert own["accuracy"]["value"] == 6 / 8  # three of the four are set right and one wrong: 5 − 2 + 3
    assert own["share"] == 0.5
    assert own["judge_calls"] == 8
    whole = points[8]
    assert whole["accuracy"]["value"] == 6 / 8
    assert whole["judge_calls"] == 16
    assert [point["escalated"] for point in found["points"]] == sorted(points)


def test_a_first_member_that_is_a_judge_is_paid_for_every_pair(data):
    found = section(data, np.linspace(-2, 2, 8), np.ones(8), calls=(3.0, 1.0))
    assert [point["judge_calls"] for point in found["points"]] == [24 + point["escalated"] for point in found["points"]]


def test_calls_that_nobody_counted_are_no_number(data):
    found = section(data, np.linspace(-2, 2, 8), np.ones(8), calls=(0.0, None))
    calls = {point["escalated"]: point["judge_calls"] for point in found["points"]}
    assert calls.pop(0) == 0
    assert set(calls.values()) == {None}


def test_pairs_that_a_member_did_not_answer_are_in_no_row(data):
    dear = np.ones(8)
    dear[2] = np.nan
    assert section(data, np.linspace(-2, 2, 8), dear)["pairs"] == 7
    with pytest.raises(EvaluationError, match="answered by all members: cheap, dear"):
        section(data, np.ones(8), np.full(8, np.nan))


def test_a_routed_ensemble_of_a_service_is_shown_against_its_cost(tmp_path, models, typed):
    rows = [pair(number) for number in range(24)]
    judge = Scripted(longer_wins)
    with listening(judge.app) as address:
        hosted = {
            "bt": {"source": "loaded"},
            "judge": {"source": f"judge:{address}/v1", "model": "m", "read": "votes"},
            "routed": {"source": "ensemble:bt+judge", "margin": 0.05, "weights": {"bt": 0.0}},
        }
        with served({"bt": models["bt"]}, models=hosted) as url:
            output, file = tmp_path / "out", write(tmp_path / "f.jsonl", rows)
            words = ["eval", file, "--url", url, "--model", "routed", "--output", output, "--resamples", 50]
            code, out, err = typed(*words, "--routing")
            assert code == 0, err
            results = json.loads((output / "results.json").read_text())
            routing = results["routing"]
            assert routing["members"] == ["bt", "judge"]
            # Each pair in both orders by the judge, once: its swapped duel is known, and so is what the ensemble asks.
            assert len(judge.bodies) == 2 * len(rows)
            assert routing["judge_calls_per_pair"] == [0, 2]
            (own,) = [point for point in routing["points"] if point["own"]]
            assert own["accuracy"] == results["measures"]["accuracy"]["strict"]
            assert own["judge_calls"] == 2 * own["escalated"]
            with Client(url) as client:
                asked = client.preferences(
                    [{name: row[name] for name in ("prompt", "first", "second")} for row in rows], model="routed"
                )
            assert asked.usage.escalated == own["escalated"] > 0
            assert "What does asking judge bring?" in out
            # From what was kept nobody knows any more what it cost.
            again = typed(*words, "--routing")
            assert again[0] == 0
            assert "not counted" in again[1]
            assert len(judge.bodies) == 2 * len(rows)
            code, _, err = typed("eval", file, "--url", url, "--model", "bt", "--output", tmp_path / "b", "--routing")
            assert code != 0
            assert "bt is of kind bradley-terry, and only an ensemble has members" in " ".join(err.split())
    page = page_of(Evaluation(results, (output / "report.html",)))
    assert "What does asking judge bring?" in page
    assert "Accuracy against cost" in page


def test_routing_needs_a_service(typed, pairs_file, folders):
    code, _, err = typed("eval", pairs_file, "--model", folders["bt"], "--routing")
    assert code == 2
    assert "--routing is about an ensemble that a service hosts" in " ".join(err.split())
