"""The look of reports: pages from blocks, charts inside them, and nothing that is fetched or runs."""

import re

from markupsafe import Markup

from paragone_evaluation.report.charts import COLOURS, Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, interval_bar, render_page


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
