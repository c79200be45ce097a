"""What the tests of the models share: one torch thread, and no download."""

from pathlib import Path

import pytest
import torch

from paragone_models import PreferenceModel, load_model
from paragone_models.spec import ModelSpec
from tests.models import tiny


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


GATED = ModelSpec(
    kind="general-preference", dimension=6, gate="softmax", normalise=True, temperature=0.1, max_length=128
)


@pytest.fixture(scope="session")
def gated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this project: a gated general preference model with its tokenizer."""
    return tiny.save_own(tmp_path_factory.mktemp("gated"), GATED)


@pytest.fixture(scope="session")
def gated(gated_folder: Path) -> PreferenceModel:
    return load_model(gated_folder, device="cpu")


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_published(tmp_path_factory.mktemp("published"), text=True)
