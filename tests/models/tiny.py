"""Tiny real things for the tests of the models: tokenizers trained here, random backbones, folders of every layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from paragone_models.files.saving import save_model
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import TextReader

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|im_start|>system\\nToday Date: " + date_string + "<|im_end|>" }}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content | trim + "<|im_end|>" }}
{%- endfor %}"""
ALTERNATING = """{{ bos_token }}{% for message in messages -%}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"""
TOOLS = """{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages -%}
<|im_start|>{{ message.role }}{% if message.name %} {{ message.name }}{% endif %}\n{{ message.content }}
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>{% endfor %}"""

CORPUS = [
    "Close the main street to cars? Families walk through it on every market day.",
    "A school garden keeps children busy, and they learn to share the work.",
    "system user assistant prompt response words numbers 0 1 2 3 4 5 6 7 8 9",
    "one two three four five six seven eight nine ten today date name tool",
] * 4
MARKS = ["<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
HIDDEN = 32
POSITIONS = 512


def make_tokenizer(template: str | None = CHATML, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of some 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", MARKS.index("<|begin|>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


def make_encoder_tokenizer(*, typed: bool = False) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer that frames texts and pairs as BERT's does, without a chat template.

    Args:
        typed: give token types, as BERT's own does.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if typed else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **names
    )


def make_reader(template: str | None = CHATML, *, adds_bos: bool = False, **fields: Any) -> TextReader:
    """Return a reader for a Bradley-Terry model, with any field of its spec changed."""
    values: dict[str, Any] = {"kind": "bradley-terry", "dimension": 1, "max_length": POSITIONS, **fields}
    return TextReader(make_tokenizer(template, adds_bos=adds_bos), ModelSpec(**values))


def llama_config(vocabulary: int = 400, **values: Any) -> LlamaConfig:
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        **{**sizes, **values},
    )


def make_network(spec: ModelSpec, *, vocabulary: int = 400, seed: int = 0) -> PreferenceNetwork:
    torch.manual_seed(seed)
    head = RepresentationHead(HIDDEN, spec)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return PreferenceNetwork(LlamaModel(llama_config(vocabulary)), head).eval()


def save_own(folder: Path, spec: ModelSpec, *, template: str | None = CHATML, text: bool = True) -> Path:
    tokenizer = make_tokenizer(template) if text else None
    return save_model(folder, make_network(spec), spec, tokenizer)


def save_published(
    folder: Path, *, rows: int = 6, gate: bool = True, tied: bool = False, shard: str = "5GB", text: bool = False
) -> Path:
    """Write the layout of the published general preference models: a causal LM with head tensors among its own."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(llama_config(tie_word_embeddings=tied))
    model.save_pretrained(folder, max_shard_size=shard)
    heads = {"value_head.weight": torch.randn(rows, HIDDEN)}
    if gate:
        heads["prompt_head.weight"] = torch.randn(rows // 2, HIDDEN)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = json.loads(index.read_text())
        last = sorted(set(table["weight_map"].values()))[-1]
        table["weight_map"].update(dict.fromkeys(heads, last))
        index.write_text(json.dumps(table))
    else:
        last = "model.safetensors"
    save_file({**load_file(folder / last), **heads}, folder / last, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["CustomRewardModel"]}))
    if text:
        make_tokenizer(LLAMA, adds_bos=True).save_pretrained(folder)
    return folder


def save_output_row(folder: Path, model_type: str = "llama", *, tied: bool = False, text: bool = False) -> Any:
    """Write a causal LM of which nothing but the weights says that row 0 of its output embedding is a reward head.

    Returns:
        transformers' model.
    """
    torch.manual_seed(5)
    sizes = {**llama_config().to_dict(), "model_type": model_type, "head_dim": 16, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(**sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    if text:
        make_tokenizer(LLAMA, adds_bos=True).save_pretrained(folder)
    return model


def sequences(count: int = 6, *, vocabulary: int = 400, longest: int = 40, seed: int = 1) -> list[list[int]]:
    """Return random sequences of different lengths, without special tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest, (count,), generator=draw).tolist()
    return [torch.randint(4, vocabulary, (length,), generator=draw).tolist() for length in lengths]
