"""Judging by hand in a real browser: a file is paged through, pairs are judged by keys, and a head learns them."""

import base64
import json
from pathlib import Path

import httpx2
import pytest

from paragone_evaluation.readers import read_pairs
from paragone_models import load_model
from paragone_models.spec import ModelSpec
from paragone_service.api_keys import hash_of
from paragone_service.files import reading
from tests.service.conftest import make_model, make_tokenizer
from tests.service.page.browser import chromium, needs_browser, opened, served, violations

pytestmark = needs_browser

TOPICS = ["sport", "music", "books", "bread", "trains", "maps", "cats", "rain", "tea", "walls", "seas", "games"]
SHORT, LONG = "no", "Yes, because it keeps people well and brings them together."
ROWS = [
    {"prompt": f"Is {topic} good?", "first": SHORT, "second": LONG, "strength": 2 if number % 2 else 0}
    for number, topic in enumerate(TOPICS)
]
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def model():
    return load_model("builtin:mini-general-preference", device="cpu")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"ops:{hash_of('boss')} admin=yes\nuser:{hash_of('user')}\n")
    return file


@pytest.fixture(scope="module")
def address(model):
    with served({"mini": model}) as address:
        yield address


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def drop(page, rows, name="pairs.jsonl"):
    file = {"name": name, "mimeType": "application/jsonl", "buffer": lines(rows)}
    page.locator("input[type=file]").set_input_files(file)


def judge_all(page, *, longer=True):
    """Prefer the longer text, or the shorter, wherever it stands, by the keys alone."""
    page.get_by_role("button", name="Judge its pairs").click()
    sides = page.locator(".side-text .whole")
    sides.first.wait_for()
    for _ in range(int(page.locator(".card .spread span").inner_text().split()[0])):
        left, right = sides.all_inner_texts()
        page.keyboard.press("ArrowLeft" if (len(left) > len(right)) == longer else "ArrowRight")
    page.get_by_text("All pairs are judged.").wait_for()


def downloaded(page, path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(path)
    return path


def test_a_file_is_shown_page_by_page_as_the_service_reads_it(browser, address):
    rows = [*ROWS, {"prompt": "Broken?"}]
    with opened(browser, f"{address}#label") as page:
        drop(page, rows)
        page.get_by_text("Rows 1–10 of 12").wait_for()
        answer = httpx2.post(f"{address}v1/files?name=pairs.jsonl&limit=500", content=lines(rows)).json()
        summary = page.locator(".found").inner_text()
        assert f"{answer['read']} rows, {answer['prompts']} prompts, {answer['responses']} responses" in summary
        assert f"{answer['pairs']} comparisons ({answer['ties']} ties)" in summary
        page.get_by_text("1 row left out").click()
        assert answer["left_out"][0]["reason"] in page.locator(".left-out").inner_text()
        page.get_by_role("button", name="Next").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Rows 11–12 of 12").wait_for()
        cells = page.locator("table.rows tbody tr").last.locator("th, td").all_inner_texts()
        assert cells[0] == str(answer["rows"][11]["line"])
        assert cells[1] == "Is games good?"
        assert cells[3] == "A over B (2)"
        assert page.get_by_role("button", name="Next").get_attribute("aria-disabled") == "true"
        assert page.get_by_role("button", name="Next").evaluate("node => node === document.activeElement") is True


def test_rows_that_one_answer_does_not_hold_are_on_the_next_page_and_are_judged(browser, address, monkeypatch):
    monkeypatch.setattr(reading, "_ROWS_BYTES", 30_000)
    rows = [{"prompt": f"{n}?", "chosen": "é" * 1000, "rejected": "No."} for n in range(6)]
    with opened(browser, f"{address}#label") as page:
        drop(page, rows)
        page.get_by_text("Rows 1–4 of 6").wait_for()
        page.get_by_role("button", name="Next").click()
        page.get_by_text("Rows 5–6 of 6").wait_for()
        page.get_by_role("button", name="Judge its pairs").click()
        page.get_by_text("6 left").wait_for()


def test_keys_judge_undo_and_download_what_training_reads(browser, address, tmp_path):
    with opened(browser, f"{address}#label") as page:
        drop(page, ROWS)
        judge_all(page)
        page.keyboard.press("u")  # the last one again: a tie this time
        page.get_by_text("1 left").wait_for()
        page.keyboard.press("Space")
        pairs = read_pairs(downloaded(page, tmp_path / "judgements.jsonl"))
        assert [(pair.prompt, pair.first, pair.second) for pair in pairs] == [
            (row["prompt"], row["first"], row["second"]) for row in ROWS
        ]
        assert [pair.strength for pair in pairs] == [-1.0] * 11 + [0.0]
        page.reload()
        page.get_by_text("12 pairs judged (1 tie).").wait_for()
        page.get_by_role("button", name="Undo").click()
        page.get_by_text("1 left").wait_for()
        page.keyboard.press("s")
        page.get_by_text("11 pairs judged.").wait_for()
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete them").click()
        page.get_by_text("11 pairs judged").wait_for(state="detached")
        assert page.locator("section[aria-label=Head]").is_hidden()


def test_responses_to_conversations_are_judged_with_buttons(browser, address, tmp_path):
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."},
             {"role": "user", "content": "Why?"}]  # fmt: skip
    with opened(browser, f"{address}#label", viewport={"width": 390, "height": 800}) as page:
        drop(page, [{"prompt": turns, "responses": ["one", "two", "three"]}])
        page.get_by_role("button", name="Judge its pairs").click()
        assert page.locator(".asked").inner_text() == "user: Hello.\n\nassistant: Hi.\n\nuser: Why?"
        for _ in range(2):
            page.get_by_role("button", name="The upper one is better").click()
        page.get_by_text("All pairs are judged.").wait_for()
        pairs = read_pairs(downloaded(page, tmp_path / "judgements.jsonl"))
        assert [(pair.prompt_messages, pair.first, pair.second) for pair in pairs] == [
            (turns, "one", "two"),
            (turns, "two", "three"),
        ]
        assert {abs(pair.strength) for pair in pairs} == {1.0}
        assert page.locator("main").bounding_box()["width"] <= 390
        assert page.get_by_text("So far: 1.").is_visible()
        assert page.get_by_role("button", name="Fit a head on 2").is_disabled()


def test_whoever_disagrees_with_a_model_adds_a_judgement(browser, address, tmp_path):
    question = {"model": "mini", "second": "", "turns": [{"role": "user", "content": "Why?"}],
                "responses": ["one", "two", "three"], "weights": None, "skew": None}  # fmt: skip
    packed = base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip("=")
    with opened(browser, f"{address}#compare={packed}") as page:
        page.get_by_role("button", name="B is better", exact=True).click()
        page.get_by_text("B is better: saved.").first.wait_for()
        page.get_by_label("The other response").select_option("2")
        page.get_by_role("button", name="Tie").click()
        page.get_by_label("One response").select_option("1")
        page.get_by_role("button", name="B is better", exact=True).click()
        page.get_by_label("Your own judgement").get_by_role("link", name="3 judgements").click()
        page.get_by_text("3 pairs judged (1 tie).").wait_for()
        pairs = read_pairs(downloaded(page, tmp_path / "judgements.jsonl"))
        assert [(pair.prompt, pair.first, pair.second, pair.strength) for pair in pairs] == [
            ("Why?", "one", "two", -1),
            ("Why?", "one", "three", 0),
            ("Why?", "two", "three", 1),
        ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_while_somebody_judges(browser, address, scheme):
    with opened(browser, f"{address}#label", color_scheme=scheme, bypass_csp=True) as page:
        drop(page, [{**row, "second": LONG * 3} for row in ROWS] + [{"prompt": "Broken?"}])
        judge_all(page)
        page.keyboard.press("u")
        page.locator(".sides").wait_for()
        assert violations(page) == []
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_texts_of_a_file_never_become_markup(browser, address):
    with opened(browser, f"{address}#label") as page:
        drop(page, [{"prompt": EVIL, "chosen": EVIL + "a", "rejected": "b"}], name=f"{EVIL}.jsonl")
        page.get_by_role("button", name="Judge its pairs").click()
        assert page.locator(".asked").inner_text() == EVIL
        assert EVIL + "a" in page.locator(".side-text .whole").all_inner_texts()
        assert page.locator("main img").count() == 0
        assert page.title() == "Judge · Paragone"


def test_a_file_can_be_dropped(browser, address):
    script = """text => {
        const carried = new DataTransfer();
        carried.items.add(new File([text], "dropped.jsonl"));
        const event = new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
        document.querySelector(".drop").dispatchEvent(event);
    }"""
    # The page's own policy forbids to run a text, the test's too.
    with opened(browser, f"{address}#label", bypass_csp=True) as page:
        page.locator(".drop").wait_for()
        page.evaluate(script, lines(ROWS).decode())
        page.get_by_text("dropped.jsonl").wait_for()
        page.get_by_text("Rows 1–10 of 12").wait_for()


def test_a_pair_of_one_and_the_same_text_is_not_asked_about(browser, address):
    with opened(browser, f"{address}#label") as page:
        drop(page, [*ROWS[:2], {**ROWS[2], "first": LONG}])
        page.get_by_role("button", name="Judge its pairs").click()
        page.get_by_text("2 left").wait_for()


def test_what_cannot_be_read_is_said_in_the_readers_words(browser, address):
    with opened(browser, f"{address}#label", refusals=[422]) as page:
        drop(page, [{"colour": 1}])
        page.get_by_role("alert").wait_for()
        assert "1 row of 1 cannot be read" in page.get_by_role("alert").inner_text()


def test_a_head_learns_the_judgements_and_stands_beside_the_old_model(browser, model, keys, tmp_path):
    settings = {"api_key_file": keys, "models_dir": tmp_path / "models"}
    with served({"mini": model}, **settings) as address, opened(browser, address, refusals=[401, 403]) as page:
        page.get_by_label("Key of this server").fill("user")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("link", name="Judge").click()
        drop(page, ROWS)
        judge_all(page)
        page.get_by_label("Name of the new model").fill("longer")
        page.get_by_role("button", name="Fit a head on 12 judgements").click()
        page.get_by_text("needs an admin key (paragone key new").wait_for()
        page.get_by_label("Key of this server").fill("boss")
        page.get_by_role("button", name="Use this key").click()
        page.locator("table.agreement").wait_for()
        assert "longer agrees with you on 3 of 3 held-out pairs" in page.locator(".outcome .headline").inner_text()
        rows = page.locator("table.agreement tbody tr").all_inner_texts()
        assert rows[0].split()[:4] == ["longer", "3", "of", "3"]
        authorised = {"authorization": "Bearer boss"}
        hosted = httpx2.get(f"{address}v1/models/longer", headers=authorised).json()
        assert hosted["source"] == str(tmp_path / "models" / "longer")
        pair = {"prompt": "Is snow good?", "first": LONG, "second": SHORT}
        asked = httpx2.post(f"{address}v1/preferences", json={"model": "longer", "pairs": [pair]}, headers=authorised)
        assert asked.json()["preferences"][0]["probability"] > 0.5
        assert page.get_by_label("Name of the new model").input_value() == "longer-2"
        page.get_by_role("link", name="Try longer beside mini").click()
        page.get_by_label("Model", exact=True).wait_for()
        assert page.get_by_label("Model", exact=True).input_value() == "longer"
        assert page.get_by_label("Second model").input_value() == "mini"
        kept = page.context.storage_state()["origins"][0]["localStorage"]
        assert not any("boss" in entry["value"] for entry in kept)
        assert "boss" not in page.url


def test_what_is_written_survives_a_fit_and_is_asked_of_both_models(browser, tmp_path):
    folder = make_model(
        tmp_path / "tiny", ModelSpec(kind="bradley-terry", dimension=1, max_length=256), make_tokenizer(), 3
    )
    tiny = load_model(folder, name="tiny", device="cpu")
    with served({"tiny": tiny}) as address, opened(browser, address) as page:
        page.get_by_label("Prompt").fill("Is snow good?")
        for letter, text in zip("AB", (SHORT, LONG), strict=True):
            page.get_by_label(f"Response {letter}", exact=True).fill(text)
        page.get_by_role("link", name="Judge").click()
        drop(page, ROWS)
        judge_all(page)
        page.get_by_role("button", name="Fit a head on 12 judgements").click()
        page.locator("table.agreement").wait_for()
        page.get_by_role("link", name="Compare").click()
        assert page.get_by_label("Prompt").input_value() == "Is snow good?"
        page.get_by_label("Second model").select_option("mine")
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator(".versus h2", has_text="tiny and mine").wait_for()
        page.get_by_label("Response A", exact=True).fill("never")
        page.get_by_role("link", name="Judge").click()
        page.get_by_role("link", name="Try mine beside tiny").click()
        page.locator(".versus h2", has_text="mine and tiny").wait_for()
        assert page.get_by_label("Response A", exact=True).input_value() == "never"
        page.get_by_role("button", name="A flat tyre").click()  # an example is nothing that somebody wrote
        page.get_by_role("link", name="Judge").click()
        page.get_by_role("link", name="Try mine beside tiny").click()
        page.locator(".versus").wait_for()
        assert page.get_by_label("Prompt").input_value() in {row["prompt"] for row in ROWS}
        page.get_by_role("link", name="Judge").click()
        page.get_by_role("button", name="Unload mine").click()
        page.get_by_text("mine was unloaded.").wait_for()
        page.get_by_role("link", name="Compare").click()
        assert page.get_by_label("Model", exact=True).input_value() == "tiny"
        assert page.get_by_label("Response B", exact=True).input_value() == LONG


def test_an_opinion_on_one_and_the_same_text_is_not_kept(browser, address):
    question = {"model": "mini", "turns": [{"role": "user", "content": "Why?"}], "responses": ["", "", "because"]}
    packed = base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip("=")
    with opened(browser, f"{address}#compare={packed}") as page:
        opinion = page.get_by_label("Your own judgement")
        opinion.get_by_text("Both responses have the same text.").wait_for()
        assert [one.is_disabled() for one in opinion.get_by_role("button").all()] == [True] * 3
        page.get_by_label("The other response").select_option("2")
        page.get_by_role("button", name="C is better", exact=True).click()
        assert page.evaluate("JSON.parse(localStorage['paragone.labels']).history.length") == 1


def test_the_pages_own_link_asks_the_new_model_at_once(browser, tmp_path):
    folder = make_model(
        tmp_path / "tiny", ModelSpec(kind="bradley-terry", dimension=1, max_length=256), make_tokenizer(), 3
    )
    tiny = load_model(folder, name="tiny", device="cpu")
    with served({"tiny": tiny}) as address, opened(browser, f"{address}#label") as page:
        drop(page, ROWS)
        judge_all(page)
        page.get_by_role("button", name="Fit a head on 12 judgements").click()
        page.get_by_role("link", name="Try mine beside tiny").click()
        page.locator(".costs").first.wait_for()


def test_the_everyday_pairs_of_the_repository_can_be_judged(browser, address):
    path = Path(__file__).parents[3] / "data" / "everyday_pairs.jsonl"
    with opened(browser, f"{address}#label") as page:
        page.locator("input[type=file]").set_input_files(path)
        page.get_by_text("Rows 1–10 of 192").wait_for()
        page.get_by_role("button", name="Judge its pairs").click()
        page.get_by_text("192 left").wait_for()
