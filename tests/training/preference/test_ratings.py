"""Kinds that rate: groups, losses, merging, and runs from ratings to a folder that compares."""

import math

import numpy as np
import pytest
import torch

from paragone_evaluation.readers import Pair, Rating
from paragone_models import load_model
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_training.command import train
from paragone_training.data import group_pairs
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.backbone import reward_on_top
from paragone_training.preference.card import Rows
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings import rating_errors
from paragone_training.preference.recipe import Recipe, load_recipe
from paragone_training.preference.train_model import fit, train_model
from paragone_training.settings import parse
from tests.training.arguments import BAD, GOOD, pairs, write

NAN = float("nan")


def ratings(prompts=3, split="train"):
    """The reasoned answers are rated 3 and 4, the others 0 and 1; one of them has no rating of its length."""
    rows = []
    for number in range(prompts):
        for quality, texts in ((3.0, GOOD), (0.0, BAD)):
            for index, text in enumerate(texts):
                given = {"clarity": quality + index % 2, "length": len(text) / 10}
                if index == 2:
                    del given["length"]
                prompt = f"Should school {number} teach chess?"
                rows.append(Rating(prompt, f"{text} {number}", given, split=split, group=f"q{number}_yes"))
    return rows


def tables(**sections):
    made = {
        "model": {"kind": "regression", "max_length": 128, "attributes": ["clarity", "length"], "pooling": "mean"},
        "backbone": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32},
        "tokenizer": {"vocabulary_size": 320},
        "data": {"train": ["pairs.jsonl"], "ratings": ["ratings.jsonl"]},
        "training": {"epochs": 12, "learning_rate": 2e-2, "batch_responses": 6, "log_steps": 1},
    }
    for name, values in sections.items():
        made[name] = {**made.get(name, {}), **values}
    return made


def test_groups_hold_each_response_once_with_its_mean_ratings_and_nan_where_there_is_none():
    rows = [Rating("p", "a", {"x": 1.0}), Rating("p", "a", {"x": 3.0, "y": 2.0}), Rating("q", "c", {"y": 0.0})]
    one, two = group_pairs([Pair("p", "b", "a", 1.0)], rows, ["x", "y"])
    assert one.responses == ["b", "a"]
    assert one.ratings[1] == (2.0, 2.0)
    assert all(math.isnan(value) for value in one.ratings[0])
    assert (one.rated, two.rated, two.labels, two.responses) == (1, 1, [], ["c"])


def test_the_regression_loss_reads_the_last_rows_and_leaves_out_what_nobody_rated():
    objective = Objective("helpsteer", 1.0, "scaled", attributes=("x", "y"), ratings=0.5)
    representations = torch.tensor([[9.0, 1.0, 2.0], [9.0, 0.0, 4.0]], requires_grad=True)
    found = objective.rating_losses(representations, torch.tensor([[0.0, NAN], [NAN, NAN]]))
    assert found.tolist() == [1.0, 0.0]
    found.sum().backward()
    assert representations.grad.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="1 ratings a response; the attributes are x, y"):
        objective.rating_losses(representations, torch.zeros(2, 1))


@pytest.mark.parametrize("name", ["regular", "margin", "scaled"])
def test_a_helpsteer_pair_costs_what_its_rewards_cost(name):
    representations = torch.tensor([[1.0, 7.0], [-0.5, 3.0]])
    rows = torch.tensor([[0, 1]]), torch.tensor([2.0])
    plain = Objective("bradley-terry", 0.5, name).losses(representations[:, :1], *rows)
    combined = Objective("helpsteer", 0.5, name, attributes=("x",))
    torch.testing.assert_close(combined.losses(representations, *rows), plain)


def test_the_losses_in_force_are_stated():
    both = Objective("helpsteer", 1.0, "scaled", attributes=("x", "y"), ratings=0.5)
    assert both.describe() == (
        "scaled helpsteer loss: -strength * log sigmoid((r1 - r2)), plus 0.5 x regression loss (squared error of "
        "x, y, a mean over each response's ratings)"
    )
    assert Objective("regression", 1.0, "regression", attributes=("x",)).describe().startswith("regression loss: sq")


def test_rating_errors_are_root_mean_squares_beside_always_saying_the_mean():
    found = rating_errors(np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[0.0, NAN], [4.0, NAN]]), ["x", "y"])
    assert (found.error[0], found.constant[0], found.rated) == (1.0, 2.0, (2, 0))
    assert math.isnan(found.error[1])
    assert found.metrics("eval")["eval_x_error"] == 1.0
    assert found.explained[0] == 1 - 1.0**2 / 2.0**2
    with pytest.raises(ValueError, match="must both be"):
        rating_errors(np.zeros((1, 2)), np.zeros((2, 2)), ["x", "y"])


def test_a_reward_on_top_starts_as_the_merged_attributes_bias_included():
    spec = ModelSpec(kind="regression", dimension=2, attributes=("x", "y"), weights=(0.75, -0.25))
    wanted = ModelSpec(kind="helpsteer", dimension=3, attributes=("x", "y"))
    old = RepresentationHead(4, spec, value_head=torch.nn.Linear(4, 2))
    hidden = torch.randn(5, 1, 4)
    attributes = old(hidden)
    combined = reward_on_top(old, spec, wanted)(hidden)
    torch.testing.assert_close(combined[:, 1:], attributes)
    torch.testing.assert_close(combined[:, 0], attributes @ torch.tensor([0.75, -0.25]))
    with pytest.raises(RecipeError, match="has no weights to start a reward from"):
        reward_on_top(old, ModelSpec(kind="regression", dimension=2, attributes=("x", "y")), wanted)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pair and rating files, and a regression model trained on them."""
    folder = tmp_path_factory.mktemp("rated")
    both = [*pairs(3), *pairs(1, split="test")]
    write(
        folder / "pairs.jsonl",
        [
            {
                "id": str(n),
                "prompt": p.prompt,
                "first": p.first,
                "second": p.second,
                "strength": p.strength,
                "split": p.split,
            }
            for n, p in enumerate(both)
        ],
    )
    rows = [*ratings(), *ratings(1, split="test")]
    write(
        folder / "ratings.jsonl",
        [{"prompt": r.prompt, "response": r.response, "ratings": r.ratings, "split": r.split} for r in rows],
    )
    data = {"train": [str(folder / "pairs.jsonl")], "ratings": [str(folder / "ratings.jsonl")]}
    train_model(parse(Recipe, tables(data=data)), folder / "regression")
    return folder, data


def test_a_regression_model_rates_and_compares_and_its_card_says_how(files):
    folder, _ = files
    model = load_model(folder / "regression", device="cpu")
    assert (model.kind, model.spec.attributes) == ("regression", ("clarity", "length"))
    assert sum(map(abs, model.spec.weights)) == pytest.approx(1.0)
    found = model.score("Should school 0 teach chess?", [f"{GOOD[0]} 0", f"{BAD[0]} 0"])
    assert found.attributes["clarity"][0] > found.attributes["clarity"][1]
    assert found.probabilities[0, 1] > 0.5
    card = (folder / "regression" / "README.md").read_text()
    assert "one logistic regression on the predicted ratings of the 27 decided training pairs" in card
    assert "| attribute | this model | the mean | R2 |" in card
    assert "Loss: regression loss: squared error of clarity, length" in card


def test_a_helpsteer_model_starts_as_the_regression_model_and_keeps_its_attributes(files):
    folder, data = files
    start = load_model(folder / "regression", device="cpu")
    model = {"kind": "helpsteer", "start": str(folder / "regression")}
    still = parse(Recipe, tables(model=model, data=data, training={"epochs": 1, "learning_rate": 1e-12}))
    rows = Rows(pairs(3), ratings(), pairs(1), ratings(1))
    outcome = fit(still, rows, folder / "still")
    before = summarised(outcome.before.judged)
    assert outcome.model.spec.temperature == start.spec.temperature
    text = "Should school 0 teach chess?"
    answers = [f"{GOOD[0]} 0", f"{BAD[0]} 0"]
    logit = float(start.comparator.logit(*start.score(text, answers).representations.numpy()))
    assert before[0] == pytest.approx(logit, abs=1e-4)  # the first held-out pair, the reasoned answer preferred
    assert summarised(outcome.judged) == pytest.approx(before, abs=1e-5)
    made = train_model(parse(Recipe, tables(model=model, data=data, loss={"ratings": 2.0})), folder / "helpsteer")
    combined = load_model(made, device="cpu")
    assert (combined.kind, combined.spec.dimension, combined.spec.weights) == ("helpsteer", 3, None)
    assert combined.score(text, [f"{GOOD[0]} 0", f"{BAD[0]} 0"]).probabilities[0, 1] > 0.5
    card = (made / "README.md").read_text()
    assert "| attribute | before | after | the mean | R2 |" in card
    assert "plus 2 x regression loss" in card
    assert start.identity[:12] in card


def summarised(judged):
    return judged.logit.tolist()


def test_without_ratings_in_the_loss_the_attributes_drift_and_with_them_they_stay(files):
    folder, data = files
    errors = {}
    for share in (0.0, 5.0):
        model = {"kind": "helpsteer", "start": str(folder / "regression")}
        built = parse(Recipe, tables(model=model, data=data, loss={"ratings": share}, training={"epochs": 4}))
        rows = Rows(pairs(3), ratings())
        errors[share] = fit(built, rows, folder / f"share-{share}").after.errors.error[0]
    assert errors[5.0] < errors[0.0]


def test_a_regression_without_pairs_rates_and_does_not_compare(tmp_path):
    built = parse(Recipe, tables(data={"train": []}, training={"epochs": 1}))
    outcome = fit(built, Rows([], ratings(1)), tmp_path)
    assert (outcome.merging, outcome.judged, outcome.model.spec.weights) == (None, None, None)


def test_a_regression_goes_on_from_the_backbone_of_any_model(tmp_path):
    start = tables(model={"start": "builtin:mini-bradley-terry"}, training={"epochs": 1, "learning_rate": 1e-6})
    outcome = fit(parse(Recipe, start), Rows([], ratings(1)), tmp_path)
    assert outcome.model.start.source == "builtin:mini-bradley-terry"
    assert outcome.model.network.config.hidden_size == 64


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    built = parse(Recipe, tables(training={"epochs": 2, "checkpoints": 2, "average_decay": 0.9}))
    rows = Rows(pairs(2), ratings(2))
    whole = fit(built, rows, tmp_path)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    again = fit(built, rows, tmp_path, resume=True)
    for name, tensor in whole.model.network.state_dict().items():
        torch.testing.assert_close(again.model.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_two_passes_a_step_are_one_pass_of_twice_the_size(tmp_path):
    losses_of = []
    for number, budget in enumerate((12, 6)):
        built = parse(
            Recipe,
            tables(
                training={"epochs": 1, "batch_responses": budget, "accumulation": number + 1, "learning_rate": 1e-9}
            ),
        )
        history = fit(built, Rows([], ratings(2)), tmp_path / str(number)).history
        losses_of.append(next(line["loss"] for line in history if "loss" in line))
    assert losses_of[0] == pytest.approx(losses_of[1], rel=1e-4)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"ratings": []}}, "data.ratings is empty; a regression model learns from ratings"),
        ({"model": {"kind": "helpsteer", "start": "x"}, "data": {"ratings": []}}, "data.ratings is empty; a helpsteer"),
        (
            {"model": {"kind": "helpsteer"}},
            "model.start is missing; a helpsteer model starts from a trained regression",
        ),
        ({"model": {"kind": "helpsteer", "start": "x"}, "data": {"train": []}}, "data.train is empty"),
        ({"model": {"attributes": []}}, r"model.attributes is \[\]; name each rated attribute once"),
        ({"model": {"dimension": 2}}, "it has one per attribute, and at least one attribute: leave it out"),
        ({"model": {"gate": True}}, "a regression model has none: set false"),
        ({"model": {"temperature": 2.0}}, "is fitted with its weights: leave it out"),
        ({"model": {"start": "x"}, "backbone": {"source": "y"}}, "both name a backbone"),
        ({"loss": {"name": "scaled"}}, "a regression model has regression"),
        ({"loss": {"ratings": -1.0}}, "loss.ratings is -1.0; it must be 0 or more"),
        (
            {"model": {"kind": "helpsteer", "start": "x"}, "loss": {"name": "regression"}},
            "a helpsteer model has scaled, regular",
        ),
        ({"pretraining": {"epochs": 1}}, r"\[pretraining\] and \[lexical\] are not for regression models"),
        ({"model": {"start": "x"}, "teacher": {}}, r"\[teacher\] helps from-scratch backbones"),
        ({"model": {"attribute": ["x"]}}, "did you mean 'attributes'"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_before_the_first_step(sections, message):
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, tables(**sections))


def test_a_start_that_does_not_fit_is_refused(files, tmp_path):
    folder, _ = files

    def fitted(**model):
        return fit(parse(Recipe, tables(model={"kind": "helpsteer", **model})), Rows(pairs(1), ratings(1)), tmp_path)

    with pytest.raises(RecipeError, match="is a bradley-terry model; a helpsteer model starts from a regression"):
        fitted(start="builtin:mini-bradley-terry")
    with pytest.raises(RecipeError, match=r"rates clarity, length; model\.attributes must be the same"):
        fitted(start=str(folder / "regression"), attributes=["length", "clarity"])
    with pytest.raises(RecipeError, match=r"reads the mean; set model.pooling = 'mean'"):
        fitted(start=str(folder / "regression"), pooling="last")
    with pytest.raises(RecipeError, match=r"model\.start nowhere: "):
        fitted(start="nowhere")


def test_data_that_rates_nothing_wanted_is_refused_before_the_first_step(files, tmp_path):
    folder, data = files
    model = {"kind": "helpsteer", "start": str(folder / "regression"), "attributes": ["wit"]}
    with pytest.raises(DataError, match=r"no row of data\.ratings rates wit; rated are clarity, length"):
        train_model(parse(Recipe, tables(model=model, data=data)), tmp_path / "model")


def test_a_dry_run_counts_ratings_and_pairs(files, tmp_path):
    from typer.testing import CliRunner

    folder, _ = files
    path = folder / "recipe.toml"
    model = '[model]\nkind = "regression"\nattributes = ["clarity"]\n'
    path.write_text(model + '[data]\ntrain = ["pairs.jsonl"]\nratings = ["ratings.jsonl"]\n')
    assert load_recipe(path).data.ratings == (str(folder / "ratings.jsonl"),)
    result = CliRunner().invoke(train, ["model", str(path), "--dry-run", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "18 ratings and 27 pairs to train on, 6 and 0 held out" in result.output
    assert "9 rows left out: held out, and another row of the same two responses is trained on" in result.output
    assert 'name = "regression"' in result.output
