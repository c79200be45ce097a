"""Real server processes that are killed and restarted under load: no request is lost, and no answer is wrong."""

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
import uvicorn
from processes import Redis
from serving_setup import free_port

from paragone import AsyncClient, Client, ParagoneError
from tests.service.judge.scripted import Scripted
from tests.service.judge.test_hosted_judge import longer_wins

PARAGONE = str(Path(sys.executable).with_name("paragone"))
MODEL = "builtin:mini-bradley-terry"
PAIRS = [(f"Question {place}?", "Yes." * (1 + place % 5), "No, never." * (1 + place % 3)) for place in range(40)]


class Replica:
    """``paragone serve`` on a port that it keeps when it is started again."""

    def __init__(self, *flags: str) -> None:
        self.flags = flags
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [PARAGONE, "serve", "--port", str(self.port), "--model", f"m={MODEL}", "--device", "cpu", *self.flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen([*command, "--log-level", "error"], env=environment)

    def ready(self) -> "Replica":
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200:
                    return self
            assert self.process.poll() is None
            time.sleep(0.05)
        raise TimeoutError("the replica did not get ready")

    def end(self, sign: int) -> None:
        self.process.send_signal(sign)
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def judge():
    """A chat server that prefers what is longer, on a port of its own: it outlives the replicas that ask it."""
    server = Scripted(longer_wins)
    server.port = free_port()
    web = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=server.port, log_level="warning"))
    running = threading.Thread(target=web.run, daemon=True)
    running.start()
    yield server
    web.should_exit = True
    running.join(30)


@pytest.fixture(scope="module")
def replicas(judge):
    hosted = f"judge=judge:http://127.0.0.1:{judge.port}/v1,model=m,read=votes"
    with Redis() as redis:
        both = [Replica("--redis-url", redis.url, "--model", hosted) for _ in range(2)]
        try:
            yield [one.ready() for one in both]
        finally:
            for one in both:
                one.process.kill()
                one.process.wait()


class Load:
    """Threads and coroutines that ask all the time; what fails, and what is answered otherwise than before, is kept."""

    def __init__(self, urls) -> None:
        self.urls = urls
        self.answers = 0
        self.lost: list[object] = []
        self._stop = threading.Event()
        with Client(urls) as client:
            self.table = [row.probability for row in client.preferences(PAIRS).preferences]
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(3)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._ask_async())))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more requests were answered."""
        end = self.answers + count
        deadline = time.monotonic() + 240
        while self.answers < end and not self.lost:
            assert time.monotonic() < deadline, f"{self.answers} answers, wanted {end}"
            time.sleep(0.02)

    def _check(self, place: int, probability: float) -> None:
        self.answers += 1
        # The rest of its batch moves a number in its last digits, and a restarted server has other batches.
        if abs(probability - self.table[place]) > 1e-5:
            self.lost.append((place, probability))

    def _ask(self, start: int) -> None:
        with Client(self.urls, timeout_s=300) as client:
            place = start
            while not self._stop.is_set():
                place = (place + 7) % len(PAIRS)
                try:
                    self._check(place, client.prefer(*PAIRS[place]))
                except ParagoneError as error:
                    self.lost.append(error)

    async def _ask_async(self) -> None:
        async with AsyncClient(self.urls, timeout_s=300) as client:

            async def ask(place: int) -> None:
                try:
                    self._check(place, await client.prefer(*PAIRS[place]))
                except ParagoneError as error:
                    self.lost.append(error)

            while not self._stop.is_set():
                await asyncio.gather(*(ask(place) for place in range(0, len(PAIRS), 5)))


class Waiting:
    """Members of a group that wait at two replicas for the last one, by the SDK and by requests of their own."""

    RESPONSES = ("Yes.", "No, never.", "It depends on the day.", "Ask the children, and then the gardener.")

    def __init__(self, urls) -> None:
        self.urls = urls
        self._asked: list[concurrent.futures.Future[float]] = []

    def __enter__(self):
        for slot in range(3):
            # A group has one prompt, by whose hash a client chooses among addresses: two members have but one each.
            urls = self.urls if slot == 2 else self.urls[slot]
            asked: concurrent.futures.Future[float] = concurrent.futures.Future()
            self._asked.append(asked)
            threading.Thread(target=self._settle, args=(asked, slot, urls), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        pass

    def _settle(self, asked, slot: int, urls) -> None:
        try:
            asked.set_result(self._ask(slot, urls))
        except ParagoneError as error:
            asked.set_exception(error)

    def _ask(self, slot: int, urls) -> float:
        with Client(urls) as client:
            member = client.cohort("Question?", self.RESPONSES[slot], group="g", slot=slot, size=4, deadline_s=240)
            return member.win_rate

    def complete(self, url: str) -> None:
        assert not any(asked.done() for asked in self._asked)
        last = self._ask(3, url)
        with Client(url) as client:
            wanted = client.tournament("Question?", self.RESPONSES).win_rates
        rates = [self._asked[slot].result(240) for slot in (1, 2)]
        assert [*rates, last] == pytest.approx(wanted[1:], abs=1e-5)

    def come_back(self) -> None:
        """Have the member that waited at the killed replica alone its answer, once that is back."""
        assert 0 < self._asked[0].result(240) < 1


def test_a_replica_killed_and_restarted_under_load_loses_no_request_and_no_member_of_a_group(replicas):
    first, second = replicas
    with Load([first.url, second.url]) as load, Waiting([first.url, second.url]) as group:
        load.more(100)
        first.end(signal.SIGKILL)
        load.more(100)  # at the other one
        group.complete(second.url)
        first.start()
        first.ready()
        load.more(100)
        group.come_back()
    assert load.lost == []


def test_a_stopped_replica_costs_a_request_seconds_and_none_is_lost(replicas):
    first, second = replicas
    with Load([first.url, second.url]) as load:
        load.more(100)
        first.process.send_signal(signal.SIGSTOP)
        try:
            load.more(200)
        finally:
            first.process.send_signal(signal.SIGCONT)
        load.more(100)
    assert load.lost == []


def test_the_only_server_killed_and_restarted_under_load_loses_no_request(replicas):
    only = replicas[0].ready()
    with Load(only.url) as load:
        load.more(50)
        only.end(signal.SIGTERM)
        only.start()  # seconds in which nobody answers
        load.more(50)
    assert load.lost == []


def in_flight(replica) -> float:
    text = httpx2.get(f"{replica.url}/metrics", timeout=30, trust_env=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("paragone_requests_in_flight "))


# The last one: the replica that it kills stays dead.
def test_a_replica_killed_while_it_compares_a_group_leaves_it_to_another(replicas, judge):
    texts = ("x", "xxxx", "xx")

    def ask(slot):
        with Client([one.url for one in replicas], model="judge") as client:
            return client.cohort("Question?", texts[slot], group="judged", slot=slot, size=3, deadline_s=240).win_rate

    judge.gate.clear()
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(ask, slot) for slot in range(3)]
        deadline = time.monotonic() + 60
        while len(judge.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        # Members of one prompt prefer one address.
        max(replicas, key=in_flight).end(signal.SIGKILL)
        judge.gate.set()
        rates = [one.result(120) for one in asked]  # the lease of the killed one has to end
    assert rates == pytest.approx([(0.5 + 2 / 6) / 3, (0.5 + 10 / 6) / 3, 0.5])
