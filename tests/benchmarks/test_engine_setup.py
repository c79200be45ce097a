"""The engine's benchmark on a pretrained decoder: its own weights, and the numbers of plain transformers."""

import torch
from engine import agreement
from engine_setup import pretrained_classifier, workload
from transformers import LlamaConfig, LlamaForCausalLM

from paragone_models.packing.backend import choose
from tests.models import tiny


def test_a_pretrained_decoder_keeps_its_weights_and_agrees_with_padded_transformers(tmp_path, capsys):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=420, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    decoder = LlamaForCausalLM(config)
    decoder.save_pretrained(tmp_path)
    model = pretrained_classifier(str(tmp_path), torch.float32)
    assert torch.equal(model.base_model.layers[1].mlp.up_proj.weight, decoder.model.layers[1].mlp.up_proj.weight)
    items = workload(2, None, lengths=(4, 40), reader=tiny.make_tokenizer())
    assert max(max(item.token_ids) for item in items) < 420
    agreement(model, choose(model.base_model), items, 4096)
    assert "largest difference of a score to padded transformers" in capsys.readouterr().out
