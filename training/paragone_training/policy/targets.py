"""From the K×K tables of a round to labelled pairs: unfinished responses, both orders, estimators, ties. numpy only.

K is the number of responses to the prompt; ``table[i, j]`` is P(i preferred to j), NaN where the oracle gave no answer,
with ``table + table.T`` equal to 1 elsewhere. A missing comparison is left out of every mean and makes no pair: it is
never a label. The responses are independent samples of one policy, so a pair of different indices is an i.i.d. pair.

    estimator                       call
    mean win rate, self included    mean_win_rates(table)                     SPPO's; drawn to ½ by 1/K
    mean win rate, others only      mean_win_rates(table, include_self=False) unbiased for P(y > pi)
    i.i.d. pairs, sampled labels    pairs(…, labels="sampled")           the loss INPO's theorem is about
    i.i.d. pairs, soft labels       pairs(…, labels="soft")              the same minimiser, less variance
    best versus worst               pairs(…, selection="best-versus-worst", labels="hard")  as the papers' runs
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_training.policy.rows import Answer, LabelledPair, Response, stream

__all__ = [
    "Labels",
    "Pairs",
    "Rule",
    "Selection",
    "Ties",
    "Unfinished",
    "WinRates",
    "labelled_pairs",
    "mean_scores",
    "mean_win_rates",
    "most_pairs",
    "pairs",
    "symmetrised",
    "tables_of",
]

Float64s = NDArray[np.float64]
Selection = Literal["disjoint", "all", "best-versus-worst"]
Labels = Literal["hard", "sampled", "soft"]
Ties = Literal["drop", "keep"]
Rule = Literal["mean-probability", "mean-logit"]
Unfinished = Literal["drop", "penalise", "keep"]
WinRates = Literal["with-self", "without-self"]

# How far P + P^T may be from 1 where both exist: generous to tables that went through float32 or JSON.
_SYMMETRY = 1e-6
# Of a shift in logits: its exponential is a number still.
_LARGEST_LOGIT = 700.0


@dataclass(frozen=True)
class Pairs:
    """The pairs of one prompt that are trained on, M of them.

    Attributes:
        chosen: indices of the preferred responses. [M]
        rejected: indices of the other responses. [M]
        preference: target probability that ``chosen`` is preferred: 1 for a hard or sampled label, ½ for a kept tie,
            the oracle's own for a soft one. [M]
    """

    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    preference: Float64s

    def __len__(self) -> int:
        return len(self.chosen)


def symmetrised(raw: ArrayLike, *, rule: Rule) -> Float64s:
    """Return the table of a reader of both orders: P(i > j) from the answers to (i, j) and to (j, i).

        mean-probability: P_ij = (raw_ij + 1 - raw_ji) / 2
        mean-logit:       logit P_ij = (logit raw_ij - logit raw_ji) / 2

    Args:
        raw: probability that the first is preferred, as answered for the order (row, column); NaN where no answer
            came, and whatever on the diagonal. [K, K]
        rule: what the two answers are combined to; there is no default.

    Returns:
        P with P + P^T = 1 and ½ on the diagonal; NaN where either order is missing, since one alone keeps its
        position bias. [K, K]

    Raises:
        ValueError: if ``raw`` is not square, an entry off the diagonal lies outside [0, 1], or the rule is unknown.
    """
    # Oracles answer a text against itself with anything; a response is never compared with itself here.
    answers = _square(raw).copy()
    np.fill_diagonal(answers, 0.5)
    _check_probabilities(answers)
    # Averaging both orders cancels a preference for the first place, which a reader of pairs may have.
    if rule == "mean-probability":
        table = (answers + 1.0 - answers.T) / 2.0
    elif rule == "mean-logit":
        # sqrt(p q' / (p' q)) without logarithms: right at 0 and 1, where two certain answers that disagree make a tie.
        first, second = np.sqrt(answers * (1.0 - answers.T)), np.sqrt((1.0 - answers) * answers.T)
        both = first + second
        contradiction = both == 0
        table = np.where(contradiction, 0.5, first / np.where(contradiction, 1.0, both))
    else:
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {rule!r}")
    return np.asarray(table)


def mean_win_rates(table: ArrayLike, *, include_self: bool = True) -> Float64s:
    """Return each response's mean probability of being preferred to the prompt's responses.

        with self:     (½ + sum_{j != i} P_ij) / (1 + count)        without:     sum_{j != i} P_ij / count

    The sum and the count run over the comparisons that exist. Source: Wu et al., SPPO (arXiv 2405.00675), §4, the
    estimate of P(y > pi_t), which includes the response itself.

    Args:
        table: P(row preferred to column), NaN where missing. [K, K]
        include_self: count the response against itself as ½.

    Returns:
        Win rates in [0, 1]; NaN for a response of which no comparison with another exists. [K]

    Raises:
        ValueError: if the table is none.
    """
    return _mean_over_others(_checked(table), own=0.5 if include_self else None)


def mean_scores(scores: ArrayLike, *, include_self: bool = True) -> Float64s:
    """Return each response's mean score against the prompt's responses, GPO's target before 1/beta.

        with self:     sum_{j != i} s_ij / (1 + count)        without:     sum_{j != i} s_ij / count

    Source: Zhang et al., GPO (arXiv 2410.02197), §5: the mean over the K samples, itself counted with 0.

    Args:
        scores: antisymmetric scores (logits) of row over column, NaN where missing. [K, K]
        include_self: count the response against itself as 0.

    Returns:
        Mean scores; NaN for a response of which no comparison with another exists. [K]

    Raises:
        ValueError: if the scores are not square, infinite, or not antisymmetric.
    """
    values = _square(scores)
    if np.isinf(values).any():
        raise ValueError("a score is infinite: a clipped probability should have been clipped before the logit")
    if not np.array_equal(np.isnan(values), np.isnan(values.T)):
        raise ValueError("a score is missing in one order only: scores must be antisymmetric")
    # Scores have no scale of their own, so the tolerance grows with the largest of them.
    bound = _SYMMETRY * max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    if np.nanmax(np.abs(values + values.T), initial=0.0) > bound:
        raise ValueError("scores[i, j] + scores[j, i] must be 0: these scores are not antisymmetric")
    return _mean_over_others(values, own=0.0 if include_self else None)


def pairs(
    table: ArrayLike,
    *,
    selection: Selection,
    labels: Labels,
    ties: Ties = "keep",
    include_self: bool = True,
    generator: np.random.Generator | None = None,
) -> Pairs:
    """Return the pairs of one prompt and their labels.

    ``disjoint`` takes (0, 1), (2, 3), …, each response once: independent pairs. ``all`` takes every pair of different
    responses: the same expectation, less variance, pairs that share responses. ``best-versus-worst`` takes the highest
    against the lowest win rate, which is a selection and breaks INPO's theorem (docs/policy-mathematics.md).

    ``hard`` labels with the majority: best-versus-worst keeps its pair only where the best really beats the worst, the
    others orient the pair. ``sampled`` draws the winner with the oracle's probability. ``soft`` keeps that probability.

    Args:
        table: P(row preferred to column), NaN where missing. [K, K]
        ties: a probability of exactly ½ is dropped, or kept with the target ½, whatever the labels.
        include_self: for best-versus-worst, which win rates decide (it matters only where comparisons are missing).

    Returns:
        The pairs whose comparison exists; possibly none. All-tied win rates have no best and worst, hence no pair.

    Raises:
        ValueError: if the table is none or has fewer than two responses, a choice is unknown, or labels are to be
            sampled without a generator.
    """
    probabilities = _checked(table)
    if len(probabilities) < 2:
        raise ValueError("pairs need at least two responses to a prompt: sample more")
    for name, value, allowed in (("labels", labels, Labels), ("ties", ties, Ties)):
        if value not in get_args(allowed):
            raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")
    # A generator of its own would give other labels after a restart.
    if labels == "sampled" and generator is None:
        raise ValueError("sampled labels need a generator, so that a run can be repeated")
    chosen, rejected = _selected(probabilities, selection, include_self)
    wins = probabilities[chosen, rejected]
    # A missing comparison is no tie: it makes no pair, whatever becomes of ties.
    kept = ~np.isnan(wins)
    if ties == "drop":
        kept &= wins != 0.5
    # The best by win rate may lose against the worst: a majority label would then contradict the selection.
    if selection == "best-versus-worst" and labels == "hard":
        kept &= wins >= 0.5
    chosen, rejected, wins = chosen[kept], rejected[kept], wins[kept]
    if labels == "sampled" and generator is not None:
        # Drawn once per pair, as a single judge would have said it: the loss is then unbiased and noisier.
        swap = generator.random(len(wins)) >= wins
        preference = np.where(wins == 0.5, 0.5, 1.0)
    else:
        swap = wins < 0.5
        wins = np.where(swap, 1.0 - wins, wins)
        preference = wins if labels == "soft" else np.where(wins == 0.5, 0.5, 1.0)
    return Pairs(np.where(swap, rejected, chosen), np.where(swap, chosen, rejected), preference)


def most_pairs(responses: int, selection: Selection) -> int:
    """Return how many pairs a prompt of K responses gives if no comparison is tied or missing."""
    return {"all": responses * (responses - 1) // 2, "disjoint": responses // 2, "best-versus-worst": 1}[selection]


def _group_table(
    raw: ArrayLike,
    finished: Sequence[bool],
    characters: Sequence[int],
    *,
    rule: Rule,
    unfinished: Unfinished,
    penalty: float,
    length_penalty: float = 0.0,
) -> Float64s:
    """Return the table that targets are made of.

        logit P_ij - penalty (u_i - u_j) - length_penalty (c_i - c_j) / 100

    u is 1 for an unfinished response that is penalised, c a response's length in characters. Source of the second term:
    the length penalty of Dong et al., RLHF workflow (arXiv 2405.07863), there of a reward, r - lambda |a|.

    Args:
        raw: the oracle's answers to both orders. [K, K]
        finished: whether each response has an end. K
        characters: length of each response. K
        unfinished: ``drop`` makes their comparisons missing, ``penalise`` shifts them, ``keep`` leaves them.
        penalty: in logits.
        length_penalty: in logits per 100 characters.

    Returns:
        P with P + P^T = 1, NaN where missing. [K, K]
    """
    # Combined first: a penalty belongs to a response, not to the place that it was shown in.
    table = symmetrised(raw, rule=rule)
    over = np.asarray(finished, dtype=np.bool_)
    lost = length_penalty * np.asarray(characters, dtype=np.float64) / 100.0
    if unfinished == "drop":
        table[~over, :] = np.nan
        table[:, ~over] = np.nan
    elif unfinished == "penalise":
        lost = lost + penalty * ~over
    if lost.any():
        # In odds and not in logits, so that an oracle that is certain stays at 0 and 1; their factor stays finite.
        shift = np.clip(lost[:, None] - lost[None, :], -_LARGEST_LOGIT, _LARGEST_LOGIT)
        # Exactly as answered where nothing is shifted: rounding would break ties.
        table = np.where(shift == 0, table, table / (table + table.T * np.exp(shift)))
    np.fill_diagonal(table, 0.5)
    return table


def tables_of(
    responses: Sequence[Response],
    answers: Sequence[Answer],
    *,
    rule: Rule,
    unfinished: Unfinished,
    penalty: float,
    length_penalty: float = 0.0,
) -> dict[str, Float64s]:
    """Return the tables of a round by prompt id, each [K, K]; the settings are those of ``_group_table``."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        groups.setdefault(response.prompt_id, []).append(response)
    return {
        answer.prompt_id: _group_table(
            answer.raw,
            [response.finished for response in groups[answer.prompt_id]],
            [len(response.text) for response in groups[answer.prompt_id]],
            rule=rule,
            unfinished=unfinished,
            penalty=penalty,
            length_penalty=length_penalty,
        )
        for answer in answers
    }


def labelled_pairs(
    tables: Mapping[str, Float64s],
    *,
    selection: Selection,
    labels: Labels,
    ties: Ties,
    include_self: bool,
    own_targets: Callable[..., Float64s],
    names: tuple[object, ...],
) -> list[LabelledPair]:
    """Return the pairs that are trained on.

    Args:
        tables: by prompt id. each [K, K]
        labels: soft for methods that have a number of each response.
        own_targets: of the method: a table and ``include_self`` to the number of each response.
        names: what the random numbers of sampled labels are made of.
    """
    rows = []
    for prompt_id, table in tables.items():
        made = pairs(
            table,
            selection=selection,
            labels=labels,
            ties=ties,
            include_self=include_self,
            generator=stream(*names, "labels", prompt_id),
        )
        # Numbers of a method that has none are zeros, so that the file has the same columns for all methods.
        values = own_targets(table, include_self=include_self)
        rows += [
            LabelledPair(prompt_id, int(won), int(lost), float(preference), float(values[won]), float(values[lost]))
            for won, lost, preference in zip(made.chosen, made.rejected, made.preference, strict=True)
        ]
    return rows


def _selected(
    probabilities: Float64s, selection: Selection, include_self: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    size = len(probabilities)
    # Neighbours, not random partners: responses are independent samples already, in any order.
    if selection == "disjoint":
        indices = [(first, first + 1) for first in range(0, size - 1, 2)]
    elif selection == "all":
        indices = list(combinations(range(size), 2))
    elif selection == "best-versus-worst":
        rates = mean_win_rates(probabilities, include_self=include_self)
        # A response without any comparison has no rate, so it is neither the best nor the worst.
        known = np.flatnonzero(~np.isnan(rates))
        spread = rates[known].max() - rates[known].min() if len(known) else 0.0
        # The lower index of equals. Rates that differ by rounding are equal.
        best_worst = (known[np.argmax(rates[known])], known[np.argmin(rates[known])]) if spread > 1e-12 else None
        indices = [best_worst] if best_worst is not None else []
    else:
        raise ValueError(f"selection must be one of {', '.join(get_args(Selection))}, not {selection!r}")
    array = np.asarray(indices, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _mean_over_others(values: Float64s, *, own: float | None) -> Float64s:
    """Return the mean over the known entries off the diagonal, with ``own`` as one more where it is given; [K]."""
    known = ~np.isnan(values)
    np.fill_diagonal(known, False)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    # A response without any comparison stays NaN: its own ½ says nothing about it.
    extra = 0 if own is None else 1
    means = (total + (own or 0.0)) / np.maximum(count + extra, 1)
    return np.where(count > 0, means, np.nan)


def _square(values: ArrayLike) -> Float64s:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.shape[0] == 0:
        raise ValueError(f"a table must be square, [K, K] with K ≥ 1, not of shape {table.shape}")
    return table


def _check_probabilities(table: Float64s) -> None:
    known = ~np.isnan(table)
    if not bool(((table[known] >= 0) & (table[known] <= 1)).all()):
        raise ValueError("every entry must be a probability in [0, 1], or NaN where the comparison is missing")


def _checked(table: ArrayLike) -> Float64s:
    values = _square(table)
    _check_probabilities(values)
    missing = np.isnan(values)
    np.fill_diagonal(missing, False)
    if not np.array_equal(missing, missing.T):
        raise ValueError("a comparison is missing in one order only: symmetrise the raw answers first")
    off_diagonal = ~np.eye(len(values), dtype=np.bool_) & ~missing
    # Raw answers of both orders look like a table; only their sum tells that they were not combined.
    if np.abs(values + values.T - 1.0)[off_diagonal].max(initial=0.0) > _SYMMETRY:
        raise ValueError("table[i, j] + table[j, i] must be 1: symmetrise the raw answers first")
    return values
