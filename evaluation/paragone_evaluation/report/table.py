"""The table that ``paragone eval`` prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone_evaluation.report.words import counted, interval, lines, number, percent, points, verdict

__all__ = ["print_results"]

_MOST_SUBSETS = 40


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the main measures, the benchmark's scores, the comparison, the subsets and the notes.

    Args:
        results: plain values, as in ``results.json``.
        console: that prints.
    """
    model, measures = results["model"], results["measures"]
    title = f"[bold]{escape(model['name'])}[/bold] ({escape(model['kind'])}) on {escape(results['data']['path'])}"
    console.print(title, soft_wrap=True)
    if measures["accuracy"]:
        console.print(_main(measures))
    if measures["attributes"]:
        console.print(_attributes(measures["attributes"]))
    if measures["benchmark"]:
        console.print(_benchmark(measures["benchmark"]))
    if results["comparison"]:
        _print_comparison(results["comparison"], model["name"], results["settings"], console)
    if measures["subsets"]:
        console.print(_subsets(measures["subsets"]))
    for row in results["left_out"]:
        where = f" (line{'s' if row['count'] > 1 else ''} {lines(row)})" if row["lines"] else ""
        told = f"[dim]left out: {row['count']} × {escape(row['reason'])}{where}[/dim]"
        console.print(told, soft_wrap=True)
    for note in results["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)


def _main(measures: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, side in (("measure", "left"), ("value", "right"), ("95 % interval", "left"), ("", "left")):
        table.add_column(title, justify="right" if side == "right" else "left")
    accuracy, chances, length = measures["accuracy"], measures["probabilities"], measures["length"]

    def share(name: str, estimate: Mapping[str, Any] | None, remark: str = "") -> None:
        if estimate is not None:
            table.add_row(name, percent(estimate["value"]), interval(estimate, scale="percent"), f"[dim]{remark}[/dim]")

    share(
        "accuracy", accuracy["strict"], f"{counted(accuracy['decided'], 'decided pair')}; a tie of the model is wrong"
    )
    if accuracy["model_ties"]:
        share("  ties worth ½", accuracy["half_credit"], f"{accuracy['model_ties']} ties of the model")
        share("  ties dropped", accuracy["dropped"])
    share("length-only baseline", length["baseline"], "prefers the longer response")
    gain = length["gain"]
    table.add_row("  gain over length", points(gain["value"]), interval(gain, scale="points"), "[dim]points[/dim]")
    share("  length-matched pairs", length["matched"], f"{counted(length['matched_pairs'], 'pair')} within 15 %")
    before, after = chances["before"], chances["after"]
    for name, key in (("NLL", "nll"), ("Brier", "brier"), (f"ECE ({chances['bins']} bins)", "ece")):
        table.add_row(name, number(before[key]["value"]), interval(before[key]), "[dim]as it answers[/dim]")
        if after:
            table.add_row("", number(after[key]["value"]), interval(after[key]), "[dim]fitted temperature[/dim]")
    if measures["strength"]:
        strength = measures["strength"]["spearman"]
        table.add_row("Spearman with strength", number(strength["value"]), interval(strength), "")
    _groups(table, measures)
    if measures["position"]:
        share("same choice when swapped", measures["position"]["swap_consistency"], "responses asked in both orders")
    return table


def _groups(table: Table, measures: Mapping[str, Any]) -> None:
    groups, cycles = measures["groups"], measures["transitivity"]
    if groups:
        for name, key, remark in (
            ("Kendall τ", "tau", counted(groups["groups"], "group")),
            ("favourite is people's", "top_one", f"at random {percent(groups['chance']['value'])}"),
            ("regret", "regret", f"at random {number(groups['random_regret']['value'])}"),
        ):
            if groups[key] and key == "top_one":
                span = interval(groups[key], scale="percent")
                table.add_row(name, percent(groups[key]["value"]), span, f"[dim]{remark}[/dim]")
            elif groups[key]:
                table.add_row(name, number(groups[key]["value"]), interval(groups[key]), f"[dim]{remark}[/dim]")
    if cycles:
        remark = f"people {percent(cycles['human']['rate'])} of {cycles['human']['closed']}"
        table.add_row("cyclic triads", percent(cycles["model"]["rate"]), "", f"[dim]{remark}[/dim]")


def _attributes(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("attribute")
    for title in ("rated", "RMSE", "R²", "Pearson", "Spearman"):
        table.add_column(title, justify="right")
        if title != "rated":
            table.add_column("95 % interval")
    for row in rows:
        cells = [
            cell
            for name in ("root_mean_squared_error", "determination", "pearson", "spearman")
            for cell in (number(row[name]["value"]), interval(row[name]))
        ]
        table.add_row(escape(row["name"]), str(row["responses"]), *cells)
    return table


def _benchmark(benchmark: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title=benchmark["name"], title_justify="left")
    table.add_column("section")
    table.add_column("score", justify="right")
    table.add_column("95 % interval")
    for name, estimate in benchmark["scores"].items():
        table.add_row(escape(name), percent(estimate["value"], digits=2), interval(estimate, scale="percent"))
    return table


def _print_comparison(comparison: Mapping[str, Any], name: str, settings: Mapping[str, Any], console: Console) -> None:
    other = comparison["model"]["name"]
    title = f"{escape(name)} minus {escape(other)}, on the same {counted(comparison['pairs'], 'pair')}"
    console.print(f"[italic]{title}[/italic]", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("measure")
    table.add_column("difference", justify="right")
    table.add_column("95 % interval")
    gain = comparison["accuracy_difference"]
    table.add_row("accuracy, points", points(gain["value"]), interval(gain, scale="points"))
    for measure, key in (("NLL", "nll_difference"), ("Brier", "brier_difference")):
        table.add_row(measure, number(comparison[key]["value"]), interval(comparison[key]))
    console.print(table)
    console.print(escape(verdict(comparison, name, settings)), soft_wrap=True, highlight=False)


def _subsets(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("subset", max_width=60)
    for title in ("pairs", "accuracy"):
        table.add_column(title, justify="right")
    table.add_column("95 % interval")
    table.add_column("longer wins", justify="right")
    table.add_column("NLL", justify="right")
    table.add_column("95 % interval")
    for row in rows[:_MOST_SUBSETS]:
        right, loss = row["accuracy"], row["nll"]
        shares = percent(right["value"]), interval(right, scale="percent"), percent(row["length_baseline"])
        table.add_row(escape(row["name"]), str(row["pairs"]), *shares, number(loss["value"]), interval(loss))
    if len(rows) > _MOST_SUBSETS:
        table.add_row(f"… {len(rows) - _MOST_SUBSETS} more in the report", *[""] * 6)
    return table
