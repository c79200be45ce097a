"""Runs in a real browser: what a watcher tells the service of a real run is on the page, and stays up to date."""

import dataclasses
from importlib.resources import files

import pytest

from paragone import Client
from paragone_models import load_model
from paragone_training.run_sender import RunSender
from paragone_training.watching import progress_of
from tests.service.page.browser import chromium, needs_browser, opened, served
from tests.training.arguments import small_run

pytestmark = needs_browser

AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
EVIL = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def progress(tmp_path_factory):
    """A real run as it was at its step 8 of 12."""
    run = small_run(tmp_path_factory.mktemp("run"), epochs=6)
    file = run / "checkpoints" / "progress.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: next(at for at, line in enumerate(lines) if '"step": 9' in line)]))
    (run / "paragone.json").unlink()
    return progress_of(run)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def model():
    return load_model("builtin:mini-bradley-terry", device="cpu")


@pytest.fixture
def address(model):
    with served({"mini": model}) as address:
        yield address


def test_without_a_run_the_page_says_what_brings_one(browser, address, progress):
    with opened(browser, f"{address}#runs") as page:
        command = page.locator("code")
        command.wait_for()
        assert command.inner_text() == f"paragone watch runs/NAME --url {address.rstrip('/')}"
        RunSender(address, "judge").send(progress)
        page.get_by_role("button", name="judge").wait_for()
        assert command.is_hidden()


def test_a_run_is_shown_with_its_numbers_and_every_point_of_its_lines(browser, address, progress):
    RunSender(address, "judge").send(progress)
    with opened(browser, f"{address}#runs") as page:
        page.locator(".chart").first.wait_for()
        words = page.locator(".live .duel").inner_text().split("\n\n")
        assert words[:3] == ["judge", "train model, running", "step 8 of 12"]
        assert words[3].startswith("8 of 12 steps, ")
        assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "67"
        assert page.locator("figure").evaluate_all("all => all.map(one => one.dataset.series)") == list(progress.series)
        figure = page.locator('figure[data-series="loss"]')
        chart = figure.get_by_role("slider")
        places = chart.locator("path.line").get_attribute("d")
        assert places.count("L") + 1 == len(progress.series["loss"]) == 8
        figure.get_by_text("As a table").click()
        rows = [row.split("\t") for row in figure.locator("tbody").inner_text().splitlines()]
        with Client(address) as client:
            told = client.run("judge").series["loss"]
        assert [float(step) for step, _ in rows] == [step for step, _ in told]
        assert [float(loss) for _, loss in rows] == pytest.approx([loss for _, loss in told], rel=1e-3)
        chart.focus()
        page.keyboard.press("Home")
        assert figure.locator("output").inner_text() == f"{rows[0][1]} at 1"
        page.keyboard.press("ArrowRight")
        assert chart.get_attribute("aria-valuetext") == f"{rows[1][1]} at 2 steps"
        box = chart.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
        assert figure.locator("output").inner_text() == f"{rows[-1][1]} at 8"


def test_the_page_follows_a_run_to_its_end_and_keeps_the_focus(browser, address, progress):
    RunSender(address, "judge").send(progress)
    with opened(browser, f"{address}#runs") as page:
        chart = page.locator('figure[data-series="loss"] svg')
        chart.wait_for()
        chart.focus()
        page.keyboard.press("Home")
        more = {**progress.series, "loss": [*progress.series["loss"], (9.0, 0.25)]}
        RunSender(address, "judge").send(dataclasses.replace(progress, done=9, stage="step 9 of 12", series=more))
        page.get_by_text("step 9 of 12").wait_for()
        assert chart.evaluate("node => node === document.activeElement") is True
        assert chart.get_attribute("aria-valuenow") == "0"
        assert chart.get_attribute("aria-valuemax") == "8"
        RunSender(address, "other").send(progress)
        page.get_by_role("button", name="other").click()
        page.locator(".live h2", has_text="other").wait_for()
        page.get_by_role("button", name="judge").click()
        RunSender(address, "judge").send(dataclasses.replace(progress, state="done", done=12, stage="saved"))
        page.get_by_text("train model, done").first.wait_for()
        assert page.locator("#announcer").inner_text() == "judge is done."


def test_nothing_is_asked_while_nobody_can_see_it(browser, address, progress):
    RunSender(address, "judge").send(progress)
    with opened(browser, f"{address}#runs") as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "v1/runs" in request.url else None)
        page.clock.install()
        page.reload()
        page.locator(".chart").first.wait_for()

        def asks():
            asked.clear()
            for _ in range(3):
                page.clock.run_for(2_500)
                page.wait_for_timeout(50)
            return len(asked)

        assert asks() >= 2
        hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        hide += " document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(hide, True)
        assert asks() == 0
        page.evaluate(hide, False)
        assert asks() >= 2
        page.get_by_role("link", name="Judge").click()
        page.wait_for_function("location.hash === '#label'")
        assert asks() == 0
        page.get_by_role("link", name="Runs").click()
        assert asks() >= 2


def test_a_run_without_news_says_since_when_and_a_server_that_is_away_is_named(browser, address, progress):
    RunSender(address, "judge").send(progress)
    with opened(browser, f"{address}#runs", refusals=(503,)) as page:
        page.locator(".chart").first.wait_for()

        def older(route):
            answer = route.fetch()
            runs = [{**run, "since_s": 600} for run in answer.json()["runs"]]
            route.fulfill(response=answer, json={"runs": runs})

        page.route("**/v1/runs", older)
        page.get_by_text("No news since").wait_for()
        assert "model, no news" in page.get_by_role("button", name="judge").inner_text()
        page.route("**/v1/runs", lambda route: route.fulfill(status=503, json={"error": {"code": "shutting_down"}}))
        page.get_by_text("The server is shutting down.").wait_for()
        assert page.locator(".chart").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_a_phone_shows_it(browser, address, progress, scheme):
    RunSender(address, "judge").send(progress)
    RunSender(address, "stopped-one").send(dataclasses.replace(progress, state="stopped"))
    with opened(browser, f"{address}#runs", color_scheme=scheme, bypass_csp=True) as page:
        page.locator(".chart").first.wait_for()
        page.get_by_text("As a table").first.click()
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        page.set_viewport_size({"width": 390, "height": 500})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="stopped-one").click()
        assert abs(page.locator(".live").bounding_box()["y"]) < 5  # below the list, and brought to the top


def test_texts_of_a_run_never_become_markup(browser, address, progress):
    evil = dataclasses.replace(
        progress, stage=EVIL, unit=EVIL[:30], lines=[EVIL], numbers={EVIL: 1.0}, series={EVIL: [(0.0, 1.0), (1.0, 2.0)]}
    )
    RunSender(address, "judge").send(evil)
    with opened(browser, f"{address}#runs") as page:
        page.locator(".chart").first.wait_for()
        assert page.locator(".live pre").inner_text() == EVIL
        assert EVIL in page.locator("figcaption").inner_text()
        assert page.title() == "Runs · Paragone"
        assert page.locator("main img").count() == 0


def test_extreme_numbers_and_long_words_leave_the_page_whole(browser, address, progress):
    series = {"far": [(0.0, -1.7e308), (1.0, 1.7e308)], "near": [(0.0, -5e-324), (1.0, 5e-324)], "w" * 60: [(0.0, 1.0)]}
    numbers = {"w" * 60: 1e308}
    RunSender(address, "judge").send(
        dataclasses.replace(progress, stage="W" * 400, rate=1e-300, left_s=1e300, numbers=numbers, series=series)
    )
    RunSender(address, "n" * 100).send(dataclasses.replace(progress, rate=1e308))
    with opened(browser, f"{address}#runs", viewport={"width": 360, "height": 800}) as page:
        page.locator(".chart").first.wait_for()
        page.get_by_role("button", name="judge").click()
        page.locator(".live h2", has_text="judge").wait_for()
        assert page.locator(".chart").count() == 3
        assert "NaN" not in page.locator(".live").inner_html()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
