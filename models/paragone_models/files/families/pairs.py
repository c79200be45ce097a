"""Models that read both responses at once: causal LMs that answer A or B, and PairRM."""

from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, DebertaV2Config, DebertaV2Model

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import bare_backbone, chosen_kind, config_of, with_head
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.heads import left_over, refuse_left_over
from paragone_models.kinds import KINDS
from paragone_models.network import PreferenceNetwork
from paragone_models.pairwise import MarkerHead
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec
from paragone_models.text.pairs import letter_ids

__all__ = ["LETTER_MODELS", "PAIRRM"]

_LETTERS_LENGTH = 3072
"""Tokens of a pair that RLHFlow's model was trained with."""
_PAIRRM_LENGTH = 2048
# Others scale or cap their logits, which a difference of rows would leave out without a word.
_PLAIN_LOGITS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_PAIRRM_HEAD = {
    "head_layer.1.weight": "value_head.0.weight",
    "head_layer.1.bias": "value_head.0.bias",
    "head_layer.4.weight": "value_head.2.weight",
    "head_layer.4.bias": "value_head.2.bias",
}
_PAIRRM_BACKBONE = "pretrained_model."


def _is_letters(place: Checkpoint) -> bool:
    asked = KINDS.get(place.kind)  # type: ignore[call-overload]  # auto is no kind
    return asked is not None and asked.reads_pairs and place.architecture.endswith("ForCausalLM")


def _read_letters(place: Checkpoint) -> Loaded:
    """Read a causal LM as a model that answers A or B.

        L(a, b) = h_last · (W_out[A] − W_out[B]), the log-odds of the letter A against B

    Source: RLHFlow's pair-preference-model-LLaMA3-8B (Dong et al., arXiv 2405.07863), which takes the softmax of the
    two logits.

    Raises:
        ModelLoadError: if its logits are not plain products, or its tokenizer is missing or lacks the letters.
    """
    folder, options = place.folder, place.options
    config = config_of(folder, options)
    if config.model_type not in _PLAIN_LOGITS:
        raise ModelLoadError(
            f"{folder} holds {place.architecture} ({config.model_type}); kind pairwise reads causal LMs of the types "
            f"{', '.join(sorted(_PLAIN_LOGITS))}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{folder} has no tokenizer to find the letters A and B with: {error}") from error
    files = checkpoints.weight_files(folder)
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    first, second = (checkpoints.read_row(files, name, token).float() for token in letter_ids(tokenizer))
    spec = ModelSpec(
        kind="pairwise",
        dimension=1,
        pair_format="letters",
        symmetrise="mean-probability",
        max_length=min(_LETTERS_LENGTH, positions_of(config) or _LETTERS_LENGTH),
    )
    return Loaded(with_head(bare_backbone(folder, options), spec, {"value_head.weight": first - second}), spec)


def _is_pairrm(place: Checkpoint) -> bool:
    return set(_PAIRRM_HEAD) <= set(place.shapes)


def _read_pairrm(place: Checkpoint) -> Loaded:
    """Read PairRM in either of its layouts: that of Hugging Face, and LLM-Blender's, which names no backbone sizes.

    Raises:
        ModelLoadError: if a tensor is missing, of another shape or left over, or it is to run elsewhere.
    """
    folder, options = place.folder, place.options
    chosen_kind(place.kind, ("pairwise",), f"{folder} holds PairRM")
    if options.elsewhere or options.adapter is not None:
        raise ModelLoadError(f"{folder} holds PairRM, which runs in this process, without an adapter")
    files = checkpoints.weight_files(folder)
    config = _pairrm_config(place)
    # Built on the CPU, with every weight from the files.
    with torch.device("meta"):
        backbone: Any = DebertaV2Model(config)
    names = {f"{_PAIRRM_BACKBONE}{name}" for name in backbone.state_dict()}
    missing = sorted(names - set(place.shapes))
    if missing:
        raise ModelLoadError(f"{folder} lacks weights of its backbone: {', '.join(missing[:3])}")
    refuse_left_over(folder, left_over(list(place.shapes), [*names, *_PAIRRM_HEAD], place.shapes))
    tensors = checkpoints.read_tensors(files, names | set(_PAIRRM_HEAD))
    backbone = DebertaV2Model(config)
    backbone.to(options.dtype)
    try:
        backbone.load_state_dict({name.removeprefix(_PAIRRM_BACKBONE): tensors[name] for name in names}, strict=True)
    except RuntimeError as error:
        raise ModelLoadError(f"{folder}: {str(error).splitlines()[-1].strip()}") from error
    spec = ModelSpec(
        kind="pairwise", dimension=1, pair_format="markers", symmetrise="mean-logit", max_length=_PAIRRM_LENGTH
    )
    head = MarkerHead(config.hidden_size, spec, tasks=place.shapes["head_layer.4.weight"][0])
    head.load_state_dict({own: tensors[name].float() for name, own in _PAIRRM_HEAD.items()})
    return Loaded(PreferenceNetwork(backbone, head), spec)


def _pairrm_config(place: Checkpoint) -> DebertaV2Config:
    if place.stated.get("model_type") == "deberta-v2":
        stated = AutoConfig.from_pretrained(place.folder)
        assert isinstance(stated, DebertaV2Config)
        return stated
    # LLM-Blender's own configuration names its backbone: DeBERTa-v3, all of whose sizes are in the tensors.
    if "deberta-v3" not in str(place.stated.get("model_name", "")):
        raise ModelLoadError(f"{place.folder} has PairRM's head on a backbone that its config.json does not describe")
    vocabulary, hidden = place.shapes[f"{_PAIRRM_BACKBONE}embeddings.word_embeddings.weight"]
    layers = {name.split(".")[3] for name in place.shapes if name.startswith(f"{_PAIRRM_BACKBONE}encoder.layer.")}
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": hidden // 64,
        "intermediate_size": place.shapes[f"{_PAIRRM_BACKBONE}encoder.layer.0.intermediate.dense.weight"][0],
        "relative_attention": True,
        "max_relative_positions": -1,
        "position_buckets": place.shapes[f"{_PAIRRM_BACKBONE}encoder.rel_embeddings.weight"][0] // 2,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    }
    return DebertaV2Config(**sizes)


LETTER_MODELS = Family(
    "causal LMs that answer A or B (RLHFlow's pair-preference-model-LLaMA3-8B)",
    found_by='`kind="pairwise"`, said by the caller, and a causal LM',
    becomes="`pairwise`, both orders read and their probabilities averaged: the log-odds of the letters where the "
    "answer would begin, of 3,072 tokens",
    finds=_is_letters,
    reads=_read_letters,
)
PAIRRM = Family(
    "PairRM and PairRM-hf",
    found_by="the tensors of its head, `head_layer.1` and `head_layer.4`",
    becomes="`pairwise`, both orders read and their log-odds averaged: a network on the states at three marker "
    "tokens, of 2,048 tokens",
    finds=_is_pairrm,
    reads=_read_pairrm,
)
