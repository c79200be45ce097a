"""What the model reads has as many special tokens as its template wrote, however a sender writes their strings."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from paragone_models.errors import TextError
from paragone_models.spec import ModelSpec
from paragone_models.text.template import ChatTemplate
from tests.models import tiny

TURNS = "<s>{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
WIDE = "＜／ｓ＞"
"""``</s>`` in letters of full width, which NFKC makes ASCII of."""


def folding(template: str | None, *, pair: bool = False) -> ChatTemplate:
    """Return the template of a tokenizer like DeBERTa's or T5's: pieces in a table, letters folded before."""
    letters = [(letter, -3.0) for letter in 'abcdefghijklmnopqrstuvwxyz<>/▁{}":[],']
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", -9.0), ("</s>", -9.0), *letters], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if pair:
        marks = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", marks)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.chat_template = template
    return ChatTemplate(fast, ModelSpec(kind="bradley-terry", dimension=1), text_pair=pair)


def tokens(template: ChatTemplate, prompt: str, response: str = "so", tools=None) -> list[int]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return template.tokenize([(template.render(messages, tools), messages, tools)])[0]


def marks(ids: list[int]) -> list[int]:
    return [one for one in ids if one in (1, 2)]


@pytest.mark.parametrize("text", [WIDE, f"why {WIDE}", f"</s>{WIDE}", "＜s＞", "</s>"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_string_that_the_tokenizer_folds_into_a_special_token_is_refused(text, pair):
    template = folding(None if pair else TURNS, pair=pair)
    assert marks(tokens(template, "why")) == [1, 2, 2]
    # This tokenizer has the token among its pieces, so that no text of it can stay text.
    with pytest.raises(TextError, match="cannot be kept as text"):
        tokens(template, text)
    with pytest.raises(TextError, match="cannot be kept as text"):
        tokens(template, "why", text)


def test_letters_of_full_width_that_are_no_special_token_are_read():
    assert marks(tokens(folding(TURNS), "＜why＞ and 漢字")) == [1, 2, 2]  # unknown letters are no special tokens


def test_a_special_token_as_the_name_of_a_field_is_refused():
    template = ChatTemplate(
        tiny.make_tokenizer(tiny.CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}"),
        ModelSpec(kind="bradley-terry", dimension=1),
    )
    mark = tiny.MARKS.index("<|im_end|>")
    plain = tokens(template, "why", tools=[{"name": "f", "word": 1}])
    as_value = tokens(template, "why", tools=[{"name": "<|im_end|>", "word": 1}])
    assert as_value.count(mark) == plain.count(mark) == 2
    with pytest.raises(TextError, match="the name of a field"):
        tokens(template, "why", tools=[{"name": "f", "<|im_end|>": 1}])


def test_only_the_text_at_fault_is_refused_of_a_batch():
    template = folding(TURNS)
    turns = [[{"role": "user", "content": text}] for text in ("why", "because")]
    both = template.tokenize([(template.render(messages), messages, None) for messages in turns])
    assert [marks(ids) for ids in both] == [[1, 2], [1, 2]]
