"""``paragone train language``: a small causal language model from random weights, a policy to begin with.

Its texts are chats: the answers of question groups and rated responses. The prompts that a file marks as held out are
never read; the model's loss on their answers is on its card. Left out: anything that a model of 8 MB does not need.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, model_validator
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM, set_seed

from paragone_evaluation.readers import read_fields
from paragone_training.errors import DataError, RecipeError
from paragone_training.saved_activations import meta_attention, saved_bytes
from paragone_training.scratch.decoder import decoder_config, train_tokenizer
from paragone_training.scratch.pretraining import batches_of, padded, pretrain
from paragone_training.scratch.sections import BackboneSection, PretrainingSection, TokenizerSection
from paragone_training.settings import DataFile, DataFiles, Names, Section

__all__ = ["LanguageRecipe", "decoder_config", "train_language_model"]

logger = logging.getLogger(__name__)

_ADAM_STATES = 2
# Logits of a batch, their exponentials and their gradient.
_LOGITS_ALIVE = 3


@dataclass(frozen=True)
class _Chat:
    """One prompt and one answer to it."""

    prompt: str
    response: str


class _LanguageDataSection(Section):
    """Which texts. Relative paths start at the recipe's folder, or at `--data`."""

    groups: DataFiles = ()
    """Files of rows with `prompt` and `responses`."""
    ratings: DataFiles = ()
    """Files of rows with `prompt`, `response`, `group` and `split`; only `train` rows are read."""
    topics: Names = ()
    """Beginnings of the `group` of the ratings that are read; empty reads all."""
    held_out: DataFile | None = None
    """File of rows with `prompt` and `split`; chats of prompts marked `test` are held out."""


class _LanguageOutputSection(Section):
    """What is written, and where."""

    folder: str | None = None
    """Of the model; `runs/NAME-OF-THE-RECIPE` unless given."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Storage type of the weights."""
    notes: str = ""
    """A paragraph for the model's card."""


class LanguageRecipe(Section):
    """How a small causal language model is trained, a decoder of Qwen3's shape with tied embeddings."""

    data: _LanguageDataSection
    training: PretrainingSection
    backbone: BackboneSection = BackboneSection()
    tokenizer: TokenizerSection = TokenizerSection()
    output: _LanguageOutputSection = _LanguageOutputSection()
    max_length: PositiveInt = 512
    """Longest chat in tokens; longer ones are left out."""
    seed: int = 0
    """Of weights, order and dropout."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # Trained weights with a tokenizer that is trained here would not know its tokens.
        if self.backbone.source or self.tokenizer.source:
            raise RecipeError(
                "a language recipe starts from random weights: remove backbone.source and tokenizer.source"
            )
        if self.training.epochs < 1 or self.backbone.hidden_size % self.backbone.heads:
            raise RecipeError(
                "training.epochs must be at least 1 and backbone.hidden_size a multiple of backbone.heads"
            )
        return self


@dataclass(frozen=True)
class _LanguageTexts:
    """The chats of a recipe as token ids, and the tokenizer that was trained on them."""

    tokenizer: Any
    train: list[list[int]]
    held_out: list[list[int]]
    counts: tuple[int, int]


def _read_chats(section: _LanguageDataSection) -> tuple[list[_Chat], list[_Chat]]:
    """Return the chats to learn from and the held-out ones."""
    # By the prompt's text: the files of answers know nothing of the split.
    hidden = set[str]()
    if section.held_out:
        hidden = {row["prompt"] for row in read_fields(section.held_out, "prompt") if row.get("split") == "test"}
    train, held_out = list[_Chat](), list[_Chat]()
    for path in section.groups:
        for row in read_fields(path, "prompt", "responses"):
            chats = [_Chat(row["prompt"], response) for response in row["responses"]]
            (held_out if row["prompt"] in hidden else train).extend(chats)
    for path in section.ratings:
        for row in read_fields(path, "prompt", "response", "group"):
            chosen = not section.topics or row["group"].startswith(section.topics)
            if chosen and row.get("split", "train") == "train" and row["prompt"] not in hidden:
                train.append(_Chat(row["prompt"], row["response"]))
    if not train:
        raise DataError("data.groups and data.ratings name no chat to learn from")
    return train, held_out


def _read_texts(recipe: LanguageRecipe) -> _LanguageTexts:
    """Read the chats of a recipe, train a tokenizer on those that are learnt from, and return both."""
    train, held_out = _read_chats(recipe.data)
    texts = [text for chat in train for text in (chat.prompt, chat.response)]
    # Merges are learnt from the chats to learn from alone, as the weights are.
    tokenizer = train_tokenizer(texts, recipe.tokenizer.vocabulary_size, max_length=recipe.max_length)
    learnt, kept = (_documents(chats, tokenizer, recipe.max_length) for chats in (train, held_out))
    return _LanguageTexts(tokenizer, learnt, kept, counts=(len(train), len(held_out)))


def train_language_model(recipe: LanguageRecipe, folder: Path) -> Path:
    """Train a causal language model and return the folder it was saved to.

    Args:
        folder: where the model goes, with its tokenizer and a card.

    Raises:
        RecipeError: if the folder holds a model already.
        DataError: if the data cannot be used.
    """
    # Checked first: training takes minutes, and would end in nothing.
    if (folder / "config.json").exists():
        raise RecipeError(f"{folder} holds a model: remove it, or choose another --output")
    texts = _read_texts(recipe)
    tokenizer = texts.tokenizer
    set_seed(recipe.seed)
    model: Any = Qwen3ForCausalLM(_config(recipe, tokenizer))
    logger.info("%d chats of %d tokens to learn from", len(texts.train), sum(map(len, texts.train)))
    pretrain(model.model, texts.train, recipe.training, pad_id=tokenizer.pad_token_id, seed=recipe.seed)
    model.eval()
    loss = _held_out_loss(model, texts.held_out, tokenizer) if texts.held_out else math.nan
    logger.info("held-out loss %.3f nats a token of the answers", loss)
    # A policy is sampled from, and ends where its training chats ended.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.to(getattr(torch, recipe.output.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = sum(weight.numel() for weight in model.parameters())
    card = _card(recipe, folder.name, weights, texts.counts, loss)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


@torch.no_grad()
def _held_out_loss(model: Any, documents: Sequence[Sequence[int]], tokenizer: Any) -> float:
    """Return the mean negative log-likelihood of the answers' tokens, in nats a token."""
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    total, count = 0.0, 0
    for start in range(0, len(documents), 16):
        tokens = padded(documents[start : start + 16], tokenizer.pad_token_id)
        logits = model(input_ids=tokens).logits[:, :-1].float()
        # Tokens after the assistant's turn began; what a user asked is no loss of the model's.
        answered = (tokens == assistant).cumsum(1)[:, :-1].bool() & (tokens[:, 1:] != tokenizer.pad_token_id)
        total += functional.cross_entropy(logits[answered], tokens[:, 1:][answered], reduction="sum").item()
        count += int(answered.sum())
    return total / count


def describe_language_plan(recipe: LanguageRecipe) -> str:
    """Return what a training would do, in words: chats, tokens, steps, memory.

    The chats are read and the tokenizer is trained for it, which takes seconds; the model is built on the meta device.
    Not estimated: the libraries themselves, gaps of the allocator, and what a layer's backward pass makes.

    Raises:
        DataError: if the data cannot be used.
    """
    texts, section = _read_texts(recipe), recipe.training
    batches = list(batches_of(texts.train, section.batch_tokens))
    tokens = sum(map(len, texts.train))
    left_out = sum(texts.counts) - len(texts.train) - len(texts.held_out)
    # Pretraining gives no mask; this saves what a fused kernel without one saves.
    config, attention = _config(recipe, texts.tokenizer), meta_attention("flash_attention_2")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    weights = sum(weight.numel() for weight in dict.fromkeys(model.parameters()))
    # A batch is sorted by length: its last document is the longest.
    sequences, longest = max(((len(batch), len(batch[-1])) for batch in batches), key=lambda size: size[0] * size[1])
    parts = {
        "weights": 4 * weights,
        "gradients": 4 * weights,
        "optimiser": 4 * _ADAM_STATES * weights,
        "activations": saved_bytes(model, sequences=sequences, tokens=longest),
        "logits of a batch": 4 * _LOGITS_ALIVE * sequences * (longest - 1) * len(texts.tokenizer),
    }
    figures = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in parts.items())
    disk = weights * getattr(torch, recipe.output.dtype).itemsize / 1e6
    return "\n".join(
        [
            f"{len(texts.train)} chats of {tokens} tokens to learn from, {len(texts.held_out)} held out; {left_out} "
            f"are longer than max_length {recipe.max_length} and left out",
            f"{len(batches)} batches of at most {section.batch_tokens} tokens, padding counted; "
            f"{section.epochs} epochs, {section.epochs * len(batches)} optimiser steps on "
            f"{section.epochs * tokens} tokens",
            f"{weights / 1e6:,.1f} M weights; the largest batch is {sequences} chats of {longest} tokens",
            f"memory, MB: {sum(parts.values()) / 1e6:.2f} = {figures}",
            f"disk: {disk:.2f} MB",
        ]
    )


def _config(recipe: LanguageRecipe, tokenizer: Any) -> Qwen3Config:
    return decoder_config(recipe.backbone, tokenizer, recipe.max_length, tie_word_embeddings=True)


def _documents(chats: Iterable[_Chat], tokenizer: Any, max_length: int) -> list[list[int]]:
    documents = []
    for chat in chats:
        messages = [{"role": "user", "content": chat.prompt}, {"role": "assistant", "content": chat.response}]
        tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        if len(tokens) <= max_length:
            documents.append(tokens)
    return documents


def _card(recipe: LanguageRecipe, name: str, weights: int, chats: tuple[int, int], loss: float) -> str:
    sizes = recipe.backbone
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# {name}

A demonstration: a causal language model of {weights:,} weights (Qwen3's shape, {sizes.layers} layers of width
{sizes.hidden_size}, {recipe.tokenizer.vocabulary_size:,} tokens), trained from random weights by
`paragone train language` on {chats[0]:,} chats, so that policy training runs with no download. It writes
English-looking sentences and **knows nothing**: whatever it says about the world is made up.

* Loss on the answers of {chats[1]:,} held-out chats, whose questions it never saw: {loss:.3f} nats a token.
* Weights are stored as {recipe.output.dtype}; load them as float32 to train.
* Longest conversation: {recipe.max_length} tokens.

{recipe.output.notes}
"""
