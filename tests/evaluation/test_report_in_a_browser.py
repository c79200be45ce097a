"""The one look of reports in a real browser: narrow and wide, light and dark, on paper."""

import pytest

from paragone_evaluation.report.charts import Line, line_chart
from paragone_evaluation.report.page import Card, Figure, PageSection, PageTable, render_page
from tests.service.page.browser import chromium, needs_browser, opened

pytestmark = needs_browser

LONG = "a-name-without-any-place-to-break-" * 6


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    lines = [Line("model", [(0, 1), (1, 2)]), Line("people", [(0, 2), (1, 1)], dashed=True)]
    chart = line_chart(lines, title="chart", across="step")
    tables = [
        PageTable(("name", "value"), [(LONG, "1.000"), ("short", "2.000")], (1,)),
        PageTable(("", ""), [("prompt", LONG), ("response", "several\nlines")], texts=True, labelled=True),
    ]
    sections = [PageSection("Section", "Text.", code=LONG, figures=[Figure("Chart", chart, lines)], tables=tables)]
    cards = [Card(f"Card {number}", "0.123", remark="of something") for number in range(4)]
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_page(LONG, lead="Lead.", cards=cards, sections=sections, notes=["Note."]), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def test_no_page_is_wider_than_its_window_and_cards_stand_in_pairs_on_a_phone(browser, address):
    for width in (1280, 390):
        with opened(browser, address, viewport={"width": width, "height": 800}) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            tops = page.evaluate("[...document.querySelectorAll('.cards div')].map(one => one.offsetTop)")
            assert len(set(tops)) == (1 if width == 1280 else 2)
            label, text = page.evaluate("[...document.querySelector('.labelled tr').cells].map(one => one.offsetWidth)")
            assert label < text


def test_text_and_drawings_follow_light_and_dark_and_paper_is_light(browser, address):
    shades = {}
    for scheme in ("light", "dark"):
        with opened(browser, address, color_scheme=scheme) as page:
            colour = "getComputedStyle(document.body).backgroundColor"
            stroke = (
                "getComputedStyle([...document.querySelectorAll('svg path')]"
                ".find(p => p.style.stroke.includes('line-1'))).stroke"
            )
            shades[scheme] = page.evaluate(colour), page.evaluate(stroke)
            page.emulate_media(media="print")
            assert page.evaluate(colour) == shades["light"][0]
    assert len({background for background, _ in shades.values()}) == 2
    assert len({stroke for _, stroke in shades.values()}) == 2
