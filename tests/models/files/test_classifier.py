"""Models as sequence classifiers: plain transformers computes the same numbers, or nothing is written."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from paragone.cli import main
from paragone_models import load_model
from paragone_models.files.classifier import export_classifier
from paragone_models.files.sources import resolve
from paragone_models.spec import ModelSpec
from tests.models import tiny

REWARD = ModelSpec(kind="bradley-terry", dimension=1, max_length=128, temperature=2.0)
KINDS = [
    REWARD,
    ModelSpec(kind="regression", dimension=2, attributes=("helpful", "long"), weights=(1.0, 0.5), max_length=128),
    ModelSpec(kind="helpsteer", dimension=2, attributes=("helpful",), max_length=128),
]
RESPONSES = ["Close it for the night.", "no", "Leave it open, and put the heating off."]


def rewards(folder):
    """Return what plain transformers computes from a folder, padded, [responses, rows]."""
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talks = [[{"role": "user", "content": "P?"}, {"role": "assistant", "content": text}] for text in RESPONSES]
    inputs = tokenizer.apply_chat_template(talks, padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.double().numpy()


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_plain_transformers_gives_the_same_numbers_alone_and_in_a_padded_batch(tmp_path, spec, capsys):
    source = tiny.save_own(tmp_path / "model", spec)
    with pytest.raises(SystemExit) as ended:
        main(["export", "transformers", str(source), str(tmp_path / "out")])
    assert not ended.value.code
    assert "vllm serve" in capsys.readouterr().out
    found = rewards(tmp_path / "out")
    model = load_model(source, device="cpu", dtype="float32")
    scores = model.score("P?", RESPONSES)
    assert found == pytest.approx(scores.representations.numpy(), abs=1e-4)
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert tuple(labels.values()) == ("reward",) * spec.rules.has_reward + spec.attributes
    if spec.kind == "bradley-terry":
        back = load_model(tmp_path / "out", device="cpu", dtype="float32").score("P?", RESPONSES)
        assert list(back.rewards) == pytest.approx(list(scores.rewards), abs=1e-4)


def test_a_padding_token_that_ends_texts_is_replaced(tmp_path):
    # A shipped model, as if it read the last token, with the end of a turn for padding.
    source = shutil.copytree(resolve("builtin:mini-bradley-terry", None).folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:mini-bradley-terry", None).tokenizer_folder)
    tokenizer.pad_token = "<|end|>"
    tokenizer.save_pretrained(source)
    spec = json.loads((source / "paragone.json").read_text())
    (source / "paragone.json").write_text(json.dumps({**spec, "pooling": "last"}))
    model = load_model(source, device="cpu", dtype="float32")
    folder = export_classifier(model, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(folder).pad_token != "<|end|>"
    assert list(rewards(folder)[:, 0]) == pytest.approx(list(model.score("P?", RESPONSES).rewards), abs=1e-4)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ModelSpec(kind="general-preference", dimension=4, normalise=True, max_length=128), "compares vectors"),
        (ModelSpec(kind="hybrid", dimension=3, normalise=True, max_length=128), "compares vectors"),
        (
            ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=128),
            "its pooling is mean, over the tokens of the response alone",
        ),
        (ModelSpec(kind="bradley-terry", dimension=1, final_eos=True, max_length=128), "overwrites the last token"),
    ],
)
def test_what_cannot_be_a_classifier_says_why_and_writes_nothing(tmp_path, spec, reason, capsys):
    source = tiny.save_own(tmp_path / "model", spec)
    assert main(["export", "transformers", str(source), str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bradley-terry", "regression", "helpsteer", "general-preference"])
def test_the_shipped_models_read_a_mean_and_cannot_be_classifiers(tmp_path, name, capsys):
    assert main(["export", "transformers", f"builtin:mini-{name}", str(tmp_path / "out")]) == 2
    assert "cannot be a classifier of transformers" in capsys.readouterr().err
