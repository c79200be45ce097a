"""A causal LM that answers whether a response satisfies a principle, read as its model card reads it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paragone_models import load_model
from paragone_models.errors import ModelLoadError, TextError
from paragone_models.files.saving import save_model
from paragone_models.text.reader import conversation
from tests.models import tiny

PROMPT = "What is one and one?"
RESPONSES = ["It is two.", "three"]
TEMPLATE = tiny.CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HEAD = "lm-head-yes-no"


def written(folder, *, words=("Yes", "No"), **values):
    torch.manual_seed(6)
    model = AutoModelForCausalLM.from_config(tiny.llama_config(410, **values)).eval()
    model.save_pretrained(folder)
    tokenizer = tiny.make_tokenizer(TEMPLATE)
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(folder)
    return model


def card(folder, model, response: str, principle: str) -> float:
    """The reward as the model card computes it: the first new token's logits of Yes and No."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = (
        f"Evaluate the response to the previous prompt in terms of whether it satisfies this principle: {principle}. "
        "Only answer Yes or No."
    )
    talk = [("user", PROMPT), ("assistant", response), ("user", asked)]
    messages = [{"role": role, "content": content} for role, content in talk]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    return float(logits[tokenizer.convert_tokens_to_ids("Yes")] - logits[tokenizer.convert_tokens_to_ids("No")])


@pytest.mark.parametrize("principle", ["correctness", "It keeps to {braces} and <|im_end|> alike"])
def test_the_reward_is_the_log_odds_of_yes(tmp_path, principle):
    model = written(tmp_path)
    ours = load_model(tmp_path, device="cpu", head=HEAD)
    assert (ours.kind, ours.spec.temperature) == ("bradley-terry", 1.0)
    rewards = ours.score(PROMPT, RESPONSES, principle=principle).rewards
    if "<|im_end|>" in principle:  # text here, and a token to whoever writes the card's line
        assert len({float(reward) for reward in rewards}) == 2
        return
    assert rewards == pytest.approx([card(tmp_path, model, response, principle) for response in RESPONSES], abs=1e-4)


def test_another_principle_is_another_reward(tmp_path):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu", head=HEAD)
    first, second = (model.score(PROMPT, RESPONSES, principle=one).rewards for one in ("brevity", "correctness"))
    assert abs(first - second).max() > 1e-3


def test_a_principle_is_asked_for_and_only_where_there_is_a_place_for_it(tmp_path, gated):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu", head=HEAD)
    for principle in (None, " "):
        with pytest.raises(TextError, match="judges by a principle: send one"):
            model.score(PROMPT, RESPONSES, principle=principle)
    with pytest.raises(TextError, match="no place for a principle"):
        gated.score(PROMPT, RESPONSES, principle="brevity")


def test_a_folder_of_our_own_asks_the_same_question(tmp_path, tmp_path_factory):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu", head=HEAD)
    own = save_model(tmp_path_factory.mktemp("own"), model.network, model.spec, model.reader.tokenizer)
    again = load_model(own, device="cpu")
    expected = model.score(PROMPT, RESPONSES, principle="brevity").rewards
    assert again.score(PROMPT, RESPONSES, principle="brevity").rewards == pytest.approx(expected, abs=1e-5)
    stated = json.loads((own / "paragone.json").read_text())
    changed = {**stated, "principle_question": "Is it good by {principle}?"}
    (own / "paragone.json").write_text(json.dumps(changed))
    assert load_model(own, device="cpu").identity != again.identity
    (own / "paragone.json").write_text(json.dumps({**stated, "principle_question": "Is it good?"}))
    with pytest.raises(ModelLoadError, match=r"has no \{principle\} in it"):
        load_model(own, device="cpu")


def test_what_cannot_answer_is_refused(tmp_path, tmp_path_factory):
    written(tmp_path, words=("Yes",))
    with pytest.raises(ModelLoadError, match="needs one token for each"):
        load_model(tmp_path, device="cpu", head=HEAD)
    tied = tmp_path_factory.mktemp("tied")
    written(tied, tie_word_embeddings=True)
    with pytest.raises(ModelLoadError, match="one matrix for input and output embedding"):
        load_model(tied, device="cpu", head=HEAD)
    bare = shutil.copytree(tied, tmp_path_factory.mktemp("bare") / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ModelLoadError, match=r"no tokenizer that tells the tokens Yes and No|cannot be loaded"):
        load_model(bare, device="cpu", head=HEAD)


def test_a_long_prompt_is_cut_and_the_question_stays(tmp_path):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu", head=HEAD, max_length=160)
    (reading,) = model.reader.read([replace(conversation(PROMPT * 40, "Two."), principle="brevity")])
    assert len(reading.token_ids) <= 160
    assert "this principle: brevity. Only answer" in reading.text
    assert reading.text.endswith("<|im_start|>assistant\n")
