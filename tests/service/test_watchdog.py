"""The watchdog: what hangs is seen, its requests fail, other models answer, and in the end the process ends itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from serving_setup import free_port

from paragone_service.watchdog import EXIT_CODE, Post, Watchdog

ROOT = Path(__file__).parents[2]
HANG = {"model": "bad", "items": [{"prompt": "for ever " + "word " * 150, "response": "Yes."}]}
GOOD = {"model": "good", "items": [{"prompt": "Is it?", "response": "Yes."}]}


class HangingServer:
    def __init__(self, folder, **settings):
        port = free_port()
        command = [sys.executable, "-m", "tests.service.hanging_server", str(folder), str(port), json.dumps(settings)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = []
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def __enter__(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return self
            except httpx2.TransportError:
                time.sleep(0.1)
        self.__exit__()
        raise TimeoutError(f"the server did not get ready: {self.log}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        self.client.close()

    def ask(self, body):
        return self.client.post("/v1/rewards", json=body)

    def ready(self):
        return self.client.get("/readyz").status_code


@pytest.mark.parametrize(
    ("settings", "reason", "elsewhere"),
    [
        ({"forward_limit_s": 1}, "a forward of model bad for", 503),  # both run on one device
        ({"hang": "reading", "reading_limit_s": 1}, "reading for model bad for", 200),
        ({"hang": "task"}, "its queue has no worker any more", 200),
    ],
)
def test_a_worker_that_hangs_fails_requests_and_readiness_and_other_models_go_on_where_they_can(
    folders, settings, reason, elsewhere
):
    with HangingServer(folders["bt"], watchdog_exit_s=0, **settings) as server:
        answer = server.ask(HANG)  # in flight when it is seen
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "engine_unavailable"
        assert reason in error["message"]
        assert answer.headers["retry-after"] == "5"
        assert server.ask({**GOOD, "model": "bad"}).status_code == 503  # at once
        assert server.ready() == 503
        assert server.ask(GOOD).status_code == elsewhere
        server.process.send_signal(signal.SIGKILL)


def test_a_device_that_hangs_leaves_the_other_serving_and_comes_back(folders):
    settings = {"forward_limit_s": 1, "watchdog_exit_s": 2}
    with HangingServer(folders["bt"], hang="device", **settings) as server:
        answer = server.ask(HANG)  # the first device is free, and takes it
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert answer.headers["retry-after"] == "1"
        for model in ("good", "bad"):
            assert server.ask({**GOOD, "model": model}).status_code == 200
            devices = server.client.get(f"/v1/models/{model}").json()["devices"]
            assert [device["serves"] for device in devices] == [False, True]
        assert server.ready() == 200
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not devices[0]["serves"]:
            time.sleep(0.1)
            devices = server.client.get("/v1/models/bad").json()["devices"]
        assert devices[0]["serves"]
        assert server.process.poll() is None  # though it hung for longer than ends a process


@pytest.mark.parametrize("hang", ["forward", "loop", "reading"])
def test_a_process_with_something_stuck_ends_itself_with_a_code(folders, hang):
    limits = {"forward_limit_s": 0.5, "reading_limit_s": 0.5, "loop_limit_s": 0.5}
    with HangingServer(folders["bt"], hang=hang, watchdog_exit_s=1, **limits) as server:
        asking = threading.Thread(target=ask_in_vain, args=[server])
        asking.start()
        assert server.process.wait(timeout=30) == EXIT_CODE
        asking.join()
    assert "the process ends with code 70" in "".join(server.log)


def test_a_process_whose_lock_is_kept_in_c_ends_too_and_says_where(folders):
    with HangingServer(folders["bt"], hang="lock", watchdog_exit_s=0.5, loop_limit_s=0.5) as server:
        asking = threading.Thread(target=ask_in_vain, args=[server])
        asking.start()
        assert server.process.wait(timeout=30) == 1  # faulthandler's own: no line of Python runs any more
        asking.join()
    said = "".join(server.log)
    assert "Timeout" in said
    assert "hanging_server.py" in said


@pytest.mark.parametrize("hang", ["forward", "loop", "reading"])
def test_sigterm_ends_a_process_whatever_hangs(folders, hang):
    with HangingServer(folders["bt"], hang=hang, watchdog_exit_s=0, drain_timeout_s=1) as server:
        asking = threading.Thread(target=ask_in_vain, args=[server])
        asking.start()
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=30)
        asking.join()


def ask_in_vain(server):
    with contextlib.suppress(httpx2.TransportError):
        assert server.ask(HANG).status_code == 503


def test_what_comes_back_is_taken_again():
    class Model:
        name = "m"
        fatal = True
        problem = "it hangs"
        calls = ()

        def stuck_worker(self):
            return self.problem

        def suspend(self, reason):
            self.calls += (reason,)

        def resume(self):
            self.calls += ("resumed",)

    class Loop:
        def call_soon_threadsafe(self, call, *arguments):
            call(*arguments)

    left = []
    dog = Watchdog(loop_limit_s=10, exit_s=5, drain_s=1, draining=lambda: False, leave=left.append)
    model = Model()
    dog.watch(Loop(), [model])
    now = time.monotonic()
    dog._look(now)
    dog._look(now + 4)
    model.problem = ""
    dog._look(now + 4.5)
    model.problem = "again"
    dog._look(now + 8)
    dog._look(now + 12)
    assert model.calls == ("it hangs", "resumed", "again")
    assert not left
    dog._look(now + 14)
    assert left == [EXIT_CODE]


def test_what_hangs_on_one_device_of_several_is_told_to_it_and_ends_no_process():
    class Device:
        name = "cpu:0"
        fatal = False
        told = ()

        def stuck_worker(self):
            return "a forward of model m for 60 s"

        def suspend(self, reason):
            self.told += (reason,)

    class Loop:
        def call_soon_threadsafe(self, call, *arguments):
            call(*arguments)

    left = []
    dog = Watchdog(loop_limit_s=100, exit_s=5, drain_s=1, draining=lambda: False, leave=left.append)
    device = Device()
    dog.watch(Loop(), [device])
    now = time.monotonic()
    for later in (0, 6, 12):
        dog._look(now + later)
    assert device.told == ("a forward of model m for 60 s",)
    assert not left


def test_a_post_is_busy_only_at_work():
    post = Post(limit_s=0.01)
    assert not post.stuck()
    with post.at_work("a nap", patience_s=0.01):
        time.sleep(0.02)
        assert post.stuck() == "a nap for 0 s, over its limit of 0.01 s"
        assert post.overdue()
    assert (post.busy_s(), post.stuck(), post.overdue()) == (0, "", False)
