"""Heads fitted to frozen states: right values, scikit-learn's, invariances, cycles, and what is refused."""

import numpy as np
import pytest
import torch

from paragone_models.fitting import Choices, FitError, States, fit_head
from paragone_models.kinds import KINDS
from paragone_models.network import RepresentationHead
from paragone_models.spec import ModelSpec

REWARD = ModelSpec(kind="bradley-terry", dimension=1)
HIDDEN = 6


def vector(**fields):
    return ModelSpec(**{"kind": "general-preference", "dimension": 4, "temperature": 0.1, **fields})


def draw_states(questions=12, responses=5, *, seed=0, width=HIDDEN, offset=0.0):
    """Return states with an offset of their own for each question, and every pair of each question."""
    draw = np.random.default_rng(seed)
    question = np.repeat(np.arange(questions), responses)
    prompt = draw.normal(size=(questions, width))[question]
    values = draw.normal(size=(len(question), width)) + offset * prompt
    pairs = [
        (start + i, start + j)
        for start in range(0, len(question), responses)
        for i in range(responses)
        for j in range(i + 1, responses)
    ]
    return States(values.astype(np.float32), question, prompt.astype(np.float32)), np.array(pairs)


def choices(pairs, target, **fields):
    values = {"lead": np.zeros(len(pairs)), "weight": np.ones(len(pairs)), **fields}
    return Choices(pairs, np.asarray(target, dtype=float), **values)


def representations(fitted, states):
    """Return what the network's own head makes of the states."""
    spec, width = fitted.spec, states.response.shape[1]
    linear = torch.nn.Linear(width, spec.dimension, bias=True)
    head = RepresentationHead(width, spec, value_head=linear, gate_bias=spec.gate != "none")
    head.load_state_dict(fitted.tensors)
    reads = [states.response] if head.reads == 1 else [states.prompt, states.response]
    with torch.no_grad():
        return head(torch.from_numpy(np.stack(reads, axis=1))).double().numpy()


def logits(fitted, states, pairs):
    values, spec = representations(fitted, states), fitted.spec
    return KINDS[spec.kind].logit(
        values[pairs[:, 0]], values[pairs[:, 1]], temperature=spec.temperature, weights=spec.weights
    )


def test_a_separable_toy_is_recovered():
    states, pairs = draw_states()
    direction = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 0.0])
    worth = states.response @ direction
    fitted = fit_head(REWARD, states, choices(pairs, worth[pairs[:, 0]] > worth[pairs[:, 1]]))
    weight = fitted.tensors["value_head.weight"][0].double().numpy()
    assert weight @ direction / np.linalg.norm(weight) / np.linalg.norm(direction) > 0.99
    assert np.mean((fitted.logits > 0) == (worth[pairs[:, 0]] > worth[pairs[:, 1]])) > 0.97
    assert representations(fitted, states).mean() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_a_reward_is_the_logistic_regression_of_scikit_learn(penalty):
    from sklearn.linear_model import LogisticRegression

    states, pairs = draw_states(offset=3.0)
    draw = np.random.default_rng(1)
    target = draw.random(len(pairs))
    weight = draw.uniform(0.5, 3.0, len(pairs))
    fitted = fit_head(REWARD, states, choices(pairs, target, weight=weight), penalties=[penalty])
    scale = states.response.astype(float).std(axis=0)
    rows = (states.response[pairs[:, 0]] - states.response[pairs[:, 1]]) / scale
    # A soft label is two rows, one of each class.
    theirs = LogisticRegression(C=1 / (penalty * len(pairs)), fit_intercept=False, tol=1e-10, max_iter=1000).fit(
        np.concatenate([rows, rows]),
        np.repeat([1, 0], len(pairs)),
        sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
    )
    ours = fitted.tensors["value_head.weight"][0].numpy() * scale
    assert ours == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_a_lead_moves_rewards_apart_and_a_tie_does_not():
    states, pairs = draw_states()
    preferred = states.response[pairs[:, 0], 0] > states.response[pairs[:, 1], 0]
    plain, led = (
        fit_head(REWARD, states, choices(pairs, preferred, lead=lead * np.where(preferred, 1.0, -1.0)), penalties=[0.1])
        for lead in (0.0, 2.0)
    )
    norms = [float(fitted.tensors["value_head.weight"].norm()) for fitted in (plain, led)]
    assert norms[1] > 1.2 * norms[0]
    tied = fit_head(REWARD, states, choices(pairs, np.full(len(pairs), 0.5)), penalties=[0.1])
    assert float(tied.tensors["value_head.weight"].norm()) == pytest.approx(0.0, abs=1e-6)


SPECS = [
    REWARD,
    vector(),
    vector(normalise=True, gate="softmax"),
    ModelSpec(kind="hybrid", dimension=5, temperature=0.1, normalise=True, gate="softmax"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind} {spec.dimension} {spec.normalise} {spec.gate}")
def test_swapping_every_pair_changes_nothing_and_the_networks_head_gives_the_fitted_numbers(spec):
    states, pairs = draw_states(questions=6, responses=4)
    target = np.where(states.response[pairs[:, 0], 0] > states.response[pairs[:, 1], 0], 0.9, 0.1)
    fitted = fit_head(spec, states, choices(pairs, target), folds=2, penalties=[1.0])
    swapped = fit_head(spec, states, choices(pairs[:, ::-1], 1 - target), folds=2, penalties=[1.0])
    found = logits(fitted, states, pairs)
    assert found == pytest.approx(logits(swapped, states, pairs), abs=1e-6)
    assert found == pytest.approx(-logits(fitted, states, pairs[:, ::-1]), abs=1e-9)
    assert fitted.logits == pytest.approx(-swapped.logits, abs=1e-6)
    # What was fitted is what the head says: answers without the question agree with it about what was easy.
    assert np.corrcoef(found, fitted.logits)[0, 1] > 0.8


def cyclic(questions, *, seed=0):
    """Stone, scissors and paper under many prompts: each response shows which it is, and its prompt's offset."""
    draw = np.random.default_rng(seed)
    question = np.repeat(np.arange(questions), 3)
    prompt = draw.normal(size=(questions, HIDDEN))[question]
    values = 3 * np.tile(np.eye(3, HIDDEN), (questions, 1)) + 0.3 * (prompt + draw.normal(size=prompt.shape))
    pairs = np.array([(3 * q + i, 3 * q + (i + 1) % 3) for q in range(questions) for i in range(3)])
    return States(values.astype(np.float32), question, prompt.astype(np.float32)), pairs


@pytest.mark.parametrize(
    "spec", [vector(gate="softmax"), ModelSpec(kind="hybrid", dimension=3)], ids=["gate", "hybrid"]
)
def test_a_cycle_is_learned_and_holds_on_questions_that_were_held_out(spec):
    states, pairs = cyclic(24)
    fitted = fit_head(spec, states, choices(pairs, np.ones(len(pairs))), folds=3, penalties=[0.03])
    assert np.mean(fitted.logits > 0) > 0.95
    assert np.mean(fitted.scalar > 0) < 0.7
    fresh, others = cyclic(40, seed=9)
    assert np.mean(logits(fitted, fresh, others) > 0) > 0.95


def few_prompts(seed, *, width=40):
    """Fewer prompts than features, and offsets larger than what tells responses apart; then new prompts of the kind."""
    direction = np.random.default_rng(seed).normal(size=width)
    drawn = []
    for questions, chance in ((20, seed), (60, 100 + seed)):
        states, pairs = draw_states(questions, 4, seed=chance, width=width, offset=3.0)
        lead = np.subtract(*(states.response @ direction)[pairs.T]) / 3
        drawn.append((states, pairs, lead + np.random.default_rng(chance).logistic(size=len(pairs)) > 0))
    return drawn


def test_a_vector_from_few_prompts_is_as_good_as_its_scalar_on_new_ones():
    # One that fits the offsets of its prompts falls below chance there.
    (states, pairs, target), (fresh, others, right) = few_prompts(1)
    reward = fit_head(REWARD, states, choices(pairs, target))
    fitted = fit_head(vector(gate="softmax"), states, choices(pairs, target), folds=3)
    accuracy = [np.mean((logits(one, fresh, others) > 0) == right) for one in (reward, fitted)]
    assert accuracy[0] > 0.65
    assert accuracy[1] > accuracy[0] - 0.02


def test_a_vector_that_loses_to_its_scalar_is_refused():
    # Normalised, each response's length is its prompt's offset before all.
    (states, pairs, target), _ = few_prompts(0)
    with pytest.raises(FitError, match=r"loses \d.* and its own scalar .* nothing is saved"):
        fit_head(vector(normalise=True), states, choices(pairs, target), folds=2, penalties=[0.03])


def test_ratings_are_the_ridge_regression_of_scikit_learn_with_gaps_and_merge_into_choices():
    from sklearn.linear_model import Ridge

    states, pairs = draw_states(20)
    draw = np.random.default_rng(3)
    ratings = states.response[:, :2] * [1.0, 2.0] + 3 + draw.normal(size=(len(states.question), 2)) * 0.1
    ratings[::7, 1] = np.nan
    spec = ModelSpec(kind="regression", dimension=2, attributes=("good", "short"))
    worth = ratings[:, 0]
    fitted = fit_head(spec, states, choices(pairs, worth[pairs[:, 0]] > worth[pairs[:, 1]]), ratings, penalties=[0.05])
    scaled = states.response / states.response.std(axis=0)
    for column in (0, 1):
        rated = ~np.isnan(ratings[:, column])
        theirs = Ridge(alpha=0.05 * rated.sum()).fit(scaled[rated], ratings[rated, column])
        assert representations(fitted, states)[:, column] == pytest.approx(theirs.predict(scaled), abs=1e-4)
    assert fitted.spec.weights[0] > 0.9
    assert sum(map(abs, fitted.spec.weights)) == pytest.approx(1.0)
    assert np.mean(fitted.logits[worth[pairs[:, 0]] > worth[pairs[:, 1]]] > 0) > 0.95
    assert fit_head(spec, states, None, ratings).spec.weights is None


def test_a_reward_above_ratings_follows_the_pairs_and_keeps_the_ratings():
    states, pairs = draw_states(20)
    ratings = states.response[:, :1].astype(float)
    spec = ModelSpec(kind="helpsteer", dimension=2, attributes=("length",))
    worth = states.response[:, 1]
    right = worth[pairs[:, 0]] > worth[pairs[:, 1]]
    fitted = fit_head(spec, states, choices(pairs, right), ratings)
    values = representations(fitted, states)
    assert values[:, 1] == pytest.approx(ratings[:, 0], abs=0.05)
    assert np.mean((logits(fitted, states, pairs) > 0) == right) > 0.95


def test_features_that_are_constant_or_huge_make_no_trouble():
    states, pairs = draw_states()
    values = states.response.copy()
    values[:, 1] = 7.0
    values[:, 2] *= 1e6
    right = values[pairs[:, 0], 0] > values[pairs[:, 1], 0]
    fitted = fit_head(REWARD, States(values, states.question), choices(pairs, right))
    assert float(fitted.tensors["value_head.weight"][0, 1]) == 0.0
    assert np.mean((fitted.logits > 0) == right) > 0.95


def test_what_cannot_be_fitted_is_refused():
    states, pairs = draw_states(questions=3)
    target = np.ones(len(pairs))
    with pytest.raises(FitError, match="all 15 responses belong to one question"):
        fit_head(REWARD, States(states.response, np.zeros(15, dtype=np.int64)), choices(pairs, target))
    broken = states.response.copy()
    broken[4, 0] = np.inf
    with pytest.raises(FitError, match="the response state of response 4 has NaN or infinity"):
        fit_head(REWARD, States(broken, states.question), choices(pairs, target))
    with pytest.raises(FitError, match="there are no pairs"):
        fit_head(REWARD, states)
    spec = ModelSpec(kind="regression", dimension=2, attributes=("x", "y"))
    with pytest.raises(FitError, match="an attribute of x, y has no rating"):
        fit_head(spec, states, None, np.full((15, 2), np.nan))
    with pytest.raises(ValueError, match="a gate reads the prompt's state"):
        fit_head(vector(gate="softmax"), States(states.response, states.question), choices(pairs, target))
