"""Cyclic preferences: how sets are made, what scalar models cannot do, and what vectors can."""

import math
from pathlib import Path

import pytest
import torch

from paragone_training.agreement import summarise
from paragone_training.cyclic import (
    cycle_pairs,
    cycles_from_ratings,
    human_cycles,
    scalar_ceiling,
    synthetic_cycles,
    vector_floor,
)
from paragone_training.data.pairs import Pair, read_pairs
from paragone_training.data.ratings import Rating
from paragone_training.fitting import fit
from paragone_training.objective import Objective
from tests.training.arguments import recipe

CRITERIA = ("honesty", "truthfulness", "helpfulness")
DATA = Path(__file__).parents[2] / "data"


def rated(prompt="p", **scores):
    return [
        Rating(prompt, name, dict(zip(CRITERIA, values, strict=False)), group="g") for name, values in scores.items()
    ]


def test_a_cycle_has_every_preference_decided_by_another_criterion():
    rows = rated(a=(3, 0, 1), b=(1, 3, 0), c=(2, 1, 2))
    (cycle,) = cycles_from_ratings(rows, CRITERIA)
    assert cycle.responses == (
        "a",
        "b",
        "c",
    )  # a beats b by honesty, b beats c by truthfulness, c beats a by helpfulness
    assert cycle.criteria == CRITERIA
    made = cycle_pairs([cycle])
    assert {(pair.first, pair.second) if pair.strength > 0 else (pair.second, pair.first) for pair in made} == {
        ("a", "b"),
        ("b", "c"),
        ("c", "a"),
    }
    assert [pair.reason for pair in made] == list(CRITERIA)


def test_a_response_is_in_one_cycle_and_incomplete_ratings_in_none():
    cyclic = rated(a=(3, 0, 1), b=(1, 3, 0), c=(2, 1, 2))
    assert len(cycles_from_ratings([*cyclic, *rated(d=(3, 0, 1))], CRITERIA)) == 1
    assert len(cycles_from_ratings([*cyclic, *rated("q", a=(3, 0, 1), b=(1, 3, 0), c=(2, 1, 2))], CRITERIA)) == 2
    assert cycles_from_ratings([*cyclic[:2], *rated(c=(2, 1))], CRITERIA) == []
    assert cycles_from_ratings(rated(a=(3, 3, 3), b=(2, 2, 2), c=(1, 1, 1)), CRITERIA) == []
    with pytest.raises(ValueError, match="needs at least three criteria, not 2"):
        cycles_from_ratings(cyclic, CRITERIA[:2])


def test_ceiling_and_floor_are_those_of_the_paper():
    assert scalar_ceiling(3) == pytest.approx(0.667, abs=1e-3)
    assert vector_floor(3) == pytest.approx(1.733e-4, rel=1e-3)
    assert vector_floor(4) == pytest.approx(math.log1p(math.exp(-10)))


def test_no_ranking_of_a_cycle_satisfies_more_than_the_ceiling():
    from itertools import permutations

    (cycle,) = synthetic_cycles(1, length=4)
    best = max(
        sum(
            order.index(one) < order.index(two)
            for one, two in zip(cycle.responses, [*cycle.responses[1:], cycle.responses[0]], strict=True)
        )
        for order in permutations(cycle.responses)
    )
    assert best / 4 == scalar_ceiling(4)
    with pytest.raises(ValueError, match="length is 2"):
        synthetic_cycles(1, length=2)


@pytest.mark.parametrize(
    ("model", "low", "high"),
    [
        ({"kind": "bradley-terry"}, 0.0, 2 / 3),
    ],
    ids=["scalar"],
)
def test_a_scalar_stays_under_its_ceiling_on_triples(model, low, high, tmp_path):
    rows = cycle_pairs(synthetic_cycles(4))
    small = recipe(
        model=model,
        training={"epochs": 60, "learning_rate": 1e-2, "batch_responses": 12, "schedule": "cosine", "log_steps": 100},
    )
    judged = fit(small, rows, rows, tmp_path).judged
    summary = summarise(judged)
    assert summary.pairs == 12
    assert low <= summary.accuracy <= high + 1e-9
    floor = vector_floor(3) if model["kind"] == "general-preference" else 0.0
    assert summary.negative_log_likelihood >= floor - 1e-6


def test_a_hybrid_can_express_a_cycle():
    torch.manual_seed(0)
    free = torch.randn(3, 3, requires_grad=True)
    solver = torch.optim.Adam([free], lr=0.05)
    objective, edges, strength = Objective("hybrid", 1.0), torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.ones(3)
    for _ in range(200):
        solver.zero_grad()
        objective.losses(free, edges, strength).sum().backward()
        solver.step()
    assert (objective.logits(free, edges) > 1).all()


def test_the_cycles_in_votes_are_found_and_the_weak_ones_told_apart():
    rows = [Pair("p", "a", "b", 3.0), Pair("p", "c", "b", -2.0), Pair("p", "c", "a", 1.0), Pair("p", "a", "d", 1.0)]
    found = human_cycles(rows)
    assert (found.triangles, found.certain, found.share, found.by_chance) == (1, 0, 1.0, 0.25)
    assert found.cycles[0].responses == ("a", "b", "c")
    assert human_cycles(rows, strength=1.0).certain == 1
    assert human_cycles([*rows[:2], Pair("p", "a", "c", 1.0)]).cycles == ()
    assert human_cycles([*rows[:2], Pair("p", "a", "c", 0.0)]).triangles == 0


def test_people_close_four_in_a_hundred_triangles():
    found = human_cycles(read_pairs(DATA / "convincing_pairs.jsonl.gz"))
    assert found.triangles > 90_000
    assert found.share == pytest.approx(0.042, abs=0.001)
    assert 0 < found.certain < len(found.cycles) / 2
