"""Models that compare pairs, in a real browser: a judge's price, votes, reasons and criteria; an ensemble's doubt."""

import base64
import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time

import httpx2
import pytest
import uvicorn
from serving_setup import free_port

from paragone_models import load_model
from paragone_models.comparisons import most_comparisons
from paragone_models.spec import ModelSpec
from tests.service.conftest import make_model, make_tokenizer
from tests.service.judge.scripted import Scripted, completion, status
from tests.service.judge.test_hosted_judge import longer_wins, said
from tests.service.page.browser import chromium, needs_browser, opened, served, violations

pytestmark = needs_browser

RESPONSES = ["x", "xxx", "xx"]
CRITERIA = [{"name": "long", "text": "be long", "weight": 2}, {"name": "brief", "text": 'it\'s "brief"', "weight": 1}]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), make_tokenizer()
    spec = ModelSpec(kind="bradley-terry", dimension=1, max_length=256)
    return {name: load_model(make_model(folder / name, spec, tokenizer, seed), name=name, device="cpu")
            for name, seed in (("one", 1), ("two", 2))}  # fmt: skip


@contextlib.contextmanager
def listening(server):
    """Yield the address of a scripted judge that listens on a port."""
    web = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=(port := free_port()), log_level="warning"))
    web.capture_signals = contextlib.nullcontext  # a thread can have none
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        while not web.started:
            time.sleep(0.01)
        yield f"judge:http://127.0.0.1:{port}/v1"
    finally:
        web.should_exit = True
        thread.join()


@contextlib.contextmanager
def judging(server, models=None, **settings):
    """Yield the address of a server that hosts a judge, and the models given."""
    models = models or {}
    with listening(server) as source:
        judge = {"source": source, "model": "m", "read": "votes", **settings}
        named = {"judge": judge, **{name: {"source": "loaded already"} for name in models}}
        with served(models, models=named) as address:
            yield address


def link(address, **fields):
    question = {"turns": [{"role": "user", "content": "Which?"}], "responses": RESPONSES, "model": "judge", **fields}
    return f"{address}#compare={base64.urlsafe_b64encode(json.dumps(question).encode()).decode().rstrip('=')}"


def compare(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".results:not(.stale) > .costs").first.wait_for()


def test_a_judge_says_its_price_before_and_its_votes_and_reasons_after(browser):
    server = Scripted(lambda body: longer_wins(body) if len(server.bodies) % 7 else completion("B"))
    with (
        judging(server, votes=3, sampling_temperature=0.5, price_prompt=1.0, price_completion=1.0) as address,
        opened(browser, link(address)) as page,
    ):
        assert "Asks judge: up to 18 calls." in page.locator(".price").inner_text()
        page.get_by_text("Check it, then press Compare").wait_for()
        assert server.bodies == []
        compare(page)
        assert len(server.bodies) == 18
        costs = page.locator(".costs").inner_text()
        assert "18 calls to the judge (234 tokens)" in costs
        assert "cost 0.000234" in costs
        body = {"model": "judge", "groups": [{"prompt": "Which?", "responses": RESPONSES}],
                "return": ["matrix", "rationale"]}  # fmt: skip
        tournament = httpx2.post(f"{address}v1/tournaments", json=body).json()["tournaments"][0]
        for pair in tournament["rationales"]:
            first, second = pair["first"], pair["second"]
            page.locator(f".heat td[data-row='{first}'][data-column='{second}']").click()
            votes = sum((one["text"] == "A") == (one["shown_first"] == "first") for one in pair["rationales"])
            names = "ABC"[first], "ABC"[second]
            assert page.locator(".reasons > p").first.inner_text() == (
                f"Votes: {votes} for {names[0]}, {6 - votes} for {names[1]}."
            )
            page.get_by_text("2 more").click()
            shown = page.locator(".reasons li").all_inner_texts()
            assert sorted(one.split() for one in shown) == sorted(
                [names[one["shown_first"] == "second"], "shown", "first", one["text"]] for one in pair["rationales"]
            )
            assert [one[0] for one in shown] == [*names] * 3  # each order by turns
        assert page.get_by_text("What the model sees").count() == 0


def test_fewer_pairs_are_asked_for_and_the_others_are_marked_as_inferred(browser):
    server = Scripted(longer_wins)
    with judging(server, read="auto") as address, opened(browser, link(address)) as page:
        page.get_by_label("Compare", exact=True).select_option("budget")
        assert "up to 4 calls" in page.locator(".price").inner_text()
        compare(page)
        assert len(server.bodies) == 1 + 4  # the first found out how verdicts are read
        page.locator(".heat td[data-row]:not(.inferred)").first.click()
        page.get_by_text("Votes: ").wait_for()
        cell = page.locator(".heat td.inferred").first
        assert "(inferred)" in cell.get_attribute("title")
        cell.click()
        page.get_by_text("inferred from the other pairs, by a Bradley-Terry fit.").wait_for()
        assert page.locator(".reasons").count() == 0
        assert page.locator(".standing td.win small").count() == 3  # how sure the win rates are
        page.get_by_text("The same request in code").click()
        assert '"budget:2"' in page.locator(".snippet code").first.inner_text()
        page.get_by_label("Inferred preferences may run in circles").check()
        compare(page)
        page.locator(".heat td.inferred").first.click()
        page.get_by_text("inferred from the other pairs, by a general preference fit.").wait_for()
        page.get_by_role("button", name="Remove response C").click()
        assert page.get_by_label("Compare", exact=True).is_hidden()
        compare(page)
        page.locator(".duel-bar", has_text="B").wait_for()


def test_a_pair_without_a_verdict_says_so_and_the_others_are_shown(browser):
    server = Scripted(lambda body: completion("?") if sorted(said(body)) == ["x", "xx"] else longer_wins(body))
    with judging(server) as address, opened(browser, link(address)) as page:
        compare(page)
        problem = page.locator(".live .problem").inner_text()
        assert problem.startswith("No answer on A and C, so that is inferred. ")
        assert "no verdict" in problem
        assert page.locator(".heat td.inferred").count() == 2
        assert page.locator(".responses .problem:visible").count() == 0


def test_grades_of_single_responses_are_shown_by_response(browser):
    server = Scripted(
        lambda body: completion(f"Long enough.\nGrade: {body['messages'][-1]['content'].count('x') % 10}")
    )
    with judging(server, format="grade", read="auto") as address, opened(browser, link(address)) as page:
        assert "up to 3 calls" in page.locator(".price").inner_text()
        compare(page)
        first, second = page.locator(".reasons li p").all_inner_texts()
        assert sorted([first, second]) == ["On B", "On C"]
        assert page.locator(".reasons").get_by_text("Votes").count() == 0


def test_criteria_are_typed_weighed_linked_and_in_the_commands(browser, tiny):
    def by_length(body):
        first, second = said(body)
        longer = len(first) > len(second)
        return completion("A" if longer == ("long" in body["messages"][0]["content"]) else "B")

    server = Scripted(by_length)
    with judging(server, tiny) as address, opened(browser, link(address, second="one")) as page:
        page.get_by_label("Judge by").select_option("criteria")
        for number, one in enumerate(CRITERIA, start=1):
            page.get_by_label(f"Name of criterion {number}").fill(one["name"])
            page.get_by_label(f"Weight of criterion {number}").fill(str(one["weight"]))
            page.get_by_label(f"Criterion {number}", exact=True).fill(one["text"])
        assert "up to 12 calls" in page.locator(".price").inner_text()
        compare(page)
        assert len(server.bodies) == 12
        body = {"model": "judge", "return": ["matrix"],
                "groups": [{"prompt": "Which?", "responses": RESPONSES, "criteria": CRITERIA}]}  # fmt: skip
        tournament = httpx2.post(f"{address}v1/tournaments", json=body).json()["tournaments"][0]
        rows = page.locator("figure", has_text="Win rate by each criterion").locator("tbody tr").all()
        for row, index in zip(rows, tournament["ranking"], strict=True):
            shown = row.locator("th, td").all_inner_texts()
            assert shown == ["ABC"[index], *(f"{rates[index]:.2f}" for rates in tournament["criteria"].values())]
        assert page.locator(".reasons li").first.inner_text().startswith("B shown first · long")
        assert violations(page) == []
        assert page.get_by_text("one cannot be told what to judge by, so it was asked without the criteria.").count()
        page.get_by_text("The same request in code").click()
        curl, python = page.locator(".snippet code").all_inner_texts()
        first, second = curl.split("\n\n")
        for command, expected in ((first, tournament["matrix"]), (second, None)):
            answer = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout)
            assert expected in (None, answer["tournaments"][0]["matrix"])
        lines = subprocess.run([sys.executable, "-c", python], capture_output=True, check=True, text=True).stdout
        assert json.loads(lines.splitlines()[0].split("] [")[0] + "]") == tournament["win_rates"]
        assert len(lines.splitlines()) == 2
        page.reload()
        assert page.get_by_label("Criterion 2", exact=True).input_value() == CRITERIA[1]["text"]
        page.get_by_label("Judge by").select_option("principle")
        # Nothing is written there yet: the field says so, and nothing is asked.
        page.get_by_role("button", name="Compare", exact=True).click()
        assert page.evaluate("document.activeElement.validity.valueMissing")
        page.get_by_label("Principle").fill('be "brief"')
        compare(page)
        page.get_by_text("The same request in code").click()
        python = page.locator(".snippet code").last.inner_text()
        subprocess.run([sys.executable, "-c", python], capture_output=True, check=True)
        assert 'be "brief"' in server.bodies[-1]["messages"][0]["content"]
        assert len(server.bodies) == 12 + 6  # the command's verdicts were known


@pytest.mark.parametrize("order", [("one", "judge"), ("judge", "one")])
def test_what_one_model_refuses_the_other_one_answers(browser, tiny, order):
    server = Scripted(lambda _: status(401))
    model, second = order
    with (
        judging(server, tiny) as address,
        opened(browser, link(address, model=model, second=second)) as page,
    ):
        compare(page)
        assert page.locator(".results .heat tbody tr").count() == 3
        assert page.locator(".results [role=alert]").count() == 1
        assert "judge" in page.locator(".results [role=alert]").inner_text()
        assert "one" in page.locator(".costs").inner_text()


def test_whoever_waits_for_a_judge_sees_it_and_can_stop(browser):
    server = Scripted(longer_wins)
    server.gate.clear()
    with judging(server) as address, opened(browser, link(address)) as page:
        page.get_by_role("button", name="Compare", exact=True).click()
        page.get_by_text("Waiting for judge").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped. Press Compare to ask again.").wait_for()
        server.gate.set()
        compare(page)
        assert page.locator(".headline").inner_text() == "B beats every other response."


def test_no_example_is_sent_to_a_judge_before_somebody_says_so(browser):
    server = Scripted(longer_wins)
    with judging(server) as address, opened(browser, address) as page:
        page.get_by_role("button", name="How long a nap? four answers").click()
        page.get_by_text("This example has not been sent yet").wait_for()
        assert server.bodies == []


def test_an_ensemble_that_abstains_says_so_and_what_its_members_say(browser, tiny):
    others = {"both": {"source": "ensemble:one+two", "weights": {"two": 2.0}, "abstain": 50.0}}
    named = {**{name: {"source": "loaded already"} for name in tiny}, **others}
    with served(tiny, models=named) as address, opened(browser, link(address, model="both")) as page:
        compare(page)
        assert "The model abstains on 3 of 3 pairs" in page.locator(".live").inner_text()
        assert page.locator(".heat td.abstained").count() == 6
        page.locator(".heat td[data-row='0'][data-column='2']").click()
        page.get_by_text("The model abstains on this pair").wait_for()
        expected = []
        for name, weight in (("one", "1"), ("two", "2")):
            pair = {"prompt": "Which?", "first": "x", "second": "xx"}
            answer = httpx2.post(f"{address}v1/preferences", json={"model": name, "pairs": [pair]}).json()
            expected.append([name, weight, f"{answer['preferences'][0]['probability']:.2f}"])
        assert violations(page) == []
        rows = page.locator(".members tbody tr").all()
        assert [row.locator("th, td").all_inner_texts() for row in rows] == expected
        page.get_by_role("button", name="Remove response C").click()
        compare(page)
        assert page.locator(".headline").inner_text() == "No verdict on A and B: the model abstains."


def test_the_price_counts_the_pairs_of_each_plan_and_the_judges_of_an_ensemble(browser, tiny):
    judge = {"id": "judge", "kind": "judge", "numerics": {"votes": "1", "read": "votes", "symmetrise": "none"}}
    graded = {**judge, "numerics": {"votes": "2", "read": "grades", "symmetrise": "mean-logit"}}
    routed = {"id": "routed", "kind": "ensemble", "ensemble": {"members": ["one", "judge"], "margin": 1}}
    question = {"responses": RESPONSES, "comparisons": "all", "criteria": []}
    with served(tiny) as address, opened(browser, address) as page:
        run = "async ([name, ...given]) => (await import('/page/costs.js'))[name](...given)"
        for plan, size in itertools.product(("all", "circular", "bracket", "budget:4"), range(3, 17)):
            assert page.evaluate(run, ["pairsOf", plan, size]) == most_comparisons(plan, size)
        assert page.evaluate(run, ["callsOf", judge, question, True]) == 3
        assert page.evaluate(run, ["callsOf", graded, question, True]) == 6
        sentence = page.evaluate(run, ["estimate", question, [routed], [judge, routed]])
        assert sentence.startswith("Asks judge: up to 3 calls, where one is unsure. ")
        assert page.evaluate(run, ["estimate", question, [{"id": "one", "kind": "bradley-terry"}], [judge]]) == ""


def test_a_calibrated_probability_alone_is_a_frequency(browser, tiny):
    with served(tiny) as address, opened(browser, address) as page:
        run = "async (given) => (await import('/page/duel.js')).meaning(...given)"
        assert "about 80 times in 100" in page.evaluate(run, [0.2, "A", "B", True])
        assert "prefers B to A with probability 0.80" in page.evaluate(run, [0.2, "A", "B", False])
