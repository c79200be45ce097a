"""Training from end to end: a mini on shipped pairs, adapters on a tiny checkpoint, and the folder that comes out."""

import json
import statistics

import pytest
import torch
from transformers import AutoModel, LlamaConfig, OPTConfig, Qwen3Config, Qwen3Model

from paragone_evaluation.readers import read_pairs
from paragone_models import load_model
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.recipe import load_recipe
from paragone_training.preference.train_model import check_run, fit, load_rows, train_model
from paragone_training.scratch.decoder import residual_dropout, train_tokenizer
from tests.training.arguments import pairs, recipe, row, write
from tests.training.preference.test_recipe import RECIPES

LONG = " ".join(str(number * 7919) for number in range(60))
SHIPPED = RECIPES.parents[1] / "data" / "everyday_groups.jsonl"


@pytest.mark.parametrize("kind", ["bradley-terry", "general-preference"])
def test_a_mini_learns_some_of_the_shipped_pairs(kind, tmp_path):
    chosen = load_recipe(
        RECIPES / f"mini-{kind}.toml",
        [
            "backbone.hidden_size=32",
            "backbone.layers=1",
            "backbone.intermediate_size=64",
            "tokenizer.vocabulary_size=1000",
            "pretraining.epochs=0",
            "teacher.steps=1",
            "teacher.imprint=0.0",
            "training.epochs=6",
            "training.learning_rate=5e-3",
            "training.batch_responses=26",
            "training.average_decay=0.0",
            "training.log_steps=1",
        ],
    )
    rows = [pair for pair in read_pairs(SHIPPED) if pair.split == "train"][:96]
    outcome = fit(chosen, Rows(rows, held_out_pairs=[pair for pair in rows if pair.strength]), tmp_path)
    losses = [line["loss"] for line in outcome.history if "loss" in line]
    accuracies = [line["eval_accuracy"] for line in outcome.history if "eval_accuracy" in line]
    assert losses[-1] < losses[0]
    assert accuracies[-1] > max(0.6, accuracies[0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Hugging Face folder: a decoder with random weights and its tokenizer."""
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
    )
    Qwen3Model(config).save_pretrained(folder)
    train_tokenizer([one.first for one in pairs()], 320, max_length=128).save_pretrained(folder)
    return folder


def test_adapters_train_alone_and_are_merged_into_the_saved_model(checkpoint, tmp_path):
    path = write(
        tmp_path / "pairs.jsonl",
        [
            {
                "id": str(number),
                "prompt": one.prompt,
                "first": one.first,
                "second": one.second,
                "strength": one.strength,
            }
            for number, one in enumerate(pairs(3))
        ],
    )
    adapted = recipe(
        data={"train": [str(path)]},
        backbone={"source": str(checkpoint)},
        lora={"rank": 2, "targets": ["q_proj", "v_proj"]},
        training={"epochs": 2, "checkpoints": 2},
    )
    folder = train_model(adapted, tmp_path / "model")
    saved = load_model(folder, device="cpu").network.backbone.state_dict()
    original = Qwen3Model.from_pretrained(checkpoint).state_dict()
    assert saved.keys() == original.keys()
    changed = {name for name in saved if not torch.equal(saved[name], original[name])}
    assert changed == {"layers.0.self_attn.q_proj.weight", "layers.0.self_attn.v_proj.weight"}


def test_checkpoints_with_adapters_leave_the_frozen_backbone_out_and_resume_exactly(checkpoint, tmp_path):
    from safetensors import safe_open

    adapted = recipe(backbone={"source": str(checkpoint)}, lora={"rank": 2}, training={"epochs": 2, "checkpoints": 2})
    whole = fit(adapted, Rows(pairs(3)), tmp_path)
    folder = next(tmp_path.glob("checkpoint-*"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert all("lora" in name or name.startswith("head.") for name in names)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in sorted(last.iterdir()):
        file.unlink()
    last.rmdir()
    resumed = fit(adapted, Rows(pairs(3)), tmp_path, resume=True)
    for name, tensor in whole.model.network.state_dict().items():
        torch.testing.assert_close(resumed.model.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_unknown_adapter_targets_are_refused(checkpoint, tmp_path):
    adapted = recipe(backbone={"source": str(checkpoint)}, lora={"targets": ["nothing"]})
    with pytest.raises(RecipeError, match=r"lora.targets \['nothing'\]"):
        fit(adapted, Rows(pairs(1)), tmp_path)


def test_mixed_precision_trains(checkpoint, tmp_path):
    outcome = fit(recipe(backbone={"source": str(checkpoint)}, training={"bf16": True}), Rows(pairs(2)), tmp_path)
    losses = [line["loss"] for line in outcome.history if "loss" in line]
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in outcome.model.network.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_no_number(checkpoint, tmp_path):
    plain = fit(recipe(backbone={"source": str(checkpoint)}), Rows(pairs(2)), tmp_path / "plain")
    sparing = recipe(backbone={"source": str(checkpoint)}, training={"gradient_checkpointing": True})
    spared = fit(sparing, Rows(pairs(2)), tmp_path / "spared")
    for name, tensor in plain.model.network.state_dict().items():
        torch.testing.assert_close(spared.model.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_backbone_that_is_not_there_or_too_short_is_refused(checkpoint, tmp_path):
    with pytest.raises(RecipeError, match="cannot load a tokenizer from"):
        fit(recipe(backbone={"source": str(tmp_path / "none")}), Rows(pairs(1)), tmp_path)
    long = recipe(backbone={"source": str(checkpoint)}, model={"max_length": 4096})
    with pytest.raises(RecipeError, match=r"model\.max_length is 4096; the backbone has 128 positions"):
        fit(long, Rows(pairs(1)), tmp_path)


def test_a_backbone_has_the_positions_of_its_scaling_and_the_width_of_its_hidden_states(tmp_path):
    tokenizer = train_tokenizer(["one two three"] * 3, 300, max_length=512)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    backbones = {
        "projected": OPTConfig(**sizes, word_embed_proj_dim=16, ffn_dim=32, do_layer_norm_before=False),
        "scaled": LlamaConfig(**sizes, intermediate_size=32, max_position_embeddings=32, rope_parameters=scaled),
    }
    for name, config in backbones.items():
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        parts = build_model(recipe(backbone={"source": str(tmp_path / name)}, model={"max_length": 128}), [])
        width = 16 if name == "projected" else 32
        assert parts.network.head.value_head.in_features == width
        tokens, reads = torch.tensor([[5, 6, 7]]), torch.tensor([[[2, 3]]])
        assert parts.network(tokens, reads, torch.ones_like(tokens)).shape == (1, 1)
    with pytest.raises(RecipeError, match=r"model\.max_length is 129; the backbone has 128 positions"):
        build_model(recipe(backbone={"source": str(tmp_path / "scaled")}, model={"max_length": 129}), [])


def test_a_response_that_does_not_fit_is_refused_with_file_and_line(tmp_path):
    rows = write(tmp_path / "pairs.jsonl", [row(), row(id="2", prompt="q", second="word " * 400)])
    with pytest.raises(DataError, match=r"pairs\.jsonl:2 or a row with its prompt: the response needs"):
        fit(recipe(), Rows(read_pairs(rows)), tmp_path / "work")


def test_an_earlier_run_is_not_overwritten(tmp_path):
    rows = write(tmp_path / "pairs.jsonl", [row(), row(id="2", split="test", prompt="q")])
    small = recipe(data={"train": [str(rows)]}, loss={"name": "soft"}, training={"epochs": 1})
    folder = train_model(small, tmp_path / "model")
    card = (folder / "README.md").read_text()
    assert "| prefer the longer response | 0.500 |" in card
    assert "* every strength is 1, so loss.name = 'soft' learns the probability 2/3 from each pair" in card
    with pytest.raises(RecipeError, match="holds an earlier run: go on with --resume"):
        train_model(small, tmp_path / "model")


def test_dropout_acts_in_training_alone_and_leaves_with_its_context(checkpoint):
    backbone = Qwen3Model.from_pretrained(checkpoint)
    tokens = torch.arange(10)[None]

    def twice():
        return [backbone(input_ids=tokens).last_hidden_state for _ in range(2)]

    with residual_dropout(backbone, share=0.5):
        backbone.train()
        assert not torch.equal(*twice())
        backbone.eval()
        assert torch.equal(*twice())
    backbone.train()
    assert torch.equal(*twice())


def test_dropout_refuses_a_shape_it_does_not_know():
    with (
        pytest.raises(ValueError, match="dropout knows decoders made of self_attn and mlp layers, not Linear"),
        residual_dropout(torch.nn.Linear(2, 2), share=0.5),
    ):
        pass


def test_seeds_decide_everything(tmp_path):
    runs = [
        fit(
            recipe(training={"seed": seed, "dropout": 0.1}),
            Rows(pairs(2), held_out_pairs=pairs(1)),
            tmp_path / str(number),
        )
        for number, seed in enumerate((0, 0, 1))
    ]
    margins = [statistics.fmean(run.judged.logit) for run in runs if run.judged]
    assert margins[0] == margins[1] != margins[2]


def test_rows_are_trained_on_and_held_out_from_files_of_their_own(tmp_path):
    def written(name, *marks):
        rows = [
            {"prompt": f"{name} {at}", "first": "a", "second": f"b{at}", "strength": 1, "split": mark}
            for at, mark in enumerate(marks)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    train, test = written("train.jsonl", None, None), written("held.jsonl", None)
    rows = load_rows(recipe(data={"train": train, "evaluate": test}))
    assert (len(rows.pairs), len(rows.held_out_pairs)) == (2, 1)
    marked = written("marked.jsonl", "train", "validation")
    with pytest.raises(DataError, match=r"no row of data.evaluate is marked 'test'; the splits are: train, validation"):
        load_rows(recipe(data={"train": train, "evaluate": marked}))
    with pytest.raises(DataError, match="no row to hold out is marked 'test'; the splits are: train, validation"):
        load_rows(recipe(data={"train": marked, "evaluate_split": "test"}))
    with pytest.raises(DataError, match=r"no row is marked 'dev'; the splits are: train, validation: set data"):
        load_rows(recipe(data={"train": marked, "train_split": "dev"}))
    with pytest.raises(DataError, match=r"train.jsonl:1 and 1 more rows are trained on and held out"):
        load_rows(recipe(data={"train": train, "evaluate": train}))
    assert len(load_rows(recipe(data={"train": marked, "evaluate": marked, "evaluate_split": "val"})).pairs) == 1
    (tmp_path / "bad.jsonl").write_text((tmp_path / "train.jsonl").read_text() + "{}\n")
    left = load_rows(recipe(data={"train": str(tmp_path / "bad.jsonl"), "bad_rows": "leave-out"}))
    assert [line[:17] for line in left.account.describe()] == ["1 row left out: f"]


def test_rows_that_do_not_fit_and_prompts_that_are_cut_are_said_by_the_dry_run_and_the_card(tmp_path):
    rows = [row(id=str(at), prompt=f"{at} {LONG * (at == 3)}", second=f"b{at}") for at in range(5)]
    rows[1]["first"] = "v " * 200
    path = write(tmp_path / "f.jsonl", rows)
    settings = {"model": {"max_length": 64}, "training": {"epochs": 1}}
    with pytest.raises(DataError, match=r"f.jsonl:2 or a row with its prompt: .*64"):
        check_run(recipe(**settings, data={"train": str(path)}))
    chosen = recipe(**settings, data={"train": str(path), "bad_rows": "leave-out"})
    cut = "1 of 4 prompts to learn from are cut from the left to fit 64 tokens"
    left = "1 row left out: the model refuses a response of it (response_too_long) (line 2)"
    assert check_run(chosen) == ["5 pairs to train on, 0 held out", cut, left]
    card = (train_model(chosen, tmp_path / "model") / "README.md").read_text()
    assert f"* {cut}.\n* {left}." in card
