"""What ``paragone eval`` and ``paragone calibrate`` print: tables of the values of ``results.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone_evaluation.pair_results import FEW_CLUSTERS
from paragone_evaluation.report.words import counted, estimate_row, interval, lines, number, percent

__all__ = ["print_results", "print_temperature", "verdict"]

_Values = Mapping[str, Any]

_MOST_SUBSETS = 40


def print_results(results: _Values, console: Console) -> None:
    """Print the main measures, the benchmark's scores, the comparison, the subsets and the notes."""
    model, measures = results["model"], results["measures"]
    title = f"[bold]{escape(model['name'])}[/bold] ({escape(model['kind'])}) on {escape(results['data']['path'])}"
    console.print(title, soft_wrap=True)
    if measures["accuracy"]:
        console.print(_table(("measure", ">value", "95 % interval", ""), _main_rows(measures)))
    if measures["attributes"]:
        console.print(_attribute_table(measures["attributes"]))
    if measures["benchmark"]:
        console.print(f"[italic]{measures['benchmark']['name']}[/italic]")
        rows = [
            [name, percent(score["value"], digits=2), interval(score, scale="percent")]
            for name, score in measures["benchmark"]["scores"].items()
        ]
        console.print(_table(("section", ">score", "95 % interval"), rows))
    if results["comparison"]:
        _print_comparison(results["comparison"], model["name"], results["settings"], console)
    if measures["subsets"]:
        _print_subsets(measures["subsets"], console)
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
    rows = [["temperature", f"{record['temperature_before']:.4g}", "", f"{fitted['value']:.4g}", interval(fitted)]]
    for title, name in (("NLL", "nll"), ("Brier", "brier"), (f"ECE ({record['bins']} bins)", "ece")):
        before, after = record["before"][name], record["after"][name]
        rows.append([title, number(before["value"]), interval(before), number(after["value"]), interval(after)])
    console.print(_table(("", ">before", "95 % interval", ">after", "95 % interval"), rows))
    console.print(
        f"{record['pairs']} pairs, {record['clusters']} {record['cluster']}s; “after” is cross-fitted by cluster.",
        style="dim",
    )
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; columns whose title starts with > are aligned on the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in head:
        right = title.startswith(">")
        # Names of subsets are whatever the file says, at any length.
        table.add_column(title.removeprefix(">"), justify="right" if right else "left", max_width=60)
    for row in rows:
        # The last column of main measures is a remark; everything else is text of its own right.
        cells = [escape(cell) for cell in row]
        table.add_row(*cells[:-1], f"[dim]{cells[-1]}[/dim]" if head[-1] == "" else cells[-1])
    return table


def _attribute_table(attributes: Sequence[_Values]) -> Table:
    names = ("root_mean_squared_error", "determination", "pearson", "spearman")
    head = [cell for name in ("RMSE", "R²", "Pearson", "Spearman") for cell in (f">{name}", "95 % interval")]
    rows = [
        [
            row["name"],
            str(row["responses"]),
            *(cell for name in names for cell in (number(row[name]["value"]), interval(row[name]))),
        ]
        for row in attributes
    ]
    return _table(("attribute", ">rated", *head), rows)


def _main_rows(measures: _Values) -> list[list[str]]:
    accuracy, chances, length = measures["accuracy"], measures["probabilities"], measures["length"]
    decided = counted(accuracy["decided"], "decided pair")
    rows = [estimate_row("accuracy", accuracy["strict"], f"{decided}; a tie of the model is wrong")]
    if accuracy["model_ties"]:
        rows.append(
            estimate_row("  ties worth ½", accuracy["half_credit"], f"{accuracy['model_ties']} ties of the model")
        )
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


def _print_comparison(comparison: _Values, name: str, settings: _Values, console: Console) -> None:
    other = comparison["model"]["name"]
    title = f"{escape(name)} minus {escape(other)}, on the same {counted(comparison['pairs'], 'pair')}"
    console.print(f"[italic]{title}[/italic]", soft_wrap=True)
    rows = [
        estimate_row("accuracy, points", comparison["accuracy_difference"], scale="points")[:3],
        estimate_row("NLL", comparison["nll_difference"], scale="number")[:3],
        estimate_row("Brier", comparison["brier_difference"], scale="number")[:3],
    ]
    console.print(_table(("measure", ">difference", "95 % interval"), rows))
    console.print(escape(verdict(comparison, name, settings)), soft_wrap=True, highlight=False)


def _print_subsets(subsets: Sequence[_Values], console: Console) -> None:
    rows = [
        [
            row["name"],
            str(row["pairs"]),
            percent(row["accuracy"]["value"]),
            interval(row["accuracy"], scale="percent"),
            percent(row["length_baseline"]),
            number(row["nll"]["value"]),
            interval(row["nll"]),
        ]
        for row in subsets[:_MOST_SUBSETS]
    ]
    head = ("subset", ">pairs", ">accuracy", "95 % interval", ">longer wins", ">NLL", "95 % interval")
    console.print(_table(head, rows))
    if len(subsets) > _MOST_SUBSETS:
        console.print(f"… {len(subsets) - _MOST_SUBSETS} more in the report")


def verdict(comparison: _Values, name: str, settings: _Values) -> str:
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
