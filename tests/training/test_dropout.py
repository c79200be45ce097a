"""The dropout of a pretrained configuration: off in training, back afterwards, and no part of a policy's start."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    Qwen3Config,
)

from paragone_training.adapters import with_adapters
from paragone_training.dropout import dropout_off
from paragone_training.policy.gradient import train_step
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model.logprobs import ResponseLogprobs, frozen_logprobs
from paragone_training.policy.model.weights import Policy, load_tokenizer
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair
from paragone_training.settings import LoraSection
from tests.training.policy.tiny_policy import save_policy

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, pad_token_id=0)
CONFIGS = [
    GPT2,
    BertConfig(**SHAPE, intermediate_size=32),
    GPTNeoXConfig(**SHAPE, intermediate_size=32, attention_dropout=0.3, hidden_dropout=0.3),
    OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, layerdrop=0.5, attention_dropout=0.3),
    Qwen3Config(**SHAPE, intermediate_size=32, num_key_value_heads=1, head_dim=8, attention_dropout=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_passes_in_training_mode_are_those_of_evaluation_and_the_config_comes_back(config):
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    asked, tokens = config.to_dict(), torch.arange(1, 21)[None]
    expected = model.eval()(input_ids=tokens).last_hidden_state
    model.train()
    with dropout_off(model) as off:
        torch.testing.assert_close(model(input_ids=tokens).last_hidden_state, expected)
    assert 0.0 < max(off.values()) <= 0.5
    assert model.config.to_dict() == asked
    assert not torch.allclose(model(input_ids=tokens).last_hidden_state, expected)


def test_the_dropout_of_adapters_is_what_their_recipe_asks_for():
    adapted = with_adapters(AutoModelForCausalLM.from_config(CONFIGS[-1]), LoraSection(rank=2, dropout=0.5))
    with dropout_off(adapted):
        shares = {module.p for module in adapted.modules() if isinstance(module, torch.nn.Dropout)}
    assert shares == {0.5}


def test_a_policy_whose_config_has_dropout_starts_at_a_log_ratio_of_zero(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2).eval()
    items = [((5, 6), (number, 8, 9)) for number in range(10, 18)]
    found = frozen_logprobs(ResponseLogprobs(model, chunk_tokens=64), items, pad_id=0, batch=8)
    pairs = [
        TrainingPair((5, 6), items[row][1], items[row + 4][1], (0.8, 0.0, 0.0, *columns, *columns))
        for row in range(4)
        for columns in [(found[row], found[row + 4])]
    ]
    training = PolicyTrainingSection(pairs_per_step=4, pairs_per_pass=2, log_steps=1, warmup=0.0)
    policy = Policy(model, load_tokenizer(str(save_policy(tmp_path / "texts"))), "gpt2")
    method = method_of("dpo", beta=0.1)
    train_step(policy, pairs, tmp_path, method=method, training=training, lora=None, raw=False, dtype="float32", seed=0)
    first = json.loads((tmp_path / "history.json").read_text())[0]
    assert first["chosen_log_ratio"] == pytest.approx(0.0, abs=1e-5)
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["resid_pdrop"] == 0.1
