"""The look of reports: pages from blocks, charts inside them, and nothing that is fetched or runs."""

import re

import pytest
from markupsafe import Markup

from paragone_evaluation.report.charts import COLOURS, Line, histogram, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, interval_bar, render_page
from paragone_evaluation.report.verdict import agreement_verdict


def chart(title="Loss", **options):
    line = Line("model", [(1, 0.5), (2, 0.75)], remarks=["first & last", "second"])
    return line_chart(
        [line, Line("ideal", [(1, 1), (2, 1)], "soft", dashed=True)], title=title, across="step", **options
    )


def test_a_chart_is_the_same_each_time_and_titled_for_people_who_cannot_see_it():
    assert chart() == chart()
    assert 'role="img" aria-label="Loss"' in chart()
    assert "<title>first &amp; last</title>" in chart()
    assert isinstance(chart(), Markup)


def test_texts_of_a_chart_stay_texts_and_its_colours_are_the_pages():
    drawing = chart(up="nats")
    assert re.findall(r"<text[^>]*>(step|nats)</text>", drawing) == ["step", "nats"]
    assert "font-family" not in drawing
    assert "<style" not in drawing
    assert re.findall(r"(?:fill|stroke): #", drawing) == []
    assert {"line-1", "soft", "rule", "ink"} <= set(re.findall(r"var\(--([\w-]+)\)", drawing))


def test_two_charts_of_a_page_share_no_names_and_refer_to_nothing_outside():
    ids = [re.findall(r' id="([^"]*)"', chart(title)) for title in ("Loss", "Accuracy")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for drawing, own in zip((chart("Loss"), chart("Accuracy")), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()(#?[^")]*)', drawing)) == {f"#{name}" for name in own}


def test_the_vertical_axis_shows_what_it_is_told_to_and_ticks_have_their_labels():
    assert ">0.0</text>" in chart(include=(0.0,))
    assert ">0.0</text>" not in chart()
    assert re.findall(r"<text[^>]*>(1×|2×)</text>", chart(ticks={1: "1×", 2: "2×"})) == ["1×", "2×"]


def test_counted_places_are_whole_numbers_and_labelled_once():
    def across(*places):
        line = Line("", [(place, 3.0) for place in places])
        # The vertical labels lie around 3, with a decimal.
        drawing = line_chart([line], title="t", across="", whole=True)
        return [label for label in re.findall(r"<text[^>]*>([^<]*)</text>", drawing) if "." not in label]

    assert across(1) == ["1"]
    assert across(0, 1) == ["0", "1"]
    assert across(0, 0.98, 2.02) == ["0", "1", "2"]


def test_an_error_bar_is_drawn_at_each_point_that_has_one_and_the_axis_holds_it():
    bare = Line("", [(0, 0.5), (1, 0.6)])
    barred = Line("", [(0, 0.5), (1, 0.6)], intervals=[None, (0.3, 0.9)])
    drawings = [line_chart([line], title="t", across="", whole=True) for line in (bare, barred)]
    assert [">0.9</text>" in drawing for drawing in drawings] == [False, True]
    assert drawings[1].count("<path") > drawings[0].count("<path")


def test_vertical_labels_are_written_in_full_with_no_factor_beside_them():
    labels = [
        re.findall(r"<text[^>]*>([^<]*)</text>", line_chart([Line("", points)], title="t", across="", whole=True))
        for points in ([(0, 0.0), (1, 4e-6)], [(0, 1000.001), (1, 1000.002)])
    ]
    assert "4e−06" in labels[0]
    assert "1000.0010" in labels[1]
    assert not any(label.startswith(("1e", "+")) and label not in ("1e−06",) for texts in labels for label in texts)


def test_every_text_of_a_page_is_escaped():
    evil = "<script>alert('1')</script>"
    page = render_page(
        evil,
        lead=evil,
        cards=[Card(evil, evil, evil, evil)],
        small=evil,
        notes=[evil],
        sections=[
            PageSection(
                evil,
                evil,
                evil,
                [Figure(evil, chart(), [Line(evil, [], COLOURS[0])], evil)],
                [PageTable([evil], [[evil]])],
                evil,
            )
        ],
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 18


def test_a_percent_sign_stays_with_its_number():
    page = render_page(
        "A", lead="", sections=[PageSection("B", tables=[PageTable(("", ""), [("accuracy", "12.5 %")])])]
    )
    assert "12.5\N{NO-BREAK SPACE}%" in page


def test_an_interval_bar_has_the_parts_that_are_known():
    assert interval_bar(0.5, 0.25, 0.75, tick=0.6) == (
        '<span class="bar" aria-hidden="true"><i style="left:25.0%;width:50.0%"></i>'
        '<s style="left:60.0%"></s><b style="left:50.0%"></b></span>'
    )
    assert interval_bar(None, None, None) == '<span class="bar" aria-hidden="true"></span>'


@pytest.mark.parametrize(
    ("accuracy", "gain", "few", "meant"),
    [
        ((0.7, 0.6, 0.8), (0.2, 0.1, 0.3), False, "better than a coin, and better than choosing the longer response"),
        ((0.7, 0.6, 0.8), (0.1, -0.1, 0.3), False, "do not show that it is better than choosing the longer response"),
        ((0.7, 0.6, 0.8), (-0.2, -0.3, -0.1), False, "better than a coin, and worse than choosing the longer response"),
        ((0.6, 0.45, 0.75), (0.2, 0.1, 0.3), False, "do not show that it is better than a coin"),
        ((0.3, 0.2, 0.4), (0.2, 0.1, 0.3), False, "less often than a coin would"),
        ((0.7, 0.6, 0.8), None, False, ": better than a coin."),
        ((0.7, 0.6, 0.8), (0.2, 0.1, 0.3), True, "a hint, and no verdict"),
        ((0.7, None, None), (0.2, None, None), True, "too few questions to say how sure that is"),
    ],
)
def test_the_first_sentence_says_whether_the_result_is_any_good(accuracy, gain, few, meant):
    named = ("value", "low", "high")
    accuracy, gain = (None if one is None else dict(zip(named, one, strict=True)) for one in (accuracy, gain))
    verdict = agreement_verdict(accuracy, gain, pairs=40, longer=0.5, few=few)
    assert verdict.startswith(f"agrees with people on {100 * accuracy['value']:.1f} % of 40 decided pairs")
    assert ("95 % interval" in verdict) == (accuracy["low"] is not None)
    assert meant in verdict


def test_a_histogram_counts_every_value_in_its_bar():
    drawing = histogram([0.01, 0.02, 0.5, 1.0], title="t", across="probability", up="pairs", ends=(0.0, 1.0))
    counts = [int(count) for count in re.findall(r"<title>[^<]*: (\d+)</title>", drawing)]
    assert (len(counts), counts[0], counts[10], counts[-1], sum(counts)) == (20, 2, 1, 1, 4)
    assert "<title>0 to 0.05: 2</title>" in drawing
    assert "var(--line-1)" in drawing


def test_charts_with_the_same_limits_have_the_same_labels():
    lines = ([(55, 60), (95, 90)], [(60, 45), (70, 80)])
    drawings = [line_chart([Line("", points)], title="t", across="", limits=((50, 100), (40, 100))) for points in lines]
    labels = [re.findall(r"<text[^>]*>([^<]*)</text>", drawing) for drawing in drawings]
    assert labels[0] == labels[1]
    assert {"40", "100"} <= set(labels[0])
