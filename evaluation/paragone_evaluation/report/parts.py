"""The sections of the page that are about judged pairs; each returns HTML, or nothing where there is nothing to say."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from paragone_evaluation.report.charts import (
    best_of_n_chart,
    interval_bar,
    length_chart,
    reliability_chart,
)
from paragone_evaluation.report.words import counted, interval, number, percent, points, verdict

__all__ = [
    "attributes_part",
    "benchmark_part",
    "calibration_part",
    "comparison_part",
    "groups_part",
    "length_part",
    "order_part",
    "strength_part",
    "subsets_part",
    "table",
]

Values = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return an HTML table.

    Args:
        head: titles of the columns, HTML.
        rows: cells, HTML.
        numbers: columns that are aligned on the right.
    """

    def cell(tag: str, place: int, text: str) -> str:
        kind = ' class="n"' if place in numbers else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    titles = "".join(cell("th", place, text) for place, text in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', place, text) for place, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _span(estimate: Values | None, *, scale: str = "number") -> str:
    return f'<span class="w">{interval(estimate, scale=scale)}</span>'


def _row(name: str, estimate: Values | None, *, scale: str = "percent", remark: str = "") -> list[str]:
    tell = {"percent": percent, "points": points, "number": number}[scale]
    value = tell(None if estimate is None else estimate["value"])
    return [name, value, _span(estimate, scale=scale), f'<span class="soft">{remark}</span>']


_HEAD = ("", "value", "95 % interval", "")


def calibration_part(chances: Values, accuracy: Values) -> str:
    """Return the part about probabilities: reliability before and after a fitted temperature, NLL, Brier, ECE."""
    before, after = chances["before"], chances["after"]
    figures = [("as it answers", before)]
    if after:
        figures.append(("after a fitted temperature", after))
    charts = "".join(
        f"<figure>{reliability_chart(side['reliability'], label=f'Reliability {title}')}<figcaption>{title}: "
        f"ECE {number(side['ece']['value'])}</figcaption></figure>"
        for title, side in figures
    )
    if after:
        folds = chances["fold_factors"]
        told = (
            f"The best temperature is {chances['temperature_factor']:.3g} times the present one. What stands under "
            f"“fitted” is honest: each pair was scaled by a temperature fitted on other clusters ({len(folds)} folds, "
            f"{min(folds):.3g} to {max(folds):.3g} times). <code>paragone calibrate</code> stores one with a model."
        )
    else:
        told = f"No temperature could be fitted: {escape(chances.get('no_temperature', 'unknown reason'))}."
    rows = []
    for name, key in (("NLL, nats", "nll"), ("Brier", "brier"), ("ECE", "ece")):
        row = [name, number(before[key]["value"]), _span(before[key])]
        row += [number(after[key]["value"]), _span(after[key])] if after else ["–", ""]
        rows.append(row)
    ties = accuracy["human_ties"]
    tied = f" The {ties} pairs that people left tied count with y = ½." if ties else ""
    return (
        "<h2>Do its probabilities mean what they say?</h2>"
        f"<p>Dots on the dashed line are right as often as the model is sure; below it, it is too sure. {told}</p>"
        f'<div class="charts">{charts}</div>'
        + table(("", "as it answers", "95 % interval", "fitted", "95 % interval"), rows, numbers=(1, 3))
        + f'<p class="soft sans"><small>ECE uses {chances["bins"]} equal-width bins over [.5, 1]. A model that always '
        f"says ½ has NLL {number(chances['uninformed_nll'])} and Brier {number(chances['uninformed_brier'])}.{tied}"
        "</small></p>"
    )


def length_part(length: Values) -> str:
    """Return the part about length bias."""
    fitted = length["models"]
    rows = [
        _row("Prefer the longer response (baseline)", length["baseline"]),
        _row("Gain of the model over it, points", length["gain"], scale="points"),
        _row("Accuracy, lengths within 15 %", length["matched"], remark=counted(length["matched_pairs"], "pair")),
        _row("Accuracy where the longer one is right", length["when_longer_is_right"]),
        _row("Accuracy where the shorter one is right", length["when_shorter_is_right"]),
        ["Average of these two", percent(length["balanced"]), "", ""],
        _row("Model prefers the longer one", length["model_prefers_longer"]),
        _row("People prefer the longer one", length["human_prefers_longer"]),
        _row("Bias: model minus people, points", length["bias"], scale="points"),
    ]
    if length["score_length_spearman"] is not None:
        remark = f"mean over {counted(length['score_length_prompts'], 'prompt')}"
        rows.append(["Spearman of score and length", number(length["score_length_spearman"]), "", remark])
    remark = f"nats a pair; length alone {number(fitted['nll_length'])}, both {number(fitted['nll_both'])}"
    rows.append(["What the score adds to length", number(fitted["gain"]), "", f'<span class="soft">{remark}</span>'])
    chart = ""
    if len(length["curve"]) > 1:
        chart = (
            f"<figure>{length_chart(length['curve'])}<figcaption class='key'>How often the longer one wins: "
            "<i class='m'>model</i>, <i class='h'>people</i>.</figcaption></figure>"
        )
    return (
        "<h2>Is it more than length?</h2><p>A model that knows nothing but length is the thing to beat. Where the "
        "model’s curve lies above that of people, it prefers long responses more than they do.</p>"
        f'<div class="charts">{chart}</div>{table(_HEAD, rows, numbers=(1,))}'
    )


def strength_part(strength: Values | None) -> str:
    """Return the part about the strength of preferences."""
    if not strength:
        return ""
    rows = [
        [
            f"{level['strength']:g}" if level["strength"] else "0 (tie)",
            str(level["count"]),
            percent(level["accuracy"]),
            number(level["mean_logit"], digits=2),
        ]
        for level in strength["levels"]
    ]
    told = (
        f"Spearman of logit and signed strength {number(strength['spearman']['value'])} "
        f"({interval(strength['spearman'])}), Pearson {number(strength['pearson']['value'])} "
        f"({interval(strength['pearson'])}); AUC of |logit| for strong against slight preferences "
        f"{number(strength['auc_strong']['value'])} ({interval(strength['auc_strong'])})."
    )
    head = ("|strength|", "pairs", "accuracy", "mean logit of the preferred")
    return (
        "<h2>Is it surer where people are?</h2>"
        f"<p>Accuracy and the mean logit should rise with how strongly people preferred. {told}</p>"
        + table(head, rows, numbers=(1, 2, 3))
    )


def order_part(position: Values | None, cycles: Values | None, kind: str) -> str:
    """Return the part about cycles and position bias."""
    rows = []
    if cycles:
        for side, name in (("human", "People"), ("model", "The model")):
            found = cycles[side]
            rows.append([name, str(found["closed"]), str(found["cyclic"]), percent(found["rate"])])
    parts = []
    if rows:
        why = " A scalar kind cannot have any." if kind in ("bradley-terry", "regression", "helpsteer") else ""
        parts.append(
            "<h2>Do preferences run in circles?</h2><p>Triples of responses whose three comparisons are all decided: "
            f"a ≻ b ≻ c ≻ a is a cycle. Some human cycles are noise.{why}</p>"
            + table(("", "triads", "cyclic", "rate"), rows, numbers=(1, 2, 3))
        )
    if position:
        told = [
            _row("Same choice when swapped", position["swap_consistency"]),
            _row("Wins of the first place minus ½, points", position["first_win_excess"], scale="points"),
            _row("Mean |p(a, b) + p(b, a) − 1|", position["asymmetry"], scale="number"),
        ]
        parts.append("<h2>Does the order of the responses matter?</h2>" + table(_HEAD, told, numbers=(1,)))
    return "".join(parts)


def groups_part(groups: Values | None) -> str:
    """Return the part about groups of responses and best-of-n."""
    parts = []
    if groups:
        rows = [
            _row("Kendall τ-b", groups["tau"], scale="number", remark=counted(groups["tau_groups"], "group")),
            _row("Its favourite is one of people’s", groups["top_one"]),
            _row("… at random", groups["chance"]),
            _row("Regret: best minus chosen human score", groups["regret"], scale="number"),
            _row("… at random", groups["random_regret"], scale="number"),
            _row(
                "Kendall ζ (1 is free of cycles)",
                groups["zeta"],
                scale="number",
                remark=counted(groups["zeta_groups"], "group"),
            ),
        ]
        curve = groups["best_of_n"]
        chart = (
            f"<figure>{best_of_n_chart(curve)}<figcaption class='key'>Human score of the best of n: chosen by the "
            f"<i class='m'>model</i>, by <i class='h'>people</i>, at random (dashed). Best of {curve['n'][-1]} moves a "
            f"policy by about {curve['kl'][-1]:.2f} nats.</figcaption></figure>"
        )
        parts.append(
            f"<h2>Can it pick the best?</h2><p>{counted(groups['groups'], 'group')} of responses that people "
            "scored.</p>"
            f'<div class="charts">{chart}</div>{table(_HEAD, rows, numbers=(1,))}'
        )
    return "".join(parts)


def attributes_part(attributes: Sequence[Values]) -> str:
    """Return the part about rated attributes."""
    if not attributes:
        return ""

    def both(estimate: Values) -> str:
        return f'{number(estimate["value"])}<br><small class="soft w">{interval(estimate)}</small>'

    rows = [
        [
            escape(row["name"]),
            str(row["responses"]),
            both(row["root_mean_squared_error"]),
            number(row["spread"]),
            both(row["determination"]),
            both(row["pearson"]),
            both(row["spearman"]),
        ]
        for row in attributes
    ]
    head = ("attribute", "rated", "RMSE", "of the mean", "R²", "Pearson", "Spearman")
    return (
        "<h2>Does it rate as people rate?</h2><p>RMSE is in the unit of the ratings; “of the mean” is that of always "
        "saying the mean of these ratings, which has R² 0. 95 % intervals stand under the values.</p>"
        + table(head, rows, numbers=(1, 2, 3, 4, 5, 6))
    )


def benchmark_part(benchmark: Values | None) -> str:
    """Return the part with a published benchmark's own scores."""
    if not benchmark:
        return ""
    rows = [
        [escape(name), percent(score["value"], digits=2), _span(score, scale="percent"), interval_bar(score)]
        for name, score in benchmark["scores"].items()
    ]
    parts = [f"<h2>{escape(benchmark['name'])}</h2>", table(("", "score", "95 % interval", ""), rows, numbers=(1,))]
    if "ties" in benchmark:
        ties = [[escape(name.replace("_", " ")), number(value)] for name, value in benchmark["ties"].items()]
        parts.append("<p>The Ties score and its parts:</p>" + table(("", ""), ties, numbers=(1,)))
    return "".join(parts)


def comparison_part(comparison: Values | None, name: str, settings: Values) -> str:
    """Return the part about the paired comparison with another model."""
    if not comparison:
        return ""
    other = comparison["model"]
    rows = [
        _row(f"Accuracy of {escape(name)}", comparison["accuracy"]),
        _row(f"Accuracy of {escape(other['name'])}", comparison["accuracy_against"]),
        _row("Difference, points", comparison["accuracy_difference"], scale="points"),
        _row("Difference in NLL (below 0 is better)", comparison["nll_difference"], scale="number"),
        _row("Difference in Brier (below 0 is better)", comparison["brier_difference"], scale="number"),
        ["Same choice", percent(comparison["agreement"]), "", ""],
        [f"Only {escape(name)} is right", str(comparison["only_first_right"]), "", "pairs"],
        [f"Only {escape(other['name'])} is right", str(comparison["only_second_right"]), "", "pairs"],
    ]
    return (
        f"<h2>Against {escape(other['name'])}</h2><p>{escape(verdict(comparison, name, settings))} "
        f"The same {comparison['pairs']} pairs and the same "
        f"resamples for both; fingerprint of the other <code>{escape(other['fingerprint'])}</code>.</p>"
        + table(_HEAD, rows, numbers=(1,))
    )


def subsets_part(rows: Sequence[Values], level: float | None) -> str:
    """Return the table of subsets."""
    if not rows:
        return ""
    cells = [
        [
            escape(row["name"]),
            str(row["pairs"]),
            percent(row["accuracy"]["value"]),
            _span(row["accuracy"], scale="percent"),
            interval_bar(row["accuracy"], reference=row["length_baseline"]),
            percent(row["length_baseline"]),
            number(row["nll"]["value"]),
            _span(row["nll"]),
        ]
        for row in rows
    ]
    head = ("subset", "pairs", "accuracy", "95 % interval", "", "longer wins", "NLL", "95 % interval")
    overall = f' Overall <span class="w">{percent(level)}</span>.' if level is not None else ""
    return (
        "<h2>Where is it good, and where not?</h2><p class='key'>The dot is the <i class='m'>model</i>, the tick the "
        f"length-only <i class='h'>baseline</i>. A subset within one cluster has no interval; "
        "one that is all right, or all wrong, has an accuracy interval of width 0, for no resample can find another "
        f"answer in it.{overall}</p>" + table(head, cells, numbers=(1, 2, 5, 6))
    )
