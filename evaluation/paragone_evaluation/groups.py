"""The sections of a result that are about groups of responses and rated attributes."""

from typing import Any

import numpy as np
from scipy.stats import rankdata

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import Case, EvaluationSet
from paragone_evaluation.judged import Clustering
from paragone_evaluation.measures.bootstrap import pearson_estimate, rating_estimates
from paragone_evaluation.measures.checks import Floats
from paragone_evaluation.measures.ranking import best_of_n, best_of_n_kl, group_score, kendall_zeta

__all__ = ["attribute_rows", "case_scores", "group_section"]


def case_scores(data: EvaluationSet, answers: Answers, number: int) -> Floats:
    """Return one score per response of a case, in logits; NaN where the model refused.

    The reward over the temperature where the kind has one, else the mean logit against the group, itself counted as 0.

    Args:
        data: what is evaluated on.
        answers: of the model.
        number: of the case.
    """
    if answers.card.scalar:
        return answers.node_score[list(data.cases[number].nodes)]
    matrix = answers.matrices.get(number)
    return answers.node_score[list(data.cases[number].nodes)] if matrix is None else matrix.mean(axis=1)


def group_section(data: EvaluationSet, answers: Answers, clusters: Clustering) -> dict[str, Any] | None:
    """Return the agreement on groups that people scored, best-of-n and consistence; None without such groups."""
    found: list[tuple[Case, Floats, Floats, float]] = []
    skipped = 0
    for number, case in enumerate(data.cases):
        if case.human is None or len(case.nodes) < 3:
            continue
        scores = case_scores(data, answers, number)
        if not np.isfinite(scores).all():
            skipped += 1
            continue
        found.append((case, scores, np.asarray(case.human), kendall_zeta(answers.matrices[number])))
    if not found:
        return None
    cluster = clusters.prompt_cluster[[case.prompt for case, *_ in found]]
    each = [group_score(scores, human) for _, scores, human, _ in found]
    columns = {
        name: np.asarray([getattr(score, name) for score in each])
        for name in ("tau", "top_one", "chance", "regret", "random_regret")
    }
    columns["zeta"] = np.asarray([zeta for *_, zeta in found])
    section: dict[str, Any] = {"groups": len(found), "groups_refused": skipped}
    for name, values in columns.items():
        known = np.isfinite(values)
        section[name] = clusters.resampler.mean(values[known], cluster[known]) if known.any() else None
        section[f"{name}_groups"] = int(known.sum())
    section["best_of_n"] = _curve([(scores, human) for _, scores, human, _ in found])
    return section


def _curve(groups: list[tuple[Floats, Floats]]) -> dict[str, list[float]]:
    """Return the mean human score of best-of-n by the model, by people and at random, up to the smallest group."""
    most = min(len(scores) for scores, _ in groups)
    sizes = np.arange(1, most + 1)
    model = np.mean([best_of_n(scores, human)[:most] for scores, human in groups], axis=0)
    oracle = np.mean([best_of_n(human, human)[:most] for _, human in groups], axis=0)
    return {
        "n": sizes.tolist(),
        "kl": best_of_n_kl(sizes).tolist(),
        "model": model.tolist(),
        "people": oracle.tolist(),
        "random": [float(np.mean([human.mean() for _, human in groups]))] * most,
    }


def attribute_rows(data: EvaluationSet, answers: Answers, clusters: Clustering) -> list[dict[str, Any]]:
    """Return how predicted attributes agree with ratings of the same name, over all rated responses."""
    rows = []
    for name, predicted in sorted(answers.attributes.items()):
        pairs = [
            (predicted[node], rating, clusters.prompt_cluster[case.prompt])
            for case in data.cases
            for node, rating in zip(case.nodes, case.attributes.get(name, ()), strict=False)
            if np.isfinite(predicted[node]) and np.isfinite(rating)
        ]
        if pairs:
            ours, theirs, where = np.asarray(pairs, dtype=np.float64).T
            cluster, draw = where.astype(np.int64), clusters.resampler
            error, explained = rating_estimates(ours, theirs, cluster, draw)
            rows.append(
                {
                    "name": name,
                    "responses": len(pairs),
                    "root_mean_squared_error": error,
                    "spread": float(theirs.std()),
                    "determination": explained,
                    "pearson": pearson_estimate(ours, theirs, cluster, draw),
                    "spearman": pearson_estimate(rankdata(ours), rankdata(theirs), cluster, draw),
                }
            )
    return rows
