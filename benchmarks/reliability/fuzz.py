"""Ask a real server what nobody should ask, and check that each answer is the right one or a true reason.

    python benchmarks/reliability/fuzz.py [--cases 1000] [--schema-cases 0] [--seed 0] [--only NUMBER]

Everything stays on 127.0.0.1. The server hosts two tiny models, one with ChatML, one whose tokenizer folds letters.
After every case a question with a known answer is asked. Checked for each case:

* no status of 500 or above (504 where the case set a deadline that cannot be met), and an answer within ``--limit-s``,
* a refusal has the documented body, its code the documented status,
* a success is of its route's type, with one answer for each item,
* a special token's string in a text gives the same control tokens as a harmless word in its place,
* the known question still has its known answer.

``--schema-cases`` further cases come from schemathesis, which reads the server's own OpenAPI document.
Expected: 0 faults; on two cores of an x86 server about 100 cases a second.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_cases import Case, case_of
from fuzz_texts import plain_text
from processes import Server, chat_tokenizer, folding_tokenizer, quantile, write_model
from pydantic import ValidationError

from paragone.codes import ErrorCode
from paragone.wire import ErrorBody, PreferencesAnswer, RewardsAnswer, TokensAnswer, TournamentsAnswer
from paragone_service.http.errors import HTTP_STATUS

_ANSWERS = {
    "/v1/preferences": (PreferencesAnswer, "preferences"),
    "/v1/rewards": (RewardsAnswer, "rewards"),
    "/v1/tournaments": (TournamentsAnswer, "tournaments"),
    "/v1/tokens": (TokensAnswer, "tokens"),
}
_TOLERANCE = 1e-4
_WITH_COVERAGE = 1_000


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a status of 0 where the connection was closed without an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class TooLateError(Exception):
    """There was no whole answer within the limit."""


@dataclass
class Target:
    """The server under test, and what is known of it.

    Attributes:
        specials: strings of special tokens by model.
        control: ids of special tokens by model.
        questions: (model, prompt, first, second, probability), computed without the server.
    """

    port: int
    specials: dict[str, list[str]]
    control: dict[str, set[int]]
    questions: list[tuple[str, str, str, str, float]]
    limit_s: float
    _kept: http.client.HTTPConnection | None = field(default=None)

    def close(self) -> None:
        """Close the connection of the known questions."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def ask_known(self, number: int) -> str:
        """Ask a question with a known answer; return what is wrong with the answer, or nothing."""
        model, prompt, first, second, right = self.questions[number % len(self.questions)]
        body = json.dumps({"model": model, "pairs": [{"prompt": prompt, "first": first, "second": second}]})
        if self._kept is None:
            self._kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.limit_s)
        try:
            self._kept.request("POST", "/v1/preferences", body, {"content-type": "application/json"})
            response = self._kept.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return f"the known question got no answer afterwards: {error!r}"
        if response.status != 200:
            return f"the known question was refused afterwards: {response.status} {content[:300]!r}"
        answered = json.loads(content)["preferences"][0]["probability"]
        return "" if abs(answered - right) < _TOLERANCE else f"the known answer is {right}, and it said {answered}"


def exchange(port: int, raw: bytes, *, complete: bool, limit_s: float) -> Reply:
    """Send bytes on a connection of their own, and return the first answer.

    Raises:
        TooLateError: if the connection is still open when the time is over.
    """
    started = time.monotonic()
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        connection.setblocking(False)
        unsent = memoryview(raw)
        open_ = True
        while open_:
            left = started + limit_s - time.monotonic()
            if left <= 0:
                raise TooLateError(f"no whole answer within {limit_s:g} s; so far: {received[:200]!r}")
            readable, writable, _ = select.select([connection], [connection] if unsent else [], [], left)
            try:
                if writable:
                    unsent = unsent[connection.send(unsent[: 1 << 16]) :]
                    if not unsent and not complete:
                        connection.shutdown(socket.SHUT_WR)
                if readable:
                    piece = connection.recv(1 << 16)
                    received, open_ = received + piece, bool(piece)
            except BlockingIOError:
                continue
            except OSError:  # a reset: what was received by then is the answer
                open_ = False
    return _reply(received, raw.startswith(b"HEAD "), time.monotonic() - started)


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:  # noqa: ARG002 (a socket's signature)
        return io.BytesIO(self._content)


def _reply(received: bytes, head: bool, seconds: float) -> Reply:
    if not received:
        return Reply(0, {}, b"", seconds)
    response = http.client.HTTPResponse(_Bytes(received), method="HEAD" if head else "POST")  # type: ignore[arg-type]
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read(), seconds)


def faults_of(case: Case, reply: Reply, target: Target) -> list[str]:
    """Return what is wrong with the answer to a case."""
    if reply.status == 0:
        return [] if not case.complete else ["the connection was closed without an answer"]
    if reply.status >= 500 and not (case.late and reply.status == 504):
        return [f"status {reply.status}: {reply.body[:300]!r}"]
    if reply.status >= 400:
        return _refusal_faults(case, reply)
    if case.route and reply.status == 200:
        return _answer_faults(case, reply, target)
    return []


def _is_of_the_hub(case: Case, reply: Reply) -> bool:
    """Return whether a refusal at ``/``, a route of the dialect ``huggingface``, has that dialect's shape."""
    if case.raw.split(b" ", 2)[1:2] != [b"/"]:
        return False
    try:
        body = json.loads(reply.body)
    except ValueError:
        return False
    return isinstance(body, dict) and set(body) == {"error", "error_type", "code"} and body["code"] in set(ErrorCode)


def _refusal_faults(case: Case, reply: Reply) -> list[str]:
    if not case.framed or case.raw.startswith(b"HEAD "):
        return []
    try:
        error = ErrorBody.model_validate_json(reply.body).error
    except ValidationError:
        if _is_of_the_hub(case, reply):
            return []
        return [f"the body of a {reply.status} is not the documented one: {reply.body[:300]!r}"]
    faults = []
    if HTTP_STATUS.get(error.code) != reply.status:  # type: ignore[call-overload]
        faults.append(f"code {error.code} came with status {reply.status}")
    if "x-request-id" not in reply.headers:
        faults.append(f"a refusal without x-request-id: {error.code}")
    if not error.message.isprintable() or len(error.message) > 2_000:
        faults.append(
            f"the message of {error.code} has {len(error.message)} characters, or some that are not printable"
        )
    return faults


def _answer_faults(case: Case, reply: Reply, target: Target) -> list[str]:
    wire, name = _ANSWERS[case.route]
    try:
        answer = wire.model_validate_json(reply.body)
    except ValidationError as error:
        return [f"the answer is not a {wire.__name__}: {error.errors()[:2]}"]
    rows = getattr(answer, name)
    if case.items is not None and len(rows) != case.items:
        return [f"{len(rows)} answers to {case.items} items"]
    if case.twin is None:
        return []
    twin = exchange(target.port, case.twin, complete=True, limit_s=target.limit_s)
    if twin.status != 200:
        return []  # the conversation itself has no place in this template
    plain = TokensAnswer.model_validate_json(twin.body).tokens[0]
    if rows[0].truncated_tokens or plain.truncated_tokens:
        return []
    control = target.control[case.model]
    shown, expected = ([token for token in row.token_ids if token in control] for row in (rows[0], plain))
    if shown != expected:
        return [f"control tokens {shown}, and {expected} with harmless words; the model reads {rows[0].text!r}"]
    return []


@dataclass
class Report:
    """What a run found."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    slowest: str = ""


def fuzz(target: Target, numbers: Sequence[int], *, seed: int) -> Report:
    """Send the cases of these numbers, one after the other."""
    report = Report()
    for number in numbers:
        case = case_of(seed, number, target.specials)
        try:
            reply = exchange(target.port, case.raw, complete=case.complete, limit_s=target.limit_s)
            faults = faults_of(case, reply, target)
            report.statuses[f"{reply.status}"] += 1
            if not report.seconds or reply.seconds > max(report.seconds):
                report.slowest = f"{number} ({case.name})"
            report.seconds.append(reply.seconds)
        except (TooLateError, OSError, http.client.HTTPException) as error:
            faults = [f"{type(error).__name__}: {error}"]
        wrong = target.ask_known(number)
        faults += [wrong] if wrong else []
        report.faults += [f"case {number} of seed {seed} ({case.name}): {fault}" for fault in faults]
    return report


def known_questions(folders: Mapping[str, Path], count: int, seed: int) -> list[tuple[str, str, str, str, float]]:
    """Return questions with the probabilities that the models give in this process."""
    from paragone_models import load_model

    generator = random.Random(seed)
    questions = []
    for name, folder in folders.items():
        model = load_model(folder, name=name, device="cpu")
        for number in range(count):
            prompt, first, second = (plain_text(generator) for _ in range(3))
            right = float(model.score(f"{prompt} {number}", [first, second]).probabilities[0, 1])
            questions.append((name, f"{prompt} {number}", first, second, right))
    generator.shuffle(questions)
    return questions


def target_models(folder: Path) -> tuple[dict[str, Path], dict[str, list[str]], dict[str, set[int]]]:
    """Write the models; return their folders, and of each the strings and the ids of its special tokens."""
    tokenizers = {"chat": chat_tokenizer(), "folding": folding_tokenizer()}
    kinds = {"chat": "general-preference", "folding": "bradley-terry"}
    folders = {name: write_model(folder / name, one, kind=kinds[name]) for name, one in tokenizers.items()}
    added = {name: one.added_tokens_decoder for name, one in tokenizers.items()}
    # What stands for letters that the tokenizer does not know may come of any text.
    known = {name: {i: t for i, t in tokens.items() if t.content != "<unk>"} for name, tokens in added.items()}
    specials = {name: [token.content for token in tokens.values()] for name, tokens in known.items()}
    return folders, specials, {name: set(tokens) for name, tokens in known.items()}


def schema_fuzz(url: str, cases: int, seed: int) -> tuple[int, str]:
    """Run schemathesis against the server's document; return its exit code and what it printed last."""
    operations = 9
    # The second phase walks through each constraint of each field: some 4,000 cases, whatever was asked for.
    phases = "examples,coverage,fuzzing" if cases >= _WITH_COVERAGE else "examples,fuzzing"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--seed", str(seed),
        "--max-examples", str(max(1, cases // operations)), "--phases", phases,
        "--suppress-health-check", "all", "--no-color", "--request-timeout", "20", "--no-shrink",
        "--checks", "no_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "SCHEMATHESIS_HOOKS": "schema_checks"}
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000, help="own cases")
    parser.add_argument("--schema-cases", type=int, default=0, help="cases of schemathesis, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="send this one case, and show it with its answer")
    parser.add_argument("--limit-s", type=float, default=10.0, help="how long an answer may take")
    arguments = parser.parse_args()
    sys.setrecursionlimit(10_000)  # some cases are nested two thousand deep, and JSON is written recursively
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders, specials, control = target_models(folder)
        questions = known_questions(folders, 100, arguments.seed)
        flags = [part for name, path in folders.items() for part in ("--model", f"{name}={path}")]
        # A memory for some hundred values: some known questions are answered by it, the others by the model.
        with Server(*flags, "--memory-cache-mb", "0.05", log=folder / "log") as server:
            target = Target(server.port, specials, control, questions, arguments.limit_s)
            faults = show_one(target, arguments) if arguments.only is not None else run(target, server, arguments)
            target.close()
            if not server.runs:
                faults.append(f"the server ended with exit code {server.exit_code}: {server.log()}")
            if "Traceback" in server.log():
                faults.append(f"the server's log has a traceback: {server.log()}")
    for fault in faults[:20]:
        print("FAULT", fault)
    sys.exit(bool(faults))


def run(target: Target, server: Server, arguments: argparse.Namespace) -> list[str]:
    started = time.monotonic()
    report = fuzz(target, range(arguments.cases), seed=arguments.seed)
    print(f"{arguments.cases} own cases of seed {arguments.seed} in {time.monotonic() - started:.0f} s")
    print("  by status:", ", ".join(f"{status}: {count}" for status, count in sorted(report.statuses.items())))
    if report.seconds:
        p50, p99 = (1e3 * quantile(report.seconds, share) for share in (0.5, 0.99))
        slowest = f"{1e3 * max(report.seconds):.0f} ms, case {report.slowest}"
        print(f"  time to the answer: p50 {p50:.1f} ms, p99 {p99:.0f} ms, longest {slowest}")
    print(f"  faults: {len(report.faults)}")
    if arguments.schema_cases:
        started = time.monotonic()
        code, output = schema_fuzz(server.url, arguments.schema_cases, arguments.seed)
        counted = re.findall(r"(\d+) generated", output.replace(",", ""))
        print(f"{counted[-1] if counted else '?'} cases of schemathesis in {time.monotonic() - started:.0f} s")
        wrong = target.ask_known(0)
        report.faults += [wrong] if wrong else []
        if code or not counted:
            report.faults.append(f"schemathesis: {output[-6000:]}")
        print(f"  faults: {'none' if not code else 'see below'}")
    return report.faults


def show_one(target: Target, arguments: argparse.Namespace) -> list[str]:
    case = case_of(arguments.seed, arguments.only, target.specials)
    print(case.name, len(case.raw), "bytes", case.raw[:3000])
    reply = exchange(target.port, case.raw, complete=case.complete, limit_s=target.limit_s)
    print(reply.status, f"{reply.seconds:.3f} s", reply.body[:3000])
    return faults_of(case, reply, target)


if __name__ == "__main__":
    main()
