"""What ``paragone data`` found, described once: rows of its table, and a page in the look of all reports."""

import json
from pathlib import Path
from typing import Any

from paragone_evaluation.report.page import Card, PageSection, PageTable, render_page
from paragone_evaluation.report.words import counted, lines, percent

__all__ = ["data_page", "said_of", "summary_rows"]

_Values = dict[str, Any]


def data_page(summary: _Values, command: str) -> str:
    """Return a page about the files of a summary of ``data_summary``.

    Args:
        command: what was typed.
    """
    names = [file["name"] for file in summary["files"]]
    numbers = PageTable(("", "", ""), summary_rows(summary), (1,))
    files = PageTable(
        ("file", "layout", "why"), [(file["name"], file["layout"], file["why"]) for file in summary["files"]]
    )
    sections = [
        PageSection("What is in them?", tables=[numbers]),
        *([_left_out(summary)] if summary["left_out"] else []),
        *([_first_row(summary["first_row"])] if summary["first_row"] else []),
        PageSection("How they were read", code=command, tables=[files]),
    ]
    return render_page(
        # A page is passed on: where the file lay is in the table at its end.
        Path(names[0]).name if len(names) == 1 else counted(len(names), "data file"),
        lead=_lead(summary),
        cards=_cards(summary),
        notes=_notes(summary),
        sections=sections,
    )


def _lead(summary: _Values) -> str:
    judged = [f"{summary['pairs']:,} pairs"] * bool(summary["pairs"])
    judged += [f"ratings of {', '.join(summary['ratings'])}"] * bool(summary["ratings"])
    what = f", with {' and '.join(judged)}" if judged else ", and no judgement of a response"
    return (
        f"{summary['read']:,} of {summary['rows']:,} rows can be used: {summary['responses']:,} responses to "
        f"{counted(summary['prompts'], 'prompt')}{what}."
    )


def _cards(summary: _Values) -> list[Card]:
    cards = [
        Card("Rows", f"{summary['read']:,}", remark=f"of {summary['rows']:,}"),
        Card("Prompts", f"{summary['prompts']:,}", remark=f"{summary['responses']:,} distinct responses"),
    ]
    if summary["pairs"]:
        cards.append(Card("Pairs", f"{summary['pairs']:,}", remark=f"{summary['ties']:,} of them ties"))
    if summary["longer_preferred"] is not None:
        cards.append(
            Card("Longer is preferred", percent(summary["longer_preferred"]), remark="of pairs whose lengths differ")
        )
    return cards


def _notes(summary: _Values) -> list[str]:
    """Return what somebody who trains on the rows should look at."""
    notes = []
    if summary["contradictions"]:
        notes.append(f"{counted(summary['contradictions'], 'pair')} of responses were judged both ways.")
    if summary["duplicates"]:
        notes.append(f"{counted(summary['duplicates'], 'judgement')} of the same two responses came before.")
    if summary["splits"].keys() <= {"none"} and not summary["held_out"]:
        notes.append(
            "No row names a split. A recipe's data.holdout = 0.1 holds a share of the prompts out of training, and "
            "paragone eval --holdout 0.1 reads those rows."
        )
    if (summary["tokens"] or {}).get("refused"):
        notes.append(f"{counted(summary['tokens']['refused'], 'response')} do not fit the model's limit of tokens.")
    return notes


def _left_out(summary: _Values) -> PageSection:
    rows = [
        (f"{left['rows']:,}", left["reason"], lines({"count": left["rows"], "lines": left["lines"]}))
        for left in summary["left_out"]
    ]
    return PageSection("What was left out", tables=[PageTable(("rows", "why", "first lines"), rows, (0,))])


def _first_row(row: _Values) -> PageSection:
    title = f"The first row: line {row['line']}, id {row['id']}"
    if seen := row.get("seen"):
        return PageSection(title, "Its first response, as the model reads it.", code=seen)
    texts = [(f"prompt, {message.get('role')}", _text(message)) for message in row["prompt"]]
    texts += [(f"response {at + 1}{said_of(row, at)}", _text(one)) for at, one in enumerate(row["responses"])]
    return PageSection(title, tables=[PageTable(("", ""), texts, texts=True, labelled=True)])


def _text(content: Any) -> str:
    text = content.get("content") if isinstance(content, dict) and set(content) <= {"role", "content"} else content
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def summary_rows(summary: _Values) -> list[tuple[str, str, str]]:
    """Return names, numbers and remarks of what files hold."""
    read, rows = summary["read"], summary["rows"]
    lost = rows - read - summary["passed_over"]
    left = [f"{lost:,} left out"] * bool(lost) + [f"{summary['passed_over']:,} of other splits"] * bool(
        summary["passed_over"]
    )
    named = {name: count for name, count in summary["splits"].items() if name != "none"}
    splits = ", ".join(f"{name} {count:,}" for name, count in sorted(summary["splits"].items()))
    lines = [("rows", f"{rows:,}", ", ".join(left))]
    lines.append(("splits", f"{len(named)}", splits if named else "no row names one"))
    if held_out := summary["held_out"]:
        share = f"prompts or groups, by the share {held_out['share']:g}; {held_out['left']:,} are left"
        lines.append(("held out", f"{held_out['prompts']:,}", share))
    if summary["subsets"]:
        lines.append(("subsets", f"{summary['subsets']:,}", ""))
    talks = [f"{summary['conversations']:,} rows with several messages"] * bool(summary["conversations"])
    tools = [f"{summary['with_tools']:,} with tools"] * bool(summary["with_tools"])
    lines += [
        ("prompts", f"{summary['prompts']:,}", ", ".join(talks + tools)),
        ("responses", f"{summary['responses']:,}", "distinct, by prompt"),
    ]
    if summary["pairs"]:
        lines += _pair_rows(summary)
    for name, rating in summary["ratings"].items():
        span = f"{rating['least']:g} to {rating['most']:g}, mean {rating['mean']:.2f}"
        lines.append((f"ratings of {name}", f"{rating['count']:,}", span))
    for name in ("prompt", "response"):
        if spread := summary["characters"][name]:
            lines.append((f"characters of a {name}", f"{spread['median']:,}", f"median; {_span(spread)}"))
    if tokens := summary["tokens"]:
        if spread := tokens["conversation"]:
            lines.append(("tokens of a conversation", f"{spread['median']:,}", f"median; {_span(spread)}"))
        limit = f"of a limit of {tokens['limit']:,} tokens ({tokens['model']})"
        lines.append(("prompts cut", f"{tokens['cut']:,}", limit))
        lines.append(("responses refused", f"{tokens['refused']:,}", "they do not fit"))
    return lines


def _pair_rows(summary: _Values) -> list[tuple[str, str, str]]:
    shares = [
        f"{words} in {summary[name]:.0%}"
        for name, words in (("first_preferred", "the first is preferred"), ("longer_preferred", "the longer one"))
        if summary[name] is not None
    ]
    strengths = ", ".join(f"{value}: {count:,}" for value, count in summary["strengths"].items())
    return [
        ("pairs", f"{summary['pairs']:,}", f"{summary['decided']:,} decided: {', '.join(shares)}" if shares else ""),
        ("strengths", f"{len(summary['strengths'])}", strengths or "people said which one, and not how strongly"),
        ("ties", f"{summary['ties']:,}", ""),
        ("duplicates", f"{summary['duplicates']:,}", "the same two responses, judged the same way again"),
        ("contradictions", f"{summary['contradictions']:,}", "the same two responses, judged both ways"),
        ("identical", f"{summary['identical']:,}", "rows whose two responses are one text"),
    ]


def _span(spread: _Values) -> str:
    return f"{spread['least']:,} to {spread['most']:,}, 95 % up to {spread['most_of_95_percent']:,}"


def said_of(row: _Values, at: int) -> str:
    """Return what people said of a response of the first row, to be put behind its name."""
    if row["ratings"]:
        return ": " + ", ".join(f"{name} {value:g}" for name, value in row["ratings"][at].items())
    won = [label for label in row["labels"] if at == (label["first"] if label["strength"] > 0 else label["second"])]
    tied = any(not label["strength"] and at in (label["first"], label["second"]) for label in row["labels"])
    beaten = len([label for label in won if label["strength"]])
    return f", preferred to {counted(beaten, 'other')}" * bool(beaten) or ", a tie" * tied
