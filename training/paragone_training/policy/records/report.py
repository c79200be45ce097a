"""report.html of a run: what the run has measured so far, read again from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paragone_evaluation.report.charts import COLOURS, Line, line_chart
from paragone_evaluation.report.page import Figure, PageSection, PageTable, render_page
from paragone_training.policy.rows.folder import read_json_file, write_text
from paragone_training.policy.rows.rows import read_responses

__all__ = ["write_report"]

_ANSWERS = 8

_Points = Sequence[tuple[float, float]]
_Values = dict[str, Any]


def write_report(folder: Path) -> None:
    """Write the page of a run from what is on disk.

    Raises:
        RunError: if a file cannot be read or written.
    """
    recipe = read_json_file(folder / "recipe.json")
    metrics = [read_json_file(path) for path in sorted(folder.glob("iteration-*/metrics.json"))]
    charts = [*_evaluation_charts(metrics), *_training_charts(folder), *_table_charts(metrics)]
    sections = [
        *([PageSection("How it went", figures=charts)] if charts else ()),
        PageSection("Numbers", tables=[_numbers(metrics)]),
        *_answers(folder),
    ]
    page = render_page(
        f"{recipe['method']} from {recipe['policy']['source']}",
        lead=_lead(recipe, metrics),
        notes=sorted({row["convergence_warning"] for row in metrics if row.get("convergence_warning")}),
        sections=sections,
    )
    write_text(folder / "report.html", page)


def _lead(recipe: _Values, metrics: Sequence[_Values]) -> str:
    knobs = ", ".join(
        f"{name} {value:g}" for name, value in recipe["loss"].items() if isinstance(value, float) and value
    )
    return (
        f"{len(metrics)} of {recipe['training']['iterations']} iterations; {knobs}; "
        f"{recipe['sampling']['responses']} responses a prompt; pairs {recipe['targets']['pairs']}, "
        f"labels {recipe['targets']['labels']}; reference {recipe['reference']['policy']}."
    )


def _evaluation_charts(metrics: Sequence[_Values]) -> list[Figure]:
    evaluated = [(row["iteration"], row["evaluation"]) for row in metrics if row.get("evaluation")]
    if not evaluated:
        return []
    charts = [_chart("win rate against the initial policy", _win_rates(evaluated), include=(0.5,))]
    first = evaluated[0][1]["initial"]
    for name, title in (("tokens", "tokens a response"), ("characters", "characters a response")):
        charts.append(_chart(title, {"": [(0, first[name]), *((n, row["iterate"][name]) for n, row in evaluated)]}))
    for name, title in (("kl_to_initial", "KL to the initial policy, nats"), ("entropy", "entropy, nats a response")):
        points = [(number, row[name]) for number, row in evaluated if name in row]
        if points:
            charts.append(_chart(title, {"": [(0, 0.0), *points] if name == "kl_to_initial" else points}))
    return [chart for chart in charts if chart is not None]


def _win_rates(evaluated: Sequence[tuple[int, _Values]]) -> dict[str, _Points]:
    rates: dict[str, _Points] = {}
    for name in ("oracle", "judge"):
        rows = [(number, row[name]) for number, row in evaluated if row.get(name, {}).get("win_rate") is not None]
        if rows:
            # The initial policy against itself: a coin.
            rates[name] = [(0, 0.5), *((number, row["win_rate"]) for number, row in rows)]
            rates[f"{name}, lengths alike"] = [(0, 0.5), *((number, row["controlled"]) for number, row in rows)]
    return rates


def _training_charts(folder: Path) -> list[Figure]:
    series: dict[str, list[tuple[float, float]]] = {}
    offset = 0.0  # steps of earlier iterations, each of which counts from 1
    for path in sorted(folder.glob("iteration-*/step-*/history.json")):
        history = read_json_file(path)
        for line in history:
            for name in ("loss", "chosen_log_ratio", "rejected_log_ratio", "grad_norm"):
                if name in line:
                    series.setdefault(name, []).append((offset + line["step"], line[name]))
        offset += history[-1]["step"] if history else 0
    ratios = {name: series[f"{name}_log_ratio"] for name in ("chosen", "rejected") if f"{name}_log_ratio" in series}
    charts = [
        _chart("scaled loss, by optimiser step", {"": series.get("loss", [])}, across="optimiser step"),
        _chart("log-ratio to the base, nats", ratios, across="optimiser step"),
        _chart("norm of the gradient", {"": series.get("grad_norm", [])}, across="optimiser step"),
    ]
    return [chart for chart in charts if chart is not None]


def _table_charts(metrics: Sequence[_Values]) -> list[Figure]:
    titles = {"cyclic_share": "share of cyclic triples (a coin: 0.25)", "rotation": "rotation omega"}
    charts = [
        _chart(title, {"": [(row["iteration"], row[name]) for row in metrics if row.get(name) is not None]})
        for name, title in titles.items()
    ]
    return [chart for chart in charts if chart is not None]


def _chart(
    title: str, series: Mapping[str, _Points], *, across: str = "iteration", include: Sequence[float] = ()
) -> Figure | None:
    if not any(series.values()):
        return None
    lines = [Line(name, points, COLOURS[number % len(COLOURS)]) for number, (name, points) in enumerate(series.items())]
    chart = line_chart(lines, title=title, across=across, include=include, whole=True)
    return Figure(title[0].upper() + title[1:], chart, lines)


def _numbers(metrics: Sequence[_Values]) -> PageTable:
    head = ("iteration", "pairs", "cyclic", "omega", "oracle: win rate", "lengths alike", "judge: win rate",
            "lengths alike", "characters", "KL", "sampling s", "waiting s", "all s")  # fmt: skip
    rows = []
    for row in metrics:
        evaluation = row.get("evaluation") or {}
        cells = [
            str(row["iteration"]),
            str(row.get("pairs", "")),
            _short(row.get("cyclic_share")),
            _short(row.get("rotation")),
        ]
        for name in ("oracle", "judge"):
            rates = evaluation.get(name) or {}
            cells += [_estimate(rates, "win_rate", "interval"), _estimate(rates, "controlled", "controlled_interval")]
        cells += [_short(evaluation.get("iterate", {}).get("characters")), _short(evaluation.get("kl_to_initial"))]
        cells += [_short(row.get(name)) for name in ("sampling_s", "waiting_for_oracle_s", "seconds")]
        rows.append(cells)
    return PageTable(head, rows, range(1, len(head)))


def _answers(folder: Path) -> list[PageSection]:
    files = sorted(folder.glob("evaluation-*/samples.parquet"))
    if len(files) < 2:
        return []
    first, last = read_responses(files[0]), read_responses(files[-1])
    rows = [[before.prompt, before.text, after.text] for before, after in zip(first, last, strict=True)]
    head = ("prompt", "before", f"after {int(files[-1].parent.name[-2:])} iterations")
    return [PageSection("Answers to held-out prompts", tables=[PageTable(head, rows[:_ANSWERS], texts=True)])]


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def _estimate(rates: _Values, name: str, interval: str) -> str:
    if rates.get(name) is None:
        return ""
    low, high = rates[interval]
    return f"{rates[name]:.3f} [{low:.3f}, {high:.3f}]"
