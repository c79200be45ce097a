"""``paragone bench`` from start to end, with a real server, and what it says where it cannot measure."""

import json
import re
import sys

import pytest
import typer
from typer.testing import CliRunner

from paragone.installing import pip_install
from paragone_service.bench import BenchError
from paragone_service.bench.bench_command import _show, bench
from paragone_service.bench.bench_report import headline, page, values
from paragone_service.bench.compute import Compute
from paragone_service.bench.load import DIALECTS, Level, ScoredText, _command, ask_all, check_address, served_model
from paragone_service.bench.measurement import Measurement, _Side

APP = typer.Typer()
APP.command()(bench)
TEXTS = [ScoredText("Why?", f"Because of {number}.", f"Why? Because of {number}.") for number in range(6)]


@pytest.fixture(scope="module")
def address():
    with served_model("builtin:mini-bradley-terry") as url:
        yield url


def test_every_response_is_sent_once_whatever_the_number_of_clients(address):
    for clients, batch in ((1, 1), (4, 1), (2, 4)):
        level = ask_all(address, "paragone", TEXTS, clients=clients, batch=batch)
        assert (level.clients, level.responses) == (clients, 6)
        assert 0 < level.p50_ms <= level.p95_ms <= level.p99_ms
        assert level.rate == pytest.approx(6 / level.seconds)


def test_a_server_that_refuses_the_texts_and_none_at_all_are_reported(address):
    with pytest.raises(BenchError, match="/classify answered 400"):
        ask_all(address, "vllm", TEXTS, clients=1, batch=1)
    with pytest.raises(BenchError, match=r"cannot ask http://127\.0\.0\.1:9/"):
        ask_all("http://127.0.0.1:9", "tei", TEXTS, clients=1, batch=1)
    check_address(address, wait_s=0)  # whatever it answers


@pytest.mark.parametrize("password", ["hush", "hu/hush", "hush@hush"])
def test_no_message_repeats_the_password_of_an_address(password):
    url = f"http://me:{password}@127.0.0.1:9"
    for ask in (lambda: check_address(url, wait_s=0), lambda: ask_all(url, "tei", TEXTS, clients=1, batch=1)):
        with pytest.raises(BenchError) as caught:
            ask()
        assert "hu" not in str(caught.value)
        assert "127.0.0.1:9" in str(caught.value)


def test_the_server_that_is_measured_refuses_nobody_for_the_wait():
    command = _command("builtin:mini-bradley-terry", 8000, ["--device", "cpu"])
    # As long as a client waits for its answer.
    assert command[command.index("--max-wait-s") + 1] == "600"
    assert command[-2:] == ["--device", "cpu"]


def test_a_model_that_cannot_be_served_is_reported_with_the_servers_last_words():
    with pytest.raises(BenchError, match="before it was ready"), served_model("no/such/folder"):
        pass


@pytest.mark.parametrize(
    ("name", "answer", "scores"),
    [
        ("paragone", {"rewards": [{}, {}]}, 2),
        ("openrlhf", {"rewards": [0.1], "scores": [0.1]}, 1),
        ("vllm", {"data": [{"probs": [0.3]}, {"probs": [0.4]}]}, 2),
        ("tei", [[{"score": 0.1}]], 1),
        ("vllm", {"error": "no"}, -1),
        ("tei", {"error": "no"}, -1),
        ("paragone", {"rewards": 3}, -1),
    ],
)
def test_an_answer_without_scores_is_no_answer(name, answer, scores):
    assert DIALECTS[name].scores(answer) == scores


def test_servers_that_take_whole_texts_get_what_the_template_writes():
    assert DIALECTS["openrlhf"].body(TEXTS[:1], None) == {"query": ["Why? Because of 0."]}
    assert DIALECTS["vllm"].body(TEXTS[:1], "m") == {"model": "m", "input": ["Why? Because of 0."]}
    assert DIALECTS["paragone"].body(TEXTS[:1], None) == {"items": [{"prompt": "Why?", "response": "Because of 0."}]}


def test_the_page_shows_every_number_of_clients_and_fetches_nothing():
    compute = Compute(8, 0.5, 1.0, 2.0, 1e9, 0.25, 100, 150, 50)
    levels = [Level(1, 8, 2.0, 10.0, 20.0, 30.0), Level(8, 8, 1.0, 40.0, 50.0, 60.0)]
    found = Measurement({"cores": "2 cores"}, {"model": "<mini>"}, compute, [_Side("ours", levels)])
    text = page(found)
    assert "&lt;mini&gt;" in text
    assert headline(found) == (
        "In one process 16.0 responses/s, 2.00 times plain transformers (8.0), at 25 % of the machine's matrix peak. "
        "Over HTTP at most: ours 8.0 responses/s with 8 at once, 95 % of requests within 50 ms."
    )
    assert text.count("<svg") == 2
    remarks = re.findall("<title>(.*?)</title>", text)
    assert remarks[1:] == ["1 at once: 4.0", "8 at once: 8.0", "1 at once: 10.0", "8 at once: 40.0"]
    assert "http" not in text.replace("Over HTTP", "")
    assert not re.search(r"<script|<link|src=|@import|url\((?!#)", text)
    numbers = values(found)
    assert numbers["compute"]["padding"] == 1.5
    assert numbers["http"][0]["levels"][1]["rate"] == 8.0


def test_the_command_measures_and_leaves_json_and_a_page(tmp_path):
    runner = CliRunner()
    options = ["--groups", "1", "--responses", "3", "--tokens", "8-16", "--turns", "1", "--clients", "2,1"]
    made = runner.invoke(APP, ["builtin:mini-bradley-terry", *options, "--output", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads((tmp_path / "bench.json").read_text())
    assert json.loads(made.stdout) == found
    assert [level["clients"] for level in found["http"][0]["levels"]] == [1, 2]
    assert [side["name"] for side in found["http"]] == ["Paragone, new texts", "Paragone, texts seen before"]
    assert found["compute"]["responses"] == 3
    assert "<svg" in (tmp_path / "bench.html").read_text()


def test_without_the_look_of_reports_the_numbers_are_there_and_the_remedy_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "paragone_evaluation.report.page", None)
    compute = Compute(8, 0.5, 1.0, 2.0, 1e9, 0.25, 100, 150, 50)
    _show(
        Measurement({}, {"model": "mini"}, compute, [_Side("ours", [Level(1, 8, 2.0, 10.0, 20.0, 30.0)])]),
        tmp_path,
        as_json=False,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert pip_install("evaluation") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "9-3"], "fewest and the most"),
        (["--clients", "0"], "at least 1"),
        (["--clients", "many"], "whole numbers"),
        (["--dialect", "smoke-signals"], "must be one of paragone"),
        (["--data", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--url", "http://127.0.0.1:9"], "is a server running there?"),
        (["--url", "localhost:9"], "nothing answers at localhost:9"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    made = CliRunner().invoke(APP, ["builtin:mini-bradley-terry", *options])
    assert made.exit_code == 2
    assert message in " ".join(made.output.replace("│", " ").split())
