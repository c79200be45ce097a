"""A tiny policy, prompts, and a real service with tiny oracles, made once."""

from pathlib import Path

import pytest

from paragone_models import load_model
from paragone_models.spec import ModelSpec
from tests.evaluation.conftest import SPECS, served
from tests.models import tiny
from tests.training.policy.tiny_policy import save_policy, write_prompts


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="session")
def oracle_models(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("oracles")
    specs = {name: SPECS[name] for name in ("gp", "bt")}
    specs["hy"] = ModelSpec(kind="hybrid", dimension=3, temperature=0.5, max_length=128)
    return {name: load_model(tiny.save_own(root / name, spec), name=name, device="cpu") for name, spec in specs.items()}


@pytest.fixture(scope="session")
def oracle_url(oracle_models):
    with served(oracle_models) as address:
        yield address
