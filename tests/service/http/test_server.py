"""The real process: it starts, it refuses cleanly, it drains on a signal, and it exits with 0."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from serving_setup import free_port

PARAGONE = str(Path(sys.executable).with_name("paragone"))


class Process:
    """``paragone serve`` with a tiny model, on a free port."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.port = free_port()
        command = [PARAGONE, "serve", "--port", str(self.port), "--model", f"tiny={folder}", "--device", "cpu", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()

    def __enter__(self):
        deadline = time.monotonic() + 240  # a machine that others use as well took more than a minute
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.get("/readyz")[0] == 200:
                    return self
            time.sleep(0.05)
        self.__exit__()  # else its pipe would keep the tests from ending
        raise TimeoutError(f"the server did not get ready: {self.log}")

    def __exit__(self, *_):
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join()
        self.process.stderr.close()
        return code

    def wait_for(self, line):
        deadline = time.monotonic() + 60
        while line not in self.get("/metrics")[1]:
            assert time.monotonic() < deadline, line

    def turns_away(self):
        """Return whether connections are refused while the process still runs; until then requests are."""
        while self.process.poll() is None:
            try:
                assert self.ask("POST", "/v1/rewards", {"items": []})[0] == 503
            except (BrokenPipeError, ConnectionResetError):
                continue  # it came while the door was being closed; with the first, before all of it was sent
            except ConnectionRefusedError:
                return self.process.poll() is None
        return False

    def get(self, path):
        return self.ask("GET", path, None)

    def ask(self, method, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, content, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read()) if method == "POST" else response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def running(folders):
    """A server whose Redis is absent; the last test that uses it ends it."""
    with Process(folders["gpm"], "--redis-url", f"redis://127.0.0.1:{free_port()}") as server:
        yield server


def test_ctrl_c_during_a_request_lets_it_finish_and_the_process_exits_with_zero(folders):
    answers = []
    with Process(folders["gpm"]) as server:
        items = [{"prompt": f"{number} " + "word " * 200, "response": "x " * 30} for number in range(600)]
        ask = threading.Thread(target=lambda: answers.append(server.ask("POST", "/v1/rewards", {"items": items})))
        ask.start()
        server.wait_for(b"paragone_requests_in_flight 2.0")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        ask.join()
    ((status, body),) = answers
    assert status == 200
    assert len(body["rewards"]) == 600
    assert not [line for line in server.log if "Traceback" in line], server.log


def test_sigterm_under_load_refuses_what_the_grace_is_too_short_for_and_the_process_exits_with_zero(folders, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text("drain_timeout_s = 2\n")
    answers, half_answers = [], []
    with Process(folders["gpm"], "--config", str(config)) as server:

        def ask(number):
            items = [{"prompt": f"{number} {n} " + "word " * 200, "response": "x " * 30} for n in range(300)]
            answers.append(server.ask("POST", "/v1/rewards", {"items": items}))

        def send_half():
            head = "POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
                half_answers.append(b"".join(iter(lambda: connection.recv(65_536), b"")))

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        clients.append(threading.Thread(target=send_half))
        for client in clients:
            client.start()
        server.wait_for(b"paragone_requests_in_flight 6.0")
        server.process.send_signal(signal.SIGTERM)
        assert server.turns_away()
        assert server.wait() == 0
        for client in clients:
            client.join()
    head, _, body = half_answers[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head
    assert json.loads(body)["error"]["code"] == "shutting_down"
    assert len(answers) == 4
    for status, answer in answers:
        assert len(answer["rewards"]) == 300 if status == 200 else answer["error"]["code"] == "shutting_down"
    assert not [line for line in server.log if "Traceback" in line], server.log


def test_a_body_of_a_hundred_megabytes_and_a_client_that_leaves_do_no_harm(running):
    status, body = running.ask("POST", "/v1/preferences", b"x" * 100_000_000)
    assert status == 413
    assert body["error"]["code"] == "body_too_large"
    assert body["error"]["message"].startswith("the body is over the limit of 64000000 bytes")
    items = [{"prompt": f"{number} " + "word " * 200, "response": "x " * 30} for number in range(2000)]
    content = json.dumps({"items": items}).encode()
    lines = ["POST /v1/rewards HTTP/1.1", "host: localhost", "content-type: application/json"]
    head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""])
    with socket.create_connection(("127.0.0.1", running.port)) as leaving:
        leaving.sendall(head.encode() + content)
        running.wait_for(b"paragone_requests_in_flight 2.0")
    running.wait_for(b'paragone_requests_total{route="/v1/rewards",status="499"} 1.0')
    running.wait_for(b'paragone_queue_items{model="tiny"} 0.0')
    assert running.ask("POST", "/v1/rewards", {"items": [{"prompt": "p", "response": "r"}]})[0] == 200


PIECE = b"x" * 1_000_000
PIECES = 70  # the limit is 64
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_httpx_reads_the_refusal_of_a_body_without_a_length(running, connection):
    response = httpx2.post(
        f"http://127.0.0.1:{running.port}/v1/preferences",
        content=(PIECE for _ in range(PIECES)),
        headers={**JSON, "connection": connection},
        timeout=60,
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("version", "framing", "pieces"),
    [
        ("1.1", "transfer-encoding: chunked", [b"f4240\r\n" + PIECE + b"\r\n"] * PIECES + [b"0\r\n\r\n"]),
        ("1.1", f"content-length: {PIECES * len(PIECE)}", [PIECE] * PIECES),
        ("1.0", f"content-length: {PIECES * len(PIECE)}", [PIECE] * PIECES),
    ],
)
def test_a_client_that_looks_up_only_after_its_whole_body_reads_the_refusal_and_a_clean_end(
    running, version, framing, pieces
):
    head = [
        f"POST /v1/preferences HTTP/{version}",
        "host: localhost",
        *(f"{name}: {value}" for name, value in JSON.items()),
    ]
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*head, "connection: close", framing, "", ""]).encode())
        for piece in pieces:
            connection.sendall(piece)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))  # a reset would raise
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["error"]["code"] == "body_too_large"


def test_a_client_that_looks_up_meanwhile_is_refused_at_the_limit(running):
    head = "POST /v1/preferences HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(65):
            connection.sendall(b"f4240\r\n" + PIECE + b"\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_sigterm_ends_an_idle_server_with_open_connections_and_it_exits_with_zero(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("GET", "/livez")
    connection.getresponse().read()
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 0
    connection.close()
    log = "".join(running.log)
    assert log.count("redis is away") == 1
    assert "models    tiny (default): " in log
    assert f"ready     http://127.0.0.1:{running.port}" in log
    assert "Loading weights" not in log
