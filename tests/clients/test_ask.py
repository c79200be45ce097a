import io
import json
import re
import threading
import time

import httpx2
import pytest
from serving_setup import free_port

from paragone import cli
from paragone.ask import _percent
from tests.clients.oracle import Oracle, error, listening


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    monkeypatch.delenv("PARAGONE_URL", raising=False)
    monkeypatch.delenv("PARAGONE_API_KEY", raising=False)


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def url(oracle):
    with listening(oracle) as url:
        yield url


def ask(*arguments):
    """Return the exit code of ``paragone ask``."""
    try:
        return cli.main(["ask", *arguments])
    except SystemExit as end:
        return end.code or 0


def test_the_answer_is_one_line_and_a_demonstration_says_so(url, capsys):
    assert ask("--url", url, "TV or books?", "x" * 20, "x" * 5) == 0
    assert capsys.readouterr().out == (
        "first preferred: 82 %  (logit 1.50, longer)\n"
        "longer is a demonstration, no judge to rely on; it knows: the length of a text.\n"
    )


def test_a_real_model_says_nothing_more(capsys):
    with listening(Oracle(demonstration=False)) as url:
        assert ask("--url", url, "p", "a", "b") == 0
    assert capsys.readouterr().out == "first preferred: 50 %  (logit 0.00, longer)\n"


def test_an_ensemble_that_abstains_is_said_to(monkeypatch, capsys):
    plain = Oracle.preference
    monkeypatch.setattr(Oracle, "preference", lambda *asked: {**plain(*asked), "abstained": True})
    with listening(Oracle(demonstration=False)) as url:
        assert ask("--url", url, "p", "a", "b") == 0
    assert capsys.readouterr().out == "first preferred: 50 %  (logit 0.00, longer; it abstains: this is no verdict)\n"


def test_the_address_and_the_key_come_from_the_environment_or_from_options(url, oracle, monkeypatch):
    monkeypatch.setenv("PARAGONE_URL", url)
    monkeypatch.setenv("PARAGONE_API_KEY", "from-the-environment")
    assert ask("p", "a", "b") == 0
    assert ask("p", "a", "b", "--api-key", "from-the-option", "--model", "longer") == 0
    keys = [request.headers["authorization"] for request in oracle.seen]
    assert keys == ["Bearer from-the-environment"] * 2 + ["Bearer from-the-option"] * 2
    assert json.loads(oracle.seen[2].content)["model"] == "longer"


def test_the_whole_answer_as_json(url, capsys):
    assert ask("--url", url, "--json", "p", "x" * 20, "x" * 5) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["probability"] == pytest.approx(0.8176, abs=1e-4)
    assert (told["model"], told["demonstration"], told["calibrated"]) == ("longer", True, False)
    assert (told["first_reward"], told["second_reward"], told["identity"]) == (2.0, 0.5, "a" * 64)


def test_texts_are_read_from_files_and_from_the_standard_input(url, oracle, tmp_path, monkeypatch):
    (tmp_path / "first.txt").write_bytes("é\nline\r\n".encode())
    stdin = io.TextIOWrapper(io.BytesIO("prömpt\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert ask("--url", url, "-", f"@{tmp_path / 'first.txt'}", "@@home") == 0
    (pair,) = json.loads(oracle.seen[0].content)["pairs"]
    assert pair == {"prompt": "prömpt", "first": "é\nline", "second": "@home"}


def test_a_file_that_is_not_there_or_not_utf_8_is_wrong_usage(tmp_path, capsys):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert ask("p", f"@{tmp_path / 'none'}", "b") == 2
    assert ask("p", f"@{tmp_path / 'latin'}", "b") == 2
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert "No such file" in said
    assert "UTF-8" in said


def test_the_standard_input_is_only_one_text():
    assert ask("-", "-", "b") == 2


def test_an_address_that_is_none_is_wrong_usage():
    assert ask("--url", "localhost", "p", "a", "b") == 2


def test_a_server_that_is_not_there_is_exit_code_1_and_a_hint(capsys, caplog):
    assert ask("--url", "http://127.0.0.1:9", "p", "a", "b") == 1
    assert "Is a server running at this address? paragone serve starts one" in capsys.readouterr().err
    assert not caplog.records  # no retry


def test_a_server_that_is_still_starting_can_be_waited_for(oracle):
    port = free_port()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(ask("--url", f"http://127.0.0.1:{port}", "--wait-s", "60", "p", "longer", "b"))
    )
    asking.start()
    time.sleep(0.3)
    with listening(oracle, port=port):
        asking.join()
    assert answers == [0]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (error(422, "empty_prompt", "pairs[0]: the prompt is empty", 0), 2, "the prompt is empty"),
        (error(404, "unknown_model", "no model 'x'"), 1, "no model 'x'"),
        (error(401, "missing_key", "this server wants a key"), 1, "this server wants a key"),
        (httpx2.Response(200, content=b"<html>"), 1, "not in the wire format"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(capsys, answer, code, words):
    with listening(lambda _: answer) as url:
        assert ask("--url", url, "p", "a", "b") == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("probability", "percent"),
    [
        (0.81, "81 %"),
        (0.5, "50 %"),
        (0.99, "99 %"),
        (0.995, "99.50 %"),
        (0.0042, "0.42 %"),
        (0.999999, "> 99.99 %"),
        (0.0, "< 0.01 %"),
        (1.0, "> 99.99 %"),
    ],
)
def test_a_percentage_claims_no_more_than_is_known(probability, percent):
    assert _percent(probability) == percent
