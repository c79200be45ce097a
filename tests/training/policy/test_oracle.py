"""Asking: an oracle that is gone for a while, one that is replaced, and comparisons that fail."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from paragone.exceptions import KeyRefusedError
from paragone_evaluation.readers import Prompt
from paragone_training.errors import OracleGoneError, OracleReplacedError
from paragone_training.policy.oracle import OracleClient
from paragone_training.policy.rows import Identity

USAGE = {"forward_responses": 2, "forward_tokens": 9, "cached_responses": 0, "truncated": 0}
GROUPS = [(Prompt("1", "Which?"), ("aa", "b")), (Prompt("2", "What?"), ("c", "dddd"))]


def value(first: str, second: str) -> float:
    """Return the double's preference: by length."""
    return float(1 / (1 + np.exp(len(second) - len(first))))


class Oracle:
    """A real HTTP server that speaks the wire format, prefers the longer text, and does as it is told.

    ``plan`` holds what the next requests get: a status, or None for an answer. A text that says ``bad`` is refused.
    """

    def __init__(self) -> None:
        self.plan: list[int | None] = []
        self.fingerprint = "f" * 64
        self.asked: list[str] = []
        self.tools: list[object] = []

    def answer(self, path: str, body: dict) -> dict:
        if path == "/v1/models":
            return {"models": []}
        self.tools += [item.get("tools") for item in body["groups"]]
        common = {"model": "double", "identity": "a" * 64, "fingerprint": self.fingerprint, "calibrated": False}
        rows = [self._tournament(group) for group in body["groups"]]
        return {**common, "tournaments": rows, "usage": USAGE}

    def _tournament(self, group: dict) -> dict:
        texts = group["responses"]
        refused = {"code": "response_too_long", "message": "too long", "item": 0}
        errors = [refused | {"response": place} for place, text in enumerate(texts) if "bad" in text]
        if len(errors) == len(texts):
            return {"error": refused}
        matrix = [
            [None if "bad" in one + two else 0.5 if one == two else value(one, two) for two in texts] for one in texts
        ]
        return {
            **({"errors": errors} if errors else {}),
            "win_rates": [None if "bad" in text else 0.5 for text in texts],
            "ranking": [place for place, text in enumerate(texts) if "bad" not in text],
            "condorcet_winner": None,
            "copeland": [0] * len(texts),
            "cyclic_triples": 0,
            "nash": [1 / len(texts)] * len(texts),
            "matrix": matrix,
        }


@pytest.fixture
def oracle():
    double = Oracle()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            status = double.plan.pop(0) if double.plan else None
            double.asked.append(self.path)
            payload = {"error": {"code": "overloaded", "message": "later"}} if status == 503 else None
            payload = payload or ({"error": {"code": "engine_failed", "message": "broken"}} if status == 500 else None)
            payload = payload or ({"error": {"code": "wrong_key", "message": "no"}} if status == 403 else None)
            answered = json.dumps(payload or double.answer(self.path, body)).encode()
            # -1: an answer that is none; -2: a tournament whose first group met a fault of the server; -3: one of whose
            # first group a single response did.
            data = b"<html>" if status == -1 else answered
            if status == -2:
                fault = {"error": {"code": "engine_failed", "message": "broken"}}
                data = json.dumps(
                    {**json.loads(answered), "tournaments": [fault, *json.loads(answered)["tournaments"][1:]]}
                ).encode()
            if status == -3:
                answer = json.loads(answered)
                answer["tournaments"][0]["errors"] = [{"code": "engine_failed", "message": "broken", "response": 0}]
                data = json.dumps(answer).encode()
            self.send_response(status if status and status > 0 else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    double.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield double
    server.shutdown()
    server.server_close()


def test_a_chunk_is_asked_for_in_one_request_and_gives_both_orders(oracle):
    with OracleClient(oracle.url) as oracle_client:
        answers = oracle_client.submit(GROUPS).result()
    assert oracle.asked == ["/v1/tournaments"]
    np.testing.assert_allclose(answers[0].raw, [[0.5, value("aa", "b")], [value("b", "aa"), 0.5]])
    assert [answer.failure for answer in answers] == [None, None]
    assert [(answer.forward_responses, answer.cached_responses) for answer in answers] == [(2, 0), (0, 0)]


def test_an_oracle_that_is_gone_for_a_while_pauses_the_run(oracle, caplog):
    oracle.plan = [503] * 4
    with OracleClient(oracle.url, patience_s=60) as oracle_client:
        answers = oracle_client.submit(GROUPS).result()
    assert answers[0].failure is None
    assert "the run pauses" in caplog.text


def test_an_oracle_that_stays_away_stops_the_run_with_what_to_do():
    with (
        OracleClient("http://127.0.0.1:9", patience_s=0.1) as oracle_client,
        pytest.raises(OracleGoneError, match="mend it and resume"),
    ):
        oracle_client.submit(GROUPS).result()


def test_an_oracle_that_nobody_has_started_stops_the_run_before_it_samples():
    with (
        OracleClient("http://127.0.0.1:9") as client,
        pytest.raises(OracleGoneError, match=r"start it.*oracle\.wait_s"),
    ):
        client.meet(0)


def test_an_oracle_that_was_there_before_is_waited_for(oracle):
    oracle.plan = [503, None]
    with OracleClient(oracle.url, identity=Identity("m", "f"), patience_s=60) as client:
        client.meet(0)
    assert oracle.asked == ["/v1/models"] * 2
    oracle.plan = [403]
    with OracleClient(oracle.url) as client, pytest.raises(KeyRefusedError):
        client.meet(0)


def test_another_fingerprint_stops_the_run(oracle):
    learned = []
    with OracleClient(oracle.url, on_identity=learned.append) as oracle_client:
        oracle_client.submit(GROUPS).result()
        oracle.fingerprint = "0" * 64
        with pytest.raises(OracleReplacedError, match=r"was double \(f{12}\) and is now double \(0{12}\)"):
            oracle_client.submit(GROUPS).result()
    assert learned == [Identity("double", "f" * 64)]


def test_a_comparison_that_fails_is_missing_and_the_others_are_not(oracle, caplog):
    with OracleClient(oracle.url) as oracle_client:
        answers = oracle_client.submit([(Prompt("1", "Which?"), ("aa", "bad", "cccc")), GROUPS[1]]).result()
    table = answers[0]
    expected = np.full((3, 3), np.nan)
    np.fill_diagonal(expected, 0.5)
    expected[0, 2], expected[2, 0] = value("aa", "cccc"), value("cccc", "aa")
    np.testing.assert_allclose(table.raw, expected)
    assert table.failure == "response_too_long: too long"
    assert answers[1].failure is None
    assert "comparisons of a group are missing" in caplog.text
    assert oracle.asked == ["/v1/tournaments"]


def test_a_group_of_which_nothing_can_be_compared_has_an_empty_table(oracle):
    with OracleClient(oracle.url) as oracle_client:
        (answer,) = oracle_client.submit([(Prompt("1", "Which?"), ("bad", "bad too"))]).result()
    np.testing.assert_array_equal(answer.raw, [[0.5, np.nan], [np.nan, 0.5]])
    assert answer.failure == "response_too_long: too long"


def test_the_oracle_is_shown_the_tools_of_a_prompt(oracle):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    with OracleClient(oracle.url) as oracle_client:
        oracle_client.submit([(Prompt("1", "Which?", tools=tools), ("aa", "bad")), GROUPS[1]]).result()
    assert oracle.tools == [tools, None]


@pytest.mark.parametrize("fault", [500, 502, 404, -1, -2, -3])
def test_whatever_fails_is_asked_again_and_never_becomes_data(oracle, fault):
    oracle.plan = [fault] * 2
    with OracleClient(oracle.url, patience_s=60) as oracle_client:
        answers = oracle_client.submit(GROUPS).result()
    np.testing.assert_allclose(answers[0].raw, [[0.5, value("aa", "b")], [value("b", "aa"), 0.5]])
    assert [answer.failure for answer in answers] == [None, None]
    assert set(oracle.asked) == {"/v1/tournaments"}


def test_an_oracle_that_fails_beyond_its_patience_stops_the_run(oracle):
    oracle.plan = [500] * 100
    with (
        OracleClient(oracle.url, patience_s=0.1) as oracle_client,
        pytest.raises(OracleGoneError, match=r"broken.*mend it and resume"),
    ):
        oracle_client.submit([GROUPS[0]]).result()


def test_a_refused_key_stops_the_run_at_once(oracle):
    oracle.plan = [403]
    with OracleClient(oracle.url, api_key="x") as oracle_client, pytest.raises(KeyRefusedError):
        oracle_client.submit(GROUPS).result()


def test_leaving_drops_what_is_in_flight(oracle):
    oracle.plan = [503] * 100
    began = time.monotonic()
    with OracleClient(oracle.url, patience_s=600) as oracle_client:
        future = oracle_client.submit(GROUPS)
    with contextlib.suppress(BaseException):
        future.result(timeout=1)
    assert future.done()
    assert time.monotonic() - began < 60
