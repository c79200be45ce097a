"""What a run measures: each iterate against the initial policy on held-out prompts, and a page with all its numbers.

EVALUATION/samples.parquet     the iterate's responses
EVALUATION/oracle.parquet      tables of its responses (first) and the initial policy's, by the training oracle
EVALUATION/judge.parquet       the same by the second judge, if there is one
EVALUATION/logprobs.parquet    log-probabilities of the iterate's responses under the initial policy
EVALUATION/summary.json        win rates with intervals, lengths, the KL to the initial policy
RUN/report.html                all that the run has measured so far, read again from its folder
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone_evaluation.measures.bootstrap import FEW_CLUSTERS
from paragone_evaluation.readers import file_order
from paragone_evaluation.report.charts import COLOURS, Line, line_chart
from paragone_evaluation.report.page import Figure, PageSection, PageTable, render_page
from paragone_evaluation.report.words import counted, interval, percent
from paragone_training.policy.methods.registry import METHODS
from paragone_training.policy.model.logprobs import frozen_columns
from paragone_training.policy.rows import (
    Answer,
    Response,
    read_answers,
    read_json_file,
    read_rows,
    write_json,
    write_text,
)
from paragone_training.policy.targets import Rule, symmetrised

__all__ = [
    "INITIAL",
    "compared_by_likelihood",
    "compared_with_initial",
    "describe_responses",
    "length_controlled",
    "win_rate",
    "win_rate_in_words",
    "write_report",
]

INITIAL = "initial_logprob"
"""The column of logprobs.parquet."""

Float64s = NDArray[np.float64]

_RESAMPLES, _SEED = 2000, 0
_ANSWERS_SHOWN = 8
# Horizontal axes of charts.
_ITERATE, _OPTIMISER_STEP = "iterate (0: the initial policy)", "optimiser step"
_SMALL = (
    "Intervals are 95 %, resampled by prompt; those of the KL are 1.96 standard errors. Cyclic triples and omega are "
    "measured on the responses that an iteration is trained on, which are those of the iterate before."
)

_Interval = tuple[float, float] | None
# Place, value, and error bar.
_Points = Sequence[tuple[float, float, _Interval]]
_Values = dict[str, Any]


def win_rate(
    answers: Sequence[Answer], lengths: Mapping[str, tuple[float, float]], *, responses: int, rule: Rule
) -> dict[str, Any]:
    """Return the mean probability that the iterate's response is preferred to the initial policy's.

    Args:
        answers: tables of ``responses`` of the iterate, then as many of the initial policy.
        lengths: mean characters of the iterate's and of the initial policy's responses, by prompt.
        responses: of each policy to a prompt.

    Returns:
        Estimates and 95 % intervals, resampled by prompt; None where nothing was answered.
    """
    means, longer = [], []
    for answer in answers:
        # Rows of the iterate against columns of the initial policy: comparisons inside either policy say nothing about
        # the two.
        table = symmetrised(answer.raw, rule=rule)[:responses, responses:]
        if np.isfinite(table).any():
            means.append(float(np.nanmean(table)))
            mine, theirs = lengths[answer.prompt_id]
            longer.append(mine - theirs)
    if not means:
        return {"prompts": 0, "win_rate": None, "interval": None, "controlled": None, "controlled_interval": None}
    values, difference = np.asarray(means), np.asarray(longer)
    # Prompts are resampled and not comparisons: those of one prompt share its responses.
    draws = np.random.default_rng(_SEED).integers(len(values), size=(_RESAMPLES, len(values)))
    # Each is a fit of its own: two hundred are enough for an interval.
    controlled = [length_controlled(values[draw], difference[draw]) for draw in draws[:200]]
    return {
        "prompts": len(values),
        "win_rate": float(values.mean()),
        "interval": _interval(values[draws].mean(axis=1)),
        "controlled": length_controlled(values, difference),
        "controlled_interval": _interval(np.asarray(controlled)),
    }


def length_controlled(preference: Float64s, longer: Float64s) -> float:
    """Return the win rate that a logistic fit gives for responses of equal length.

        logit P = a + b tanh(longer / sd(longer)),   the answer is sigmoid(a)

    Source: the idea of length-controlled AlpacaEval (Dubois et al., arXiv 2404.04475), with one term for length.

    Args:
        preference: mean probability that the iterate wins, a prompt each. [N]
        longer: by how many characters the iterate's responses are longer. [N]
    """
    spread = float(longer.std())
    # Bounded, so that one very long response does not decide the fit.
    term = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    design = np.stack([np.ones_like(term), term], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        share = 1.0 / (1.0 + np.exp(-design @ weights))
        # A little ridge: all lengths equal, or all won, has no finite solution.
        gradient = design.T @ (preference - share) - 1e-3 * weights
        curvature = (design * (share * (1.0 - share))[:, None]).T @ design + 1e-3 * np.eye(2)
        move = np.linalg.solve(curvature, gradient)
        weights = weights + move
        if float(np.abs(move).max()) < 1e-10:
            break
    return float(1.0 / (1.0 + math.exp(-weights[0])))


def describe_responses(rows: Sequence[Response]) -> dict[str, float | None]:
    """Return length and end of a policy's responses: means, None where there is no response."""
    if not rows:
        return {"responses": 0, "tokens": None, "characters": None, "finished": None}
    return {
        "responses": len(rows),
        "tokens": float(np.mean([len(row.token_ids) for row in rows])),
        "characters": float(np.mean([len(row.text) for row in rows])),
        "finished": float(np.mean([row.finished for row in rows])),
    }


def compared_with_initial(
    folder: Path,
    responses_of_both: tuple[Sequence[Response], Sequence[Response]],
    *,
    names: Sequence[str],
    responses: int,
    rule: Rule,
) -> dict[str, Any]:
    """Write and return the numbers of an evaluation.

    Args:
        folder: has the tables of all ``names``, and the log-probabilities of ``compared_by_likelihood``.

    Raises:
        RunError: if a file cannot be read or written.
    """
    mine, theirs = responses_of_both
    initial_lengths = _mean_lengths(theirs)
    lengths = {prompt_id: (length, initial_lengths[prompt_id]) for prompt_id, length in _mean_lengths(mine).items()}
    summary: dict[str, Any] = {"iterate": describe_responses(mine), "initial": describe_responses(theirs)}
    for name in names:
        answers = read_answers(folder / f"{name}.parquet")
        summary[name] = win_rate(answers, lengths, responses=responses, rule=rule)
    known = compared_by_likelihood(mine)
    if known:
        # E_pi[log pi - log mu] by the iterate's own samples: unbiased, with the error of a mean.
        frozen = frozen_columns(folder / "logprobs.parquet", INITIAL)
        own = _sampled_logprobs(known)
        ratio = own - np.asarray([frozen[row.prompt_id, row.number][0] for row in known])
        tokens = np.asarray([len(row.token_ids) for row in known])
        summary["kl_to_initial"] = float(ratio.mean())
        summary["kl_error"] = float(ratio.std() / math.sqrt(len(ratio)))
        summary["entropy"] = float(-own.mean())
        summary["entropy_per_token"] = float(-own.sum() / tokens.sum())
    if (initial := _sampled_logprobs(theirs)).size:
        summary["initial_entropy"] = float(-initial.mean())
    write_json(folder / "summary.json", summary)
    return summary


def compared_by_likelihood(rows: Sequence[Response]) -> list[Response]:
    """Return the responses that the KL to the initial policy is estimated by, those whose likelihood is known.

    Some servers give no log-probabilities at temperature 1; the estimate then has fewer samples, or none.
    """
    return [row for row in rows if row.sampler_logprob is not None]


def _sampled_logprobs(rows: Sequence[Response]) -> Float64s:
    """Return what the sampler said of its responses, of those that it said it of."""
    return np.asarray([row.sampler_logprob for row in rows if row.sampler_logprob is not None], dtype=np.float64)


def _mean_lengths(rows: Sequence[Response]) -> dict[str, float]:
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row.prompt_id, []).append(len(row.text))
    return {prompt_id: float(np.mean(values)) for prompt_id, values in lengths.items()}


def _interval(values: Float64s) -> list[float]:
    return [float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))]


def write_report(folder: Path) -> None:
    """Write the page of a run from what is on disk.

    Raises:
        RunError: if a file cannot be read or written.
    """
    recipe = read_json_file(folder / "recipe.json")
    metrics = [read_json_file(path) for path in sorted(folder.glob("iteration-*/metrics.json"), key=file_order)]
    charts = [*_evaluation_charts(metrics), *_training_charts(folder), *_table_charts(metrics)]
    tables = [table for table in (_iterates(metrics), _iterations(metrics)) if table.rows]
    sections = [
        *([PageSection("How it went", figures=charts)] if charts else ()),
        PageSection("Numbers", tables=tables, small=_SMALL),
        *_answers(folder),
    ]
    page = render_page(
        f"{recipe['method']} from {recipe['policy']['source']}",
        lead=_result(metrics),
        small=_lead(recipe, metrics),
        notes=sorted({row["convergence_warning"] for row in metrics if row.get("convergence_warning")}),
        sections=sections,
    )
    write_text(folder / "report.html", page)


def _result(metrics: Sequence[_Values]) -> str:
    """Return what came of a run in a sentence or two."""
    evaluated = [row for row in metrics if row.get("evaluation")]
    if not evaluated:
        return "No prompt is held out, so nothing here says how good the policy is: name some as evaluation.prompts."
    last = evaluated[-1]
    return f"After {counted(last['iteration'], 'iteration')}, {win_rate_in_words(last['evaluation'])}"


def win_rate_in_words(evaluation: _Values) -> str:
    """Return how often an iterate wins against the initial policy, by whose judgement, and whether that is any good."""
    parts, prompts = [], 0
    judges = {"oracle": "the oracle that it was trained on", "judge": "a judge that it was not trained on"}
    for name, judge in judges.items():
        rates = evaluation.get(name) or {}
        if rates.get("win_rate") is None:
            continue
        low, high = rates["interval"]
        meant = "better" if low > 0.5 else "worse" if high < 0.5 else "not told apart from a coin"
        meant = "a hint, and no verdict" if rates["prompts"] < FEW_CLUSTERS else meant
        prompts = max(prompts, rates["prompts"])
        ends = interval({"low": low, "high": high}, scale="percent")
        parts.append(f"{percent(rates['win_rate'])} by {judge} (95 % interval {ends}: {meant})")
    if not parts:
        return "the iterate was sampled, and nobody judged it."
    mine, theirs = evaluation["iterate"]["characters"], evaluation["initial"]["characters"]
    longer = f" Its responses have {mine:,.0f} characters, at first {theirs:,.0f}." if mine and theirs else ""
    return (
        f"the policy wins against the one that it began as with probability {' and '.join(parts)}, on "
        f"{counted(prompts, 'prompt')}.{longer}"
    )


def _lead(recipe: _Values, metrics: Sequence[_Values]) -> str:
    knobs = ", ".join(
        f"{name} {value:g}" for name, value in recipe["loss"].items() if isinstance(value, float) and value
    )
    responses = "stored" if recipe["data"].get("pairs") else recipe["sampling"]["responses"]
    targets = recipe["targets"]
    # What the method is trained on: labels of pairs, or each response's own win rate.
    labelled = METHODS[recipe["method"]].needs.pairs
    learned = f"labels {targets['labels']}" if labelled else f"win rates {targets['win_rates']}"
    return (
        f"{len(metrics)} of {recipe['training']['iterations']} iterations; {knobs}; "
        f"{responses} responses a prompt; pairs {targets['pairs']}, {learned}; "
        f"reference {recipe['reference']['policy']}."
    )


def _evaluation_charts(metrics: Sequence[_Values]) -> list[Figure]:
    evaluated = [(row["iteration"], row["evaluation"]) for row in metrics if row.get("evaluation")]
    if not evaluated:
        return []
    last = evaluated[-1][1]
    charts = [_chart("win rate against the initial policy", "probability", _win_rates(evaluated), include=(0.5,))]
    # Beside the win rate: longer answers, and answers that were cut, are two ways to win that nobody wants.
    for name, title, up in (
        ("finished", "finished responses", "share"),
        ("characters", "length of responses, characters", "characters"),
        ("tokens", "length of responses, tokens", "tokens"),
    ):
        values = [(0, last["initial"][name]), *((number, row["iterate"][name]) for number, row in evaluated)]
        charts.append(_chart(title, up, {"": _known(values)}))
    divergences = [(number, row["kl_to_initial"], row["kl_error"]) for number, row in evaluated if "kl_error" in row]
    if divergences:
        bars = [(number, value, (value - 1.96 * error, value + 1.96 * error)) for number, value, error in divergences]
        charts.append(_chart("KL to the initial policy", "nats a response", {"": [(0, 0.0, None), *bars]}))
    # Of any evaluation: all have the same answers of the initial policy, and those of older runs say nothing of it.
    initial = next((row["initial_entropy"] for _, row in evaluated if "initial_entropy" in row), None)
    entropies = [(0, initial), *((number, row.get("entropy")) for number, row in evaluated)]
    charts.append(_chart("entropy", "nats a response", {"": _known(entropies)}))
    return [chart for chart in charts if chart is not None]


def _known(values: Sequence[tuple[float, float | None]]) -> _Points:
    """Return the points whose value exists."""
    return [(place, value, None) for place, value in values if value is not None]


def _win_rates(evaluated: Sequence[tuple[int, _Values]]) -> dict[str, _Points]:
    rates: dict[str, list[tuple[float, float, _Interval]]] = {}
    for name in ("oracle", "judge"):
        rows = [(number, row[name]) for number, row in evaluated if row.get(name, {}).get("win_rate") is not None]
        for title, key in ((name, ""), (f"{name}, equal lengths", "controlled")) if rows else ():
            value, interval = key or "win_rate", f"{key}_interval" if key else "interval"
            # The initial policy against itself: a coin, and no estimate.
            rates[title] = [(0, 0.5, None), *((number, row[value], tuple(row[interval])) for number, row in rows)]
    # Side by side, or error bars of the same iterate would hide each other.
    apart = 0.02 * evaluated[-1][0]
    middle = (len(rates) - 1) / 2
    return {
        title: [(place + apart * (number - middle) * (place > 0), value, interval) for place, value, interval in points]
        for number, (title, points) in enumerate(rates.items())
    }


def _training_charts(folder: Path) -> list[Figure]:
    series: dict[str, list[tuple[float, float, _Interval]]] = {}
    offset = 0.0  # steps of earlier iterations, each of which counts from 1
    for path in sorted(folder.glob("iteration-*/step-*/history.json"), key=file_order):
        history = read_json_file(path)
        for line in history:
            for name in ("loss", "chosen_log_ratio", "rejected_log_ratio", "grad_norm"):
                if name in line:
                    series.setdefault(name, []).append((offset + line["step"], line[name], None))
        offset += history[-1]["step"] if history else 0
    ratios = {name: series[f"{name}_log_ratio"] for name in ("chosen", "rejected") if f"{name}_log_ratio" in series}
    charts = [
        _chart("loss", "scaled loss of a pair", {"": series.get("loss", [])}, across=_OPTIMISER_STEP),
        _chart("log-ratio to the base", "nats a response", ratios, across=_OPTIMISER_STEP),
        _chart("norm of the gradient", "norm", {"": series.get("grad_norm", [])}, across=_OPTIMISER_STEP),
    ]
    return [chart for chart in charts if chart is not None]


def _table_charts(metrics: Sequence[_Values]) -> list[Figure]:
    titles = {"cyclic_share": ("cyclic triples (a coin: 0.25)", "share"), "rotation": ("rotation", "omega")}
    charts = [
        # An iteration samples the iterate before: what it measures first is the initial policy's.
        _chart(title, up, {"": _known([(row["iteration"] - 1, row.get(name)) for row in metrics])})
        for name, (title, up) in titles.items()
    ]
    return [chart for chart in charts if chart is not None]


def _chart(
    title: str, up: str, series: Mapping[str, _Points], *, across: str = _ITERATE, include: Sequence[float] = ()
) -> Figure | None:
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    lines = [
        Line(
            name,
            [(place, value) for place, value, _ in points],
            COLOURS[number % len(COLOURS)],
            intervals=[interval for _, _, interval in points],
        )
        for number, (name, points) in enumerate(series.items())
    ]
    chart = line_chart(lines, title=title, across=across, up=up, include=include, whole=True)
    return Figure(title[0].upper() + title[1:], chart, lines)


def _iterates(metrics: Sequence[_Values]) -> PageTable:
    head = ("iterate", "judged by", "win rate", "at equal lengths", "finished", "characters", "tokens", "KL, nats")
    rows: list[list[str]] = []
    for row in metrics:
        if not (evaluation := row.get("evaluation")):
            continue
        if not rows:
            rows.append(["0", "", "0.500", "0.500", *_lengths(evaluation["initial"]), "0"])
        divergence = _short(evaluation.get("kl_to_initial"))
        if "kl_error" in evaluation:
            divergence += f" ± {1.96 * evaluation['kl_error']:.2g}"
        for name in ("oracle", "judge"):
            if (rates := evaluation.get(name)) is not None:
                cells = [
                    _estimate(rates, "win_rate", "interval"),
                    _estimate(rates, "controlled", "controlled_interval"),
                ]
                rows.append([str(row["iteration"]), name, *cells, *_lengths(evaluation["iterate"]), divergence])
    return PageTable(head, rows, range(2, len(head)))


def _lengths(described: _Values) -> list[str]:
    return [_short(described[name]) for name in ("finished", "characters", "tokens")]


def _iterations(metrics: Sequence[_Values]) -> PageTable:
    columns = {
        "pairs": "pairs",
        "cyclic": "cyclic_share",
        "omega": "rotation",
        "finished": "sample_finished",
        "characters": "sample_characters",
        "sampling, s": "sampling_s",
        "oracle, s": "waiting_for_oracle_s",
        "all, s": "seconds",
    }
    rows = [[str(row["iteration"]), *(_short(row.get(key)) for key in columns.values())] for row in metrics]
    return PageTable(("iteration", *columns), rows, range(1, len(columns) + 1))


def _answers(folder: Path) -> list[PageSection]:
    files = sorted(folder.glob("evaluation-*/samples.parquet"), key=file_order)
    if len(files) < 2:
        return []
    first, last = read_rows(files[0], Response), read_rows(files[-1], Response)
    # By name: either evaluation may lack a group that servers did not complete.
    known = {(row.prompt_id, row.number): row.text for row in last}
    rows = [[row.prompt, row.text, known[key]] for row in first if (key := (row.prompt_id, row.number)) in known]
    head = ("prompt", "before", f"after {int(files[-1].parent.name.split('-')[1])} iterations")
    return [PageSection("Answers to held-out prompts", tables=[PageTable(head, rows[:_ANSWERS_SHOWN], texts=True)])]


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def _estimate(rates: _Values, name: str, interval: str) -> str:
    if rates.get(name) is None:
        return ""
    low, high = rates[interval]
    return f"{rates[name]:.3f} [{low:.3f}, {high:.3f}]"
