"""The judged pairs that a model answered, as columns, and the resamples that all their intervals share."""

from dataclasses import dataclass

import numpy as np

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.bootstrap import Resampler
from paragone_evaluation.measures.checks import Bools, Floats, Ints

__all__ = ["FEW_CLUSTERS", "Clustering", "Judged", "clustering", "judged_pairs"]

FEW_CLUSTERS = 10
"""Below this many clusters, intervals are told to be rough."""


@dataclass(frozen=True)
class Clustering:
    """What is resampled together.

    Attributes:
        by: ``question`` or ``prompt``, as it was really done.
        prompt_cluster: number of each prompt's cluster. [P]
        count: how many clusters there are.
        resampler: draws them.
        notes: what the reader of an interval should know.
    """

    by: str
    prompt_cluster: Ints
    count: int
    resampler: Resampler
    notes: tuple[str, ...]


def clustering(data: EvaluationSet, by: str, *, resamples: int, seed: int) -> Clustering:
    """Return the clusters of an evaluation set; prompts where there is one question only.

    Args:
        data: what is evaluated on.
        by: ``question`` or ``prompt``.
        resamples: how many to draw.
        seed: of the draw.

    Raises:
        EvaluationError: if ``by`` is neither.
    """
    if by not in ("question", "prompt"):
        raise EvaluationError(f"cluster is {by!r}; it must be question or prompt")
    notes = []
    where, count = data.clusters(by)
    if by == "question" and count == 1 and len(data.prompts) > 1:
        by = "prompt"
        where, count = data.clusters(by)
        notes.append(f"All rows are about one question, so intervals resample its {count} prompts instead.")
    unit = by if count == 1 else f"{by}s"
    if count == 1:
        notes.append("There is one prompt only, so there are no intervals: nothing says how other prompts would do.")
    elif count < FEW_CLUSTERS:
        notes.append(
            f"Intervals resample {count} {unit}. From so few they are rough and mostly too narrow: a hint, no more."
        )
    return Clustering(by, where, count, Resampler(count, resamples=resamples, seed=seed), tuple(notes))


@dataclass(frozen=True)
class Judged:
    """Columns of the judged pairs that were answered, n of them.

    Attributes:
        logit: log-odds that the first is preferred.
        swapped: log-odds of the second, asked in the other order, or None.
        outcome: 1, ½ or 0.
        strength: −3 … 3, NaN where unknown.
        first: node.
        second: node.
        first_length: in characters.
        second_length: in characters.
        prompt: number of the prompt.
        case: number of the case.
        cluster: number of the cluster.
        decided: whether people decided.
    """

    logit: Floats
    swapped: Floats | None
    outcome: Floats
    strength: Floats
    first: Ints
    second: Ints
    first_length: Floats
    second_length: Floats
    prompt: Ints
    case: Ints
    cluster: Ints
    decided: Bools


def judged_pairs(data: EvaluationSet, answers: Answers, clusters: Clustering, *, only: Bools | None = None) -> Judged:
    """Return the judged pairs that a model answered.

    Args:
        data: what is evaluated on.
        answers: of the model.
        clusters: of the evaluation set.
        only: judgements to take, where not all that were answered. [J]

    Raises:
        EvaluationError: if people decided none of them.
    """
    rows = np.flatnonzero(answers.answered if only is None else only)
    prompt = data.node_prompt[data.first[rows]]
    outcome = data.outcome[rows]
    if not (outcome != 0.5).any():
        raise EvaluationError(f"none of the {len(rows)} pairs of {data.path} that were answered is decided")
    return Judged(
        logit=answers.logit[rows],
        swapped=None if answers.swapped is None else answers.swapped[rows],
        outcome=outcome,
        strength=data.strength[rows],
        first=data.first[rows],
        second=data.second[rows],
        first_length=data.node_length[data.first[rows]],
        second_length=data.node_length[data.second[rows]],
        prompt=prompt,
        case=data.case[rows],
        cluster=clusters.prompt_cluster[prompt],
        decided=outcome != 0.5,
    )
