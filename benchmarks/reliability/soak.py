"""Load on two replicas and a real Redis while something fails every minute: is an answer lost, or wrong?

    python benchmarks/reliability/soak.py [--seconds 1800] [--seed 0] [--every SECONDS]

Everything stays on 127.0.0.1. Two servers host one tiny model and share a Redis. Their memory caches are small, so that
most values come from Redis or from the model. The right answers are computed before, in this process. Load is open
loop, at 80 % of the capacity that was measured first with Redis kept empty; latencies count from the moment at which a
request was due. A supervisor starts again what has ended. Faults are drawn from a seeded list, each of them once before
any comes again.

Expected: 0 lost, 0 wrong, 0 unclean exits.
"""

import argparse
import contextlib
import itertools
import logging
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis
from fuzz_texts import plain_text
from processes import Process, Redis, Server, chat_tokenizer, ended, quantile, write_model

from paragone import Client, ParagoneError

_LOAD = 0.8
_TOLERANCE = 1e-4
_WORKERS = 24
_PROMPTS, _RESPONSES = 1_500, 4
_BATCH = 8
_PATIENCE_S = 120.0
"""How long the client tries again: twice as long as a replica may be away."""


@dataclass(frozen=True)
class Table:
    """Questions with their answers, computed by the model itself before anything is asked.

    Attributes:
        pairs: (prompt, first, second).
        right: the probability that the first is preferred, of each pair.
    """

    pairs: Sequence[tuple[str, str, str]]
    right: Sequence[float]

    @classmethod
    def made(cls, folder: Path, *, prompts: int = _PROMPTS, seed: int = 0) -> "Table":
        """Ask the model in this process."""
        from paragone_models import load_model

        generator = random.Random(seed)
        model = load_model(folder, name="soak", device="cpu")
        pairs: list[tuple[str, str, str]] = []
        right: list[float] = []
        for number in range(prompts):
            prompt = f"{plain_text(generator)} {number}"
            responses = [f"{plain_text(generator)} {letter}" for letter in "abcdefgh"[:_RESPONSES]]
            table = model.score(prompt, responses).probabilities
            for first, second in itertools.permutations(range(_RESPONSES), 2):
                pairs.append((prompt, responses[first], responses[second]))
                right.append(float(table[first, second]))
        return cls(pairs, right)

    def batch(self, generator: random.Random) -> list[int]:
        """Return the places of a few pairs."""
        return [generator.randrange(len(self.pairs)) for _ in range(generator.randrange(1, 2 * _BATCH))]


@dataclass
class Window:
    """What happened between one fault and the next."""

    fault: str
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    retries: int = 0


class Load:
    """Ask questions of the table, and compare every answer with it.

    Args:
        urls: of the replicas.
    """

    def __init__(self, table: Table, urls: Sequence[str]) -> None:
        self.table = table
        self.windows = [Window("none")]
        self._lock = threading.Lock()
        self._client = Client(list(urls), timeout_s=_PATIENCE_S, retry_s=_PATIENCE_S)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def begin(self, fault: str) -> None:
        """Count what ends from now on to a fault."""
        with self._lock:
            self.windows.append(Window(fault))

    def count_retry(self) -> None:
        """Count one try that failed."""
        with self._lock:
            self.windows[-1].retries += 1

    def ask(self, places: Sequence[int], due: float) -> None:
        """Ask one request, and note how its answer compares."""
        error = wrong = ""
        try:
            answer = self._client.preferences([self.table.pairs[place] for place in places])
            got = [one.probability for one in answer.preferences]  # type: ignore[union-attr]
            right = [self.table.right[place] for place in places]
            if len(got) != len(right) or any(abs(a - b) > _TOLERANCE for a, b in zip(got, right, strict=True)):
                wrong = f"{got} for {right}"
        except ParagoneError as failure:
            error = f"{type(failure).__name__}: {failure}"
        with self._lock:
            window = self.windows[-1]
            window.seconds.append(time.monotonic() - due)
            window.lost += [error] if error else []
            window.wrong += [wrong] if wrong else []

    def closed_loop(self, seconds: float, *, workers: int = 6) -> float:
        """Ask as fast as answers come; return requests a second."""
        end = time.monotonic() + seconds
        counts = [0] * workers

        def work(place: int) -> None:
            generator = random.Random(f"capacity/{place}")
            while time.monotonic() < end:
                self.ask(self.table.batch(generator), time.monotonic())
                counts[place] += 1

        _run_together([lambda place=place: work(place) for place in range(workers)])
        return sum(counts) / seconds

    def open_loop(self, seconds: float, rate: float, *, seed: int) -> None:
        """Ask at a rate, in requests a second, whether or not answers come; return when all have ended."""
        start = time.monotonic()
        turns: Iterator[int] = iter(range(max(1, round(seconds * rate))))
        turn_lock = threading.Lock()

        def work() -> None:
            while True:
                with turn_lock:
                    turn = next(turns, None)
                if turn is None:
                    return
                due = start + turn / rate
                time.sleep(max(0.0, due - time.monotonic()))
                self.ask(self.table.batch(random.Random(f"{seed}/{turn}")), due)

        _run_together([work] * _WORKERS)


def _run_together(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Supervisor:
    """Start again whatever has ended, a second later, as systemd or Kubernetes would."""

    def __init__(self, processes: Sequence[Process], *, wait_s: float = 1.0) -> None:
        self.exits: list[tuple[Process, int]] = []
        self._processes = processes
        self._wait_s = wait_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        """Start nothing any more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for process in self._processes:
                code = process.exit_code
                if code is not None:
                    self.exits.append((process, code))
                    self._over.wait(self._wait_s)
                    process.launch()


class Faults:
    """The faults by name, drawn in a seeded order.

    Args:
        pause_s: how long a stopped process stays stopped, and a full Redis full.
    """

    def __init__(self, replicas: Sequence[Server], store: Redis, *, seed: int, pause_s: float) -> None:
        self._replicas = replicas
        self._store = store
        self._generator = random.Random(seed)
        self._pause_s = pause_s
        self.terminated: list[Process] = []
        self._known: dict[str, Callable[[], None]] = {
            "kill -9 of a replica": lambda: self._replica().send(signal.SIGKILL),
            "SIGTERM of a replica": self._terminate,
            "SIGSTOP of a replica": lambda: self._stop(self._replica()),
            "kill -9 of Redis": lambda: self._store.send(signal.SIGKILL),
            "SIGTERM of Redis": lambda: self._store.send(signal.SIGTERM),
            "SIGSTOP of Redis": lambda: self._stop(self._store),
            "FLUSHALL": lambda: self._redis(lambda one: one.flushall()),
            "Redis is full": lambda: self._redis(self._fill),
            "values corrupted in Redis": lambda: self._redis(self._corrupt),
        }
        self._waiting: list[str] = []

    def names(self) -> list[str]:
        """Return the names of all faults."""
        return list(self._known)

    def next(self) -> str:
        """Draw the next fault: all of them once before any comes again."""
        if not self._waiting:
            self._waiting = self.names()
            self._generator.shuffle(self._waiting)
        return self._waiting.pop()

    def inflict(self, name: str) -> None:
        """Make a fault happen, and end what has a length."""
        self._known[name]()

    def all_ready(self) -> bool:
        """Return whether nothing is away."""
        return self._store.answers() and all(replica.answers() for replica in self._replicas)

    def _replica(self) -> Server:
        return self._generator.choice(self._replicas)

    def _terminate(self) -> None:
        replica = self._replica()
        self.terminated.append(replica)
        replica.send(signal.SIGTERM)

    def _stop(self, process: Process) -> None:
        process.send(signal.SIGSTOP)
        time.sleep(self._pause_s)
        process.send(signal.SIGCONT)

    def _redis(self, act: Callable[[redis.Redis], object]) -> None:
        with redis.Redis.from_url(self._store.url, socket_timeout=10) as connection:
            act(connection)

    def _fill(self, connection: redis.Redis) -> None:
        connection.config_set("maxmemory-policy", "noeviction")
        connection.config_set("maxmemory", "1mb")
        time.sleep(self._pause_s)
        connection.config_set("maxmemory", "0")

    def _corrupt(self, connection: redis.Redis) -> None:
        keys = list(itertools.islice(connection.scan_iter(count=1000), 4_000))
        values = connection.mget(keys) if keys else []
        pipeline = connection.pipeline(transaction=False)
        for key, value in zip(keys, values, strict=True):
            if not isinstance(value, bytes) or not value:
                continue
            kind, place = self._generator.randrange(6), self._generator.randrange(len(value))
            if kind == 0:  # one bit
                value = value[:place] + bytes([value[place] ^ 1 << self._generator.randrange(8)]) + value[place + 1 :]
            elif kind == 1:  # a sound value of another text
                value = self._generator.choice(values) or b""
            elif kind == 2:
                value = value[:place]
            elif kind == 3:  # numbers of another size, the rest kept
                value = value[:-4] + b"\xff\xff\x7f\x7f"
            elif kind == 4:
                value = self._generator.randbytes(len(value))
            pipeline.delete(key)
            pipeline.lpush(key, "1") if kind == 5 else pipeline.set(key, value)
        pipeline.execute()


class _Retries(logging.Handler):
    """Counts the client's warnings: it writes one for each try that failed."""

    def __init__(self, load: Load) -> None:
        super().__init__(logging.WARNING)
        self._load = load

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        if "try " in record.getMessage():
            self._load.count_retry()


@dataclass(frozen=True)
class Outcome:
    """What a soak found."""

    capacity: float
    windows: Sequence[Window]
    unclean: Sequence[str]
    corrupted: float
    rss_mb: Sequence[tuple[float, float]]

    @property
    def lost(self) -> list[str]:
        """What went wrong with each request that got no answer."""
        return [one for window in self.windows for one in window.lost]

    @property
    def wrong(self) -> list[str]:
        """Answers that differ from the table."""
        return [one for window in self.windows for one in window.wrong]


def soak(folder: Path, *, seconds: float, every_s: float, seed: int, prompts: int = _PROMPTS) -> Outcome:
    """Run the whole soak and return what it found."""
    model = write_model(folder / "model", chat_tokenizer(), kind="general-preference")
    table = Table.made(model, prompts=prompts, seed=seed)
    store = Redis()
    flags = ("--model", f"soak={model}", "--redis-url", store.url, "--memory-cache-mb", "0.2", "--device", "cpu")
    replicas = [Server(*flags, log=folder / f"replica-{number}.log") for number in range(2)]
    with ended(store, *replicas):
        store.start()
        for replica in replicas:
            replica.start()
        load = Load(table, [replica.url for replica in replicas])
        handler = _Retries(load)
        logger = logging.getLogger("paragone")
        logger.addHandler(handler)
        logger.propagate = False
        supervisor = Supervisor([store, *replicas])
        try:
            with _emptied(store):  # what the model can bear without the cache's help: a fault may take that away
                capacity = load.closed_loop(min(10.0, seconds / 4))
            faults = Faults(replicas, store, seed=seed, pause_s=min(5.0, every_s / 2))
            before = [_rss_mb(replica) for replica in replicas]
            over = threading.Event()
            inflicting = threading.Thread(target=_inflict, args=(faults, load, every_s, over))
            load.begin("none, at 80 %")
            inflicting.start()
            load.open_loop(seconds, _LOAD * capacity, seed=seed)
            over.set()
            inflicting.join()
            for replica in replicas:
                replica.recover()  # the last fault may have ended it
            corrupted = sum(replica.metrics().get("paragone_cache_corrupted_total", 0.0) for replica in replicas)
            after = [_rss_mb(replica) for replica in replicas]
        finally:
            supervisor.close()
            logger.removeHandler(handler)
            logger.propagate = True
            load.close()
    unclean = [
        f"{process.command[1]} ended with {code}"
        for process, code in supervisor.exits
        if code not in (0, -signal.SIGKILL, -signal.SIGTERM) or (code == -signal.SIGTERM and process is not store)
    ]
    unclean += [f"a traceback in {log.name}" for log in folder.glob("*.log") if "Traceback" in log.read_text()]
    return Outcome(capacity, load.windows, unclean, corrupted, list(zip(before, after, strict=True)))


@contextlib.contextmanager
def _emptied(store: Redis) -> Iterator[None]:
    """Keep Redis empty meanwhile."""
    over = threading.Event()

    def empty() -> None:
        with redis.Redis.from_url(store.url) as connection:
            while not over.wait(0.1):
                connection.flushall()

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _inflict(faults: Faults, load: Load, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        while not faults.all_ready():  # one thing fails at a time
            if over.wait(0.5):
                return
        name = faults.next()
        load.begin(name)
        faults.inflict(name)
    while not faults.all_ready():
        time.sleep(0.5)


def _rss_mb(server: Server) -> float:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def report(outcome: Outcome) -> None:
    """Print a table: a row for each kind of fault, and one for all."""
    rows: dict[str, Window] = {}
    for window in outcome.windows[1:]:
        row = rows.setdefault(window.fault, Window(window.fault))
        for name in ("seconds", "lost", "wrong"):
            getattr(row, name).extend(getattr(window, name))
        row.retries += window.retries
    whole = Window("all")
    for row in rows.values():
        for name in ("seconds", "lost", "wrong"):
            getattr(whole, name).extend(getattr(row, name))
        whole.retries += row.retries
    print(
        f"capacity {outcome.capacity:.0f} requests/s of 1 to {2 * _BATCH - 1} pairs, not cached; load {_LOAD:.0%} of it"
    )
    print(f"{'fault':<28} {'requests':>8} {'lost':>5} {'wrong':>5} {'retries':>7}", end=" ")
    print(f"{'p50 ms':>7} {'p99 ms':>8} {'max s':>6}")
    for row in (*rows.values(), whole):
        p50, p99, longest = (quantile(row.seconds, share) for share in (0.5, 0.99, 1.0))
        counts = f"{len(row.seconds):>8} {len(row.lost):>5} {len(row.wrong):>5} {row.retries:>7}"
        print(f"{row.fault:<28} {counts} {1e3 * p50:>7.1f} {1e3 * p99:>8.0f} {longest:>6.1f}")
    print(f"damaged values found in Redis by the servers that run now: {outcome.corrupted:.0f}")
    print("RSS in MB before and after:", ", ".join(f"{a:.0f} → {b:.0f}" for a, b in outcome.rss_mb))
    for line in (*outcome.lost[:5], *outcome.wrong[:5], *outcome.unclean[:5]):
        print("FAULT", line[:500])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long the load lasts")
    parser.add_argument("--every", type=float, help="seconds between two faults (default: 60, in short runs less)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    every_s = arguments.every or max(3.0, min(60.0, arguments.seconds / 12))
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(Path(folder), seconds=arguments.seconds, every_s=every_s, seed=arguments.seed)
    report(outcome)
    sys.exit(bool(outcome.lost or outcome.wrong or outcome.unclean))


if __name__ == "__main__":
    main()
