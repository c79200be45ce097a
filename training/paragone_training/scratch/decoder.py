"""A small decoder from random weights: its shape, its own tokenizer, and the dropout that its architecture lacks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config

from paragone_training.scratch.sections import BackboneSection

__all__ = ["decoder_config", "residual_dropout", "train_tokenizer"]

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# Every message stands between a token for its role and an end token: the rendering of a prompt is a prefix of the
# rendering of the conversation, in characters and in tokens.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('this template knows the roles system, user and assistant, not ' ~ message.role) -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def decoder_config(sizes: BackboneSection, tokenizer: Any, max_length: int, **more: Any) -> Qwen3Config:
    """Return the shape of a decoder: Qwen3's, with as many heads for keys as for queries."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        head_dim=sizes.hidden_size // sizes.heads,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, *, max_length: int) -> Any:
    """Return a byte-level BPE tokenizer with a chat template, trained on texts whose order does not matter.

    Args:
        texts: what to learn merges from; repeats count.
        vocabulary_size: tokens in all, special ones and the 256 bytes included.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, also those that no text has: any text can be encoded later.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Sorted: the order of the texts must not decide between merges of equal counts.
    bpe.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        model_max_length=max_length,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def residual_dropout(
    backbone: nn.Module, head: nn.Module | None = None, *, share: float, head_share: float = 0.0
) -> Iterator[None]:
    """Drop activations while the modules are in training mode, until the context ends.

    Llama's and Qwen3's shapes in transformers drop attention weights at most. Small models from random weights on few
    texts need more: on the embedding, on what every attention and feed-forward layer adds to the residual stream, and
    on the hidden states that the head reads.

    Args:
        backbone: a transformers decoder with an embedding and ``layers`` of ``self_attn`` and ``mlp``.

    Raises:
        ValueError: if the backbone does not have that shape.
    """
    # Hooks, not modules: the saved model is the plain architecture, which any server loads.
    hooks = []
    if share:
        hooks += [module.register_forward_hook(_dropping(share)) for module in _sites(backbone)]
    if head is not None and head_share:
        hooks.append(head.register_forward_pre_hook(_dropping_input(head_share)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sites(backbone: Any) -> list[nn.Module]:
    try:
        sites = [backbone.get_input_embeddings()]
        for layer in backbone.layers:
            sites += [layer.self_attn, layer.mlp]
    except AttributeError as error:
        raise ValueError(
            f"dropout knows decoders made of self_attn and mlp layers, not {type(backbone).__name__} ({error}): "
            "set training.dropout = 0"
        ) from error
    return sites


def _dropping(share: float) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001 - torch's signature
        if not module.training:
            return output
        if isinstance(output, tuple):  # attention gives its weights too
            return (functional.dropout(output[0], share), *output[1:])
        return functional.dropout(output, share)

    return hook


def _dropping_input(share: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (functional.dropout(inputs[0], share), *inputs[1:]) if module.training else inputs

    return hook
