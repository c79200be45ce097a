"""A real Redis Cluster on loopback, which writes nothing but its nodes' lists to disk."""

import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from processes import Redis
from redis import Redis as Connection
from redis.exceptions import RedisError

SLOTS = 16384
_BUS = 10_000  # a node's second port lies so much above its first one
_PATIENCE_S = 60.0


class Node(Redis):
    """One server of a cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.port = _free_pair()
        folder.mkdir()
        self.command += [
            "--port", str(self.port), "--cluster-enabled", "yes", "--cluster-node-timeout", "500",
            "--dir", str(folder), "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0",
        ]  # fmt: skip
        self.url = f"redis+cluster://127.0.0.1:{self.port}"

    def ask(self, *words: Any) -> Any:
        """Return what it answers to one command."""
        with Connection(port=self.port) as connection:
            return connection.execute_command(*words)


class Cluster:
    """Three primaries with a third of the slots each, and replicas of the first one.

    Args:
        replicas: of the first primary; without one a cluster that loses a primary is away.
    """

    def __init__(self, *, replicas: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.nodes = [Node(Path(self._folder.name) / str(number)) for number in range(3 + replicas)]
        self.primaries, self.replicas = self.nodes[:3], self.nodes[3:]
        self.url = self.primaries[0].url

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.end()
        self._folder.cleanup()

    def until(self, holds: Callable[[], bool]) -> None:
        """Return when something holds.

        Raises:
            TimeoutError: if it does not within a minute.
        """
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                if holds():
                    return
            except RedisError:
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"the cluster did not come to it in {_PATIENCE_S:g} s")
            time.sleep(0.05)

    def move(self, slot: int, start: Node, target: Node) -> None:
        """Move the keys of a slot, for which clients are sent to the other node by ASK until ``settle``."""
        names = {node: node.ask("CLUSTER", "MYID") for node in (start, target)}
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[start])
        start.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        while keys := start.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            start.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def settle(self, slot: int, start: Node, target: Node) -> None:
        """End the move of a slot: clients are sent by MOVED from now on."""
        name = target.ask("CLUSTER", "MYID")
        for node in (target, start):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)

    def _join(self) -> None:
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for node, first, last in zip(self.primaries, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTS", *range(first, last))
        for number, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        known = b"cluster_known_nodes:%d\r" % len(self.nodes)
        self.until(lambda: all(known in node.ask("CLUSTER", "INFO") for node in self.nodes))
        for node in self.replicas:
            node.ask("CLUSTER", "REPLICATE", self.primaries[0].ask("CLUSTER", "MYID"))
        self.until(lambda: all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes))
        self.until(lambda: all(node.ask("ROLE")[3] == b"connected" for node in self.replicas))


def _free_pair() -> int:
    """Return a port that is free together with that of the bus."""
    for port in random.sample(range(11_000, 22_000), 1000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
            return port
    raise RuntimeError("no two ports of 127.0.0.1 that lie 10,000 apart are free")
