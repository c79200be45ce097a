"""The one look of all reports: a page from plain blocks, charts as inline SVG, and numbers as people write them.

It knows nothing of what is reported, so that evaluations, benches and policy runs all use it.
"""

from paragone_evaluation.report.charts import COLOURS, Line, line_chart
from paragone_evaluation.report.page import Card, Figure, Section, Table, interval_bar, render_page, unbroken

__all__ = [
    "COLOURS",
    "Card",
    "Figure",
    "Line",
    "Section",
    "Table",
    "interval_bar",
    "line_chart",
    "render_page",
    "unbroken",
]
