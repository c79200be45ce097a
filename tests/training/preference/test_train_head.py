"""A head fitted to a frozen backbone: a folder of kilobytes that answers, states that are kept, and refusals."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model
from typer.testing import CliRunner

from paragone_models import load_model
from paragone_models.files.loading import load_backbone
from paragone_models.forward import LocalForward
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import TextReader, conversation
from paragone_training.command import train
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.card import Rows
from paragone_training.preference.frozen_states import FrozenBackbone
from paragone_training.preference.head_fit import fit_to_rows
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_head import train_heads
from paragone_training.progress_file import PROGRESS_FILE
from paragone_training.scratch.decoder import train_tokenizer
from paragone_training.settings import parse
from paragone_training.watching import progress_of
from tests.evaluation.runs import Checker
from tests.training.arguments import BAD, GOOD, pairs, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny chat model with random weights and a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    Qwen3Model(config).save_pretrained(folder)
    train_tokenizer([one.first for one in pairs()], 320, max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Six questions; the last one is held out."""
    rows = [
        {
            "id": str(number),
            "prompt": one.prompt,
            "first": one.first,
            "second": one.second,
            "strength": one.strength,
            "group": one.group,
            "split": "test" if one.group == "q5_yes" else "train",
        }
        for number, one in enumerate(pairs(6))
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def ratings(tmp_path):
    rows = [
        {"prompt": f"Should school {number} teach chess?", "response": f"{text} {number}", "ratings": {"care": care}}
        for number in range(6)
        for care, texts in ((4, GOOD), (0, BAD))
        for text in texts
    ]
    return write(tmp_path / "ratings.jsonl", rows)


def recipe(checkpoint, file, tmp_path, **sections):
    tables = {
        "model": {"kind": "bradley-terry", "max_length": 128, "pooling": "mean"},
        "backbone": {"source": str(checkpoint)},
        "data": {"train": [str(file)]},
        "head": {"folds": 3, "states": str(tmp_path / "states"), "dtype": "float32"},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return parse(Recipe, tables)


def train_head(settled, folder):
    return train_heads([(settled, folder)])[0]


@pytest.mark.parametrize(
    ("kind", "dimension", "gate"), [("bradley-terry", 1, False), ("general-preference", 4, True), ("hybrid", 3, False)]
)
def test_a_fitted_head_is_kilobytes_and_prefers_what_people_did(checkpoint, data, tmp_path, kind, dimension, gate):
    model = {"kind": kind, "dimension": dimension, "gate": gate}
    folder = train_head(recipe(checkpoint, data, tmp_path, model=model), tmp_path / "head")
    names = ["README.md", "head.safetensors", "paragone.json", "progress.jsonl", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".html") < 10_000
    loaded = load_model(folder, device="cpu")
    answers = loaded.score("Should school 9 teach chess?", [f"{GOOD[0]} 9", f"{BAD[0]} 9"])
    assert answers.probabilities[0, 1] > 0.6
    card = (folder / "README.md").read_text()
    assert "cross-validated over 5 questions | 45 | 1.000 | 1.000 |" in card
    assert "on the held-out rows | 9 | 1.000 |" in card
    assert ("its scalar alone" in card) == (kind != "bradley-terry")


def test_the_page_of_a_head_begins_with_the_result_and_fetches_nothing(checkpoint, data, tmp_path):
    folder = train_head(recipe(checkpoint, data, tmp_path), tmp_path / "head")
    page = (folder / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    checker = Checker()
    checker.feed(page)
    assert (checker.open, checker.fetched) == ([], [])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "head agrees with people on 100.0 % of 9 decided pairs: there are too few questions" in text
    # Five questions that all agree: 0.025 ** (1 / 5) is the lower end of the exact interval.
    assert re.search(r"This head, cross-validated 100.0 % 47.8 – 100.0 45 100.0 %", text)
    assert str(tmp_path) not in page


def test_a_fit_can_be_watched(checkpoint, data, tmp_path):
    settled, folder = recipe(checkpoint, data, tmp_path), tmp_path / "head"
    train_head(settled, folder)
    progress = progress_of(folder)
    assert (progress.kind, progress.state, progress.unit) == ("head", "done", "responses")
    assert progress.done == progress.total == 36  # six of each of six questions
    assert progress.numbers == {"agreement (cross-validated)": 1.0, "agreement (held-out rows)": 1.0}
    assert [line.split(" ", 1)[1] for line in progress.lines] == [
        "reading the rows and the backbone",
        "fitting the head",
        "saved",
    ]
    # As it was while states were computed: by the lines until then.
    lines = (folder / PROGRESS_FILE).read_text().splitlines()
    passing = [json.loads(line) for line in lines if '"total"' in line]
    assert passing[0]["done"] == 0
    (folder / "paragone.json").unlink()
    rows = [
        {"time": 10.0, "stage": "reading", "begins": True},
        {"time": 20.0, "stage": "states", "done": 4, "total": 24},
        {"time": 22.0, "stage": "states", "done": 8, "total": 24},
    ]
    (folder / PROGRESS_FILE).write_text("\n".join([*lines, *map(json.dumps, rows)]) + "\n")
    running = progress_of(folder)
    assert (running.state, running.stage, running.done, running.rate, running.left_s) == ("running", "states", 8, 2, 8)
    assert running.numbers == {}  # those of the earlier attempt are not this one's


def test_a_fit_that_fails_is_stopped_at_once_for_whoever_watches(checkpoint, data, tmp_path):
    short = recipe(checkpoint, data, tmp_path, model={"max_length": 8})
    with pytest.raises(DataError):
        train_head(short, tmp_path / "head")
    progress = progress_of(tmp_path / "head")
    assert (progress.state, progress.stage) == ("stopped", "ended by DataError: see what it printed")


def test_ratings_are_fitted_and_merged_and_a_reward_stands_above_them(checkpoint, data, ratings, tmp_path):
    sections = {"data": {"train": [str(data)], "ratings": [str(ratings)]}}
    model = {"kind": "regression", "attributes": ["care"], "pooling": "mean"}
    folder = train_head(recipe(checkpoint, data, tmp_path, model=model, **sections), tmp_path / "rates")
    loaded = load_model(folder, device="cpu")
    answers = loaded.score("Should school 9 teach chess?", [f"{GOOD[1]} 9", f"{BAD[1]} 9"])
    assert answers.attributes["care"][0] > answers.attributes["care"][1] + 1
    assert answers.probabilities[0, 1] > 0.5
    assert loaded.spec.weights == (1.0,)
    assert "They are cross-validated ratings." in (folder / "README.md").read_text()
    combined = {**model, "kind": "helpsteer"}
    folder = train_head(recipe(checkpoint, data, tmp_path, model=combined, **sections), tmp_path / "combined")
    answers = load_model(folder, device="cpu").score("Should school 9 teach chess?", [f"{GOOD[1]} 9", f"{BAD[1]} 9"])
    assert answers.rewards[0] > answers.rewards[1]


def read(checkpoint, pooling="last", gate="none", answers=("Yes, because it helps.", "no")):
    backbone = load_backbone(checkpoint, device="cpu", dtype="float32")
    spec = ModelSpec(kind="general-preference", dimension=4, pooling=pooling, gate=gate, max_length=128)
    reader = TextReader(backbone.tokenizer, spec)
    return backbone, reader.read([conversation("Should school 1 teach chess?", answer) for answer in answers])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_kept_states_are_those_of_the_whole_model(checkpoint, tmp_path, pooling):
    backbone, readings = read(checkpoint, pooling, "softmax")
    states = FrozenBackbone(backbone, tmp_path).states(readings)
    assert states.shape == (2, 2, 16)
    for reading, found in zip(readings, states, strict=True):
        hidden = backbone.module(torch.tensor([list(reading.token_ids)])).last_hidden_state[0]
        for (start, stop), state in zip(reading.reads, found, strict=True):
            assert state == pytest.approx(hidden[start:stop].mean(dim=0).numpy(), abs=1e-4)


def test_states_are_computed_once_shared_by_kinds_and_found_after_a_kill(checkpoint, tmp_path, monkeypatch):
    backbone, readings = read(checkpoint, answers=[f"answer {number}" for number in range(40)])
    # A part is written after every chunk, and the second chunk is interrupted.
    monkeypatch.setattr("paragone_training.preference.frozen_states._PART_S", 0.0)
    encode, calls = LocalForward.encode, []

    def interrupted(local, items):
        calls.append(items)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(local, items)

    with monkeypatch.context() as patched:
        patched.setattr(LocalForward, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            FrozenBackbone(backbone, tmp_path).states(readings)
    again = FrozenBackbone(backbone, tmp_path)
    states = again.states(readings)
    assert again.computed == 8
    # One pass has given what every other head reads: the prompt's state for a gate, one for all, and the means.
    others = FrozenBackbone(backbone, tmp_path)
    for pooling in ("last", "mean"):
        _, with_gate = read(checkpoint, pooling, "softmax", answers=[f"answer {number}" for number in range(40)])
        gated = others.states(with_gate)
        assert len(np.unique(gated[:, 0], axis=0)) == 1
        assert np.array_equal(gated[:, 1], states[:, 0]) == (pooling == "last")
    assert others.computed == 0
    # Another dtype is another backbone.
    half = load_backbone(checkpoint, device="cpu", dtype="bfloat16")
    other = FrozenBackbone(half, tmp_path)
    other.states(readings)
    assert other.computed == 40


def test_losses_become_labels(checkpoint, data, tmp_path):
    rows = Rows(pairs(4))
    margins = []
    for loss in ({"name": "regular"}, {"name": "regular", "margin": 2.0}, {"name": "margin"}, {"name": "soft"}):
        settled = recipe(checkpoint, data, tmp_path, loss=loss, head={"penalty": 0.1})
        fitted = fit_to_rows(settled, rows, tmp_path / "states").fitted
        margins.append(float(fitted.tensors["value_head.weight"].norm()))
    regular, ahead, margin, soft = margins
    assert soft < regular < margin
    assert regular < ahead


def test_the_command_fits_says_what_it_found_and_refuses_to_write_over_a_model(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "quick.toml"
    path.write_text(
        f'[model]\nkind = "bradley-terry"\nmax_length = 128\n[backbone]\nsource = "{checkpoint}"\n'
        f'[data]\ntrain = ["{data}"]\n[head]\nfolds = 3\n'
    )
    dry = CliRunner().invoke(train, ["head", str(path), "--dry-run"], catch_exceptions=False)
    assert "45 pairs to train on, 9 held out; the head would go to runs/quick" in dry.stdout
    result = CliRunner().invoke(train, ["head", str(path)], catch_exceptions=False)
    assert result.stdout.strip() == "runs/quick"
    assert json.loads((tmp_path / "runs/quick/paragone.json").read_text())["backbone"]["source"] == str(checkpoint)
    with pytest.raises(RecipeError, match=r"runs/quick holds a model: choose another --output"):
        CliRunner().invoke(train, ["head", str(path)], catch_exceptions=False)


def test_heads_of_one_backbone_share_one_pass_in_one_command(checkpoint, data, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("reward", 'pooling = "mean"'), ("vector", 'dimension = 4\ngate = true\npooling = "last"')):
        kind = "general-preference" if name == "vector" else "bradley-terry"
        (tmp_path / f"{name}.toml").write_text(
            f'[model]\nkind = "{kind}"\nmax_length = 128\n{lines}\n[backbone]\nsource = "{checkpoint}"\n'
            f'[data]\ntrain = ["{data}"]\n[head]\nfolds = 3\n'
        )
    # The last one is looked at before the first one is fitted.
    with pytest.raises(RecipeError, match="two heads would go to"):
        CliRunner().invoke(train, ["head", "reward.toml", "reward.toml"], catch_exceptions=False)
    with caplog.at_level(logging.INFO):
        result = CliRunner().invoke(
            train, ["head", "reward.toml", "vector.toml", "--output", "heads"], catch_exceptions=False
        )
    assert result.stdout.split() == ["heads/reward", "heads/vector"]
    assert [load_model(folder, device="cpu").kind for folder in result.stdout.split()] == [
        "bradley-terry",
        "general-preference",
    ]
    # 36 responses; the second head needs the prompts' states and the last tokens', which the same passes gave.
    passed = [line for line in caplog.messages if "sequences passed the backbone" in line]
    assert [line.split(";")[0] for line in passed] == [f"{count} sequences passed the backbone" for count in (36, 0)]


def test_nothing_held_out_is_learned_from_and_the_card_says_what_is_near(checkpoint, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    held_out = next(number for number, row in enumerate(rows, 1) if row["split"] == "test")
    # A comparison of the test split once more, the other way round, and one more question that both splits have.
    again = rows[held_out - 1]
    swapped = {**again, "first": again["second"], "second": again["first"], "strength": -again["strength"]}
    rows += [{**swapped, "split": "train", "id": "a"}, {**rows[0], "first": "Yes.", "split": "test", "id": "b"}]
    folder = train_head(recipe(checkpoint, write(tmp_path / "near.jsonl", rows), tmp_path), tmp_path / "near")
    card = (folder / "README.md").read_text()
    reason = "1 row left out: held out, and another row of the same two responses is trained on"
    assert f"{reason} (line {held_out})" in card
    assert "None of the held-out pairs was learned from, but 9 of 9 are under questions that were" in card
    folder = train_head(recipe(checkpoint, data, tmp_path), tmp_path / "apart")
    assert (
        "None of the held-out rows was learned from, and their questions are others."
        in (folder / "README.md").read_text()
    )


def test_rows_that_do_not_fit_are_left_out_and_counted_and_a_dry_run_finds_them(checkpoint, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["first"] = "word " * 400
    file = write(tmp_path / "long.jsonl", rows)
    path = tmp_path / "quick.toml"
    path.write_text(
        f'[model]\nkind = "bradley-terry"\nmax_length = 128\n[backbone]\nsource = "{checkpoint}"\n'
        f'[data]\ntrain = ["{file}"]\n[head]\nfolds = 3\nstates = "{tmp_path / "states"}"\n'
    )
    with pytest.raises(DataError, match=r"long\.jsonl:1 or a row with its prompt"):
        CliRunner().invoke(train, ["head", str(path), "--dry-run"], catch_exceptions=False)
    asked = ["head", str(path), "--set", "data.bad_rows=leave-out"]
    dry = CliRunner().invoke(train, [*asked, "--dry-run"], catch_exceptions=False)
    reason = "1 row left out: the model refuses a response of it (response_too_long) (line 1)"
    assert reason in dry.stdout
    result = CliRunner().invoke(train, [*asked, "--output", str(tmp_path / "head")], catch_exceptions=False)
    assert result.exit_code == 0
    card = (tmp_path / "head" / "README.md").read_text()
    assert reason in card
    assert "cross-validated over 5 questions | 44 |" in card


def test_what_cannot_be_fitted_is_refused(checkpoint, data, tmp_path):
    for sections, words in (
        ({"backbone": {"source": None}}, "backbone.source is missing"),
        ({"loss": {"name": "score"}}, "loss.name is 'score', which `train head` has not"),
        ({"backbone": {"source": str(tmp_path / "nowhere")}}, "backbone.source: .* is no folder here"),
        ({"model": {"max_length": 4096}}, "the backbone has 128 positions"),
    ):
        with pytest.raises(RecipeError, match=words):
            train_head(recipe(checkpoint, data, tmp_path, **sections), tmp_path / "head")
    one = write(tmp_path / "one.jsonl", [json.loads(line) for line in data.read_text().splitlines()[:9]])
    with pytest.raises(RecipeError, match="all 6 responses belong to one question"):
        train_head(recipe(checkpoint, one, tmp_path, data={"train": [str(one)]}), tmp_path / "head")
    long = write(tmp_path / "long.jsonl", [{"prompt": "p", "first": "word " * 400, "second": "a", "strength": 1}])
    with pytest.raises(DataError, match=r"long\.jsonl"):
        train_head(recipe(checkpoint, long, tmp_path, data={"train": [str(long)]}), tmp_path / "head")
