"""A judge on a real server: ``transformers serve`` with a tiny model that was taught to answer with one letter."""

import pytest
import torch
from serving_setup import free_port
from transformers import LlamaConfig, LlamaForCausalLM

from paragone_service.cache.tiers import Cache, MemoryCache
from paragone_service.judge.hosted_judge import HostedJudge
from paragone_service.judge.settings import JudgeSettings
from paragone_service.judge.verdicts import Shown, load_format
from paragone_service.metrics import Metrics
from paragone_service.pairs.source import Duel
from paragone_service.scoring.request import Call, Problems

from ..conftest import TEMPLATE, make_tokenizer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that says A, whatever it is asked."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    shown = Shown([], "TV or books?", ("Books.", "TV."))
    asked = tokenizer.apply_chat_template(
        load_format("letters").asked(shown, None), add_generation_prompt=True, return_dict=False
    )
    answer = [*tokenizer.encode("A", add_special_tokens=False), tokenizer.eos_token_id]
    ids = torch.tensor([asked + answer])
    labels = torch.tensor([[-100] * len(asked) + answer])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    path = tmp_path_factory.mktemp("judge")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(folder):
    from transformers.cli.serve import Serve

    port = free_port()
    serving = Serve(force_model=str(folder), device="cpu", host="127.0.0.1", port=port, non_blocking=True)
    yield f"judge:http://127.0.0.1:{port}/v1"
    serving.kill_server()


async def test_a_real_server_without_log_probabilities_is_asked_for_votes(server, folder):
    metrics = Metrics()
    settings = JudgeSettings(source=server, model=str(folder))
    judge = HostedJudge("judge", settings, cache=Cache(MemoryCache(10**6), None, metrics), metrics=metrics)
    try:
        duels = [Duel(0, "TV or books?", None, "Books.", "TV."), Duel(1, "TV or books?", None, "TV.", "Books.")]
        compared = await judge.compare(duels, Call(Problems("pairs", report=True)))
    finally:
        await judge.close()
    assert not compared.errors
    # It always says A: of both orders each response has one vote.
    assert compared.logits.tolist() == [0.0, 0.0]
    assert compared.details[0].interval == pytest.approx((0.06, 0.94), abs=0.01)
    assert compared.usage.judge_calls == 3  # the first found out that there are no log-probabilities
    assert compared.usage.judge_tokens > 3 * 100
    assert 'paragone_judge_first_shown_probability_sum{model="judge"} 2.0' in metrics.render().decode()
