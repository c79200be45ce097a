"""The Triton model repository that an export writes."""

import re

import pytest
from typer.testing import CliRunner

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.backbones import reference_to, save_head
from paragone_models.files.export_command import export
from paragone_models.files.triton_export import export_triton
from paragone_models.spec import ModelSpec

from ..tiny import make_network, save_output_row, save_own

SPEC = ModelSpec(kind="bradley-terry", dimension=1, max_length=100)


def parameters(folder):
    return dict(re.findall(r'key: "(\w+)" value { string_value: "([^"]*)"', (folder / "config.pbtxt").read_text()))


def test_the_copy_has_the_identity_that_its_configuration_names(tmp_path):
    source = save_own(tmp_path / "own", SPEC)
    model, exported = export_triton(str(source), tmp_path / "repository", name="judge", max_length=50, dtype="bfloat16")
    values = parameters(exported)
    assert exported == tmp_path / "repository" / "judge"
    assert model.identity == load_model(source, max_length=50).identity == values["identity"]
    assert load_model(exported / "1" / "model").identity == values["content"] != values["identity"]
    assert (values["dtype"], values["deterministic"], values["max_batch_tokens"]) == ("bfloat16", "false", "default")


def test_a_layout_that_needs_a_word_has_it_in_the_configuration(tmp_path):
    save_output_row(tmp_path / "row", text=True)
    _, exported = export_triton(str(tmp_path / "row"), tmp_path / "repository", head="lm-head-row-0")
    assert parameters(exported)["head"] == "lm-head-row-0"


def test_a_head_that_was_saved_alone_takes_its_backbone_along(tmp_path, monkeypatch):
    save_own(tmp_path / "backbone-elsewhere", SPEC)
    reference = reference_to(str(tmp_path / "backbone-elsewhere"))
    head = {f"value_head.{name}": value for name, value in make_network(SPEC).head.value_head.state_dict().items()}
    save_head(tmp_path / "head", head, SPEC, reference)
    _, exported = export_triton(str(tmp_path / "head"), tmp_path / "repository")
    moved = exported.rename(tmp_path / "moved")
    (tmp_path / "backbone-elsewhere").rename(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    assert load_model(moved / "1" / "model").identity == parameters(moved)["content"]
    assert str(tmp_path) not in (moved / "1" / "model" / "paragone.json").read_text()


def test_nothing_is_overwritten_and_the_device_is_tritons(tmp_path):
    source = save_own(tmp_path / "own", SPEC)
    export_triton(str(source), tmp_path / "repository")
    with pytest.raises(
        ModelLoadError, match=r"repository/own is there already: remove it, or export under another name"
    ):
        export_triton(str(source), tmp_path / "repository")
    with pytest.raises(ModelLoadError, match="device is Triton's to choose"):
        export_triton(str(source), tmp_path / "repository", name="other", device="cpu")


def test_the_command_takes_a_model_as_serve_does_and_says_what_comes_next(tmp_path):
    source = save_own(tmp_path / "own", SPEC)
    repository = tmp_path / "repository"
    result = CliRunner().invoke(export, ["triton", f"judge={source},dtype=float32,max_length=64", str(repository)])
    assert result.exit_code == 0, result.output
    assert f"--model-repository={repository}" in result.output
    assert f"--model judge={source},max_length=64 --engine judge=triton:grpc://" in result.output
    assert (repository / "judge" / "1" / "model.py").is_file()
