"""report.html of a run: one page with plots, no scripts, no downloads."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paragone_training.policy.rows.files import read_json, write_text

__all__ = ["write_report"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 200, 56, 26, 26
_COLOURS = ("#2457a6", "#b5521b", "#3b7d3b", "#7a4b9d")

Points = Sequence[tuple[float, float]]


def write_report(folder: Path) -> None:
    """Write the page of a run from what is on disk.

    Args:
        folder: of the run.

    Raises:
        RunError: if a file cannot be read or written.
    """
    recipe = read_json(folder / "recipe.json")
    metrics = [read_json(path) for path in sorted(folder.glob("iteration-*/metrics.json"))]
    plots = _evaluation_plots(metrics) + _training_plots(folder) + _table_plots(metrics)
    title = f"{recipe['method']} from {recipe['policy']['source']}"
    warnings = sorted({row["convergence_warning"] for row in metrics if row.get("convergence_warning")})
    body = [f"<h1>{html.escape(title)}</h1>", _summary(recipe, metrics)]
    body += [f'<p class="warning">{html.escape(text)}</p>' for text in warnings]
    body += ['<div class="plots">', *plots, "</div>", _numbers(metrics), _samples(folder)]
    write_text(folder / "report.html", _PAGE.format(title=html.escape(title), body="\n".join(body)))


def _summary(recipe: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> str:
    knobs = ", ".join(
        f"{name} {value:g}" for name, value in recipe["loss"].items() if isinstance(value, float) and value
    )
    text = f"{len(metrics)} of {recipe['training']['iterations']} iterations; {knobs}; "
    text += f"{recipe['sampling']['responses']} responses a prompt; pairs {recipe['targets']['pairs']}, "
    text += f"labels {recipe['targets']['labels']}; reference {recipe['reference']['policy']}."
    return f"<p>{html.escape(text)}</p>"


def _evaluation_plots(metrics: Sequence[dict[str, Any]]) -> list[str]:
    evaluated = [(row["iteration"], row["evaluation"]) for row in metrics if row.get("evaluation")]
    if not evaluated:
        return []
    series: dict[str, Points] = {}
    for name in ("oracle", "judge"):
        rows = [(number, found[name]) for number, found in evaluated if found.get(name, {}).get("win_rate") is not None]
        if rows:
            series[f"{name}"] = [(0, 0.5), *((number, row["win_rate"]) for number, row in rows)]
            series[f"{name}, lengths alike"] = [(0, 0.5), *((number, row["controlled"]) for number, row in rows)]
    first = evaluated[0][1]["initial"]
    plots = [_plot("win rate against the initial policy", series, zero=0.5)]
    for name, title in (("tokens", "tokens a response"), ("characters", "characters a response")):
        points = [(0, first[name]), *((number, found["iterate"][name]) for number, found in evaluated)]
        plots.append(_plot(title, {"": points}))
    for name, title in (("kl_to_initial", "KL to the initial policy, nats"), ("entropy", "entropy, nats a response")):
        points = [(number, found[name]) for number, found in evaluated if name in found]
        if points:
            plots.append(_plot(title, {"": [(0, 0.0), *points] if name == "kl_to_initial" else points}))
    return plots


def _training_plots(folder: Path) -> list[str]:
    steps = [(path.parent, read_json(path)) for path in sorted(folder.glob("iteration-*/step-*/history.json"))]
    found: dict[str, list[tuple[float, float]]] = {}
    offset = 0.0
    for _, history in steps:
        for line in history:
            for name in ("loss", "chosen_log_ratio", "rejected_log_ratio", "grad_norm"):
                if name in line:
                    found.setdefault(name, []).append((offset + line["step"], line[name]))
        offset += history[-1]["step"] if history else 0
    plots = []
    if "loss" in found:
        plots.append(_plot("scaled loss, by optimiser step", {"": found["loss"]}))
    ratios = {name: found[name] for name in ("chosen_log_ratio", "rejected_log_ratio") if name in found}
    if ratios:
        names = {name.removesuffix("_log_ratio"): points for name, points in ratios.items()}
        plots.append(_plot("log-ratio to the base, nats", names))
    if "grad_norm" in found:
        plots.append(_plot("norm of the gradient", {"": found["grad_norm"]}))
    return plots


def _table_plots(metrics: Sequence[dict[str, Any]]) -> list[str]:
    plots = []
    for name, title in (("cyclic_share", "share of cyclic triples (a coin: 0.25)"), ("rotation", "rotation omega")):
        points = [(row["iteration"], row[name]) for row in metrics if row.get(name) is not None]
        if points:
            plots.append(_plot(title, {"": points}))
    return plots


def _plot(title: str, series: Mapping[str, Points], *, zero: float | None = None) -> str:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points] + ([] if zero is None else [zero])
    if not xs:
        return ""
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.08 or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - 12)
        return f"{across:.1f},{_TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = [f'<text x="{_LEFT}" y="15" class="title">{html.escape(title)}</text>']
    for value in (low + margin, (low + high) / 2, high - margin):
        height = place(left, value).split(",")[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{height}" y2="{height}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{height}" class="y">{value:.3g}</text>')
    for value in (left, right):
        across = place(value, low).split(",")[0]
        parts.append(f'<text x="{across}" y="{_HEIGHT - 8}" class="x">{value:g}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) <= 30:
            for x, y in points:
                across, down = place(x, y).split(",")
                parts.append(f'<circle cx="{across}" cy="{down}" r="2.6" fill="{colour}"/>')
        if name:
            parts.append(
                f'<text x="{_LEFT + 6}" y="{_TOP + 12 + 13 * number}" fill="{colour}">{html.escape(name)}</text>'
            )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def _numbers(metrics: Sequence[dict[str, Any]]) -> str:
    head = ("iteration", "pairs", "cyclic", "omega", "oracle: win rate", "lengths alike", "judge: win rate",
            "lengths alike", "characters", "KL", "sampling s", "waiting s", "all s")  # fmt: skip
    rows = []
    for row in metrics:
        found = row.get("evaluation") or {}
        cells = [
            str(row["iteration"]),
            str(row.get("pairs", "")),
            _short(row.get("cyclic_share")),
            _short(row.get("rotation")),
        ]
        for name in ("oracle", "judge"):
            rates = found.get(name) or {}
            cells += [_estimate(rates, "win_rate", "interval"), _estimate(rates, "controlled", "controlled_interval")]
        cells += [_short(found.get("iterate", {}).get("characters")), _short(found.get("kl_to_initial"))]
        cells += [_short(row.get(name)) for name in ("sampling_s", "waiting_for_oracle_s", "seconds")]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    titles = "".join(f"<th>{name}</th>" for name in head)
    return f"<h2>Numbers</h2><table><tr>{titles}</tr>{''.join(rows)}</table>"


def _samples(folder: Path) -> str:
    from paragone_training.policy.rounds import read_responses

    files = sorted(folder.glob("evaluation-*/samples.parquet"))
    if len(files) < 2:
        return ""
    first, last = read_responses(files[0]), read_responses(files[-1])
    parts = [f"<h2>Answers to held-out prompts</h2><p>before, and after {files[-1].parent.name[-2:]} iterations</p>"]
    for before, after in list(zip(first, last, strict=True))[:8]:
        parts.append(f"<h3>{html.escape(before.prompt)}</h3><div class='pair'>")
        parts.append(f"<p>{html.escape(before.text)}</p><p>{html.escape(after.text)}</p></div>")
    return "".join(parts)


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def _estimate(rates: dict[str, Any], name: str, interval: str) -> str:
    if rates.get(name) is None:
        return ""
    low, high = rates[interval]
    return f"{rates[name]:.3f} [{low:.3f}, {high:.3f}]"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1320px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 12px }}
svg {{ width: 100%; border: 1px solid #ddd; border-radius: 4px; font-size: 11px }}
.title {{ font-weight: 600; font-size: 12px }} .grid {{ stroke: #e5e5e5 }}
.y {{ text-anchor: end; dominant-baseline: middle; fill: #666 }} .x {{ text-anchor: middle; fill: #666 }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
.warning {{ background: #fff3cd; padding: 8px 12px; border-radius: 4px }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 24px }} .pair p {{ margin: 0; white-space: pre-wrap }}
h3 {{ font-size: 14px; margin-bottom: 4px }}
</style>
{body}
</html>
"""
