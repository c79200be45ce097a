"""The page: one file, inline style and drawings, no script, nothing fetched."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from paragone_evaluation.report.parts import (
    attributes_part,
    benchmark_part,
    calibration_part,
    comparison_part,
    groups_part,
    length_part,
    order_part,
    strength_part,
    subsets_part,
    table,
)
from paragone_evaluation.report.words import counted, interval, lines, number, percent, points

__all__ = ["render_page"]

_MOST_CARDS = 4


def render_page(results: Mapping[str, Any]) -> str:
    """Return the report as HTML.

    Args:
        results: plain values, as in ``results.json``.
    """
    model, measures = results["model"], results["measures"]
    style = files("paragone_evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    name = model["name"]
    parts = [
        _opening(results),
        _cards(measures) if measures["accuracy"] else _rating_cards(measures["attributes"]),
        _notes(results["notes"]),
        benchmark_part(measures["benchmark"]),
        comparison_part(results["comparison"], name, results["settings"]),
        *(_preference_parts(measures) if measures["accuracy"] else ()),
        groups_part(measures["groups"]),
        attributes_part(measures["attributes"]),
        order_part(measures["position"], measures["transitivity"], model["kind"]),
        subsets_part(measures["subsets"], measures["accuracy"]["strict"]["value"]) if measures["accuracy"] else "",
        _left_out(results["left_out"]),
        _provenance(results),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: evaluation</title><style>\n{style}</style></head>\n<body><main>\n{body}\n</main>"
        "</body></html>\n"
    )


def _preference_parts(measures: Mapping[str, Any]) -> list[str]:
    return [
        calibration_part(measures["probabilities"], measures["accuracy"]),
        length_part(measures["length"]),
        strength_part(measures["strength"]),
    ]


def _opening(results: Mapping[str, Any]) -> str:
    data, model, settings = results["data"], results["model"], results["settings"]
    split = f", split <b>{escape(data['split'])}</b>" if data["split"] else ""
    clusters = counted(settings["clusters"], settings["cluster"])
    intervals = f"Intervals are 95 % bootstrap intervals over {clusters}."
    if settings["clusters"] == 1:
        intervals = f"From {clusters} there are no intervals."
    pairs = f"{counted(data['answered'], 'judged pair')}, " if results["measures"]["accuracy"] else ""
    return (
        f"<h1>How well does {escape(model['name'])} agree with people?</h1>"
        f'<p class="soft">A {escape(model["kind"])} model on <b>{escape(_file_name(data["path"]))}</b>{split}: '
        f"{pairs}{counted(data['responses'], 'response')} to {counted(data['prompts'], 'prompt')}. "
        f"{escape(intervals)}</p>"
    )


def _cards(measures: Mapping[str, Any]) -> str:
    accuracy, length, chances = measures["accuracy"]["strict"], measures["length"], measures["probabilities"]
    before, after = chances["before"]["ece"], chances["after"]["ece"] if chances["after"] else None
    calibrated = f"{number(after['value'])} with a fitted temperature" if after else "no temperature could be fitted"
    cards = [
        (
            "Accuracy",
            percent(accuracy["value"]),
            interval(accuracy, scale="percent"),
            f"of {counted(measures['accuracy']['decided'], 'decided pair')}; a tie of the model is wrong",
        ),
        (
            "Gain over length",
            points(length["gain"]["value"]),
            interval(length["gain"], scale="points"),
            f"points; “the longer one” alone has {percent(length['baseline']['value'])}",
        ),
        ("Calibration error", number(before["value"]), interval(before), calibrated),
        (
            "NLL",
            number(chances["before"]["nll"]["value"]),
            interval(chances["before"]["nll"]),
            f"nats a pair; always saying ½ has {number(chances['uninformed_nll'])}",
        ),
    ]
    shown = "".join(
        f"<div>{escape(title)}<b>{value}</b><span>{span or '&nbsp;'}</span><small>{remark}</small></div>"
        for title, value, span, remark in cards
    )
    ties = measures["accuracy"]
    rules = ""
    if ties["model_ties"]:
        rules = (
            f'<p class="soft sans"><small>{ties["model_ties"]} ties of the model: accuracy with ties worth ½ '
            f"{percent(ties['half_credit']['value'])}, dropped {percent(ties['dropped']['value'])}.</small></p>"
        )
    return f'<div class="cards">{shown}</div>{rules}'


def _rating_cards(rows: list[Mapping[str, Any]]) -> str:
    shown = "".join(
        f"<div>{escape(row['name'])}: R²<b>{number(row['determination']['value'])}</b>"
        f"<span>{interval(row['determination']) or '&nbsp;'}</span>"
        f"<small>{row['responses']} ratings; always saying their mean has 0</small></div>"
        for row in rows[:_MOST_CARDS]
    )
    return f'<div class="cards">{shown}</div>'


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes"><ul>{items}</ul></div>' if items else ""


def _left_out(rows: list[Mapping[str, Any]]) -> str:
    if not rows:
        return "<h2>What was left out</h2><p>Nothing: every row of the file is in these numbers.</p>"
    cells = [[str(row["count"]), escape(row["reason"]), lines(row)] for row in rows]
    return "<h2>What was left out</h2>" + table(("rows", "why", "first lines"), cells, numbers=(0,))


def _provenance(results: Mapping[str, Any]) -> str:
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
    cells = [[name, f"<code>{escape(str(value))}</code>"] for name, value in rows]
    command = results.get("command")
    shown = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f"<h2>How these numbers were made</h2>{shown}" + table(("", ""), cells)


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
