"""Cyclic preferences: how sets are made, what scalar models cannot do, and what vectors can."""

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from cycles import (
    Cycle,
    cycle_pairs,
    cycles_from_ratings,
    disjoint_cycles,
    human_cycles,
    scalar_ceiling,
    synthetic_cycles,
    vector_floor,
)

from paragone_evaluation.readers import Pair, Rating, read_pairs
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import TextReader
from paragone_training.data import group_pairs, read_groups
from paragone_training.preference.agreement import judge
from paragone_training.preference.card import Rows
from paragone_training.preference.objective import Objective
from paragone_training.preference.train_model import fit
from tests.corpora import corpus, needs_corpora
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


@pytest.mark.parametrize("length", [3, 4, 5])
def test_cycles_of_ratings_are_those_that_all_orders_give_in_turn(length):
    draw = random.Random(length)
    names = [f"c{number}" for number in range(length)]
    rows = [Rating("p", text, {name: float(draw.randint(0, 4)) for name in names}, group="g") for text in "abcdefg"]
    by_text = {row.response: row for row in rows}
    slow, used = [], set()
    for chosen in itertools.permutations(by_text, length):
        edges = zip(chosen, (*chosen[1:], chosen[0]), names, strict=True)
        if not used & set(chosen) and all(
            by_text[one].ratings[name] > by_text[two].ratings[name] for one, two, name in edges
        ):
            slow.append(chosen)
            used |= set(chosen)
    assert slow
    assert [cycle.responses for cycle in cycles_from_ratings(rows, names)] == slow


def test_the_four_ratings_of_ultrafeedback_make_cycles_of_four_and_a_repeated_one_of_five():
    criteria = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    better = {"a": (5, 1, 1, 1), "b": (1, 5, 2, 2), "c": (1, 1, 5, 3), "d": (1, 1, 1, 5)}
    rows = [Rating("p", text, dict(zip(criteria, map(float, each), strict=True))) for text, each in better.items()]
    (cycle,) = cycles_from_ratings(rows, criteria)
    assert cycle.responses == ("a", "b", "c", "d")
    assert [(pair.strength > 0, pair.reason) for pair in cycle_pairs([cycle])] == [
        (place % 2 == 0, name) for place, name in enumerate(criteria)
    ]
    five = [Rating("p", text, {"x": 5.0 - place, "y": float(place)}) for place, text in enumerate("abcde")]
    (cycle,) = cycles_from_ratings(five, ["x", "x", "x", "x", "y"])
    assert cycle.responses == tuple("abcde")


def test_ceiling_and_floor_are_those_of_the_paper():
    assert scalar_ceiling(3) == pytest.approx(0.667, abs=1e-3)
    assert vector_floor(3) == pytest.approx(1.733e-4, rel=1e-3)
    assert vector_floor(4) == pytest.approx(math.log1p(math.exp(-10)))


def test_a_longer_cycle_may_go_around_more_than_once():
    assert vector_floor(8) == pytest.approx(vector_floor(4))
    steps = torch.arange(7) * 2 * math.pi * 2 / 7
    vectors = torch.stack([steps.cos(), steps.sin()], dim=1)
    edges = torch.stack([torch.arange(7), (torch.arange(7) + 1) % 7], dim=1)
    losses = Objective("general-preference", 0.1).losses(vectors, edges, torch.ones(7))
    torch.testing.assert_close(losses, torch.full((7,), vector_floor(7)), rtol=1e-3, atol=1e-7)


def test_disjoint_cycles_share_no_response_to_one_prompt():
    one, two, three = Cycle("p", ("a", "b", "c")), Cycle("p", ("c", "d", "e")), Cycle("q", ("a", "b", "c"))
    assert disjoint_cycles([one, two, three]) == [one, three]


def test_a_repeated_criterion_closes_its_ranking_with_another():
    rows = rated(a=(3, 0), b=(2, 1), c=(1, 2))
    (cycle,) = cycles_from_ratings(rows, ["honesty", "honesty", "truthfulness"])
    assert cycle.responses == ("a", "b", "c")


@pytest.mark.parametrize("length", [3, 4, 5])
def test_no_ranking_of_a_cycle_satisfies_more_than_the_ceiling(length):
    (cycle,) = synthetic_cycles(1, length=length)
    best = max(
        sum(
            order.index(one) < order.index(two)
            for one, two in zip(cycle.responses, [*cycle.responses[1:], cycle.responses[0]], strict=True)
        )
        for order in itertools.permutations(cycle.responses)
    )
    assert best / length == scalar_ceiling(length)


def test_cycles_of_two_are_refused():
    with pytest.raises(ValueError, match="length is 2"):
        synthetic_cycles(1, length=2)


def curvature(spec, temperature=0.1):
    """Return the least eigenvalue of the loss of a triple around equal representations, float32."""
    head = RepresentationHead(spec.dimension, spec, value_head=torch.nn.Identity())
    common = torch.tensor([0.3, 0.1, 0.2, 0.4])[: spec.dimension]
    edges, strength = torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.ones(3)

    def loss(free):
        representations = head((common + free.view(3, -1))[:, None])
        return Objective(spec.kind, temperature).losses(representations, edges, strength).sum()

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(3 * spec.dimension))
    return float(torch.linalg.eigvalsh(hessian)[0])


def test_equal_vectors_are_a_local_minimum_with_one_normalised_block_and_a_saddle_otherwise():
    def spec(dimension, normalise):
        return ModelSpec(kind="general-preference", dimension=dimension, temperature=0.1, normalise=normalise)

    assert curvature(spec(2, True)) > -1e-3
    assert curvature(spec(2, False)) < -1.0
    assert curvature(spec(4, True)) < -1.0
    assert curvature(spec(4, False)) < -1.0


VECTOR = {"kind": "general-preference", "dimension": 2, "normalise": False}


@pytest.mark.parametrize(
    ("model", "length", "low", "high", "loss"),
    [
        ({"kind": "bradley-terry"}, 3, 0.0, scalar_ceiling(3), math.inf),
        (VECTOR, 3, 1.0, 1.0, 0.05),
        (VECTOR, 5, 1.0, 1.0, 0.05),
    ],
    ids=["scalar", "vector", "vector-on-pentads"],
)
def test_trained_from_text_a_vector_learns_every_cycle_and_a_scalar_stays_under_its_ceiling(
    model, length, low, high, loss, tmp_path
):
    rows = cycle_pairs(synthetic_cycles(4, length=length))
    small = recipe(
        model=model,
        backbone={"hidden_size": 32, "layers": 2, "intermediate_size": 64},
        training={
            "epochs": 80,
            "learning_rate": 1e-3,
            "batch_responses": 4 * length,
            "schedule": "cosine",
            "log_steps": 100,
        },
    )
    model = fit(small, Rows(rows), tmp_path).model
    groups = group_pairs(rows)
    readings = read_groups(groups, TextReader(model.tokenizer, model.spec))
    objective = Objective(model.spec.kind, model.spec.temperature)
    summary = judge(model.network, objective, groups, readings, budget=12, pad_id=model.pad_id).summary()
    assert summary.pairs == 4 * length
    assert low <= summary.accuracy <= high + 1e-9
    assert summary.negative_log_likelihood <= loss


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


def test_seven_of_the_triangles_of_the_shipped_set_are_cyclic():
    found = human_cycles(read_pairs(DATA / "everyday_groups.jsonl"))
    assert (found.triangles, len(found.cycles)) == (236, 7)


@needs_corpora
def test_people_close_four_in_a_hundred_triangles():
    found = human_cycles(read_pairs(corpus("convincing_pairs")))
    assert found.triangles > 90_000
    assert found.share == pytest.approx(0.042, abs=0.001)
    assert 0 < found.certain < len(found.cycles) / 2
