"""ExPO: exact on a linear model, searched on validation pairs, and refused where the models do not fit."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model
from typer.testing import CliRunner

from paragone_models import load_model
from paragone_models.files.saving import save_model
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_training.command import train
from paragone_training.errors import RecipeError
from paragone_training.preference.agreement import Summary
from paragone_training.preference.extrapolation import along, extrapolate, search
from paragone_training.scratch.decoder import train_tokenizer
from tests.training.arguments import pairs, write

REGRESSION = ModelSpec(kind="regression", dimension=2, attributes=("x", "y"), weights=(0.75, -0.25), max_length=128)
HELPSTEER = ModelSpec(kind="helpsteer", dimension=3, attributes=("x", "y"), temperature=0.5, max_length=128)
REWARD = ModelSpec(kind="bradley-terry", dimension=1, max_length=128)


def saved(folder, spec, seed, *, texts=("a", "b"), backbone_seed=0):
    torch.manual_seed(backbone_seed)
    tokenizer = train_tokenizer(texts, 300, max_length=128)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    backbone = Qwen3Model(config)
    torch.manual_seed(seed)
    head = RepresentationHead(16, spec)
    torch.nn.init.normal_(head.value_head.weight)
    return save_model(folder, PreferenceNetwork(backbone, head), spec, tokenizer)


def reward(folder, text):
    return load_model(folder, device="cpu").score("p", [text]).rewards[0]


def test_a_model_that_is_linear_in_its_weights_is_extrapolated_exactly(tmp_path):
    one, two = saved(tmp_path / "a", REWARD, 1), saved(tmp_path / "b", REWARD, 2)  # the heads alone differ
    extrapolate(str(one), str(two), tmp_path / "c", alpha=1.52)
    for text in ("yes", "no, because"):
        a, b, c = (reward(folder, text) for folder in (one, two, tmp_path / "c"))
        assert c == pytest.approx(a + 1.52 * (b - a), rel=1e-5)


def test_a_regression_model_leads_to_a_helpsteer_model_with_its_merged_attributes_as_reward(tmp_path):
    one, two = saved(tmp_path / "a", REGRESSION, 1), saved(tmp_path / "b", HELPSTEER, 2)
    extrapolate(str(one), str(two), tmp_path / "c", alpha=1.52)
    a, b, c = (load_model(folder, device="cpu").score("p", ["yes"]) for folder in (one, two, tmp_path / "c"))
    merged = 0.75 * a.attributes["x"][0] - 0.25 * a.attributes["y"][0]
    assert c.rewards[0] == pytest.approx(merged + 1.52 * (b.rewards[0] - merged), rel=1e-4)
    assert c.attributes["y"][0] == pytest.approx(
        a.attributes["y"][0] + 1.52 * (b.attributes["y"] - a.attributes["y"])[0], rel=1e-4
    )
    assert load_model(tmp_path / "c", device="cpu").spec == HELPSTEER
    card = (tmp_path / "c" / "README.md").read_text()
    assert "alpha = 1.52 on the line from a (identity" in card


def test_every_tensor_moves_and_one_and_zero_are_the_ends():
    one, two = {"w": torch.zeros(3), "n": torch.tensor(1)}, {"w": torch.ones(3), "n": torch.tensor(2)}
    assert along(one, two, 1.5)["w"].tolist() == [1.5] * 3
    assert along(one, two, 0.0)["w"].tolist() == [0.0] * 3
    assert along(one, two, 1.5)["n"].item() == 2
    with pytest.raises(ValueError, match="only one of the models has n"):
        along(one, {"w": torch.ones(3)}, 1.0)
    with pytest.raises(ValueError, match=r"w has shape \(3,\) in one model and \(2,\) in the other"):
        along(one, two | {"w": torch.ones(2)}, 1.0)


def summary(accuracy, loss=0.5):
    return Summary(10, accuracy, loss, 1.0, 0.5, 0, float("nan"))


def test_the_search_goes_by_accuracy_then_likelihood_and_refines_around_the_best():
    tried = search(lambda alpha: summary(1 - abs(alpha - 1.52)))
    assert tried[0].alpha == 1.52
    level = search(lambda alpha: summary(0.7, abs(alpha - 1.3)))
    assert level[0].alpha == 1.3
    assert search(lambda _: summary(0.7))[0].alpha == 1.0


def test_the_command_searches_on_validation_rows_and_never_on_test_rows(tmp_path):
    one, two = saved(tmp_path / "a", REWARD, 1), saved(tmp_path / "b", REWARD, 2)

    def run(split, name, *more):
        rows = [
            {"prompt": p.prompt, "first": p.first, "second": p.second, "strength": p.strength, "split": split}
            for p in pairs(1)
        ]
        file = write(tmp_path / "pairs.jsonl", rows)
        words = ["extrapolate", "--from", one, "--to", two, "--data", file, "--output", tmp_path / name, *more]
        return CliRunner().invoke(train, [str(word) for word in words])

    assert run("validation", "c").exit_code == 0
    assert "decided of 9 validation pairs" in (tmp_path / "c" / "README.md").read_text()
    refused = run("test", "d", "--split", "test")
    assert "marked 'test' and would be trained on" in str(refused.exception)
    assert "it must be auto or a number" in str(run("validation", "d", "--alpha", "much").exception)
    assert "holds a model already" in str(run("validation", "c").exception)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (REWARD, HELPSTEER, "--from is a bradley-terry and --to a helpsteer model"),
        (HELPSTEER, REGRESSION, "--from is a helpsteer and --to a regression model"),
        (
            ModelSpec(kind="regression", dimension=1, attributes=("x",), weights=(1.0,), max_length=128),
            HELPSTEER,
            r"--from rates \['x'\], --to \['x', 'y'\]",
        ),
        (REWARD, ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=128), "pooling is 'last' in"),
    ],
)
def test_models_that_do_not_fit_are_refused(first, second, message, tmp_path):
    one, two = saved(tmp_path / "a", first, 1), saved(tmp_path / "b", second, 2)
    with pytest.raises(RecipeError, match=message):
        extrapolate(str(one), str(two), tmp_path / "c", alpha=1.5)


def test_other_tokenizers_no_pairs_and_no_model_are_refused(tmp_path):
    one, two = saved(tmp_path / "a", REWARD, 1), saved(tmp_path / "b", REWARD, 2, texts=("other words", "other texts"))
    with pytest.raises(RecipeError, match="different tokenizers"):
        extrapolate(str(one), str(two), tmp_path / "c", alpha=1.5)
    with pytest.raises(RecipeError, match="alpha auto is searched on decided validation pairs"):
        extrapolate(str(one), str(two), tmp_path / "c", alpha=None)
    with pytest.raises(RecipeError, match="nowhere is no folder here"):
        extrapolate("nowhere", str(two), tmp_path / "c", alpha=1.5)
