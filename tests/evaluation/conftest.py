"""What the tests of evaluation share: tiny real models, files made here, and a real service on a free port."""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from paragone_models import PreferenceModel, load_model
from paragone_models.spec import ModelSpec
from tests.models import tiny

SPECS = {
    "bt": ModelSpec(kind="bradley-terry", dimension=1, max_length=128, temperature=2.0),
    "gp": ModelSpec(kind="general-preference", dimension=4, normalise=True, temperature=0.1, max_length=128),
    "ratings": ModelSpec(
        kind="regression", dimension=2, attributes=("helpful", "verbose"), weights=(1.0, -0.5), max_length=128
    ),
    "unweighted": ModelSpec(kind="regression", dimension=2, attributes=("helpful", "verbose"), max_length=128),
}
WORDS = ["bottles", "kids", "teams", "economy", "water", "fit", "work", "learn", "every", "year"]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models: bt, gp, ratings, unweighted, and mute, which has no tokenizer."""
    root = tmp_path_factory.mktemp("models")
    made = {name: tiny.save_own(root / name, spec) for name, spec in SPECS.items()}
    return {**made, "mute": tiny.save_own(root / "mute", SPECS["bt"], text=False)}


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, PreferenceModel]:
    return {name: load_model(folder, name=name, device="cpu") for name, folder in folders.items()}


def text(number: int) -> str:
    """Return a response that differs from those of all other numbers in words and length."""
    return " ".join(WORDS[(number * 7 + place * 3) % 10] for place in range(2 + number % 9)) + f" {number}"


def pair(number: int, **fields: object) -> dict[str, object]:
    """Return a row of a pair file; four pairs share a prompt, two prompts a question."""
    prompt = number // 4
    return {
        "id": f"p{number}",
        "group": f"question{prompt // 2}_stance{prompt % 2}",
        "prompt": f"Prompt {prompt}?",
        "first": text(2 * number),
        "second": text(2 * number + 1),
        "strength": (3, -2, 1, -1, 2, 0, -3)[number % 7],
        **fields,
    }


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", [pair(number) for number in range(48)])


@contextlib.contextmanager
def listening(app: object):
    """Yield the URL at which an application listens."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


@contextlib.contextmanager
def served(hosted: dict[str, PreferenceModel], **settings: object):
    """Yield the URL of a real service that hosts the models."""
    from paragone_service.app import create_app
    from paragone_service.config import Settings

    with listening(create_app(Settings(**settings), hosted)) as address:
        yield address


@pytest.fixture(scope="session")
def url(models: dict[str, PreferenceModel]):
    with served({name: models[name] for name in ("gp", "bt", "ratings", "unweighted")}) as address:
        yield address
