"""The scores of published benchmarks, and RewardBench's own output files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.asking import Answers
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.measures.benchmarks import (
    TiesPrompt,
    best_of_k_result,
    net_vote,
    rewardbench_sections,
    rm_bench,
    ties_score,
)
from paragone_evaluation.measures.bootstrap import Estimate, Resampler
from paragone_evaluation.measures.checks import Floats
from paragone_evaluation.pair_results import Clustering, JudgedPairs
from paragone_evaluation.readers.layouts import TIES_ID
from paragone_evaluation.readers.rows import as_messages
from paragone_evaluation.scorers import ModelCard

__all__ = ["benchmark_section", "write_rewardbench_files"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_TIES_SEED = 0


def benchmark_section(
    data: EvaluationSet, answers: Answers, judged: JudgedPairs, clusters: Clustering
) -> dict[str, Any] | None:
    """Return the scores of the layout's benchmark as its own code counts them; None for our own layouts.

    Pairs and prompts that the model refused are left out of the scores, and counted in the report.
    """
    if data.layout == "rewardbench":
        return {"name": "RewardBench", "scores": _rewardbench(data, judged, clusters)}
    if data.layout == "rewardbench2":
        return {"name": "RewardBench 2", **_rewardbench2(data, answers, clusters)}
    if data.layout == "rm-bench":
        return {"name": "RM-Bench", "scores": _rm_bench(data, answers, clusters)}
    if data.layout == "judgebench":
        swapped = -judged.logit if judged.swapped is None else judged.swapped
        results = net_vote(judged.logit, swapped, judged.outcome)
        return {"name": "JudgeBench", "scores": {"Overall": clusters.resampler.share(results, judged.cluster)}}
    return None


def _rewardbench(data: EvaluationSet, judged: JudgedPairs, clusters: Clustering) -> dict[str, Estimate]:
    # Two columns per subset, right ones and all, so that one product resamples every subset at once.
    subsets = np.asarray([data.cases[case].subset for case in judged.case])
    names = [str(name) for name in np.unique(subsets)]
    right = (judged.logit > 0).astype(np.float64)  # a tie is wrong, as on the leaderboard
    belongs = (subsets[:, None] == np.asarray(names)[None, :]).astype(np.float64)
    totals, drawn = clusters.resampler.totals(np.hstack([belongs * right[:, None], belongs]), judged.cluster)
    half = len(names)
    # A resample may lack a subset altogether; its sections are then of the subsets that it has.
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = drawn[:, :half] / drawn[:, half:]
    scores = rewardbench_sections(dict(zip(names, totals[:half] / totals[half:], strict=True)))
    each = [
        rewardbench_sections({name: value for name, value in zip(names, row, strict=True) if np.isfinite(value)})
        for row in resampled
    ]
    return {
        section: clusters.resampler.estimate(value, [scored.get(section, float("nan")) for scored in each])
        for section, value in scores.items()
    }


def _rewardbench2(data: EvaluationSet, answers: Answers, clusters: Clustering) -> dict[str, Any]:
    results, prompts = _rewardbench2_results(data, answers, clusters)
    scored, draws = {}, {}
    # All subsets see the same resamples, so that their mean can be taken resample by resample.
    for subset, rows in sorted(results.items()):
        column = np.asarray([[result, 1.0] for result, _ in rows])
        total, drawn = clusters.resampler.totals(column, [cluster for _, cluster in rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            draws[subset] = drawn[:, 0] / drawn[:, 1]
        scored[subset] = clusters.resampler.estimate(float(total[0] / total[1]), draws[subset])
    section: dict[str, Any] = {"scores": scored}
    # A number counts where both of its prompts were answered: the score compares one with the other.
    numbers = {prompt.number for prompt in prompts if prompt.tied} & {p.number for p in prompts if not p.tied}
    if numbers:
        section["ties"] = ties_score(prompts)
        # Resampled by number: its two prompts belong together, and no question ties it to another number.
        draw = Resampler(len(numbers), resamples=clusters.resampler.resamples, seed=_TIES_SEED)
        draws["Ties"] = _drawn_ties(prompts, sorted(numbers), draw)
        scored["Ties"] = draw.estimate(section["ties"]["score"], draws["Ties"])
    if len(scored) == 6:  # all subsets are there; a mean over fewer would be compared with published ones
        overall = float(np.mean([score.value for score in scored.values()]))
        drawn = np.mean([draws[subset] for subset in scored], axis=0)
        scored["Overall"] = clusters.resampler.estimate(overall, drawn)
    return section


def _rewardbench2_results(
    data: EvaluationSet, answers: Answers, clusters: Clustering
) -> tuple[dict[str, list[tuple[float, int]]], list[TiesPrompt]]:
    """Return result and cluster of every prompt by subset, and the prompts of Ties, which are scored together."""
    results: dict[str, list[tuple[float, int]]] = {}
    prompts = []
    for number, case in enumerate(data.cases):
        scores = answers.case_scores(number, case.nodes)
        # Without one of its responses a prompt is an easier one: it is left out, and counted among the refusals.
        if not np.isfinite(scores).all():
            continue
        subset, right = case.subset or "", case.right or 1
        ties_id = TIES_ID.fullmatch(case.id)
        if subset.lower() == "ties" and ties_id:
            values = tuple(scores.tolist())
            prompts.append(TiesPrompt(ties_id[2], ties_id[1] == "tied", values[:right], values[right:]))
        else:
            cluster = int(clusters.prompt_cluster[case.prompt])
            results.setdefault(subset, []).append((best_of_k_result(scores), cluster))
    return results, prompts


def _drawn_ties(prompts: list[TiesPrompt], numbers: list[str], resampler: Resampler) -> Floats:
    """Return the Ties score of each resample of the numbers."""
    # A prompt without its partner counts in the score itself, and cannot be drawn with it.
    paired = [prompt for prompt in prompts if prompt.number in set(numbers)]
    weights = (dict(zip(numbers, map(float, counts), strict=True)) for counts in resampler.counts)
    return np.asarray([ties_score(paired, weight=weight)["score"] for weight in weights])


def _rm_bench(data: EvaluationSet, answers: Answers, clusters: Clustering) -> dict[str, Estimate]:
    rows: list[tuple[str, int, dict[str, float]]] = []
    for number, case in enumerate(data.cases):
        # Each style of right response against each style of wrong one; right responses are the first three.
        matrix = answers.matrices[number][:3, 3:]
        if np.isfinite(matrix).all():
            # chat, code, math, and safety, which comes as safety-refuse and safety-response
            domain = (case.subset or "").split("-")[0]
            wins = (matrix > 0).astype(np.float64)[None]
            rows.append((domain, int(clusters.prompt_cluster[case.prompt]), rm_bench(wins)))
    cluster = np.asarray([row[1] for row in rows], dtype=np.int64)
    # Every score is a mean over prompts, so each prompt has one of its own.
    columns = {name: np.asarray([row[2][name] for row in rows]) for name in ("easy", "normal", "hard", "total")}
    scored = {}
    for domain in sorted({row[0] for row in rows}):
        here = np.asarray([row[0] == domain for row in rows])
        scored[domain] = clusters.resampler.share(columns["total"][here], cluster[here])
    for name, values in columns.items():
        scored[name.capitalize()] = clusters.resampler.share(values, cluster)
    return scored


def write_rewardbench_files(
    folder: Path, data: EvaluationSet, answers: Answers, section: Mapping[str, Any]
) -> list[Path]:
    """Write RewardBench's two result files, as its scripts do, and return their paths.

    ``eval-set/ORG/MODEL.json`` has the accuracy of each subset, ``eval-set-scores/ORG/MODEL.json`` the columns of all
    rows: its readers look for files in a folder per organisation. Scores are null for kinds without a reward, and
    their ``model_type`` is RewardBench's "Custom Classifier".

    Source: ``save_to_hub`` in rewardbench/utils.py and ``load_results`` in analysis/utils.py of allenai/reward-bench.

    ``section`` is that of ``benchmark_section``.
    """
    name = _published_name(answers.card)
    about = {
        "model": name,
        "model_type": "Seq. Classifier" if answers.card.scalar else "Custom Classifier",
        "chat_template": "tokenizer",
    }
    if data.layout == "rewardbench":
        columns, grouped = _rewardbench_columns(data, answers)
    else:
        columns = _rewardbench2_columns(data, answers)
        grouped = {name: score.value for name, score in section["scores"].items() if name != "Overall"}
    written = []
    for part, content in (("eval-set", {**grouped, **about}), ("eval-set-scores", {**columns, **about})):
        path = folder / part / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=4, sort_keys=True, ensure_ascii=False), encoding="utf-8")
        written.append(path)
    return written


def _published_name(card: ModelCard) -> str:
    """Return organisation/model: the Hugging Face id, ``builtin/NAME``, or ``local/NAME`` for all other sources."""
    # A relative folder may look like an id of the Hub, and two parts of a path are no organisation.
    source = card.source.replace("builtin:", "builtin/", 1)
    if _HUB_ID.fullmatch(source) and not Path(card.source).exists():
        return source
    return f"local/{re.sub(r'[^A-Za-z0-9._-]+', '__', card.name)}"


def _rewardbench_columns(data: EvaluationSet, answers: Answers) -> tuple[dict[str, list[Any]], dict[str, float]]:
    names = ("id", "subset", "text_chosen", "text_rejected", "results", "scores_chosen", "scores_rejected")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    by_subset: dict[str, list[int]] = {}
    for judgement in np.flatnonzero(answers.answered):
        case = data.cases[data.case[judgement]]
        subset, right = case.subset or "", int(answers.logit[judgement] > 0)
        by_subset.setdefault(subset, []).append(right)
        nodes = int(data.first[judgement]), int(data.second[judgement])
        scores = [_reward(answers, node) for node in nodes]
        texts = [_dialogue(data, node) for node in nodes]
        identifier = case.id.removeprefix(f"{subset}/")  # a number in the data set
        row = (int(identifier) if identifier.isdecimal() else identifier, subset, *texts, right, *scores)
        for name, value in zip(names, row, strict=True):
            columns[name].append(value)
    return columns, {subset: sum(results) / len(results) for subset, results in by_subset.items()}


def _rewardbench2_columns(data: EvaluationSet, answers: Answers) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "subset", "text", "scores", "results", "num_correct")}
    for number, case in enumerate(data.cases):
        scores = answers.case_scores(number, case.nodes)
        if not np.isfinite(scores).all():
            continue
        ties = (case.subset or "").lower() == "ties"
        rewards = [_reward(answers, node) for node in case.nodes] if answers.card.scalar else scores.tolist()
        row = {
            "id": case.id,
            "subset": case.subset,
            "text": [_dialogue(data, node) for node in case.nodes],
            "scores": rewards,
            "results": None if ties else best_of_k_result(scores),
            "num_correct": case.right,
        }
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _reward(answers: Answers, node: int) -> float | None:
    return float(answers.node_score[node] * answers.card.temperature) if answers.card.scalar else None


def _dialogue(data: EvaluationSet, node: int) -> list[Any]:
    prompt, _ = data.prompts[data.node_prompt[node]]
    response = data.responses[node]
    # Their files hold the text that the model saw as one conversation, the answer included.
    before = as_messages(prompt)
    if isinstance(response, str):
        return [*before, {"role": "assistant", "content": response}]
    return [*before, *([response] if isinstance(response, Mapping) else response)]
