"""The fuzzer finds nothing, and would: its cases against a real server, its checks against bad answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import Reply, Target, exchange, faults_of, fuzz, known_questions, target_models
from fuzz_cases import Case, _deep, _places, case_of, post
from processes import Server

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability" / "fuzz.py"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    folders, specials, control = target_models(folder)
    flags = [part for name, path in folders.items() for part in ("--model", f"{name}={path}")]
    with Server(*flags, "--memory-cache-mb", "0.05", log=folder / "log") as server:
        target = Target(server.port, specials, control, known_questions(folders, 20, 0), limit_s=30.0)
        yield target
        target.close()


def test_two_hundred_cases_show_no_fault(target):
    report = fuzz(target, range(200), seed=5)
    assert report.faults == []
    assert {"200", "400", "422"} <= set(report.statuses)


def test_a_case_depends_on_its_seed_and_number_alone(target):
    first, again, other = (case_of(seed, 17, target.specials) for seed in (3, 3, 4))
    assert first == again
    assert first.raw != other.raw


def test_values_nested_deeper_than_python_recurses_can_be_mutated_again():
    assert len(_places(_deep(3_000))) == 3_001
    assert _places({"a": [1, {"b": 2}], "c": 3}) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",)]


def test_every_family_comes_up(target):
    families = {case_of(0, number, target.specials).name.partition(":")[0] for number in range(400)}
    assert families == {"texts", "smuggled", "mutated", "json", "header", "framing", "path", "large"}


def test_a_special_token_that_gets_through_is_seen(target):
    def body(prompt):
        return json.dumps({"model": "chat", "items": [{"prompt": prompt, "response": "so"}]}).encode()

    # A twin with one message less has one control token less: what a smuggled one would look like.
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    case = Case("smuggled", post("/v1/tokens", body(turns)), "/v1/tokens", 1, post("/v1/tokens", body("a")), "chat")
    reply = exchange(target.port, case.raw, complete=True, limit_s=30.0)
    (fault,) = faults_of(case, reply, target)
    assert fault.startswith("control tokens [")


@pytest.mark.parametrize(
    ("status", "headers", "body", "fault"),
    [
        (500, {}, b'{"error": {"code": "internal_error", "message": "x"}}', "status 500"),
        (504, {"x-request-id": "1"}, b'{"error": {"code": "deadline_exceeded", "message": "x"}}', "status 504"),
        (422, {"x-request-id": "1"}, b'{"detail": "x"}', "not the documented one"),
        (400, {"x-request-id": "1"}, b'{"error": {"code": "empty_prompt", "message": "x"}}', "came with status 400"),
        (422, {}, b'{"error": {"code": "empty_prompt", "message": "x"}}', "without x-request-id"),
        (422, {"x-request-id": "1"}, b'{"error": {"code": "empty_prompt", "message": "a\\nb"}}', "not printable"),
        (200, {}, b"{}", "not a PreferencesAnswer"),
        (0, {}, b"", "closed without an answer"),
    ],
)
def test_an_answer_that_is_wrong_is_a_fault(target, status, headers, body, fault):
    case = Case("texts", post("/v1/preferences", b"{}"), "/v1/preferences", 1)
    (found,) = faults_of(case, Reply(status, headers, body, 0.1), target)
    assert fault in found


def test_a_wrong_number_after_a_case_is_seen(target):
    model, prompt, first, second, right = target.questions[0]
    moved = Target(target.port, {}, {}, [(model, prompt, first, second, right + 1e-3)], limit_s=30.0)
    assert target.ask_known(0) == ""
    assert "the known answer is" in moved.ask_known(0)
    moved.close()


def test_the_script_ends_with_0_and_says_what_it_did():
    command = [sys.executable, str(SCRIPT), "--cases", "20", "--seed", "7", "--schema-cases", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "20 own cases of seed 7" in ran.stdout
    assert "cases of schemathesis" in ran.stdout
