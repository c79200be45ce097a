"""Losses of policy optimisation: pure, one value per example, no reduction, no logging. torch only.

Every ``…_logprob`` is a log-probability of a whole response: the SUM over its tokens, in nats, [B]; B is the number of
pairs. Whatever is not the policy in training (reference, current, base) is frozen: its columns carry no gradient.
Values are float32, or float64 where ``chosen_logprob`` is float64. D f stands for f(chosen) - f(rejected).

The losses are raw, as published, and so start in the ten thousands at the published settings; for logs and plots they
are multiplied by a constant (``sppo_scale``, ``gpo_scale``, a setting's ``scale``) that keeps the minimiser and makes
them start at ≤ ¼. The pairwise squared losses, EGPO's and OMWU's among them, are settings of ``regression.py``.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from paragone_training.policy.methods.pairwise import (
    FrozenColumn,
    PairwiseSetting,
    check_positive,
    check_range,
    check_vectors,
    egpo_setting,
    inpo_setting,
    ipo_setting,
    nash_mp_setting,
    omwu_setting,
    pairwise_loss,
    regression_residual,
    working,
)

__all__ = [
    "FrozenColumn",
    "PairwiseSetting",
    "dpo_loss",
    "egpo_setting",
    "gpo_loss",
    "gpo_scale",
    "inpo_loss",
    "inpo_setting",
    "ipo_loss",
    "ipo_setting",
    "nash_mp_setting",
    "omwu_setting",
    "pairwise_loss",
    "regression_residual",
    "sppo_loss",
    "sppo_scale",
]


def sppo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    chosen_win_rate: Tensor,
    rejected_win_rate: Tensor,
    *,
    eta: float,
) -> Tensor:
    """Return SPPO's squared loss on two responses, as the authors' code has it.

        loss = 1/2 {[a - eta (P_w - 1/2)]^2 + [b - eta (P_l - 1/2)]^2},  a, b = log pi/pi_t of chosen, rejected

    Each response is regressed on its own, so which of the two is called chosen does not matter. It starts at
    1/2 [(P_w - 1/2)^2 + (P_l - 1/2)^2] eta² where policy and reference agree. Source: Wu et al., SPPO
    (arXiv 2405.00675), equation 4.7; the factor 1/2 from the authors' code, with eta = 1/beta.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        reference_chosen_logprob: of pi_t, the policy that generated the responses (the previous iterate). [B]
        reference_rejected_logprob: of pi_t. [B]
        chosen_win_rate: estimate of P(chosen > pi_t). [B]
        rejected_win_rate: estimate of P(rejected > pi_t). [B]
        eta: nats of log-ratio per unit of win rate, the step; 1000 in the paper.

    Returns:
        One loss per pair, in squared nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], eta is not positive and finite, or a win rate lies outside [0, 1].
    """
    check_positive(eta=eta)
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
        chosen_win_rate=chosen_win_rate,
        rejected_win_rate=rejected_win_rate,
    )
    check_range("chosen_win_rate", chosen_win_rate, 0.0, 1.0)
    check_range("rejected_win_rate", rejected_win_rate, 0.0, 1.0)
    chosen, rejected, reference_chosen, reference_rejected, won, lost = working(
        chosen_logprob,
        rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        chosen_win_rate,
        rejected_win_rate,
    )
    chosen_error = chosen - reference_chosen - eta * (won - 0.5)
    rejected_error = rejected - reference_rejected - eta * (lost - 0.5)
    return (chosen_error.square() + rejected_error.square()) / 2


def sppo_scale(*, eta: float) -> float:
    """Return what SPPO's raw loss is multiplied by for logs: 1/eta²; then it starts at ≤ ¼.

    Args:
        eta: the loss's eta.

    Raises:
        ValueError: if eta is not positive and finite.
    """
    check_positive(eta=eta)
    return 1.0 / eta**2


def gpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    chosen_score: Tensor,
    rejected_score: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Return GPO's squared loss on two responses: SPPO's with a mean score in place of win rate minus ½.

        loss = 1/2 {[a - s_w/beta]^2 + [b - s_l/beta]^2},  a, b = log pi/pi_t of chosen, rejected

    It solves the game of the scores, another game than that of the probabilities. Source: Zhang et al., GPO
    (arXiv 2410.02197), §5, halved as SPPO's code; the authors' own loss line was never published.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        reference_chosen_logprob: of pi_t, the policy that generated the responses. [B]
        reference_rejected_logprob: of pi_t. [B]
        chosen_score: mean antisymmetric score (logit) of chosen against the responses of pi_t. [B]
        rejected_score: the same of rejected. [B]
        beta: units of score per nat of log-ratio, the inverse of the step; 0.001 in the paper.

    Returns:
        One loss per pair, in squared nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], beta is not positive and finite, or a score is not finite.
    """
    check_positive(beta=beta)
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
        chosen_score=chosen_score,
        rejected_score=rejected_score,
    )
    if not bool((torch.isfinite(chosen_score) & torch.isfinite(rejected_score)).all()):
        raise ValueError("a score is NaN or infinite: leave missing comparisons out")
    chosen, rejected, reference_chosen, reference_rejected, won, lost = working(
        chosen_logprob,
        rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        chosen_score,
        rejected_score,
    )
    chosen_error = chosen - reference_chosen - won / beta
    rejected_error = rejected - reference_rejected - lost / beta
    return (chosen_error.square() + rejected_error.square()) / 2


def gpo_scale(*, beta: float, largest_score: float = 0.5) -> float:
    """Return what GPO's raw loss is multiplied by for logs: beta²/(2 largest_score)²; then it starts at ≤ ¼.

    Args:
        beta: the loss's beta.
        largest_score: bound on the absolute mean score; ½, the bound of a win rate minus ½, gives plain beta².

    Raises:
        ValueError: if beta or largest_score is not positive and finite.
    """
    check_positive(beta=beta, largest_score=largest_score)
    return (beta / (2.0 * largest_score)) ** 2


def inpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    current_chosen_logprob: Tensor,
    current_rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    eta: float,
    tau: float,
    preference: Tensor | None = None,
) -> Tensor:
    """Return INPO's squared loss for a hard label, or for the soft one of the same minimiser and less variance.

        loss = [D log pi - (tau/eta) D log mu - (1 - tau/eta) D log pi_t - target]^2
        target = 1/(2 eta) for a hard label, (2 P - 1)/(2 eta) for a soft one

    It starts at 1/(4 eta²) where all policies agree; times eta² (``inpo_setting(...).scale``) at ≤ ¼. Source: Zhang et
    al., INPO (arXiv 2407.00617), §4, with sampled labels; the soft target by taking the expectation over the label.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        current_chosen_logprob: of pi_t, the policy that generated the pairs. [B]
        current_rejected_logprob: of pi_t. [B]
        reference_chosen_logprob: of the reference mu, which stays the same in every iteration. [B]
        reference_rejected_logprob: of mu. [B]
        eta: weight of the KL to pi_t, the inverse of the step.
        tau: weight of the KL to mu, in [0, eta].
        preference: probability that the chosen one is preferred; None where the label is hard. [B]

    Returns:
        One loss per pair, in squared nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], eta is not positive and finite, tau lies outside [0, eta], or a
            preference outside [0, 1].
    """
    return pairwise_loss(
        chosen_logprob,
        rejected_logprob,
        current_chosen_logprob,
        current_rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        setting=inpo_setting(eta=eta, tau=tau),
        preference=preference,
    )


def ipo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    tau: float,
) -> Tensor:
    """Return IPO's squared loss, on sums of log-probabilities as in the paper (TRL divides by the lengths).

        loss = [D log pi - D log mu - 1/(2 tau)]^2

    Source: Azar et al. (arXiv 2310.12036), equation 17.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        reference_chosen_logprob: of the reference. [B]
        reference_rejected_logprob: of the reference. [B]
        tau: weight of the KL to the reference.

    Returns:
        One loss per pair, in squared nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], or tau is not positive and finite.
    """
    reference = (reference_chosen_logprob, reference_rejected_logprob)
    return pairwise_loss(chosen_logprob, rejected_logprob, *reference, *reference, setting=ipo_setting(tau=tau))


def dpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return DPO's cross-entropy, with conservative smoothing of the label.

        loss = -(1 - eps) log sigmoid(z) - eps log sigmoid(-z),  z = beta (D log pi - D log mu)

    It starts at log 2 where policy and reference agree, whatever the knobs. Source: Rafailov et al.
    (arXiv 2305.18290), equation 7; smoothing as in the authors' note on conservative DPO.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        reference_chosen_logprob: of the reference. [B]
        reference_rejected_logprob: of the reference. [B]
        beta: weight of the KL to the reference.
        label_smoothing: eps, the assumed share of wrong labels, in [0, ½].

    Returns:
        One loss per pair, in nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], beta is not positive and finite, or label_smoothing lies outside
            [0, ½].
    """
    check_positive(beta=beta)
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5], not {label_smoothing}: above it, swap the pairs")
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
    )
    chosen, rejected, reference_chosen, reference_rejected = working(
        chosen_logprob, rejected_logprob, reference_chosen_logprob, reference_rejected_logprob
    )
    logit = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)
