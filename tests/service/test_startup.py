"""What a server says of itself once it listens: what it hosts, how it runs it, and who may ask."""

import contextlib
import logging
import re
import threading

import pytest
import torch

from paragone_models.packing.backend import explained
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_service.hosting import _saying_so_if_it_takes_long
from paragone_service.logs import ONE_FACT, START_LOGGER, configure_logging
from paragone_service.startup import startup_lines

ENSEMBLE = {"a": {"source": "one"}, "b": {"source": "two"}, "both": {"source": "ensemble:a+b"}}


def lines(hosted, /, port=8123, **settings):
    made = Settings(**settings)
    return startup_lines(create_app(made, hosted), made, port=port, seconds=2.34)


def section(shown, name):
    """Return the texts of one section."""
    start = next(number for number, line in enumerate(shown) if line.startswith(f"{name} "))
    texts = [shown[start]]
    for line in shown[start + 1 :]:
        if not line.startswith(" "):
            break
        texts.append(line)
    return [text[10:] for text in texts]


def test_one_model_takes_eight_lines_that_name_all_that_was_chosen(hosted):
    shown = lines({"bt": hosted["bt"]}, models={"bt": {"source": "x", "dtype": "float32"}})
    assert [line.split()[0] for line in shown] == [
        "Paragone", "models", "engine", "compute", "cache", "keys", "dialects", "ready"
    ]  # fmt: skip
    (model,) = section(shown, "models")
    assert re.fullmatch(r"bt \(default\): bradley-terry, [\d.]+ k parameters, 256 tokens, from /.*", model)
    assert section(shown, "engine") == [f"this process on cpu, {_threads()}"]
    assert section(shown, "compute") == [
        "float32, as the settings say; packed, torch's operations: our kernels are for bfloat16"
    ]
    assert section(shown, "cache") == ["512 MB of memory; no Redis (--redis-url), so a restart begins with nothing"]
    assert section(shown, "keys") == ["none: whoever reaches this address on this machine may ask"]
    assert section(shown, "dialects")[0].startswith("openrlhf, slime, vllm")
    assert section(shown, "ready")[0].startswith("http://127.0.0.1:8123")
    assert "in 2.3 s; " in section(shown, "ready")[0]


def _threads():
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def test_no_identity_and_no_secret_is_shown(hosted):
    shown = "\n".join(lines({"bt": hosted["bt"]}, api_key="hush", redis_url="redis://me:hush@127.0.0.1:1/2"))
    assert not re.search(r"[0-9a-f]{32}", shown)
    assert "hush" not in shown
    assert "Redis at redis://127.0.0.1:1/2" in shown
    assert "keys      1 in --api-key" in shown


def test_what_models_differ_in_is_said_with_their_names(hosted):
    models = {"first": hosted["bt"], "second": hosted["gpm"]}
    settings = {"first": {"source": "x", "dtype": "float32"}, "second": {"source": "y"}}
    (text,) = section(lines(models, models=settings), "compute")
    first, second = text.split(" | ")
    assert first.startswith("first: float32, as the settings say; ")
    assert second.startswith("second: float32: bfloat16 gains nothing below 10 M parameters")


def test_ensembles_and_models_on_other_servers_say_where_they_run(hosted):
    shown = lines({"a": hosted["bt"], "b": hosted["gpm"]}, models=ENSEMBLE, engines={"b": "vllm:http://127.0.0.1:1"})
    assert section(shown, "models")[2] == "both: ensemble, ensemble:a+b"
    assert section(shown, "engine")[0].endswith(" | b: vllm at http://127.0.0.1:1")
    assert " | " not in section(shown, "compute")[0]  # b's is its server's


def test_five_models_take_ten_lines_and_the_default_one_keeps_its_own(hosted):
    names = ("a", "b", "c", "d", "e")
    models = {name: hosted["gpm" if name == "c" else "bt"] for name in names}
    shown = lines(models, models={name: {"source": name} for name in names})
    assert len(shown) <= 10
    first, others = section(shown, "models")
    assert first.startswith("a (default): bradley-terry, ")
    assert others == (
        "and b (bradley-terry), c (general-preference), d (bradley-terry), e (bradley-terry); /v1/models says more"
    )


@pytest.mark.parametrize(
    ("way", "dtype", "words"),
    [
        ("native", torch.bfloat16, "packed, kernels of our own"),
        ("blocks", torch.float32, "packed, through the model's own code"),
        ("decoder", torch.float32, "packed, torch's operations: our kernels are for bfloat16"),
    ],
)
def test_the_way_a_backbone_runs_is_said_in_words(way, dtype, words):
    assert explained(way, dtype) == words


@contextlib.contextmanager
def fresh_logging():
    """Logging as a process begins with it: other tests have started servers in this one."""
    names = ["paragone", "paragone.service", "paragone.access", "uvicorn", "uvicorn.error", START_LOGGER]
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    kept = [(one.handlers[:], one.filters[:], one.level, one.propagate, one.disabled) for one in loggers]
    for one in loggers:
        one.handlers[:], one.filters[:], one.propagate, one.disabled = [], [], True, False
        one.setLevel(logging.NOTSET if one.parent else logging.WARNING)
    try:
        yield
    finally:
        for one, (handlers, filters, level, propagate, disabled) in zip(loggers, kept, strict=True):
            one.handlers[:], one.filters[:], one.propagate, one.disabled = handlers, filters, propagate, disabled
            one.setLevel(level)


def _log_a_start():
    logging.getLogger("paragone.service").info("a fact", extra=ONE_FACT)
    logging.getLogger("uvicorn.error").info("Waiting for application startup.")
    logging.getLogger(START_LOGGER).info("models    bt")
    logging.getLogger("paragone.service").warning("redis is away")


def test_people_read_the_lines_as_they_are_and_none_of_the_facts(capsys):
    with fresh_logging():
        configure_logging(Settings())
        _log_a_start()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "models    bt"
    assert shown[1].endswith(" WARNING paragone.service: redis is away")
    assert len(shown) == 2


def test_machines_read_the_facts_and_none_of_the_lines(capsys):
    with fresh_logging():
        configure_logging(Settings(log_format="json"))
        _log_a_start()
    shown = capsys.readouterr().err
    assert [text in shown for text in ("a fact", "Waiting for", "models ", "redis is away")] == [
        True,
        True,
        False,
        True,
    ]


def test_a_model_that_loads_for_long_is_named_meanwhile(monkeypatch):
    monkeypatch.setattr("paragone_service.hosting._PATIENCE_S", 0.0)
    monkeypatch.setattr("paragone_service.hosting._AGAIN_S", 0.01)
    said, both = [], threading.Event()

    def say(text):
        said.append(text)
        if len(said) > 1:
            both.set()

    monkeypatch.setattr(logging.getLogger(START_LOGGER), "info", say)
    with _saying_so_if_it_takes_long("judge", "owner/judge"):
        assert both.wait(30)
    assert said[0] == "loading judge from owner/judge …"
    assert said[1].startswith("still loading judge, ")
    count = len(said)
    assert not [one for one in threading.enumerate() if one.name == "loading for long"]
    assert len(said) == count
