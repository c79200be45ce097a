"""The report on ``results.json`` for people: the page, and the tables that ``paragone eval`` and ``calibrate`` print.

Each function describes one section, or returns None where the file has nothing to say about it. The page shows all
sections; the terminal shows the main measures and the tables of four.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone_evaluation.measures.bootstrap import FEW_CLUSTERS
from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, interval_bar, render_page
from paragone_evaluation.report.verdict import agreement_verdict
from paragone_evaluation.report.words import counted, estimate_row, interval, interval_cell, lines, number, percent
from paragone_evaluation.routing import routing_page

__all__ = ["page_of_results", "print_results", "print_temperature"]

_Values = Mapping[str, Any]

_HEAD = ("", "value", "95 % interval", "")
_SCORES = (("NLL, nats", "nll"), ("Brier", "brier"), ("ECE", "ece"))
_MOST_CARDS = 4  # of one row of the page
_MOST_SUBSETS = 40  # of one screen


def page_of_results(results: _Values) -> str:
    """Return the report as HTML."""
    model, measures = results["model"], results["measures"]
    accuracy, ties = measures["accuracy"], ""
    if accuracy and accuracy["model_ties"]:
        ties = (
            f"{accuracy['model_ties']} ties of the model: accuracy with ties worth ½ "
            f"{percent(accuracy['half_credit']['value'])}, dropped {percent(accuracy['dropped']['value'])}."
        )
    sections = [
        _benchmark(measures["benchmark"]),
        _comparison(results),
        routing_page(results["routing"]),
        _calibration(measures) if accuracy else None,
        _length(measures["length"]) if accuracy else None,
        _strength(measures["strength"]),
        _groups(measures["groups"]),
        _attributes(measures["attributes"]),
        _cycles(measures["transitivity"], scalar=model["scalar"]),
        _position(measures["position"]),
        _subsets(measures),
        _left_out(results["left_out"]),
        _provenance(results),
    ]
    return render_page(
        f"How well does {model['name']} agree with people?",
        lead=_headline(results),
        cards=_cards(measures) if accuracy else _rating_cards(measures["attributes"]),
        small=f"{_lead(results)} {ties}".strip(),
        notes=results["notes"],
        sections=[section for section in sections if section is not None],
    )


def print_results(results: _Values, console: Console) -> None:
    """Print the main measures, the benchmark's scores, the comparison, the subsets and the notes."""
    model, measures = results["model"], results["measures"]
    console.print(f"[bold]{escape(_headline(results))}[/bold]", soft_wrap=True, highlight=False)
    rows = f"{results['data']['path']}{_part(results['data'])}"
    console.print(f"[dim]{escape(model['name'])} ({escape(model['kind'])}) on {escape(rows)}[/dim]", soft_wrap=True)
    if measures["accuracy"]:
        console.print(_printed(PageTable(("measure", *_HEAD[1:]), _main_rows(measures), (1,))))
    if attributes := _attributes(measures["attributes"]):
        console.print(_printed(attributes.tables[0]))
    if benchmark := _benchmark(measures["benchmark"]):
        console.print(f"[italic]{benchmark.title}[/italic]")
        console.print(_printed(benchmark.tables[0]))
    if comparison := _comparison(results):
        other, pairs = results["comparison"]["model"]["name"], counted(results["comparison"]["pairs"], "pair")
        heading = escape(f"{model['name']} minus {other}, on the same {pairs}")
        console.print(f"[italic]{heading}[/italic]", soft_wrap=True)
        console.print(_printed(comparison.tables[0]))
        console.print(escape(comparison.text), soft_wrap=True, highlight=False)
    if routing := routing_page(results["routing"]):
        console.print(f"[italic]{escape(routing.title)}[/italic]", soft_wrap=True)
        for table in routing.tables:
            console.print(_printed(table))
    if subsets := _subsets(measures):
        console.print(_printed(subsets.tables[0], most=_MOST_SUBSETS))
        if (more := len(measures["subsets"]) - _MOST_SUBSETS) > 0:
            console.print(f"… {more} more in the report")
    for left in results["left_out"]:
        where = f" (line{'s' if left['count'] > 1 else ''} {lines(left)})" if left["lines"] else ""
        console.print(f"[dim]left out: {left['count']} × {escape(left['reason'])}{where}[/dim]", soft_wrap=True)
    for note in results["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)


def print_temperature(record: _Values, console: Console) -> None:
    """Print a fitted temperature and what it makes of the probabilities.

    Args:
        record: of ``temperature.fitted_temperature``, as plain values.
    """
    fitted = record["temperature"]
    first = ["temperature", f"{record['temperature_before']:.4g}", "", f"{fitted['value']:.4g}", interval(fitted)]
    head = ("", "before", "95 % interval", "after", "95 % interval")
    console.print(_printed(PageTable(head, [first, *_before_and_after(record["before"], record["after"])], (1, 3))))
    console.print(
        f"{record['pairs']} pairs, {record['clusters']} {record['cluster']}s; "
        f"{'“after” is cross-fitted by cluster. ' if record['after'] else ''}ECE uses {record['bins']} bins.",
        style="dim",
    )
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)


def _printed(table: PageTable, *, most: int | None = None) -> Table:
    """Return a table of the page for the terminal."""
    # Marks of the page mean nothing here. Bars are empty without theirs, and their columns are left out.
    rows = [[cell.striptags() if isinstance(cell, Markup) else cell for cell in row] for row in table.rows[:most]]
    places = [place for place, title in enumerate(table.head) if title or any(row[place] for row in rows)]
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for place in places:
        # Names of subsets are whatever the file says, at any length.
        shown.add_column(table.head[place], justify="right" if place in table.numbers else "left", max_width=60)
    remark = len(table.head) - 1 if table.head[-1] == "" else None
    for row in rows:
        # What the file says may look like markup: "[red]" is a name here.
        cells = {place: escape(row[place]) for place in places}
        shown.add_row(*(f"[dim]{cell}[/dim]" if place == remark else cell for place, cell in cells.items()))
    return shown


def _main_rows(measures: _Values) -> list[list[str]]:
    accuracy, chances, length = measures["accuracy"], measures["probabilities"], measures["length"]
    decided = counted(accuracy["decided"], "decided pair")
    rows = [estimate_row("accuracy", accuracy["strict"], f"{decided}; a tie of the model is wrong")]
    if accuracy["model_ties"]:
        ties = f"{accuracy['model_ties']} ties of the model"
        rows.append(estimate_row("  ties worth ½", accuracy["half_credit"], ties))
        rows.append(estimate_row("  ties dropped", accuracy["dropped"]))
    if length["baseline"]:
        rows.append(estimate_row("length-only baseline", length["baseline"], "prefers the longer response"))
    rows.append(estimate_row("  gain over length", length["gain"], "points", scale="points"))
    if length["matched"]:
        matched = f"{counted(length['matched_pairs'], 'pair')} within 15 %"
        rows.append(estimate_row("  length-matched pairs", length["matched"], matched))
    for name, key in (("NLL", "nll"), ("Brier", "brier"), (f"ECE ({chances['bins']} bins)", "ece")):
        rows.append(estimate_row(name, chances["before"][key], "as it answers", scale="number"))
        if chances["after"]:
            rows.append(estimate_row("", chances["after"][key], "fitted temperature", scale="number"))
    if measures["strength"]:
        rows.append(estimate_row("Spearman with strength", measures["strength"]["spearman"], scale="number"))
    if groups := measures["groups"]:
        for name, key, remark, scale in (
            ("Kendall τ", "tau", counted(groups["groups"], "group"), "number"),
            ("favourite is people's", "top_one", f"at random {percent(groups['chance']['value'])}", "percent"),
            ("regret", "regret", f"at random {number(groups['random_regret']['value'])}", "number"),
        ):
            if groups[key]:
                rows.append(estimate_row(name, groups[key], remark, scale=scale))
    if cycles := measures["transitivity"]:
        remark = f"people {percent(cycles['human']['rate'])} of {cycles['human']['closed']}"
        rows.append(["cyclic triads", percent(cycles["model"]["rate"]), "", remark])
    if position := measures["position"]:
        remark = "responses asked in both orders"
        rows.append(estimate_row("same choice when swapped", position["swap_consistency"], remark))
    return rows


def _headline(results: _Values) -> str:
    """Return the result in a sentence."""
    name, measures = results["model"]["name"], results["measures"]
    if accuracy := measures["accuracy"]:
        length = measures["length"]
        longer = length["baseline"]["value"] if length["baseline"] else None
        whom = "the benchmark" if measures["benchmark"] else "people"
        verdict = agreement_verdict(
            accuracy["strict"],
            length["gain"],
            pairs=accuracy["decided"],
            longer=longer,
            few=results["settings"]["clusters"] < FEW_CLUSTERS,
            whom=whom,
        )
        return f"{name} {verdict}"
    if not measures["attributes"]:
        return f"{name} was asked, and nothing here says how well it agrees with people."
    rated = ", ".join(
        f"{row['name']} {number(row['determination']['value'], digits=2)}" for row in measures["attributes"]
    )
    return f"{name} rates; R² with people's ratings, where always saying their mean has 0: {rated}."


def _lead(results: _Values) -> str:
    data, settings = results["data"], results["settings"]
    clusters = counted(settings["clusters"], settings["cluster"])
    file = data["path"].replace("\\", "/").rsplit("/", 1)[-1]  # results may come from a machine with Windows
    pairs = counted(data["answered"], "judged pair") + ", " if results["measures"]["accuracy"] else ""
    intervals = (
        f"From {clusters} there are no intervals."
        if settings["clusters"] == 1
        else f"Intervals are 95 % bootstrap intervals over {clusters}."
    )
    return (
        f"A {results['model']['kind']} model on {file}{_part(data)}: {pairs}"
        f"{counted(data['responses'], 'response')} to {counted(data['prompts'], 'prompt')}. {intervals}"
    )


def _part(data: _Values) -> str:
    """Return which rows of the file were read, where that is not all."""
    if share := data.get("holdout"):
        return f", the share {share:g} of its prompts that training holds out"
    return f", split {data['split']}" if data["split"] else ""


def _cards(measures: _Values) -> list[Card]:
    accuracy, length, before = measures["accuracy"], measures["length"], measures["probabilities"]["before"]
    after = measures["probabilities"]["after"]
    fitted = (
        f"{number(after['ece']['value'])} with a fitted temperature"
        if after
        else "there is no cross-fitted temperature"
    )
    decided = f"of {counted(accuracy['decided'], 'decided pair')}; a tie of the model is wrong"
    longer = f"points; “the longer one” alone has {percent(length['baseline']['value'])}"
    uninformed = f"nats a pair; always saying ½ has {number(measures['probabilities']['uninformed_nll'])}"
    return [
        _card("Accuracy", accuracy["strict"], decided, scale="percent"),
        _card("Gain over length", length["gain"], longer, scale="points"),
        _card("Calibration error", before["ece"], fitted),
        _card("NLL", before["nll"], uninformed),
    ]


def _rating_cards(rows: Sequence[_Values]) -> list[Card]:
    return [
        _card(f"{row['name']}: R²", row["determination"], f"{row['responses']} ratings; always saying their mean has 0")
        for row in rows[:_MOST_CARDS]
    ]


def _card(title: str, estimate: _Values, remark: str, *, scale: str = "number") -> Card:
    _, value, _, _ = estimate_row(title, estimate, scale=scale)
    return Card(title, value, interval(estimate, scale=scale), remark)


def _before_and_after(before: _Values, after: _Values | None) -> list[list[str]]:
    rows = []
    for name, key in _SCORES:
        sides = [
            (number(side[key]["value"]), interval_cell(side[key])) if side else ("–", "") for side in (before, after)
        ]
        rows.append([name, *sides[0], *sides[1]])
    return rows


def _calibration(measures: _Values) -> PageSection:
    chances, ties = measures["probabilities"], measures["accuracy"]["human_ties"]
    before, after = chances["before"], chances["after"]
    lowest = min(_lowest(side) for side in (before, after) if side)
    figures = [_reliability("As it answers", before, lowest)]
    if after:
        figures.append(_reliability("After a fitted temperature", after, lowest))
        folds = chances["fold_factors"]
        remark = (
            f"The best temperature is {chances['temperature_factor']:.3g} times the present one. What stands under "
            f"“fitted” is honest: each pair was scaled by a temperature fitted on other clusters ({len(folds)} folds, "
            f"{min(folds):.3g} to {max(folds):.3g} times). “paragone calibrate” stores one with a model."
        )
    elif "no_cross_fit" in chances:
        remark = (
            f"The best temperature is {chances['temperature_factor']:.3g} times the present one; what it is worth on "
            f"other pairs is not known: {chances['no_cross_fit']}."
        )
    else:
        remark = f"No temperature could be fitted: {chances['no_temperature']}."
    head = ("", "as it answers", "95 % interval", "fitted", "95 % interval")
    tied = f" The {ties} pairs that people left tied count with y = ½." if ties else ""
    return PageSection(
        "Do its probabilities mean what they say?",
        f"Dots on the dashed line are right as often as the model is sure; below it, it is too sure. {remark}",
        figures=figures,
        tables=[PageTable(head, _before_and_after(before, after), (1, 3))],
        small=f"ECE uses {chances['bins']} equal-width bins over [.5, 1]. A model that always says ½ has NLL "
        f"{number(chances['uninformed_nll'])} and Brier {number(chances['uninformed_brier'])}.{tied}",
    )


def _lowest(side: _Values) -> float:
    """Return where the vertical axis of a reliability chart begins, in percent: ½, or a ten below it."""
    table = side["reliability"]
    shares: list[float] = [right for count, right in zip(table["count"], table["accuracy"], strict=True) if count]
    return min(50.0, *(10.0 * math.floor(10.0 * right) for right in shares))


def _reliability(title: str, side: _Values, lowest: float) -> Figure:
    """Return a reliability chart.

    Args:
        lowest: where the vertical axis begins; the same for charts that stand beside each other.
    """
    table = side["reliability"]
    bins = [row for row in zip(table["count"], table["confidence"], table["accuracy"], strict=True) if row[0]]
    most = max((count for count, *_ in bins), default=1)
    model = Line(
        "model",
        [(100 * sure, 100 * right) for _, sure, right in bins],
        areas=[count / most for count, *_ in bins],
        remarks=[f"{count} pairs: {100 * sure:.1f} % sure, {100 * right:.1f} % right" for count, sure, right in bins],
    )
    # From ½: the confidence of a choice between two is never below it.
    ideal = Line("calibrated", [(50, 50), (100, 100)], "soft", dashed=True)
    chart = line_chart(
        [model, ideal],
        title=f"Reliability {title.lower()}",
        across="confidence of the choice, %",
        up="right, %",
        limits=((50.0, 100.0), (lowest, 100.0)),
        to=[(100 * sure, 100 * sure) for _, sure, _ in bins],  # how far a dot is off is what ECE adds up
    )
    remark = f"ECE {number(side['ece']['value'])}. The larger a dot, the more pairs."
    return Figure(title, chart, [model, ideal], remark)


def _length(length: _Values) -> PageSection:
    fitted = length["models"]
    matched = counted(length["matched_pairs"], "pair")
    rows = [
        estimate_row("Prefer the longer response (baseline)", length["baseline"]),
        estimate_row("Gain of the model over it, points", length["gain"], scale="points"),
        estimate_row("Accuracy, lengths within 15 %", length["matched"], matched),
        estimate_row("Accuracy where the longer one is right", length["when_longer_is_right"]),
        estimate_row("Accuracy where the shorter one is right", length["when_shorter_is_right"]),
        ["Average of these two", percent(length["balanced"]), "", ""],
        estimate_row("Model prefers the longer one", length["model_prefers_longer"]),
        estimate_row("People prefer the longer one", length["human_prefers_longer"]),
        estimate_row("Bias: model minus people, points", length["bias"], scale="points"),
    ]
    if length["score_length_spearman"] is not None:
        remark = f"mean over {counted(length['score_length_prompts'], 'prompt')}"
        rows.append(["Spearman of score and length", number(length["score_length_spearman"]), "", remark])
    remark = f"nats a pair; length alone {number(fitted['nll_length'])}, both {number(fitted['nll_both'])}"
    rows.append(["What the score adds to length", number(fitted["gain"]), "", remark])
    curve = length["curve"]
    return PageSection(
        "Is it more than length?",
        "A model that knows nothing but length is the thing to beat. Where the model’s curve lies above that of "
        "people, it prefers long responses more than they do.",
        figures=[_length_figure(curve)] if len(curve) > 1 else [],
        tables=[PageTable(_HEAD, rows, (1,))],
    )


def _length_figure(curve: Sequence[_Values]) -> Figure:
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
        # Bins have as many pairs each, so they stand evenly, whatever their ratios.
        ticks={place: f"{point['ratio']:.3g}×" for place, point in enumerate(curve)},
    )
    return Figure("How often the longer one wins", chart, sides)


def _strength(strength: _Values | None) -> PageSection | None:
    if not strength:
        return None
    rows = []
    for level in strength["levels"]:
        name = f"{level['strength']:g}" if level["strength"] else "0 (tie)"
        right, mean = percent(level["accuracy"]), number(level["mean_logit"], digits=2)
        rows.append([name, str(level["count"]), right, mean])
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
        estimate_row("Same choice when swapped", position["swap_consistency"]),
        estimate_row("Wins of the first place minus ½, points", position["first_win_excess"], scale="points"),
        estimate_row("Mean |p(a, b) + p(b, a) − 1|", position["asymmetry"], scale="number"),
    ]
    return PageSection("Does the order of the responses matter?", tables=[PageTable(_HEAD, rows, (1,))])


def _groups(groups: _Values | None) -> PageSection | None:
    if not groups:
        return None
    ranked, consistent = (counted(groups[f"{name}_groups"], "group") for name in ("tau", "zeta"))
    rows = [
        estimate_row("Kendall τ-b", groups["tau"], ranked, scale="number"),
        estimate_row("Its favourite is one of people’s", groups["top_one"]),
        estimate_row("… at random", groups["chance"]),
        estimate_row("Regret: best minus chosen human score", groups["regret"], scale="number"),
        estimate_row("… at random", groups["random_regret"], scale="number"),
        estimate_row("Kendall ζ (1 is free of cycles)", groups["zeta"], consistent, scale="number"),
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
    names = {"root_mean_squared_error": "RMSE", "determination": "R²", "pearson": "Pearson", "spearman": "Spearman"}
    head = ["attribute", "rated", "RMSE of the mean"]
    head += [cell for title in names.values() for cell in (title, "95 % interval")]
    cells = []
    for row in rows:
        each = [cell for name in names for cell in (number(row[name]["value"]), interval_cell(row[name]))]
        cells.append([row["name"], str(row["responses"]), number(row["spread"]), *each])
    return PageSection(
        "Does it rate as people rate?",
        "RMSE is in the unit of the ratings; “of the mean” is that of always saying the mean of these ratings, which "
        "has R² 0.",
        tables=[PageTable(head, cells, (1, 2, 3, 5, 7, 9))],
    )


def _benchmark(benchmark: _Values | None) -> PageSection | None:
    if not benchmark:
        return None
    rows = []
    for name, score in benchmark["scores"].items():
        # Two digits, as leaderboards print them.
        shown = percent(score["value"], digits=2), interval_cell(score, scale="percent")
        rows.append([name, *shown, interval_bar(score["value"], score["low"], score["high"])])
    tables = [PageTable(("", "score", "95 % interval", ""), rows, (1,))]
    if "ties" in benchmark:
        ties = [[name.replace("_", " "), number(value)] for name, value in benchmark["ties"].items()]
        tables.append(PageTable(("the Ties score and its parts", ""), ties, (1,)))
    return PageSection(benchmark["name"], tables=tables)


def _comparison(results: _Values) -> PageSection | None:
    comparison, name = results["comparison"], results["model"]["name"]
    if not comparison:
        return None
    # Differences have intervals of their own: those of the two accuracies overlap long before the models are alike.
    other = comparison["model"]["name"]
    rows = [
        estimate_row(f"Accuracy of {name}", comparison["accuracy"]),
        estimate_row(f"Accuracy of {other}", comparison["accuracy_against"]),
        estimate_row("Difference, points", comparison["accuracy_difference"], scale="points"),
        estimate_row("Difference in NLL (below 0 is better)", comparison["nll_difference"], scale="number"),
        estimate_row("Difference in Brier (below 0 is better)", comparison["brier_difference"], scale="number"),
        ["Same choice", percent(comparison["agreement"]), "", ""],
        [f"Only {name} is right", str(comparison["only_first_right"]), "", "pairs"],
        [f"Only {other} is right", str(comparison["only_second_right"]), "", "pairs"],
    ]
    return PageSection(
        f"Against {other}",
        f"{_verdict(comparison, name, results['settings'])} The same {comparison['pairs']} pairs and the same "
        f"resamples for both; fingerprint of the other {comparison['model']['fingerprint']}.",
        tables=[PageTable(_HEAD, rows, (1,))],
    )


def _verdict(comparison: _Values, name: str, settings: _Values) -> str:
    """Return what a paired comparison says about the accuracies of two models, in one sentence."""
    gain = comparison["accuracy_difference"]
    if gain["low"] is None:
        return "There is no interval, so nothing can be said about noise."
    if settings["clusters"] < FEW_CLUSTERS:
        return (
            f"From {settings['clusters']} {settings['cluster']}s no interval can tell a difference from noise: these "
            "are numbers to look at, not a verdict."
        )
    if gain["low"] > 0 or gain["high"] < 0:
        better = name if gain["value"] > 0 else comparison["model"]["name"]
        return f"{better} has the higher accuracy; the interval of the difference excludes 0."
    return "The difference in accuracy is inside the noise: its interval holds 0."


def _subsets(measures: _Values) -> PageSection | None:
    if not measures["subsets"]:
        return None
    rows = []
    for row in measures["subsets"]:
        right, loss, baseline = row["accuracy"], row["nll"], row["length_baseline"]
        bar = interval_bar(right["value"], right["low"], right["high"], tick=baseline)
        shown = percent(right["value"]), interval_cell(right, scale="percent"), bar, percent(baseline)
        rows.append([row["name"], str(row["pairs"]), *shown, number(loss["value"]), interval_cell(loss)])
    head = ("subset", "pairs", "accuracy", "95 % interval", "", "longer wins", "NLL", "95 % interval")
    return PageSection(
        "Where is it good, and where not?",
        "The dot is the model, the tick the length-only baseline. A subset within one cluster has no interval; one "
        "that is all right, or all wrong, has an accuracy interval of width 0, for no resample can find another answer "
        f"in it. Overall {percent(measures['accuracy']['strict']['value'])}.",
        tables=[PageTable(head, rows, (1, 2, 5, 6))],
    )


def _left_out(rows: Sequence[_Values]) -> PageSection:
    if not rows:
        return PageSection("What was left out", "Nothing: every row of the file is in these numbers.")
    cells = [[str(row["count"]), row["reason"], lines(row)] for row in rows]
    head = ("rows", "why", "first lines")
    # What a model left out has no lines.
    shown = len(head) if any(cell for *_, cell in cells) else len(head) - 1
    table = PageTable(head[:shown], [cell[:shown] for cell in cells], (0,))
    return PageSection("What was left out", tables=[table])


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
