"""The page of an evaluation: what ``results.json`` holds, for people, section by section.

Each function returns one section, or None where the file has nothing to say about it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, interval_bar, render_page, unbroken
from paragone_evaluation.report.words import counted, estimate_row, interval, lines, number, percent, points
from paragone_evaluation.results_table import verdict

__all__ = ["page_of_results"]

_Values = Mapping[str, Any]

_HEAD = ("", "value", "95 % interval", "")
_MOST_CARDS = 4


def page_of_results(results: _Values) -> str:
    """Return the report as HTML."""
    data, model, measures, settings = (results[name] for name in ("data", "model", "measures", "settings"))
    preferences = bool(measures["accuracy"])
    sections = [
        _benchmark(measures["benchmark"]),
        _comparison(results["comparison"], model["name"], settings),
        *(
            (_calibration(measures), _length(measures["length"]), _strength(measures["strength"]))
            if preferences
            else ()
        ),
        _groups(measures["groups"]),
        _attributes(measures["attributes"]),
        _cycles(measures["transitivity"], scalar=model["scalar"]),
        _position(measures["position"]),
        _subsets(measures["subsets"], measures["accuracy"]["strict"]["value"]) if preferences else None,
        _left_out(results["left_out"]),
        _provenance(results),
    ]
    clusters = counted(settings["clusters"], settings["cluster"])
    lead = (
        f"A {model['kind']} model on {data['path'].replace(chr(92), '/').rsplit('/', 1)[-1]}"
        f"{', split ' + data['split'] if data['split'] else ''}: "
        f"{counted(data['answered'], 'judged pair') + ', ' if preferences else ''}"
        f"{counted(data['responses'], 'response')} to {counted(data['prompts'], 'prompt')}. "
    )
    if settings["clusters"] == 1:
        lead += f"From {clusters} there are no intervals."
    else:
        lead += f"Intervals are 95 % bootstrap intervals over {clusters}."
    ties = ""
    if preferences and measures["accuracy"]["model_ties"]:
        accuracy = measures["accuracy"]
        ties = (
            f"{accuracy['model_ties']} ties of the model: accuracy with ties worth ½ "
            f"{percent(accuracy['half_credit']['value'])}, dropped {percent(accuracy['dropped']['value'])}."
        )
    return render_page(
        f"How well does {model['name']} agree with people?",
        lead=lead,
        cards=_cards(measures) if preferences else _rating_cards(measures["attributes"]),
        small=ties,
        notes=results["notes"],
        sections=[section for section in sections if section is not None],
    )


def _cards(measures: _Values) -> list[Card]:
    accuracy, length, before = measures["accuracy"], measures["length"], measures["probabilities"]["before"]
    after = measures["probabilities"]["after"]
    fitted = f"{number(after['ece']['value'])} with a fitted temperature" if after else "no temperature could be fitted"
    uninformed = number(measures["probabilities"]["uninformed_nll"])
    return [
        Card(
            "Accuracy",
            percent(accuracy["strict"]["value"]),
            interval(accuracy["strict"], scale="percent"),
            f"of {counted(accuracy['decided'], 'decided pair')}; a tie of the model is wrong",
        ),
        Card(
            "Gain over length",
            points(length["gain"]["value"]),
            interval(length["gain"], scale="points"),
            f"points; “the longer one” alone has {percent(length['baseline']['value'])}",
        ),
        Card("Calibration error", number(before["ece"]["value"]), interval(before["ece"]), fitted),
        Card(
            "NLL",
            number(before["nll"]["value"]),
            interval(before["nll"]),
            f"nats a pair; always saying ½ has {uninformed}",
        ),
    ]


def _rating_cards(rows: Sequence[_Values]) -> list[Card]:
    remark = "ratings; always saying their mean has 0"
    return [
        Card(
            f"{row['name']}: R²",
            number(row["determination"]["value"]),
            interval(row["determination"]),
            f"{row['responses']} {remark}",
        )
        for row in rows[:_MOST_CARDS]
    ]


def _row(name: str, estimate: _Values | None, *, scale: str = "percent", remark: str = "") -> list[str]:
    name, value, span, remark = estimate_row(name, estimate, remark, scale=scale)
    return [name, value, unbroken(span), remark]


def _calibration(measures: _Values) -> PageSection:
    chances, ties = measures["probabilities"], measures["accuracy"]["human_ties"]
    before, after = chances["before"], chances["after"]
    figures = [_reliability("As it answers", before)]
    if after:
        figures.append(_reliability("After a fitted temperature", after))
        folds = chances["fold_factors"]
        remark = (
            f"The best temperature is {chances['temperature_factor']:.3g} times the present one. What stands under "
            f"“fitted” is honest: each pair was scaled by a temperature fitted on other clusters ({len(folds)} folds, "
            f"{min(folds):.3g} to {max(folds):.3g} times). “paragone calibrate” stores one with a model."
        )
    else:
        remark = f"No temperature could be fitted: {chances.get('no_temperature', 'unknown reason')}."
    rows = []
    for name, key in (("NLL, nats", "nll"), ("Brier", "brier"), ("ECE", "ece")):
        row = [name, number(before[key]["value"]), unbroken(interval(before[key]))]
        rows.append([*row, *((number(after[key]["value"]), unbroken(interval(after[key]))) if after else ("–", ""))])
    tied = f" The {ties} pairs that people left tied count with y = ½." if ties else ""
    return PageSection(
        "Do its probabilities mean what they say?",
        f"Dots on the dashed line are right as often as the model is sure; below it, it is too sure. {remark}",
        figures=figures,
        tables=[PageTable(("", "as it answers", "95 % interval", "fitted", "95 % interval"), rows, (1, 3))],
        small=f"ECE uses {chances['bins']} equal-width bins over [.5, 1]. A model that always says ½ has NLL "
        f"{number(chances['uninformed_nll'])} and Brier {number(chances['uninformed_brier'])}.{tied}",
    )


def _reliability(title: str, side: _Values) -> Figure:
    table = side["reliability"]
    bins = [row for row in zip(table["count"], table["confidence"], table["accuracy"], strict=True) if row[0]]
    most = max((count for count, *_ in bins), default=1)
    model = Line(
        "model",
        [(100 * sure, 100 * right) for _, sure, right in bins],
        areas=[count / most for count, *_ in bins],
        remarks=[f"{count} pairs: {100 * sure:.1f} % sure, {100 * right:.1f} % right" for count, sure, right in bins],
    )
    ideal = Line("calibrated", [(50, 50), (100, 100)], "soft", dashed=True)
    chart = line_chart(
        [model, ideal],
        title=f"Reliability {title.lower()}",
        across="confidence of the choice, %",
        up="right, %",
        include=(40, 100),
        to=[(100 * sure, 100 * sure) for _, sure, _ in bins],
    )
    remark = f"ECE {number(side['ece']['value'])}. The larger a dot, the more pairs."
    return Figure(title, chart, [model, ideal], remark)


def _length(length: _Values) -> PageSection:
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
    rows.append(["What the score adds to length", number(fitted["gain"]), "", remark])
    figures, curve = [], length["curve"]
    if len(curve) > 1:
        sides = [
            Line(
                name,
                [(place, 100 * point[key]) for place, point in enumerate(curve)],
                colour,
                remarks=[f"{point['count']:.0f} pairs: {100 * point[key]:.1f} %" for point in curve],
            )
            for name, key, colour in (("model", "model", "line-1"), ("people", "human", "line-2"))
        ]
        chart = line_chart(
            [*sides, Line("", [(0, 50), (len(curve) - 1, 50)], "soft", dashed=True)],
            title="Share of pairs in which the longer response is preferred, by length ratio",
            across="the longer one is so many times longer",
            up="longer one preferred, %",
            include=(40, 60),
            ticks={place: f"{point['ratio']:.3g}×" for place, point in enumerate(curve)},
        )
        figures.append(Figure("How often the longer one wins", chart, sides))
    return PageSection(
        "Is it more than length?",
        "A model that knows nothing but length is the thing to beat. Where the model’s curve lies above that of "
        "people, it prefers long responses more than they do.",
        figures=figures,
        tables=[PageTable(_HEAD, rows, (1,))],
    )


def _strength(strength: _Values | None) -> PageSection | None:
    if not strength:
        return None
    rows = [
        [
            f"{level['strength']:g}" if level["strength"] else "0 (tie)",
            str(level["count"]),
            percent(level["accuracy"]),
            number(level["mean_logit"], digits=2),
        ]
        for level in strength["levels"]
    ]
    spearman, pearson, auc = (
        f"{number(strength[name]['value'])} ({interval(strength[name])})"
        for name in ("spearman", "pearson", "auc_strong")
    )
    return PageSection(
        "Is it surer where people are?",
        "Accuracy and the mean logit should rise with how strongly people preferred. Spearman of logit and signed "
        f"strength {spearman}, Pearson {pearson}; AUC of |logit| for strong against slight preferences {auc}.",
        tables=[PageTable(("|strength|", "pairs", "accuracy", "mean logit of the preferred"), rows, (1, 2, 3))],
    )


def _cycles(cycles: _Values | None, *, scalar: bool) -> PageSection | None:
    if not cycles:
        return None
    rows = [
        [name, str(cycles[side]["closed"]), str(cycles[side]["cyclic"]), percent(cycles[side]["rate"])]
        for side, name in (("human", "People"), ("model", "The model"))
    ]
    impossible = " A scalar kind cannot have any." if scalar else ""
    return PageSection(
        "Do preferences run in circles?",
        "Triples of responses whose three comparisons are all decided: a ≻ b ≻ c ≻ a is a cycle. Some human cycles are "
        f"noise.{impossible}",
        tables=[PageTable(("", "triads", "cyclic", "rate"), rows, (1, 2, 3))],
    )


def _position(position: _Values | None) -> PageSection | None:
    if not position:
        return None
    rows = [
        _row("Same choice when swapped", position["swap_consistency"]),
        _row("Wins of the first place minus ½, points", position["first_win_excess"], scale="points"),
        _row("Mean |p(a, b) + p(b, a) − 1|", position["asymmetry"], scale="number"),
    ]
    return PageSection("Does the order of the responses matter?", tables=[PageTable(_HEAD, rows, (1,))])


def _groups(groups: _Values | None) -> PageSection | None:
    if not groups:
        return None
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
    choices = [
        Line(name, list(zip(curve["n"], curve[name], strict=True)), colour, dashed=name == "random")
        for name, colour in (("model", "line-1"), ("people", "line-2"), ("random", "soft"))
    ]
    chart = line_chart(
        choices,
        title="Expected human score of best-of-n by the model, by people and at random",
        across="best of n",
        up="human score of the choice",
        whole=True,
    )
    remark = f"Best of {curve['n'][-1]} moves a policy by about {curve['kl'][-1]:.2f} nats."
    return PageSection(
        "Can it pick the best?",
        f"{counted(groups['groups'], 'group')} of responses that people scored.",
        figures=[Figure("Human score of the best of n", chart, choices, remark)],
        tables=[PageTable(_HEAD, rows, (1,))],
    )


def _attributes(rows: Sequence[_Values]) -> PageSection | None:
    if not rows:
        return None
    cells = [
        [
            row["name"],
            str(row["responses"]),
            number(row["spread"]),
            *(
                cell
                for name in ("root_mean_squared_error", "determination", "pearson", "spearman")
                for cell in (number(row[name]["value"]), unbroken(interval(row[name])))
            ),
        ]
        for row in rows
    ]
    head = ["attribute", "rated", "RMSE of the mean"]
    head += [cell for name in ("RMSE", "R²", "Pearson", "Spearman") for cell in (name, "95 % interval")]
    return PageSection(
        "Does it rate as people rate?",
        "RMSE is in the unit of the ratings; “of the mean” is that of always saying the mean of these ratings, which "
        "has R² 0.",
        tables=[PageTable(head, cells, (1, 2, 3, 5, 7, 9))],
    )


def _benchmark(benchmark: _Values | None) -> PageSection | None:
    if not benchmark:
        return None
    rows = [
        [
            name,
            percent(score["value"], digits=2),
            unbroken(interval(score, scale="percent")),
            interval_bar(score["value"], score["low"], score["high"]),
        ]
        for name, score in benchmark["scores"].items()
    ]
    tables = [PageTable(("", "score", "95 % interval", ""), rows, (1,))]
    if "ties" in benchmark:
        ties = [[name.replace("_", " "), number(value)] for name, value in benchmark["ties"].items()]
        tables.append(PageTable(("the Ties score and its parts", ""), ties, (1,)))
    return PageSection(benchmark["name"], tables=tables)


def _comparison(comparison: _Values | None, name: str, settings: _Values) -> PageSection | None:
    if not comparison:
        return None
    other = comparison["model"]["name"]
    rows = [
        _row(f"Accuracy of {name}", comparison["accuracy"]),
        _row(f"Accuracy of {other}", comparison["accuracy_against"]),
        _row("Difference, points", comparison["accuracy_difference"], scale="points"),
        _row("Difference in NLL (below 0 is better)", comparison["nll_difference"], scale="number"),
        _row("Difference in Brier (below 0 is better)", comparison["brier_difference"], scale="number"),
        ["Same choice", percent(comparison["agreement"]), "", ""],
        [f"Only {name} is right", str(comparison["only_first_right"]), "", "pairs"],
        [f"Only {other} is right", str(comparison["only_second_right"]), "", "pairs"],
    ]
    return PageSection(
        f"Against {other}",
        f"{verdict(comparison, name, settings)} The same {comparison['pairs']} pairs and the same resamples for both; "
        f"fingerprint of the other {comparison['model']['fingerprint']}.",
        tables=[PageTable(_HEAD, rows, (1,))],
    )


def _subsets(rows: Sequence[_Values], level: float | None) -> PageSection | None:
    if not rows:
        return None
    cells = [
        [
            row["name"],
            str(row["pairs"]),
            percent(row["accuracy"]["value"]),
            unbroken(interval(row["accuracy"], scale="percent")),
            interval_bar(*(row["accuracy"][end] for end in ("value", "low", "high")), tick=row["length_baseline"]),
            percent(row["length_baseline"]),
            number(row["nll"]["value"]),
            unbroken(interval(row["nll"])),
        ]
        for row in rows
    ]
    head = ("subset", "pairs", "accuracy", "95 % interval", "", "longer wins", "NLL", "95 % interval")
    return PageSection(
        "Where is it good, and where not?",
        "The dot is the model, the tick the length-only baseline. A subset within one cluster has no interval; one "
        "that is all right, or all wrong, has an accuracy interval of width 0, for no resample can find another answer "
        f"in it. Overall {percent(level)}.",
        tables=[PageTable(head, cells, (1, 2, 5, 6))],
    )


def _left_out(rows: Sequence[_Values]) -> PageSection:
    if not rows:
        return PageSection("What was left out", "Nothing: every row of the file is in these numbers.")
    cells = [[str(row["count"]), row["reason"], lines(row)] for row in rows]
    return PageSection("What was left out", tables=[PageTable(("rows", "why", "first lines"), cells)])


def _provenance(results: _Values) -> PageSection:
    data, model, settings = results["data"], results["model"], results["settings"]
    numerics = ", ".join(f"{key} {value}" for key, value in sorted(model["numerics"].items()))
    rows = [
        ("model", model["source"]),
        ("revision", model["revision"] or "–"),
        ("asked", model["where"]),
        ("identity", model["identity"]),
        ("fingerprint", model["fingerprint"]),
        ("temperature", f"{model['temperature']:g}{' (calibrated)' if model['calibrated'] else ' (not fitted)'}"),
        ("numerics", numerics or "–"),
        ("file", data["path"]),
        ("SHA-256", data["sha256"]),
        ("layout", data["layout"]),
        ("resamples, seed", f"{settings['resamples']}, {settings['seed']}"),
        ("paragone", results.get("paragone", "–")),
        ("made", results.get("made", "–")),
    ]
    return PageSection(
        "How these numbers were made", code=results.get("command") or "", tables=[PageTable(("", ""), rows)]
    )
