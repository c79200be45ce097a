"""From representations to logits, in torch: pure, float32, differentiable.

Shapes: ``...`` any leading dimensions, K responses of one prompt, 2k the even length of a general preference vector.
The first argument is the response whose win is measured.
"""

from torch import Tensor

from paragone_models.kinds import KINDS, skew, skew_blocks

__all__ = [
    "bradley_terry_logit",
    "general_preference_blocks",
    "general_preference_logit",
    "general_preference_matrix",
    "hybrid_logit",
]


def bradley_terry_logit(first: Tensor, second: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the log-odds that ``first`` is preferred to ``second``.

        logit = (r_first - r_second) / temperature

    Source: Bradley and Terry (1952), in the log-odds form.

    Args:
        first: rewards whose win is measured. [...]
        second: rewards of the opponents. [...]
        temperature: positive divisor, in the unit of the rewards.

    Returns:
        Log-odds, float32. [...]

    Raises:
        ValueError: if the shapes differ (they are never broadcast) or the temperature is not positive.
    """
    _check(first, second, temperature)
    return (first.float() - second.float()) / temperature


def general_preference_logit(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the log-odds that ``first`` is preferred, by the skew-symmetric form of a General Preference Model.

        logit = sum_l (first[2l] * second[2l+1] - first[2l+1] * second[2l]) / temperature

    Source: Zhang et al., "Beyond Bradley-Terry Models" (arXiv 2410.02197), Definition 4.3, with the sign of the
    published code (the paper's Theorem 4.4 writes the opposite one).

    Args:
        first: vectors whose win is measured. [..., 2k]
        second: vectors of the opponents. [..., 2k]
        temperature: positive divisor; 0.1 in the paper.

    Returns:
        Log-odds, float32. [...]

    Raises:
        ValueError: if the shapes differ, the last dimension is odd or zero, or the temperature is not positive.

    >>> import torch
    >>> general_preference_logit(torch.tensor([0.7, 1.0]), torch.tensor([-0.2, 1.0]), temperature=1.0)
    tensor(0.9000)
    """
    _check(first, second, temperature)
    _check_even(first)
    return skew(first.float(), second.float()) / temperature


def general_preference_blocks(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return what each 2-block adds to the log-odds that ``first`` is preferred; they sum to the logit.

        block_l = (first[2l] * second[2l+1] - first[2l+1] * second[2l]) / temperature

    Where the model has a gate, the representations carry its weights, and so do these.

    Source: the terms of ``general_preference_logit``; a reward per dimension for group-relative training, as in
    arXiv 2605.18721.

    Args:
        first: vectors whose win is measured. [..., 2k]
        second: vectors of the opponents. [..., 2k]
        temperature: positive divisor; 0.1 in the paper.

    Returns:
        Log-odds per block, float32. [..., k]

    Raises:
        ValueError: if the shapes differ, the last dimension is odd or zero, or the temperature is not positive.
    """
    _check(first, second, temperature)
    _check_even(first)
    return skew_blocks(first.float(), second.float()) / temperature


def general_preference_matrix(embeddings: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the log-odds of every response against every other, exactly antisymmetric.

        M = A B^T,  S = (M - M^T) / temperature,  A and B the even and odd coordinates

    Source: as ``general_preference_logit``; this form gives S = -S^T to the last bit.

    Args:
        embeddings: vectors of K responses to one prompt. [K, 2k]
        temperature: positive divisor; 0.1 in the paper.

    Returns:
        Log-odds that the row beats the column, float32, zero diagonal. [K, K]

    Raises:
        ValueError: if ``embeddings`` is not [K, 2k] or the temperature is not positive.
    """
    if embeddings.dim() != 2:
        raise ValueError(f"embeddings must be [K, 2k], not of shape {tuple(embeddings.shape)}")
    _check(embeddings, embeddings, temperature)
    _check_even(embeddings)
    values = embeddings.float()
    # A matrix minus its own transpose is antisymmetric to the last bit, whatever order the product sums in.
    product = values[:, 0::2] @ values[:, 1::2].T
    return (product - product.T) / temperature


def hybrid_logit(first: Tensor, second: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the sum of a Bradley-Terry and a general preference logit.

        logit = (r_first - r_second + skew(v_first, v_second)) / temperature

    Source: the reward plus skew form of hybrid reward-cyclic models (arXiv 2605.17342).

    Args:
        first: a reward, then a general preference vector, whose win is measured. [..., 1+2k]
        second: those of the opponents. [..., 1+2k]
        temperature: positive divisor of both terms.

    Returns:
        Log-odds, float32. [...]

    Raises:
        ValueError: if the shapes differ, the last dimension is even or below 3, or the temperature is not positive.
    """
    _check(first, second, temperature)
    if first.dim() == 0 or first.shape[-1] < 3 or first.shape[-1] % 2 == 0:
        raise ValueError(f"a reward and a general preference vector have an odd length, not shape {tuple(first.shape)}")
    return KINDS["hybrid"].logit(first.float(), second.float(), temperature=temperature)


def _check(first: Tensor, second: Tensor, temperature: float) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}: they must be equal, "
            "nothing is broadcast"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")


def _check_even(embeddings: Tensor) -> None:
    if embeddings.dim() == 0 or embeddings.shape[-1] < 2 or embeddings.shape[-1] % 2:
        raise ValueError(
            f"a general preference vector has an even length of at least 2, not shape {tuple(embeddings.shape)}"
        )
