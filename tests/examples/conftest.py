"""What the examples need to run in seconds: a real service with tiny models, and a way to load an example's file."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from paragone_models import load_model
from tests.evaluation.conftest import SPECS, served
from tests.models import tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Return an example as its host loads it: from its file, anew."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory):
    """The address of a real service: ``gp``, a model of preferences without a scalar, and ``bt``, one with."""
    root = tmp_path_factory.mktemp("oracles")
    hosted = {
        name: load_model(tiny.save_own(root / name, SPECS[name]), name=name, device="cpu") for name in ("gp", "bt")
    }
    with served(hosted) as address:
        yield address


@pytest.fixture(autouse=True)
def _address_for_examples(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PARAGONE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PARAGONE_URL", url)
