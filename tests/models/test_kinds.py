"""The kinds: one record each, one arithmetic for numpy and torch, and no test on a kind's name anywhere else."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from paragone_models.errors import PreferencesUnavailableError
from paragone_models.kinds import KINDS, skew, skew_blocks

ROOT = Path(__file__).parents[2]
DIMENSIONS = {"bradley-terry": 1, "regression": 2, "helpsteer": 3, "general-preference": 6, "hybrid": 5, "process": 1}
WEIGHTS = (0.7, -0.3)
REPRESENTING = {name: kind for name, kind in KINDS.items() if not kind.reads_pairs}
EVERY_KIND = pytest.mark.parametrize("kind", REPRESENTING.values(), ids=REPRESENTING.keys())


def rows(kind, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((40, DIMENSIONS[kind.name]))


def test_no_other_module_tests_the_name_of_a_kind():
    names = "|".join(f"[\"']{name}[\"']" for name in KINDS)
    test = re.compile(rf"(==|!=|\bin\b|\bcase\b)\s*[(\[{{]?\s*({names})|({names})\s*(==|!=)|({names}):\s*(lambda|self)")
    modules = [
        path
        for part in ("clients", "models", "service", "evaluation", "training")
        for path in (ROOT / part).rglob("*.py")
    ]
    assert len(modules) > 150
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules
        if path.name != "kinds.py"
        for line in path.read_text().splitlines()
        if test.search(line)
    ]
    assert lines == []


@EVERY_KIND
def test_torch_computes_what_numpy_computes(kind):
    first, second = rows(kind, 1), rows(kind, 2)
    exact = kind.logit(first, second, temperature=0.3, weights=WEIGHTS)
    tensors = [torch.from_numpy(values).float().requires_grad_() for values in (first, second)]
    logit = kind.logit(*tensors, temperature=0.3, weights=WEIGHTS)
    assert (exact.dtype, logit.dtype) == (np.float64, torch.float32)
    np.testing.assert_allclose(logit.detach().numpy(), exact, rtol=1e-4, atol=1e-4)
    logit.sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in tensors)


@EVERY_KIND
def test_swapping_the_arguments_flips_exactly_the_sign_in_both_libraries(kind):
    first, second = rows(kind, 3), rows(kind, 4)
    flipped = kind.logit(second, first, temperature=0.3, weights=WEIGHTS)
    assert np.array_equal(kind.logit(first, second, temperature=0.3, weights=WEIGHTS), -flipped)
    one, two = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    assert torch.equal(
        kind.logit(one, two, temperature=0.3, weights=WEIGHTS), -kind.logit(two, one, temperature=0.3, weights=WEIGHTS)
    )


@EVERY_KIND
def test_blocks_and_reward_sum_to_the_logit(kind):
    first, second = rows(kind, 5), rows(kind, 6)
    total = np.zeros(len(first))
    if kind.has_vector:
        blocks = kind.block_logits(first, second, temperature=0.3)
        assert blocks.shape == (len(first), kind.blocks(DIMENSIONS[kind.name]))
        total += blocks.sum(-1)
    if kind.gives_rewards(WEIGHTS):
        total += (kind.reward(first, WEIGHTS) - kind.reward(second, WEIGHTS)) / 0.3
    np.testing.assert_allclose(total, kind.logit(first, second, temperature=0.3, weights=WEIGHTS), atol=1e-12)


def test_the_skew_form_by_hand():
    assert skew_blocks(np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])).tolist() == [1 * 6 - 2 * 5, 3 * 8 - 4 * 7]
    assert skew(np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])) == (1 * 6 - 2 * 5) + (3 * 8 - 4 * 7)


@pytest.mark.parametrize(
    ("name", "attributes", "possible"),
    [
        ("bradley-terry", 0, [1]),
        ("regression", 0, []),
        ("regression", 2, [2]),
        ("helpsteer", 0, []),
        ("helpsteer", 2, [3]),
        ("general-preference", 0, [2, 4, 6, 8]),
        ("hybrid", 0, [3, 5, 7]),
        ("process", 0, [1]),
    ],
)
def test_dimensions_of_a_kind(name, attributes, possible):
    assert [size for size in range(-1, 9) if KINDS[name].dimension_fits(size, attributes)] == possible


def test_the_nearest_dimension_of_vectors_is_not_below_the_one_asked_for():
    assert [KINDS["general-preference"].nearest_dimension(size, 0) for size in (-1, 2, 3)] == [2, 2, 4]
    assert [KINDS["hybrid"].nearest_dimension(size, 0) for size in (0, 3, 4)] == [3, 3, 5]


def test_only_attributes_without_weights_cannot_compare():
    assert {name: kind.compares(None) for name, kind in KINDS.items()} == {
        name: name not in ("regression", "pairwise") for name in KINDS
    }
    assert all(kind.compares(WEIGHTS) for kind in REPRESENTING.values())
    with pytest.raises(PreferencesUnavailableError, match="give weights="):
        KINDS["regression"].logit(np.zeros((1, 2)), np.zeros((1, 2)), temperature=1.0)
    with pytest.raises(PreferencesUnavailableError, match="none of one response"):
        KINDS["pairwise"].logit(np.zeros((1, 1)), np.zeros((1, 1)), temperature=1.0)


def test_a_vector_has_no_reward_and_a_reward_no_blocks():
    with pytest.raises(PreferencesUnavailableError, match="has no rewards: compare instead"):
        KINDS["general-preference"].reward(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="a helpsteer model has no 2-blocks"):
        KINDS["helpsteer"].block_logits(np.zeros((1, 3)), np.zeros((1, 3)), temperature=1.0)


def test_every_kind_that_is_trained_here_has_a_default_loss_that_it_can_learn_from():
    assert {name: kind.losses[0] for name, kind in KINDS.items() if kind.losses} == {
        "bradley-terry": "regular",
        "regression": "regression",
        "helpsteer": "scaled",
        "general-preference": "regular",
        "hybrid": "regular",
        "pairwise": "regular",
    }
    assert [name for name, kind in KINDS.items() if not kind.learns_pairs] == ["regression", "process"]
