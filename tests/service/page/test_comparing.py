"""The playground in a real browser: click, type, keys; every number on it is one of the service's."""

import base64
import json
import random
import re
import subprocess
import sys
from itertools import chain

import httpx2
import numpy as np
import pytest

from paragone_models import load_model
from paragone_models.comparator import Comparator
from paragone_models.spec import ModelSpec
from paragone_models.tournament import cyclic_triples, summarise
from tests.service.conftest import make_model, make_tokenizer
from tests.service.page.browser import chromium, needs_browser, opened, served, violations

pytestmark = needs_browser

NAMES = ("mini-general-preference", "everyday-preferences", "mini-helpsteer", "mini-bradley-terry")
NASTY = [
    "<img src=x onerror=\"document.title='taken'\">",
    "</textarea><script>document.title='taken'</script>",
    "'\"`${document.title='taken'}{{7*7}}&lt;b&gt;",
    "javascript:document.title='taken'",
    "\u202eright to left\u202c \u0000\u0007 \u2028 \U0001f600 ́́",
    "<svg/onload=document.title='taken'><style>*{display:none}</style>",
]


@pytest.fixture(scope="module")
def models():
    return {name: load_model(f"builtin:{name}", device="cpu") for name in NAMES}


@pytest.fixture(scope="module")
def address(models):
    with served(models) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def asked(address, question, model, **more):
    """What the service says of what stands in the page's form."""
    group = {"prompt": question["prompt"], "responses": question["responses"]}
    body = {"model": model, "groups": [group], "return": ["matrix"], **more}
    return httpx2.post(f"{address}v1/tournaments", json=body).raise_for_status().json()["tournaments"][0]


def written(page):
    fields = page.locator(".responses textarea")
    return {
        "prompt": page.locator(".turn textarea").first.input_value(),
        "responses": [fields.nth(at).input_value() for at in range(fields.count())],
    }


def table(page, count):
    """The probabilities in the heat map, as their cells say them with four digits."""
    found = np.full((count, count), 0.5)
    for cell in page.locator(".heat td[data-row]").all():
        row, column = (int(cell.get_attribute(f"data-{side}")) for side in ("row", "column"))
        found[row, column] = float(cell.get_attribute("title").rsplit(" ", 1)[1])
    return found


def settled(page):
    """Wait until what is shown answers what is written."""
    page.locator(".results:not(.stale) > :is(.costs, [role=alert])").first.wait_for()


def example(page, title):
    page.get_by_role("button", name=title).click()
    settled(page)


def test_the_page_opens_with_a_circle_and_every_number_is_the_services(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        question = written(page)
        tournament = asked(address, question, "everyday-preferences")
        matrix = np.array(tournament["matrix"])
        assert tournament["condorcet_winner"] is None
        assert cyclic_triples(matrix) > 0
        assert page.locator(".headline").inner_text() == (
            "No response is best: A beats C, C beats B, B beats D and D beats A."
        )
        ring = [(int(edge.get_attribute("data-first")), int(edge.get_attribute("data-second")))
                for edge in page.locator("path.ring").all()]  # fmt: skip
        assert ring == [(0, 2), (2, 1), (1, 3), (3, 0)]
        assert all(matrix[edge] > 0.5 for edge in ring)
        assert abs(table(page, 4) - matrix).max() < 6e-5
        rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".live .standing tbody tr").all()]
        for row, index in zip(rows, tournament["ranking"], strict=True):
            assert row[0] == "ABCD"[index]
            assert row[2:4] == [f"{tournament['win_rates'][index]:.2f}", f"{tournament['nash'][index]:.2f}"]
        described = page.locator("svg.graph").get_attribute("aria-label")
        assert f"A over C {matrix[0, 2]:.2f}" in described
        assert (
            "4 responses run" in page.locator(".costs").inner_text() or "cache" in page.locator(".costs").inner_text()
        )
        page.locator(".heat td[data-row='1'][data-column='0']").click()
        assert page.locator(".duel-bar").inner_text().split() == [
            "B",
            f"{matrix[1, 0]:.2f}",
            f"{matrix[0, 1]:.2f}",
            "A",
        ]


def test_a_question_is_typed_and_asked_by_keys_alone(browser, address):
    with opened(browser, f"{address}#compare") as page:
        page.locator(".costs").wait_for()
        page.get_by_label("Model", exact=True).select_option("mini-bradley-terry")
        page.get_by_label("Prompt").fill("Is bread good?")
        for _ in range(2):
            page.get_by_role("button", name="Remove response A").press("Enter")
        for letter, text in zip("AB", ["Yes, because it keeps and everybody likes it.", "no"], strict=True):
            page.get_by_label(f"Response {letter}", exact=True).fill(text)
        assert page.get_by_role("button", name="Remove response A").is_disabled()
        page.keyboard.press("Control+Enter")
        settled(page)
        question = {"prompt": "Is bread good?", "responses": ["Yes, because it keeps and everybody likes it.", "no"]}
        probability = asked(address, question, "mini-bradley-terry")["matrix"][0][1]
        assert page.locator(".headline").inner_text() == f"A is preferred, with probability {probability:.2f}."
        meaning = page.locator(".duel").inner_text()
        assert f"prefers A to B with probability {probability:.2f}" in meaning
        assert "times in 100" not in meaning  # it is not calibrated
        for _ in range(14):
            page.get_by_role("button", name="Add a response").click()
        assert page.get_by_role("button", name="Add a response").is_disabled()
        assert page.evaluate("document.activeElement.closest('li').querySelector('.badge').textContent") == "Response P"


def test_a_conversation_of_several_turns_is_sent_as_messages(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        example(page, "A flat tyre")
        fields = page.locator(".turn textarea")
        roles = ["user", "assistant", "user"]
        prompt = [{"role": role, "content": fields.nth(at).input_value()} for at, role in enumerate(roles)]
        tournament = asked(address, {**written(page), "prompt": prompt}, "everyday-preferences")
        assert abs(table(page, 3) - np.array(tournament["matrix"])).max() < 6e-5
        page.get_by_role("button", name="Add a turn").click()
        assert page.get_by_label("Who speaks in turn 4").input_value() == "assistant"
        page.get_by_role("button", name="Remove turn 4").click()
        assert fields.count() == 3


def test_sliders_answer_at_once_with_the_numbers_that_the_service_gives_for_these_weights(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        example(page, "A school garden")
        # What is answered at once must not wait for the service: it does not answer.
        page.route("**/v1/tournaments", lambda _: None)
        slider = page.get_by_label("verbosity")
        slider.focus()
        for _ in range(4):
            slider.press("ArrowLeft")
        weights = {"convincingness": 0.0, "verbosity": -0.2}
        at_once = table(page, 4)
        page.unroute("**/v1/tournaments")
        tournament = asked(address, written(page), "mini-helpsteer", weights=weights)
        assert abs(at_once - np.array(tournament["matrix"])).max() < 6e-5
        weights["convincingness"] = 0.05
        with page.expect_response("**/v1/tournaments") as confirmed:
            page.get_by_label("convincingness").press("ArrowRight")
        assert confirmed.value.request.post_data_json["weights"] == weights
        tournament = confirmed.value.json()["tournaments"][0]
        assert abs(table(page, 4) - np.array(tournament["matrix"])).max() < 6e-5
        page.get_by_role("button", name="Reset").click()
        own = asked(address, written(page), "mini-helpsteer")
        leading = f"{own['matrix'][own['ranking'][0]][own['ranking'][1]]:.2f}"
        page.locator(".duel-bar", has_text=leading).wait_for()
        assert page.get_by_label("verbosity").input_value() == "0"


def test_ratings_without_weights_are_weighed_by_hand_and_cycles_beside_a_reward_have_a_slider(browser, tmp_path):
    specs = {
        "ratings": ModelSpec(kind="regression", dimension=2, attributes=("helpful", "verbose"), max_length=256),
        "both": ModelSpec(kind="hybrid", dimension=3, temperature=0.2, max_length=256),
    }
    tokenizer = make_tokenizer()
    made = {name: make_model(tmp_path / name, spec, tokenizer, 3) for name, spec in specs.items()}
    tiny = {name: load_model(folder, name=name, device="cpu") for name, folder in made.items()}
    with served(tiny) as address, opened(browser, address, refusals=(422,)) as page:
        page.get_by_role("button", name="Close the main street").click()
        page.locator(".results [role=alert]", has_text="weights").wait_for()
        with page.expect_response(confirmed("weights")) as answered:
            page.get_by_label("helpful").press("ArrowRight")
        tournament = answered.value.json()["tournaments"][0]
        assert answered.value.request.post_data_json["weights"] == {"helpful": 0.05, "verbose": 0}
        page.locator(".live svg.graph").wait_for()
        assert abs(table(page, 6) - np.array(tournament["matrix"])).max() < 6e-5
        page.get_by_label("Model", exact=True).select_option("both")
        page.get_by_role("button", name="Compare", exact=True).click()
        settled(page)
        slider = page.get_by_label("cycles", exact=True)
        with page.expect_response(confirmed("skew_weight")) as answered:
            slider.press("Home")
        assert answered.value.request.post_data_json["skew_weight"] == 0
        assert abs(table(page, 6) - np.array(answered.value.json()["tournaments"][0]["matrix"])).max() < 6e-5


def confirmed(field):
    return lambda response: field in (response.request.post_data or "") and response.ok


def test_the_arithmetic_of_the_page_is_that_of_the_service(browser, address):
    generator = np.random.default_rng(0)
    hybrid = Comparator("hybrid", dimension=5, temperature=0.7, skew_weight=0.4)
    representations = generator.normal(size=(5, 5))
    with opened(browser, address) as page:
        run = "async ([name, ...given]) => (await import('/page/table.js'))[name](...given)"
        matrix = np.array(page.evaluate(run, ["skewTable", representations.tolist(), 0.7, 0.4]))
        assert abs(matrix - hybrid.matrix(representations)).max() < 1e-12
        rewards = generator.normal(size=6).tolist()
        scalar = Comparator("bradley-terry", dimension=1, temperature=0.5)
        tables = np.array(page.evaluate(run, ["tableOf", rewards, 0.5]))
        assert abs(tables - scalar.matrix(np.array(rewards)[:, None])).max() < 1e-12
        summary = summarise(tables)
        local = page.evaluate(run, ["tournamentOf", tables.tolist(), rewards])
        assert local["ranking"] == summary.ranking
        assert local["copeland"] == summary.copeland
        assert local["condorcet_winner"] == summary.condorcet_winner
        assert abs(np.array(local["nash"]) - summary.nash).max() < 1e-6
        assert abs(np.array(local["win_rates"]) - summary.win_rates).max() < 1e-12
        for size in range(2, 17):
            wins = np.triu(generator.choice([0.2, 0.5, 0.8], size=(size, size), p=[0.45, 0.1, 0.45]), 1)
            drawn = wins + np.tril(1 - wins.T, -1) + np.eye(size) / 2
            groups = page.evaluate(run, ["groupsOf", drawn.tolist()])
            assert sorted(chain(*groups)) == list(range(size))
            for at, group in enumerate(groups):
                later = list(chain(*groups[at + 1 :]))
                assert all(drawn[i, j] > 0.5 for i in group for j in later)
                ring = page.evaluate(run, ["ringOf", group, drawn.tolist()])
                assert sorted(ring) == sorted(group)
                if len(ring) > 2:
                    assert all(drawn[one, ring[(place + 1) % len(ring)]] >= 0.5 for place, one in enumerate(ring))


def test_two_models_stand_side_by_side_and_their_disagreements_are_counted(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        example(page, "Decline a wedding")
        ours, theirs = (np.array(asked(address, written(page), name)["matrix"])
                        for name in ("mini-bradley-terry", "everyday-preferences"))  # fmt: skip
        upper = np.triu_indices(4, 1)
        opposite = ((ours - 0.5) * (theirs - 0.5) < 0)[upper].sum()
        assert opposite > 0
        costs = page.locator(".costs").all_inner_texts()
        assert ["mini-bradley-terry" in costs[0], "everyday-preferences" in costs[1]] == [True, True]
        assert f"They disagree on {opposite} of 6 pairs." in page.locator(".versus").inner_text()
        for row in page.locator(".versus tbody tr").all():
            pair, *probabilities, word = row.locator("th, td").all_inner_texts()
            first, second = ("ABCD".index(letter) for letter in pair.split(" over "))
            expected = [matrix[first, second] for matrix in (ours, theirs)]
            shown = [float(one.strip("<>")) for one in probabilities]
            assert shown == pytest.approx(expected, abs=0.0101)
            assert (word == "disagree") == ((expected[0] - 0.5) * (expected[1] - 0.5) < 0)


def test_the_tokens_that_the_model_sees_are_shown_and_where_the_prompt_was_cut(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        page.get_by_label("Prompt").fill("word " * 700 + "Is it good?")
        page.get_by_role("button", name="Compare", exact=True).click()
        page.get_by_text("4 prompts cut").wait_for()
        page.get_by_text("What the model sees").click()
        page.locator(".token").first.wait_for()
        question = written(page)
        body = {"model": "everyday-preferences", "return": ["pieces"],
                "items": [{"prompt": question["prompt"], "response": question["responses"][0]}]}  # fmt: skip
        reading = httpx2.post(f"{address}v1/tokens", json=body).json()["tokens"][0]
        assert "".join(reading["pieces"]) == reading["text"]
        shown = page.locator(".token").all_inner_texts()
        assert len(shown) == len(reading["token_ids"])
        assert page.locator(".token.asked").count() == reading["prompt_length"]
        assert f"{reading['truncated_tokens']} tokens" in page.locator(".cut").inner_text()


def test_the_commands_on_the_page_give_what_the_page_shows(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        page.get_by_label("Prompt").fill('It\'s "quoted" \\ and $HOME `ls` é')
        page.get_by_label("Response A", exact=True).fill("one line\nand 'another'\t\\n")
        page.get_by_role("button", name="Compare", exact=True).click()
        settled(page)
        page.get_by_text("The same request in code").click()
        curl, python = page.locator(".snippet code").all_inner_texts()
        answer = json.loads(subprocess.run(["bash", "-c", curl], capture_output=True, check=True).stdout)
        assert abs(np.array(answer["tournaments"][0]["matrix"]) - table(page, 4)).max() < 6e-5
        printed = subprocess.run([sys.executable, "-c", python], capture_output=True, check=True, text=True).stdout
        rates = answer["tournaments"][0]["win_rates"]
        assert json.loads(printed.split("] [")[0] + "]") == rates
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy").first.click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == curl


def test_the_commands_ask_both_models_and_weigh_the_first_one(browser, address):
    weights = {"convincingness": 0.5, "verbosity": -0.25}
    question = {"model": "mini-helpsteer", "second": "everyday-preferences", "weights": weights,
                "turns": [{"role": "user", "content": "Why?"}], "responses": ["one", "two, or", "four"]}  # fmt: skip
    packed = base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip("=")
    with opened(browser, f"{address}#compare={packed}") as page:
        page.locator(".versus").wait_for()
        assert page.get_by_label("verbosity").input_value() == "-0.25"
        page.get_by_text("The same request in code").click()
        curl, python = page.locator(".snippet code").all_inner_texts()
        printed = subprocess.run([sys.executable, "-c", python], capture_output=True, check=True, text=True).stdout
        lines = zip(curl.split("\n\n"), printed.splitlines(), strict=True)
        for (command, line), model in zip(lines, ("mini-helpsteer", "everyday-preferences"), strict=True):
            answer = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout)
            more = {"weights": weights} if model == "mini-helpsteer" else {}
            expected = asked(address, {"prompt": "Why?", "responses": question["responses"]}, model, **more)
            assert answer["tournaments"][0]["matrix"] == expected["matrix"]
            assert json.loads(line.split("] [")[0] + "]") == expected["win_rates"]


def test_a_link_carries_the_question_and_a_damaged_one_says_so(browser, address):
    with opened(browser, address) as page:
        page.locator(".costs").wait_for()
        page.get_by_label("Prompt").fill("Grüße 😀 <b>?")
        page.get_by_role("button", name="Compare", exact=True).click()
        settled(page)
        link, question = page.url, written(page)
        assert link.startswith(f"{address}#compare=")
    with opened(browser, link) as page:
        page.locator(".costs").wait_for()
        assert written(page) == question
        assert page.get_by_label("Model", exact=True).input_value() == "everyday-preferences"
    for damaged in (link[:-7], f"{address}#compare=%00", f"{address}#compare=e30", f"{address}#compare=bnVsbA"):
        with opened(browser, damaged) as page:
            page.get_by_text("The link is damaged").wait_for()


@pytest.mark.parametrize(("model", "second"), [("tiny", ""), ("mini-bradley-terry", "tiny"), ("gone", "")])
def test_a_link_asks_no_model_that_is_no_demonstration_until_somebody_says_so(browser, models, tmp_path, model, second):
    folder = make_model(
        tmp_path / "tiny", ModelSpec(kind="bradley-terry", dimension=1, max_length=256), make_tokenizer(), 3
    )
    hosted = {"tiny": load_model(folder, name="tiny", device="cpu")}
    hosted["mini-bradley-terry"] = models["mini-bradley-terry"]
    question = {"model": model, "second": second, "turns": [{"role": "user", "content": "Why?"}],
                "responses": ["one", "two"]}  # fmt: skip
    packed = base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip("=")
    with served(hosted) as address, opened(browser, f"{address}#label") as page:
        sent = []
        page.on("request", lambda request: sent.append(request.method))
        page.locator(".drop").wait_for()
        page.evaluate("fragment => { location.hash = fragment; }", f"#compare={packed}")
        page.get_by_text("Check it, then press Compare").wait_for()
        assert written(page) == {"prompt": "Why?", "responses": ["one", "two"]}
        assert "POST" not in sent
        page.get_by_role("button", name="Compare", exact=True).click()
        settled(page)
        assert "POST" in sent


def test_a_key_is_asked_for_kept_in_the_tab_and_never_part_of_an_address(browser, models):
    with (
        served({"everyday-preferences": models["everyday-preferences"]}, api_key="secret-key-of-ours") as address,
        opened(browser, address, refusals=(401, 403)) as page,
    ):
        addresses = []
        page.on("request", lambda request: addresses.append(request.url))
        page.get_by_role("dialog").wait_for()
        page.get_by_label("Key of this server").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_text("This server does not accept that key.").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("Key of this server").fill("secret-key-of-ours")
        page.keyboard.press("Enter")
        page.locator(".costs").wait_for()
        page.get_by_text("The same request in code").click()
        assert "PARAGONE_API_KEY" in page.locator(".snippet code").first.inner_text()
        page.reload()
        page.locator(".costs").wait_for()
        everything = [*addresses, page.url, page.content(), json.dumps(page.evaluate("({...localStorage})"))]
        assert [one for one in everything if "secret-key-of-ours" in one] == []
        page.get_by_role("button", name="Key").click()
        page.get_by_role("button", name="Forget the key").click()
        assert page.evaluate("sessionStorage.length") == 0


def test_errors_stand_where_they_belong_in_words_and_what_passes_can_be_tried_again(browser, address, models):
    with opened(browser, address, refusals=(422,)) as page:
        page.locator(".costs").wait_for()
        page.get_by_label("Response B", exact=True).fill("word " * 1000)
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator(".responses .problem:visible").wait_for()
        assert page.locator(".responses li").nth(1).locator(".problem").inner_text().count("512")
        assert page.locator(".heat tbody tr").count() == 3  # the others have their answer
        page.get_by_label("Prompt").fill("")
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator(".results [role=alert]").wait_for()
        assert page.locator(".results [role=alert]").inner_text().startswith("The prompt is empty")
    few = {"everyday-preferences": models["everyday-preferences"]}
    # One request a minute, and the list of models is one.
    with served(few, requests_per_minute=1) as strict, opened(browser, strict, refusals=(429,)) as page:
        page.locator(".results [role=alert]").wait_for()
        assert re.search(r"Try again in \d+ s\.", page.locator(".results [role=alert]").inner_text())
        with page.expect_response("**/v1/tournaments") as again:
            page.get_by_role("button", name="Try again").click()
        assert again.value.status == 429


def test_no_text_becomes_markup_wherever_it_is_shown(browser, address):
    shuffled = random.Random(0)
    with opened(browser, address, refusals=(422,)) as page:
        page.locator(".costs").wait_for()
        elements = page.evaluate("document.querySelectorAll('*').length")
        for text in NASTY:
            responses = [f"{one} {shuffled.random()}" for one in (text, *NASTY[:2], "plain")]
            page.get_by_label("Prompt").fill(text)
            for letter, one in zip("ABCD", responses, strict=True):
                page.get_by_label(f"Response {letter}", exact=True).fill(one)
            with page.expect_response("**/v1/tournaments"):
                page.get_by_role("button", name="Compare", exact=True).click()
            settled(page)
            for summary in ("What the model sees", "The same request in code"):
                page.get_by_text(summary).click()
            page.locator(".token").first.wait_for()
            assert page.title() == "Compare · Paragone"
            assert page.locator("main img, main script, main style, main b > *").count() == 0
            texts = page.locator(".standing .said, .heat th, pre code, .token")
            assert texts.locator("*").count() == 0
        assert page.evaluate("document.querySelectorAll('*').length") < elements + 1000


def test_nothing_is_wider_than_a_phone_whatever_is_written(browser, address):
    responses = ["word " * 2000, "x" * 10_000, "من عشر إلى عشرين دقيقة", "", *(f"It is {hour}." for hour in range(12))]
    question = {"turns": [{"role": "user", "content": "y" * 300}], "responses": responses}
    packed = base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip("=")
    with opened(browser, f"{address}#compare={packed}", viewport={"width": 390, "height": 844}) as page:
        page.locator(".costs").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert (
            page.get_by_label("Response C", exact=True).evaluate("field => getComputedStyle(field).direction") == "rtl"
        )
        page.get_by_role("button", name="Compare", exact=True).click()
        page.wait_for_function("document.querySelector('.headline').getBoundingClientRect().top < innerHeight")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_a_phone(browser, address, theme):
    with opened(browser, address, color_scheme=theme) as page:
        page.locator(".costs").wait_for()
        for title in ("How long a nap", "A school garden", "Decline a wedding"):
            example(page, title)
            for summary in page.locator("summary").all():
                summary.click()
            page.locator(".token").first.wait_for()
            page.set_viewport_size({"width": 390, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.set_viewport_size({"width": 1280, "height": 900})
            assert violations(page) == []
            assert page.locator("h1").all_inner_texts() == ["Paragone"]


def test_the_theme_is_chosen_and_remembered(browser, address):
    with opened(browser, address, color_scheme="light") as page:
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        for expected in ("light", "dark"):
            page.get_by_role("button", name="Theme").click()
            assert page.get_by_role("button", name=f"Theme: {expected}").is_visible()
        dark = page.evaluate(background)
        assert dark != light
        page.reload()
        assert page.evaluate(background) == dark


def test_a_table_of_thirty_two_is_drawn_at_once(browser, address, capsys):
    wins = np.triu(np.random.default_rng(1).uniform(size=(32, 32)), 1)
    drawn = (wins + np.tril(1 - wins.T, -1) + np.eye(32) / 2).tolist()
    with opened(browser, address) as page:
        milliseconds = page.evaluate(
            """async (matrix) => {
              const { heatmap } = await import("/page/heatmap.js");
              const { graph } = await import("/page/graph.js");
              const start = performance.now();
              const order = matrix.map((_, index) => index);
              const texts = order.map((index) => `response ${index}`);
              const none = () => {};
              const drawings = [heatmap(matrix, texts, order, none), graph(matrix, texts, 700, none)];
              document.querySelector("main").append(...drawings);
              document.querySelector("main").getBoundingClientRect();
              return performance.now() - start;
            }""",
            drawn,
        )
        assert page.locator(".heat td[data-row]").count() >= 32 * 31
    with capsys.disabled():
        print(f"\n32 responses: table and graph drawn in {milliseconds:.0f} ms")  # noqa: T201
