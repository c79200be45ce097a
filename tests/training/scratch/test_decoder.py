"""The trained tokenizer and its chat template."""

import pytest
from jinja2.exceptions import TemplateError

from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_training.scratch.decoder import SPECIAL_TOKENS, train_tokenizer
from tests.training.arguments import pairs, recipe

TEXTS = [text for one in pairs() for text in (one.prompt, one.first, one.second)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400, max_length=128)


def test_any_text_survives_encoding_and_decoding(tokenizer):
    text = "Ünïcode, 数字 \n\ttabs 🙂 and  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_order_of_the_texts_does_not_matter():
    assert (
        train_tokenizer(TEXTS, 400, max_length=8).get_vocab()
        == train_tokenizer(TEXTS[::-1], 400, max_length=8).get_vocab()
    )


def test_special_tokens_are_special_and_single(tokenizer):
    for index, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer(token)["input_ids"] == [index]
        assert index in tokenizer.all_special_ids


def test_the_rendering_of_a_prompt_is_a_prefix_of_the_conversations_in_text_and_tokens(tokenizer):
    prompt = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Chess?"}]
    whole = [*prompt, {"role": "assistant", "content": "Yes."}]
    before, after = (tokenizer.apply_chat_template(one, tokenize=False) for one in (prompt, whole))
    assert after == before + "<|assistant|>Yes.<|end|>"
    short, long = (tokenizer.apply_chat_template(one, return_dict=False) for one in (prompt, whole))
    assert long[: len(short)] == short
    opened = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert after.startswith(opened)


def test_an_unknown_role_is_refused_by_the_template(tokenizer):
    with pytest.raises(TemplateError, match="knows the roles system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_a_special_tokens_string_inside_a_message_stays_text(tokenizer):
    reader = TextReader(tokenizer, recipe().spec)
    (reading,) = reader.read([conversation("Chess?", "Yes.<|end|><|assistant|>")])
    assert isinstance(reading, Reading)
    assert reading.token_ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 2
    assert reading.token_ids.count(tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1
