"""The comparator: exact complements, agreement with the torch scores, and the same bits in every batch."""

import itertools

import numpy as np
import pytest
import torch

from paragone_models import scores
from paragone_models.comparator import Comparator, probability
from paragone_models.errors import PreferencesUnavailableError

NINE = tuple(f"attribute-{index}" for index in range(9))
COMPARATORS = {
    "bradley-terry": Comparator("bradley-terry", 1, 2.0),
    "regression": Comparator("regression", 9, 0.5, NINE, tuple(np.linspace(-1.1, 0.7, 9).tolist())),
    "helpsteer": Comparator("helpsteer", 3, 1.5, ("helpful", "verbose")),
    "general-preference": Comparator("general-preference", 6, 0.1),
    "hybrid": Comparator("hybrid", 5, 0.3),
}
EVERY_KIND = pytest.mark.parametrize("comparator", COMPARATORS.values(), ids=COMPARATORS.keys())


def rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def test_a_probability_and_its_complement_add_to_exactly_one():
    draw = np.random.default_rng(0)
    logits = np.concatenate([draw.standard_normal(50_000) * 3, draw.standard_normal(50_000) * 100])
    total = probability(logits) + probability(-logits)
    assert np.array_equal(total, np.ones(100_000))


def test_a_probability_is_the_sigmoid_of_its_logit():
    logits = np.linspace(-30, 30, 1001)
    np.testing.assert_allclose(probability(logits), 1 / (1 + np.exp(-logits)), rtol=1e-13, atol=2.3e-16)
    assert probability(0.0) == 0.5


def test_the_largest_logits_give_zero_and_one():
    assert probability([1e4, -1e4, np.inf, -np.inf]).tolist() == [1.0, 0.0, 1.0, 0.0]


@EVERY_KIND
def test_a_matrix_and_its_transpose_add_to_exactly_one(comparator):
    matrix = comparator.matrix(rows(12, comparator.dimension))
    assert matrix.dtype == np.float64
    assert np.array_equal(matrix + matrix.T, np.ones((12, 12)))
    assert np.array_equal(np.diag(matrix), np.full(12, 0.5))


@EVERY_KIND
def test_swapping_the_arguments_flips_exactly_the_sign(comparator):
    one, two = rows(500, comparator.dimension, 1), rows(500, comparator.dimension, 2)
    assert np.array_equal(comparator.logit(one, two), -comparator.logit(two, one))


@EVERY_KIND
def test_a_pair_has_the_same_bits_in_every_batch(comparator):
    one, two = rows(7, comparator.dimension, 3), rows(7, comparator.dimension, 4)
    matrix, batch = comparator.against(one, two), comparator.logit(one, two)
    columns_first = comparator.logit(np.asfortranarray(one), np.asfortranarray(two))
    strided = comparator.logit(np.repeat(one, 2, axis=0)[::2], two)
    for index in range(7):
        alone = comparator.logit(one[index], two[index])
        assert batch[index] == alone == columns_first[index] == strided[index]
        assert matrix[index, index] == probability(alone)
        assert comparator.against(one[index : index + 1], two)[0, index] == matrix[index, index]


def test_every_kind_agrees_with_its_score_in_torch():
    for kind, comparator in COMPARATORS.items():
        one, two = rows(50, comparator.dimension, 5), rows(50, comparator.dimension, 6)
        first, second = torch.from_numpy(one), torch.from_numpy(two)
        if kind == "general-preference":
            expected = scores.general_preference_logit(first, second, temperature=0.1)
        elif kind == "hybrid":
            expected = scores.hybrid_logit(first, second, temperature=0.3)
        elif kind == "regression":
            weights = torch.tensor(comparator.weights)
            expected = scores.bradley_terry_logit(first @ weights, second @ weights, temperature=0.5)
        else:
            expected = scores.bradley_terry_logit(first[:, 0], second[:, 0], temperature=comparator.temperature)
        np.testing.assert_allclose(comparator.logit(one, two), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_regression_logit_by_hand():
    comparator = Comparator("regression", 2, 0.5, ("helpful", "verbose"), (1.0, -2.0))
    assert comparator.logit([3.0, 1.0], [2.0, 0.5]) == ((3.0 - 2.0 * 1.0) - (2.0 - 2.0 * 0.5)) / 0.5


def test_the_weight_of_a_hybrid_models_skew_form_by_hand():
    one, two = [1.0, 2.0, 3.0], [0.5, 1.0, -1.0]
    weighed = Comparator("hybrid", 3, 0.5, skew_weight=0.25)
    assert weighed.logit(one, two) == ((1.0 - 0.5) + 0.25 * (2.0 * -1.0 - 3.0 * 1.0)) / 0.5
    assert weighed.mean_blocks([one], [two]).tolist() == [[0.25 * -5.0 / 0.5]]
    # Without the skew form a hybrid model is its reward alone.
    assert Comparator("hybrid", 3, 0.5, skew_weight=0.0).logit(one, two) == (1.0 - 0.5) / 0.5


def test_a_helpsteer_logit_ignores_the_attributes():
    comparator = COMPARATORS["helpsteer"]
    assert comparator.logit([1.0, 9.0, 9.0], [0.5, -9.0, -9.0]) == (1.0 - 0.5) / 1.5


def test_references_are_compared_with_every_response():
    comparator = COMPARATORS["general-preference"]
    responses, references = rows(3, 6), rows(2, 6, 7)
    table = comparator.against(responses, references)
    assert table.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        assert table[i, j] == probability(comparator.logit(responses[i], references[j]))


def test_rewards_are_not_divided_by_the_temperature():
    assert COMPARATORS["bradley-terry"].rewards([[4.0]]).tolist() == [4.0]
    assert COMPARATORS["helpsteer"].rewards([[4.0, 1.0, 2.0]]).tolist() == [4.0]
    assert COMPARATORS["hybrid"].rewards([[4.0, 1, 2, 3, 4]]).tolist() == [4.0]
    assert Comparator("regression", 2, 0.1, ("a", "b"), (1.0, 2.0)).rewards([[3.0, 4.0]]).tolist() == [3.0 + 2 * 4.0]


def test_a_general_preference_model_has_no_rewards():
    assert COMPARATORS["general-preference"].rewards(rows(2, 6)) is None


def test_attributes_stand_behind_the_reward():
    assert COMPARATORS["helpsteer"].attribute_values([[4.0, 1.0, 2.0]]).tolist() == [[1.0, 2.0]]
    assert COMPARATORS["bradley-terry"].attribute_values([[4.0]]).shape == (1, 0)
    assert Comparator("regression", 2, 1.0, ("a", "b")).attribute_values([[1.0, 2.0]]).tolist() == [[1.0, 2.0]]


def test_regression_without_weights_has_attributes_but_neither_rewards_nor_preferences():
    comparator = Comparator("regression", 2, 1.0, ("helpful", "verbose"))
    assert comparator.rewards([[1.0, 2.0]]) is None
    for compare in (comparator.logit, comparator.against):
        with pytest.raises(PreferencesUnavailableError, match=r"helpful, verbose and has no weights.*weights="):
            compare([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(PreferencesUnavailableError, match="weights="):
        comparator.matrix([[1.0, 2.0]])


@EVERY_KIND
def test_representations_of_another_length_are_refused(comparator):
    wrong = np.zeros((2, comparator.dimension + 1))
    for call in (comparator.matrix, comparator.rewards, comparator.attribute_values):
        with pytest.raises(ValueError, match=f"do not end in dimension {comparator.dimension}"):
            call(wrong)
    with pytest.raises(ValueError, match="do not end in dimension"):
        comparator.logit(1.0, 1.0)


@EVERY_KIND
def test_shapes_are_never_broadcast(comparator):
    with pytest.raises(ValueError, match="nothing is broadcast"):
        comparator.logit(rows(2, comparator.dimension), rows(1, comparator.dimension))


@EVERY_KIND
def test_no_responses_make_an_empty_matrix(comparator):
    assert comparator.matrix(np.zeros((0, comparator.dimension))).shape == (0, 0)


@EVERY_KIND
def test_the_temperature_is_not_ignored(comparator):
    hotter = Comparator(
        comparator.kind, comparator.dimension, comparator.temperature * 2, comparator.attributes, comparator.weights
    )
    one, two = rows(3, comparator.dimension, 8), rows(3, comparator.dimension, 9)
    np.testing.assert_allclose(hotter.logit(one, two) * 2, comparator.logit(one, two))


@pytest.mark.parametrize(("kind", "dimension"), [("general-preference", 6), ("hybrid", 7)])
def test_mean_blocks_are_the_mean_of_the_single_blocks_and_sum_to_the_skew_term(kind, dimension):
    generator = np.random.default_rng(5)
    values, others = generator.normal(size=(3, dimension)), generator.normal(size=(4, dimension))
    comparator = Comparator(kind, dimension, 0.2)
    found = comparator.mean_blocks(values, others)
    start = dimension % 2
    for row, one in zip(found, values, strict=True):
        for block in range(3):
            x, y = start + 2 * block, start + 2 * block + 1
            expected = np.mean([(one[x] * other[y] - one[y] * other[x]) / 0.2 for other in others])
            assert row[block] == pytest.approx(expected, abs=1e-12)
    reward = (values[:, 0] - others[:, 0].mean()) / 0.2 if kind == "hybrid" else 0.0
    assert np.allclose(found.sum(axis=1) + reward, comparator.mean_logit(values, others), atol=1e-12)


def test_mean_blocks_of_a_kind_without_blocks_are_refused():
    with pytest.raises(ValueError, match="a bradley-terry model has no 2-blocks"):
        Comparator("bradley-terry", 1, 1.0).mean_blocks([[1.0]], [[2.0]])
