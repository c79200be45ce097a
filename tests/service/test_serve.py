"""``paragone serve``: what it refuses before it starts, with which message and exit code."""

import gc
import json
import logging
import re
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from paragone.cli import main
from paragone_service.serve import forget_the_start


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_are():
    loggers = [logging.getLogger(name) for name in ("paragone", "paragone.access", "uvicorn")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _a_free_port(monkeypatch):
    # It is bound before models are loaded, and 8000 may be somebody's.
    monkeypatch.setenv("PARAGONE_PORT", "0")


def refused(capsys, *arguments):
    try:
        code = main(["serve", *arguments])
    except SystemExit as error:
        code = error.code
    return code, re.sub(r"\s+", " ", capsys.readouterr().err)


def test_listening_beyond_loopback_needs_a_key(capsys):
    code, message = refused(capsys, "--host", "0.0.0.0")
    assert code == 2
    assert message.startswith(
        "paragone serve: host 0.0.0.0 can be reached by others and there is no key: set --api-key"
    )


def test_a_path_that_is_not_there_is_refused(capsys):
    code, message = refused(capsys, "--model", "judge=/nowhere/judge")
    assert code == 2
    assert "/nowhere/judge" in message


def test_a_checkpoint_without_its_head_is_refused(capsys, folders, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(folders["bt"], folder)
    (folder / "head.safetensors").unlink()
    code, message = refused(capsys, "--model", f"judge={folder}")
    assert code == 2
    assert "head" in message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "pip install bitsandbytes"),
        ({"hidden_act": "wishful"}, "wishful"),
        ({"num_hidden_layers": 1}, "config.json gives no place to"),
        ({"model_type": "perpetuum-mobile"}, "perpetuum-mobile"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "which was not run: if you trust whoever wrote"),
    ],
)
def test_whatever_fails_at_load_is_one_sentence_and_exit_code_2(capsys, folders, tmp_path, values, reason):
    folder = tmp_path / "strange"
    shutil.copytree(folders["bt"], folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    code, message = refused(capsys, "--model", f"judge={folder}")
    assert code == 2
    assert reason in message
    assert "Traceback" not in message


def test_nan_in_the_weights_is_refused(capsys, folders, tmp_path):
    folder = tmp_path / "poisoned"
    shutil.copytree(folders["bt"], folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, message = refused(capsys, "--model", f"judge={folder}")
    assert code == 2
    assert "NaN or infinity" in message


def test_a_port_that_is_taken_is_said_before_any_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, message = refused(capsys, "--model", "judge=/nowhere/judge", "--port", str(port))
    assert code == 1
    assert message.startswith(f"paragone serve: 127.0.0.1:{port} is taken by another process")
    assert "/nowhere" not in message


def test_an_unknown_key_of_the_file_is_refused(capsys, tmp_path):
    path = tmp_path / "paragone.toml"
    path.write_text("hots = '127.0.0.1'")
    code, message = refused(capsys, "--config", str(path))
    assert (code, message) == (2, "paragone serve: unknown key 'hots': did you mean 'host'? ")


def test_an_unknown_flag_is_refused(capsys):
    code, message = refused(capsys, "--hots", "x")
    assert code == 2
    assert "--host" in message


def test_two_models_of_one_name_are_refused(capsys):
    code, message = refused(capsys, "--model", "a=one", "--model", "a=two")
    assert code == 2
    assert "two models are called 'a'" in message


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--redis-url", "localhost:6379", "redis_url: it is no address of a Redis"),
        ("--model", "b=builtin:nope", "models.b.source: there is no built-in model 'nope'; built in are mini-b"),
    ],
)
def test_an_address_or_a_built_in_model_that_is_none_is_refused_before_any_model_is_loaded(capsys, flag, value, reason):
    code, message = refused(capsys, "--model", "a=/nowhere/judge", flag, value)
    assert code == 2
    assert message.startswith(f"paragone serve: {reason}")
    assert "/nowhere" not in message


@pytest.mark.parametrize(
    ("flag", "words"), [("--port", "integer"), ("--max-batch-tokens", "give a number of tokens, at least 1, or auto")]
)
def test_a_number_that_is_none_is_refused(capsys, flag, words):
    code, message = refused(capsys, flag, "many")
    assert code == 2
    assert words in message


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--host", "--port", "--model", "--config", "--redis-url", "--api-key", "--api-key-file", "--device"):
        assert flag in shown


def test_the_garbage_collector_passes_over_what_is_there_at_the_start():
    class Here:
        pass

    here = Here()
    assert any(one is here for one in gc.get_objects())
    try:
        forget_the_start()
        assert gc.isenabled()
        assert not any(one is here for one in gc.get_objects())
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
