"""A student that learns another model's probabilities from tables, and what the run says that it keeps of them."""

import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch

from paragone_evaluation.errors import DataError as EvaluationDataError
from paragone_evaluation.readers import Label, Pair
from paragone_models import load_model
from paragone_models.kinds import KINDS
from paragone_training.data import PromptGroup, assemble
from paragone_training.errors import DataError
from paragone_training.preference.fidelity import fidelity
from paragone_training.preference.objective import Objective
from paragone_training.preference.train_model import fit, load_rows, train_model
from tests.training.arguments import recipe as small
from tests.training.arguments import write
from tests.training.preference.test_train_head import checkpoint, recipe, train_head

__all__ = ["checkpoint"]

BEATS = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
HANDS = ["rock", "paper", "scissors"]
TEACHER = 0.9


def tables(questions=8, held_out=2):
    """Return what a teacher that knows a game says of each question: its preferences run in circles."""

    def probability(one, other):
        return 0.5 if one == other else TEACHER if (one, other) in BEATS else 1 - TEACHER

    rows = []
    for number in range(questions):
        hands = [HANDS[(number + at) % 3] for at in range(4)]
        rows.append(
            {
                "row": number,
                "prompt": f"What will you show in round {number}?",
                "responses": [f"{hand} {hand} {hand} {at}" for at, hand in enumerate(hands)],
                "matrix": [[probability(one, other) for other in hands] for one in hands],
                "split": "test" if number >= questions - held_out else "train",
            }
        )
    return rows


def group(*labels, size=3):
    return PromptGroup(Pair("p", "a", "b", 1.0), [f"r{at}" for at in range(size)], labels=list(labels))


def strength(probability):
    return 6 * probability - 3


def test_a_student_that_says_what_its_teacher_says_keeps_everything():
    circle = group(*(Label(at, (at + 1) % 3, strength(0.8)) for at in range(3)))
    same = fidelity([circle], [[math.log(4)] * 3])
    assert (same.comparisons, same.groups, same.agreement) == (3, 1, 1.0)
    assert (same.cycles, same.cycles_kept, same.triples) == (1, 1, 1)
    assert same.divergence == pytest.approx(0, abs=1e-12)
    assert same.kept == pytest.approx(1)
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert (same.entropy, same.chance) == pytest.approx((entropy, math.log(2) - entropy))


def test_a_student_is_as_far_from_its_teacher_as_the_divergence_says():
    circle = group(*(Label(at, (at + 1) % 3, strength(0.8)) for at in range(3)))
    other = fidelity([circle], [[math.log(4), math.log(4), -math.log(4)]])
    assert other.divergence == pytest.approx((0.8 * math.log(0.8 / 0.2) + 0.2 * math.log(0.2 / 0.8)) / 3)
    assert other.agreement == pytest.approx(2 / 3)
    assert (other.cycles, other.cycles_kept) == (1, 0)
    coin = fidelity([circle], [[0.0] * 3])
    assert (coin.agreement, coin.kept) == (0.5, pytest.approx(0))
    # The circle the other way round is another circle.
    assert fidelity([circle], [[-1.0] * 3]).cycles_kept == 0


def test_certain_teachers_ties_and_missing_pairs_are_counted_for_what_they_are():
    sure = fidelity([group(Label(0, 1, 3.0), Label(0, 2, 0.0))], [[2.0, 1.0]])
    tie = math.log(2) + math.log(math.cosh(0.5))  # the cross-entropy of ½ with sigmoid(1)
    assert sure.divergence == pytest.approx((math.log1p(math.exp(-2)) + tie - math.log(2)) / 2)
    assert (sure.agreement, sure.triples) == (1.0, 0)
    assert fidelity([group()], [[]]) is None
    assert math.isnan(fidelity([group(Label(0, 1, 0.0))], [[0.3]]).agreement)


def test_all_circles_of_a_large_group_are_counted():
    draw = np.random.default_rng(3)
    size, labels, logits = 9, [], []
    for first, second in itertools.combinations(range(size), 2):
        labels.append(Label(first, second, float(draw.uniform(-3, 3))))
        logits.append(float(3 * draw.normal() + labels[-1].strength))
    result = fidelity([group(*labels, size=size)], [logits])

    def winner(values, one, other):
        at = list(itertools.combinations(range(size), 2)).index((min(one, other), max(one, other)))
        return min(one, other) if values[at] > 0 else max(one, other)

    def circles(values):
        found = set()
        for triple in itertools.combinations(range(size), 3):
            winners = frozenset((winner(values, *pair), pair) for pair in itertools.combinations(triple, 2))
            if len({one for one, _ in winners}) == 3:
                found.add(winners)
        return found

    teacher, student = circles([label.strength for label in labels]), circles(logits)
    assert (result.triples, result.cycles, result.cycles_kept) == (84, len(teacher), len(teacher & student))
    assert 0 < len(teacher & student) < len(teacher)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.learns_pairs])
def test_the_label_is_the_probability_itself_however_sure(kind):
    assert "distil" in KINDS[kind].losses
    target, logit = torch.tensor([1.0, 0.99, 0.5, 0.2]), torch.tensor([0.3, -2.0, 1.0, 4.0])
    objective = Objective("bradley-terry", 1.0, "distil")
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    rewards = torch.stack([logit, torch.zeros(4)], dim=1).reshape(-1, 1)
    expected = -target * torch.nn.functional.logsigmoid(logit) - (1 - target) * torch.nn.functional.logsigmoid(-logit)
    torch.testing.assert_close(objective.losses(rewards, pairs, 6 * target - 3), expected)


@pytest.mark.parametrize(("kind", "dimension"), [("bradley-terry", 1), ("general-preference", 4)])
def test_a_head_is_fitted_to_a_table_and_says_what_it_keeps(checkpoint, tmp_path, caplog, kind, dimension):
    file = write(tmp_path / "tables.jsonl", tables())
    model, quick = {"kind": kind, "dimension": dimension}, {"penalty": 0.01, "folds": 2}
    with caplog.at_level(logging.INFO):
        settled = recipe(checkpoint, file, tmp_path, model=model, loss={"name": "distil"}, head=quick)
        folder = train_head(settled, tmp_path / "student")
    card = (folder / "README.md").read_text()
    assert "12 comparisons in 2 groups" in card
    assert "its probability" not in card.partition("## Agreement with the teacher")[0]
    # Two of the four triples of a group have three different hands, in a circle: no reward can have one.
    assert f"| cycles of the teacher's, of 8 triples | {4 if dimension > 1 else 0} of 4 |" in card
    assert ("4 of its 4 cycles" in caplog.text) == (dimension > 1)
    if dimension > 1:
        shown = [f"{hand} {hand} {hand} 1" for hand in HANDS]
        answers = load_model(folder, device="cpu").score("What will you show in round 20?", shown)
        assert answers.probabilities[0, 2] > 0.75
        assert answers.probabilities[2, 1] > 0.75
        assert answers.probabilities[1, 0] > 0.75


def test_a_trained_student_reports_what_it_keeps_in_log_and_card(tmp_path, caplog):
    settled = small(
        data={"train": [str(write(tmp_path / "tables.jsonl", tables(5)))]},
        model={"kind": "general-preference", "dimension": 4, "normalise": False},
        loss={"name": "distil"},
        training={"epochs": 3},
    )
    with caplog.at_level(logging.INFO):
        folder = train_model(settled, tmp_path / "student")
    history = json.loads((folder / "checkpoints" / "history.json").read_text())
    measured = [line for line in history if "eval_teacher_divergence" in line]
    assert len(measured) == 3
    card = (folder / "README.md").read_text()
    assert (
        f"| distance from the teacher's probability (KL, nats) | {measured[-1]['eval_teacher_divergence']:.4f} |"
        in card
    )
    assert "of the teacher's winners" in caplog.text
    assert "## Agreement with people" not in card


def test_ties_of_a_teacher_are_learned_from_and_held_out(tmp_path):
    settled = small(data={"train": [str(write(tmp_path / "tables.jsonl", tables(5)))]}, loss={"name": "distil"})
    rows = load_rows(settled)
    assert (sum(not pair.strength for pair in rows.pairs), len(rows.pairs)) == (3, 18)
    assert (sum(not pair.strength for pair in rows.held_out_pairs), len(rows.held_out_pairs)) == (2, 12)
    regular = load_rows(small(data={"train": [str(tmp_path / "tables.jsonl")]}))
    assert all(pair.strength for pair in regular.held_out_pairs)


def test_labels_that_only_say_who_won_are_no_probabilities(tmp_path):
    rows = [{"prompt": f"{at}?", "chosen": "yes", "rejected": "no"} for at in range(4)]
    file = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="every strength is 1, which says only who won: ask the teacher"):
        load_rows(small(data={"train": [str(file)]}, loss={"name": "distil"}))


def test_a_loss_that_learns_winners_alone_of_a_table_says_so(tmp_path, caplog):
    settled = small(data={"train": [str(write(tmp_path / "tables.jsonl", tables(5)))]})
    with caplog.at_level(logging.INFO):
        fit(settled, load_rows(settled), tmp_path / "work")
    assert "learns only which one is larger: 'distil' learns them" in caplog.text


def test_people_come_first_unless_the_recipe_asks_for_the_table(tmp_path):
    said = [{"first": 1, "second": 0, "label": "first"}]
    file = write(tmp_path / "both.jsonl", [row | {"comparisons": said} for row in tables(5)])
    assert {pair.strength for pair in load_rows(small(data={"train": [str(file)]})).pairs} == {1.0}
    asked = load_rows(small(data={"train": [str(file)], "layout": "annotated"}, loss={"name": "distil"}))
    assert {round(abs(pair.strength), 6) for pair in asked.pairs} == {2.4, 0.0}


def votes(number, interval, split="train"):
    return {
        "prompt": f"{number}?", "responses": ["yes", "no"], "probability": 0.75, "interval": interval, "split": split,
    }  # fmt: skip


def test_a_pair_counts_as_many_votes_as_its_interval_says_and_all_count_one_on_average(tmp_path):
    wide, narrow = [0.35, 0.95], [0.65, 0.85]
    known = [0.75 * 0.25 * (3.92 / width) ** 2 - 2 for width in (0.6, 0.2)]
    file = write(tmp_path / "votes.jsonl", [votes(0, wide), votes(1, narrow), votes(2, [0.0, 1.0])])
    weights = [pair.weight for pair in load_rows(small(data={"train": [str(file)]}, loss={"name": "distil"})).pairs]
    # All of [0, 1] is the interval of hardly a vote.
    expected = np.array([*known, max(0.75 * 0.25 * 3.92**2 - 2, 0.5)])
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
    without = write(tmp_path / "plain.jsonl", tables(3))
    assert {pair.weight for pair in load_rows(small(data={"train": [str(without)]})).pairs} == {1.0}


def test_the_loss_of_a_step_is_weighed_by_votes():
    groups = [group(Label(0, 1, 3.0, 1.5), Label(1, 2, 1.5, 0.5))]
    sequences, reads = [[1, 2], [3], [4, 5, 6]], [[(0, 1)]] * 3
    batch = assemble(sequences, reads, groups[0].labels, pad_id=0)
    rewards = torch.tensor([[0.3], [1.0], [-0.4]])
    objective = Objective("bradley-terry", 1.0, "distil")
    first, second = objective.losses(rewards, batch["pairs"], batch["strength"]).tolist()
    share = objective.share(lambda **_: rewards, batch, (4, 0))
    assert float(share) == pytest.approx((1.5 * first + 0.5 * second) / 4)


def test_a_fit_is_weighed_by_votes(checkpoint, tmp_path):
    def probability(weights):
        rows = [
            {"prompt": f"{at}?", "responses": ["rock " * 4, "paper " * 4], "probability": 0.9 if at % 2 else 0.1,
             "interval": [0.5 - weights[at % 2], 0.5 + weights[at % 2]]}
            for at in range(6)
        ]  # fmt: skip
        file = write(tmp_path / f"{weights}.jsonl", rows)
        settled = recipe(checkpoint, file, tmp_path, loss={"name": "distil"}, head={"penalty": 0.001, "folds": 2})
        folder = train_head(settled, tmp_path / f"head {weights}")
        return load_model(folder, device="cpu").score("9?", ["rock " * 4, "paper " * 4]).probabilities[0, 1]

    assert probability([0.4, 0.05]) > 0.55
    assert probability([0.05, 0.4]) < 0.45


@pytest.mark.parametrize("interval", [0.5, [0.2], [0.2, 1.5], [0.8, 0.2]])
def test_an_interval_that_is_none_is_refused(tmp_path, interval):
    file = write(tmp_path / "votes.jsonl", [votes(0, interval)])
    with pytest.raises(EvaluationDataError, match="interval"):
        load_rows(small(data={"train": [str(file)]}, loss={"name": "distil"}))
