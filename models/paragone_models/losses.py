"""Losses of reward and preference models: pure, one value per example, float32, no reduction.

Shapes: B examples, A attributes, 2k the even length of a general preference vector.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from paragone_models import scores

__all__ = [
    "bradley_terry_loss",
    "centring_loss",
    "general_preference_loss",
    "margin_bradley_terry_loss",
    "preference_loss",
    "regression_loss",
    "scaled_bradley_terry_loss",
    "score_loss",
]


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: float = 0.0) -> Tensor:
    """Return the negative log-likelihood that ``chosen`` beats ``rejected``.

        loss = -log sigmoid(r_chosen - r_rejected - margin)

    Source: Bradley and Terry (1952); Ouyang et al. (arXiv 2203.02155), equation 1.

    Args:
        chosen: rewards of the preferred responses, in logits. [B]
        rejected: rewards of the other responses, in logits. [B]
        margin: how many logits the preferred response must lead by.

    Returns:
        One loss per pair, in nats, float32. [B]

    Raises:
        ValueError: if the two shapes differ (they are never broadcast).
    """
    _check_same(chosen=chosen, rejected=rejected)
    return -logsigmoid(chosen.float() - rejected.float() - margin)


def centring_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return how far the two rewards of a pair are from being opposite, which keeps rewards around 0.

        loss = (r_first + r_second)^2

    A Bradley-Terry loss knows rewards up to a constant of each prompt; a small weight of this one settles it.
    Source: Eisenstein et al. (arXiv 2312.09244); TRL's ``center_rewards_coefficient``.

    Args:
        first, second: rewards of the two responses. [B]

    Returns:
        One loss per pair, float32. [B]

    Raises:
        ValueError: if the two shapes differ.
    """
    _check_same(first=first, second=second)
    return (first.float() + second.float()).square()


def margin_bradley_terry_loss(chosen: Tensor, rejected: Tensor, strength: Tensor) -> Tensor:
    """Return the Bradley-Terry loss that asks for a lead as large as the annotators' preference.

        loss = -log sigmoid(r_chosen - r_rejected - strength)

    Source: Touvron et al. (arXiv 2307.09288), equation 2; "Margin BT" of HelpSteer2-Preference (arXiv 2410.01257).

    Args:
        chosen: rewards of the preferred responses, in logits. [B]
        rejected: rewards of the other responses, in logits. [B]
        strength: how strongly the annotators preferred ``chosen``; 1, 2 or 3 in HelpSteer2-Preference. [B]

    Returns:
        One loss per pair, in nats, float32. [B]

    Raises:
        ValueError: if shapes differ, or a strength is negative (swap the pair instead) or not finite.
    """
    _check_same(chosen=chosen, rejected=rejected, strength=strength)
    _check_strength(strength)
    return -logsigmoid(chosen.float() - rejected.float() - strength.float())


def scaled_bradley_terry_loss(chosen: Tensor, rejected: Tensor, strength: Tensor) -> Tensor:
    """Return the Bradley-Terry loss counted as often as the preference is strong.

        loss = -strength * log sigmoid(r_chosen - r_rejected)

    Source: "Scaled BT" of HelpSteer2-Preference (arXiv 2410.01257).

    Args:
        chosen: rewards of the preferred responses, in logits. [B]
        rejected: rewards of the other responses, in logits. [B]
        strength: how strongly the annotators preferred ``chosen``; 1, 2 or 3 in HelpSteer2-Preference. [B]

    Returns:
        One loss per pair, in nats times strength, float32. [B]

    Raises:
        ValueError: if shapes differ, or a strength is negative (swap the pair instead) or not finite.
    """
    _check_same(chosen=chosen, rejected=rejected, strength=strength)
    _check_strength(strength)
    return -strength.float() * logsigmoid(chosen.float() - rejected.float())


def regression_loss(predicted: Tensor, target: Tensor, *, mask: Tensor) -> Tensor:
    """Return the mean squared error over the attributes that an example has labels for.

        loss = sum_a mask_a (predicted_a - target_a)^2 / sum_a mask_a

    An example without any label has loss 0 and gradient 0; what stands in ``target`` under a zero mask is never read,
    so it may be NaN.

    Source: SteerLM regression as used by HelpSteer2 (arXiv 2406.08673).

    Args:
        predicted: predicted ratings. [B, A]
        target: the annotators' ratings. [B, A]
        mask: nonzero (or True) where a rating exists. [B, A]

    Returns:
        One loss per example, in squared rating units, float32. [B]

    Raises:
        ValueError: if shapes differ or are not [B, A].
    """
    _check_same(predicted=predicted, target=target, mask=mask)
    if predicted.dim() != 2:
        raise ValueError(f"predicted must be [B, A], not of shape {tuple(predicted.shape)}")
    # Twice ``where``: under the mask neither the error nor its gradient may see a NaN, and zero times NaN is NaN.
    labelled = mask.bool()
    error = torch.where(labelled, predicted.float() - torch.where(labelled, target.float(), 0.0), 0.0)
    return error.square().sum(dim=-1) / labelled.sum(dim=-1).clamp(min=1)


def general_preference_loss(
    chosen: Tensor, rejected: Tensor, *, temperature: float = 0.1, margin: float = 0.0
) -> Tensor:
    """Return the negative log-likelihood that ``chosen`` beats ``rejected`` under a General Preference Model.

        loss = -log sigmoid((s(chosen, rejected) - margin) / temperature)

    s is the skew form of ``scores.general_preference_logit`` before division. Source: Zhang et al.
    (arXiv 2410.02197), §4.2 and Appendix A.1 with hard labels; the margin as in the authors' code.

    Args:
        chosen: vectors of the preferred responses, gate and normalisation applied. [B, 2k]
        rejected: vectors of the other responses. [B, 2k]
        temperature: positive divisor; 0.1 in the paper.
        margin: lead asked for, subtracted before dividing by the temperature.

    Returns:
        One loss per pair, in nats, float32. [B]

    Raises:
        ValueError: if the shapes differ, the last dimension is odd, or the temperature is not positive.
    """
    # The margin is in the unit of the score, which the temperature divides.
    logit = scores.general_preference_logit(chosen, rejected, temperature=temperature)
    return -logsigmoid(logit - margin / temperature)


def preference_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy between a preference probability and a soft label.

        loss = -target * log sigmoid(logit) - (1 - target) * log sigmoid(-logit)

    Source: Zhang et al. (arXiv 2410.02197), Appendix A.1; with target 1 it is the loss of every hard-label kind.

    Args:
        logit: log-odds that the first response is preferred. [B]
        target: probability with which annotators preferred the first one, in [0, 1]; 0.5 is a tie. [B]

    Returns:
        One loss per pair, in nats, float32. [B]

    Raises:
        ValueError: if the shapes differ or a target lies outside [0, 1].
    """
    _check_same(logit=logit, target=target)
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("target must lie in [0, 1]: it is a probability")
    # Both signs of the logit, because the logarithm of 1 - sigmoid would be that of 0 for a sure model.
    logit, target = logit.float(), target.float()
    return -target * logsigmoid(logit) - (1 - target) * logsigmoid(-logit)


def score_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error between predicted and wanted log-odds.

        loss = (logit - target)^2 / 2

    Source: Zhang et al. (arXiv 2410.02197), Appendix A.1, regression on preference scores; the half as in the authors'
    code.

    Args:
        logit: log-odds that the first response is preferred. [B]
        target: the log-odds that annotators gave it; 0 is a tie. [B]

    Returns:
        One loss per pair, in squared logits, float32. [B]

    Raises:
        ValueError: if the shapes differ or a target is not finite (a probability of 0 or 1 has no log-odds).
    """
    _check_same(logit=logit, target=target)
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target must be finite log-odds: a label of 0 or 1 has none")
    return (logit.float() - target.float()).square() / 2


def _check_same(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: {listed}; they must be equal, nothing is broadcast")


def _check_strength(strength: Tensor) -> None:
    if not bool((torch.isfinite(strength) & (strength >= 0)).all()):
        raise ValueError("strength must be finite and not negative: swap chosen and rejected instead of negating it")
