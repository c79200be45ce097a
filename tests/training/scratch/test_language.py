"""Training a small causal language model, and the one that ships."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM
from typer.testing import CliRunner

from paragone_evaluation.readers import read_prompts
from paragone_models.files.sources import NAMES, POLICIES, builtin_folder
from paragone_training.command import train
from paragone_training.errors import DataError, RecipeError
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.rows import stream
from paragone_training.policy.run_prompts import render
from paragone_training.policy.sampling.drawing import Decoding, sample
from paragone_training.scratch.language import (
    LanguageRecipe,
    _LanguageDataSection,
    _read_chats,
    _read_texts,
    decoder_config,
    describe_language_plan,
    train_language_model,
)
from paragone_training.scratch.pretraining import pretrain
from paragone_training.settings import load
from tests.corpora import corpus_rows, needs_corpora, script, stand_in

ROOT = Path(__file__).parents[3]
PROMPTS = ROOT / "data" / "everyday_prompts.jsonl"
RECIPE = """
max_length = 64
[data]
groups = ["groups.jsonl"]
held_out = "held_out.jsonl"
[backbone]
hidden_size = 16
layers = 1
heads = 2
intermediate_size = 32
[tokenizer]
vocabulary_size = 300
[training]
epochs = 2
"""


@pytest.fixture
def mine(tmp_path):
    rows = [{"prompt": f"What is {one}?", "responses": [f"It is {one}.", "No idea."]} for one in range(6)]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hidden = [{"prompt": "What is 1?", "split": "test"}, {"prompt": "What is 2?", "split": "train"}]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hidden))
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path / "mine.toml"


def test_a_recipe_gives_a_folder_that_policy_training_loads(mine, tmp_path):
    folder = train_language_model(load(LanguageRecipe, mine), tmp_path / "model")
    policy = load_policy(str(folder))
    (prompt,) = render(
        read_prompts([str(mine.with_name("held_out.jsonl"))], split="test"), policy.tokenizer, longest=40
    )
    (row,) = sample(policy, [prompt], [stream(0)], Decoding(max_new_tokens=5))

    assert 1 <= len(row.token_ids) <= 5
    assert policy.model.dtype == torch.float32
    assert "trained from random weights" in (folder / "README.md").read_text()
    with pytest.raises(RecipeError, match="holds a model"):
        train_language_model(load(LanguageRecipe, mine), tmp_path / "model")


def test_prompts_marked_test_are_held_out(mine):
    train, held_out = _read_chats(load(LanguageRecipe, mine).data)
    assert {chat.prompt for chat in held_out} == {"What is 1?"}
    assert len(train) == 10
    with pytest.raises(DataError, match="no chat to learn from"):
        _read_chats(_LanguageDataSection())


def test_a_dry_run_says_what_training_then_does(mine, tmp_path):
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "What is 1?", "split": "test"}) + "\n")
    with (tmp_path / "groups.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "And?", "responses": ["too long " * 60]}) + "\n")
    folder = tmp_path / "model"
    command = ["language", str(mine), "--output", str(folder), "--set", "training.batch_tokens=64"]
    plan = CliRunner().invoke(train, [*command, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert not folder.exists()
    assert "\nbatch_tokens = 64\n" in plan.output
    assert "2 held out; 1 are longer than max_length 64 and left out" in plan.output

    recipe = load(LanguageRecipe, mine, ["training.batch_tokens=64"])
    texts = _read_texts(recipe)
    model = Qwen3ForCausalLM(
        decoder_config(recipe.backbone, texts.tokenizer, recipe.max_length, tie_word_embeddings=True)
    )
    history = pretrain(model.model, texts.train, recipe.training, pad_id=texts.tokenizer.pad_token_id, seed=0)
    assert f"2 epochs, {len(history)} optimiser steps on {2 * sum(map(len, texts.train))} tokens" in plan.output
    assert f"10 chats of {sum(map(len, texts.train))} tokens to learn from" in plan.output


def test_the_planned_activations_are_what_a_pass_of_the_largest_batch_saves(mine):
    recipe = load(LanguageRecipe, mine, ["backbone.hidden_size=64", "backbone.layers=3"])
    said = describe_language_plan(recipe)
    sequences, longest = map(int, re.search(r"largest batch is (\d+) chats of (\d+) tokens", said).groups())
    planned = float(re.search(r"activations ([\d.]+)", said).group(1)) * 1e6

    tokenizer = _read_texts(recipe).tokenizer
    model = Qwen3ForCausalLM(decoder_config(recipe.backbone, tokenizer, recipe.max_length, tie_word_embeddings=True))
    own, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.ones(sequences, longest, dtype=torch.long), use_cache=False)
    really = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert really > 1e6
    assert planned == pytest.approx(really, rel=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backbone.source=x/y", "starts from random weights"),
        ("training.epochs=0", "epochs must be at least 1"),
        ("output.dtype=int8", "output.dtype is 'int8'; it must be one of float32, float16, bfloat16"),
        ("data.group=['x']", "did you mean 'groups'"),
    ],
)
def test_a_language_recipe_that_cannot_be_run_is_refused(mine, setting, message):
    with pytest.raises(RecipeError, match=message):
        load(LanguageRecipe, mine, [setting])


def test_the_built_in_policy_is_small_has_a_chat_template_and_is_no_oracle():
    assert not set(POLICIES) & set(NAMES)
    folder = builtin_folder("mini-policy")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
    policy = load_policy("builtin:mini-policy")
    assert policy.tokenizer.chat_template
    assert "A demonstration" in (folder / "README.md").read_text()


@needs_corpora
def test_the_held_out_questions_are_over_a_hundred_and_none_is_a_training_prompt(tmp_path):
    names = ("convincing_pairs", "convincing_ratings", "qa_groups")
    groups, pairs = corpus_rows("qa_groups"), corpus_rows("convincing_pairs")
    prompts = tmp_path / "policy_prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in script("fetch_corpora").policy_prompts(groups, pairs)))
    test, train = (read_prompts([str(prompts)], split=split) for split in ("test", "train"))
    assert len(test) == 132
    assert not {prompt.text for prompt in test} & {prompt.text for prompt in train}
    path = ROOT / "training" / "recipes" / "policy" / "mini-policy.toml"
    recipe = load(LanguageRecipe, path, data=stand_in(tmp_path, **{name: corpus_rows(name) for name in names}))
    learned, _ = _read_chats(recipe.data)
    assert not {chat.prompt for chat in learned} & {prompt.text for prompt in test}


def test_the_built_in_policy_writes_words_to_a_held_out_question():
    policy = load_policy("builtin:mini-policy")
    prompts = render(read_prompts([str(PROMPTS)], split="test")[:4], policy.tokenizer, longest=400)
    rows = sample(policy, prompts, [stream(0, prompt.id) for prompt in prompts], Decoding(max_new_tokens=30))
    texts = [policy.tokenizer.decode(list(row.token_ids), skip_special_tokens=True) for row in rows]
    assert all(len(text.split()) >= 3 for text in texts if len(text) > 20)
    assert len(set(texts)) == 4
