"""Which template a model has: by name, for tools, from a file, and what is refused."""

import re

import pytest

from paragone_models.errors import ModelLoadError
from paragone_models.spec import ModelSpec
from paragone_models.text.named_templates import Sources, sources_of
from paragone_models.text.reader import TextReader, conversation
from paragone_models.text.template import tokenizer_hash
from tests.models import tiny

TOOL = {"type": "function", "function": {"name": "look"}}
BOTH = {"default": tiny.CHATML, "tool_use": tiny.TOOLS, "rag": "rag" + tiny.CHATML}


def reader_of(templates, chosen: str | None = None) -> TextReader:
    tokenizer = tiny.make_tokenizer(templates)
    return TextReader(tokenizer, ModelSpec(kind="bradley-terry", dimension=1), chat_template=chosen)


def test_the_template_for_tools_is_taken_where_there_are_tools():
    reader = reader_of(BOTH)
    plain, tooled = reader.read([conversation("Why?", "So."), conversation("Why?", "So.", [TOOL])])
    for reading, tools in ((plain, None), (tooled, [TOOL])):
        messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        # transformers chooses by itself
        assert reading.text == reader.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert reading.token_ids == reader.tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
    assert '"look"' in tooled.text


def test_a_special_token_stays_text_in_the_template_for_tools():
    tooled = reader_of(BOTH).read([conversation("Wh<|im_end|>y?", "So.", [TOOL])])[0]
    assert tooled.token_ids.count(tiny.MARKS.index("<|im_end|>")) == 2


@pytest.mark.parametrize("templates", [{"tool_use": tiny.TOOLS, "rag": tiny.CHATML}, {"rag": tiny.CHATML}])
def test_templates_without_a_default_are_refused_in_a_sentence(templates):
    with pytest.raises(ModelLoadError, match=r"has the chat templates .*rag.* and no default: choose one with chat_"):
        sources_of(tiny.make_tokenizer(templates))


def test_one_of_the_templates_is_chosen_by_name():
    assert sources_of(tiny.make_tokenizer(BOTH), "rag") == Sources(BOTH["rag"], BOTH["rag"])
    assert sources_of(tiny.make_tokenizer({"rag": BOTH["rag"]}), "rag").default == BOTH["rag"]
    assert reader_of(BOTH, "rag").read([conversation("Why?", "So.")])[0].text.startswith("rag<|im_start|>")


def test_a_template_comes_from_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(tiny.LLAMA, encoding="utf-8")
    for own in (None, tiny.CHATML, BOTH):
        reader = reader_of(own, str(file))
        assert reader.template.has_template
        assert "Today Date: 26 Jul 2024" in reader.read([conversation("Why?", "So.")])[0].text


@pytest.mark.parametrize(("own", "known"), [(None, "the tokenizer has none"), (BOTH, "default, rag, tool_use")])
def test_what_is_neither_a_name_nor_a_file_is_refused(own, known, tmp_path):
    for chosen in ("chatml", str(tmp_path)):
        with pytest.raises(ModelLoadError, match=f"neither a template's name .*{known}.* nor a file"):
            sources_of(tiny.make_tokenizer(own), chosen)


def test_every_template_in_use_is_part_of_the_identity():
    def hash_of(templates, chosen=None):
        reader = reader_of(templates, chosen)
        return tokenizer_hash(reader.tokenizer, reader.template.signature)

    hashes = [
        hash_of(tiny.CHATML),
        hash_of(tiny.TOOLS),
        hash_of({"default": tiny.CHATML, "tool_use": tiny.TOOLS}),
        hash_of({"default": tiny.CHATML, "tool_use": tiny.LLAMA}),
        hash_of(BOTH, "rag"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_of({"default": tiny.CHATML}) == hashes[0]
    # As it was before there were names: a template alone stands for itself.
    assert hashes[0] == tokenizer_hash(tiny.make_tokenizer(), tiny.CHATML)


def test_the_names_of_a_message_are_those_of_the_file_that_was_chosen(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(tiny.CHATML)
    refused = reader_of(tiny.TOOLS, str(file)).read([conversation("Why?", "So.", [TOOL])])[0]
    assert re.search("no place for tools", str(refused))
