"""``paragone verify`` against real servers, each with a fault of its own, and against ours."""

import json
import shutil
from importlib.metadata import EntryPoint

import pytest
import torch

from paragone.cli import main
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.verification.causes import batch_dependence, judged
from paragone_evaluation.verification.golden import GOLDEN
from paragone_evaluation.verification.reference import PlainModel
from paragone_evaluation.verification.servers import DIALECTS, Asked, Server
from tests.evaluation.conftest import served, write
from tests.evaluation.verification.faulty_server import FaultyServer, save_classifier, serving

COMMAND = EntryPoint("verify", "paragone_evaluation.verification.command:verify", "paragone.commands")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="module")
def plain(folder):
    return PlainModel(str(folder), device="cpu")


@pytest.fixture(scope="module")
def readings(plain):
    return [plain.readings(text) for text in GOLDEN]


@pytest.fixture(scope="module")
def faulty(folder):
    return FaultyServer(folder)


@pytest.fixture(scope="module")
def url(faulty):
    with serving(faulty) as address:
        yield address


@pytest.fixture(scope="module")
def url_of_ours(models):
    with served({name: models[name] for name in ("bt", "gp", "unweighted")}) as address:
        yield address


def asked(plain, readings):
    return [Asked(one.text, plain.render(one.text)) for one in readings]


def typed(*words):
    try:
        return main(["verify", *map(str, words)], commands=[COMMAND])
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize(
    ("fault", "dialect", "cause"),
    [
        ("", "openrlhf", ""),
        ("double BOS", "openrlhf", "double BOS"),
        ("no BOS", "tei", "no BOS"),
        ("sigmoid", "vllm-classify", "a sigmoid over the logit"),
        ("softmax", "vllm-classify", "a softmax over one logit (always 1)"),
        ("double BOS+sigmoid", "infinity", "double BOS, and a sigmoid over the logit"),
        ("no template", "slime", "no template (texts joined by a newline), and no BOS"),
        ("generation prompt", "chat", "a generation prompt appended"),
        ("end cut", "vllm-pooling", "the end cut off, at 300 tokens"),
        ("double BOS+end cut", "sglang", "double BOS, and the end cut off, at 300 tokens"),
        ("start cut", "sglang", "cut at the start, to 256 tokens"),
        ("token before", "embeddings", "read at token −2, where the model is not"),
        ("mean", "embeddings", "read as the mean of all tokens"),
        ("scaled", "openrlhf", "scaled by 2.5 and shifted by -1 (normalised, or an unknown temperature)"),
    ],
)
def test_each_fault_is_named(plain, readings, faulty, url, fault, dialect, cause):
    faulty.fault = fault
    batches = DIALECTS[dialect].batches
    values = Server(url, DIALECTS[dialect], model="m").ask(asked(plain, readings), together=batches)
    verdict = judged(readings, values)
    assert verdict.cause == cause
    assert verdict.agrees is (not fault)
    assert verdict.unexplained < 1e-3


@pytest.mark.parametrize("password", ["hush", "hu/hush"])
def test_no_message_repeats_the_password_of_an_address(plain, readings, password):
    server = Server(f"http://me:{password}@127.0.0.1:9", DIALECTS["openrlhf"], model="m")
    with pytest.raises(EvaluationError) as caught:
        server.ask(asked(plain, readings)[:1], together=False)
    assert "hu" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_the_noise_of_bfloat16_is_no_fault_unless_a_tolerance_says_so(plain, readings, faulty, url):
    faulty.fault = "bfloat16"
    values = Server(url, DIALECTS["openrlhf"], model="m").ask(asked(plain, readings), together=False)
    verdict = judged(readings, values)
    assert (verdict.agrees, verdict.cause) == (True, "noise of bfloat16")
    strict = judged(readings, values, tolerance=verdict.difference / 2)
    assert (strict.agrees, strict.cause) == (False, "noise of bfloat16")
    assert judged(readings, values, tolerance=2 * verdict.difference).agrees


def test_a_fault_behind_the_noise_of_bfloat16_is_found(plain, readings, faulty, url):
    faulty.fault = "bfloat16+token before"
    values = Server(url, DIALECTS["openrlhf"], model="m").ask(asked(plain, readings), together=False)
    verdict = judged(readings, values)
    assert not verdict.agrees
    assert verdict.cause == "read at token −2, where the model is not, and noise of bfloat16"


def test_padding_that_is_seen_is_told_from_a_wrong_reading(plain, readings, faulty, url):
    faulty.fault = "padding seen"
    server = Server(url, DIALECTS["openrlhf"], model="m")
    few = [one for one in readings if one.tokens < 300]
    alone, together = (server.ask(asked(plain, few), together=together) for together in (False, True))
    assert judged(few, alone).agrees
    assert not judged(few, together).agrees
    assert batch_dependence(alone, together) > 1e-3
    assert batch_dependence(alone, alone) is None


def test_numbers_of_another_model_have_no_known_cause_and_the_texts_are_named(readings):
    values = [float(one.text.name == "code") + one.ways[0].last for one in readings]
    verdict = judged(readings, values)
    assert (verdict.agrees, verdict.cause, verdict.texts) == (False, "none of the known causes", ("code",))
    assert judged(readings, [0.25] * len(readings)).cause == "the same answer, 0.25, to every text"
    assert judged(readings, [float("nan")] * len(readings)).cause == "NaN or infinity"


def test_every_dialect_reads_the_numbers_of_its_server(plain, readings, faulty, url):
    faulty.fault = ""
    few = readings[:3]
    for name in set(DIALECTS) - {"paragone"}:
        server = Server(url, DIALECTS[name], model="m")
        assert judged(few, server.ask(asked(plain, few), together=server.dialect.batches)).agrees, name


def test_the_command_says_what_differs_and_ends_with_it(faulty, folder, url, tmp_path, capsys, monkeypatch):
    short = GOLDEN[:4]
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", short)
    own = write(tmp_path / "own.jsonl", [{"prompt": "Why?", "responses": ["Because.", "No idea."]}])
    faulty.fault = "double BOS"
    assert typed(folder, "--url", url, "--dialect", "openrlhf", "--file", own) == 1
    shown = capsys.readouterr().out
    assert "openrlhf, one by one: differs" in shown
    assert ": double BOS; " in shown
    assert "paragone here: agrees" in shown
    assert "own.jsonl:1/1" in shown
    # What this server adds, a trainer may leave out.
    assert typed(folder, "--url", url, "--dialect", "openrlhf", "--send", "without-bos", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    assert set(found["columns"]) == {"openrlhf, one by one", "openrlhf, together", "paragone here"}


def test_a_text_that_the_server_refuses_is_not_compared_and_the_others_are(faulty, folder, url, capsys, monkeypatch):
    few = [text for text in GOLDEN if text.name in ("good", "bad", "very-long")]
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", few)
    faulty.fault = "limit"
    for dialect in ("openrlhf", "slime", "tei"):
        assert typed(folder, "--url", url, "--dialect", dialect, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert [text["name"] for text in found["texts"]] == ["good", "bad"]
        assert "answers 422 about very-long: {" in found["left_out"][0]
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", few[2:])
    assert typed(folder, "--url", url, "--dialect", "openrlhf") == 2
    assert "the text is too long" in capsys.readouterr().err


def test_a_server_of_ours_that_is_away_is_told_soon_and_is_no_difference(capsys, monkeypatch):
    monkeypatch.setattr("paragone_evaluation.verification.verify._RETRY_S", 0.0)
    assert typed("judge", "--url", "http://127.0.0.1:1") == 2
    assert "refused" in capsys.readouterr().err


def test_our_own_server_agrees_with_plain_transformers(plain, readings, folder, models, capsys, monkeypatch):
    from paragone_models import load_model

    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", GOLDEN[:4])
    with served({"rm": load_model(folder, name="rm", device="cpu"), "bt": models["bt"]}) as address:
        assert typed("rm", "--url", address) == 0
        assert "plain transformers" in capsys.readouterr().out
        # A layout of our own, which plain transformers cannot load.
        assert typed("bt", "--url", address) == 0
        assert "cannot load this layout" in capsys.readouterr().out
        assert typed("nobody", "--url", address) == 2
        # Read as rendered, with one BOS, in every dialect that we speak.
        few = readings[:4]
        for name in sorted(set(DIALECTS) - {"paragone", "tei", "chat"}):
            server = Server(address, DIALECTS[name], model="rm")
            values = server.ask(asked(plain, few), together=server.dialect.batches)
            assert judged(few, values).cause == "", name


def test_a_model_that_only_compares_is_verified_by_its_preferences(folders, url_of_ours, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", GOLDEN[:5])
    assert typed("gp", "--url", url_of_ours) == 0
    assert "log-odds against the response before" in " ".join(capsys.readouterr().out.split())
    colder = tmp_path / "colder"
    shutil.copytree(folders["gp"], colder)
    spec = json.loads((colder / "paragone.json").read_text())
    (colder / "paragone.json").write_text(json.dumps({**spec, "temperature": 2 * spec["temperature"]}))
    assert typed("gp", "--url", url_of_ours, "--source", colder) == 1
    assert "scaled by 2 and shifted by" in " ".join(capsys.readouterr().out.split())
    assert typed("gp", "--url", url_of_ours, "--dialect", "openrlhf") == 2
    assert "only compares: verify it with --dialect paragone" in " ".join(capsys.readouterr().err.split())
    assert typed("unweighted", "--url", url_of_ours) == 2
    assert "it rates attributes" in " ".join(capsys.readouterr().err.split())


def test_in_another_dialect_too_a_name_that_a_server_of_ours_hosts_is_that_model(url_of_ours, capsys, monkeypatch):
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", GOLDEN[:3])
    assert typed("bt", "--url", f"{url_of_ours}/get_reward", "--dialect", "openrlhf") == 0
    assert "cannot load this layout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dialect", "grpc"], "must be one of paragone"),
        (["--dialect", "chat", "--send", "raw"], "must be one of template"),
        (["--dialect", "tei"], "another shape"),
        (["--dialect", "openrlhf"], "is a server running"),
    ],
)
def test_what_cannot_be_compared_is_said(folder, url, words, reason, capsys, monkeypatch):
    monkeypatch.setattr("paragone_evaluation.verification.verify.GOLDEN", GOLDEN[:2])
    address = f"{url}/get_reward" if "tei" in words else "http://127.0.0.1:1"
    if "tei" in words:
        monkeypatch.setattr(FaultyServer, "answer", lambda self, path, body: {"detail": "no"})  # noqa: ARG005
    assert typed(folder, "--url", address, *words) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert reason in told
