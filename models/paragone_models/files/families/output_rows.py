"""Causal LMs that keep a reward in their output embedding: nothing in the files says so, so the caller has to."""

from typing import Any

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints
from paragone_models.files.families.backbone import (
    LONGEST,
    bare_backbone,
    chosen_kind,
    config_of,
    with_head,
)
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["OUTPUT_ROWS", "may_have_a_row", "read_output_row"]

_PUBLISHED_LENGTH = 4096
# Others scale or cap their logits, which a bare row would leave out without a word.
_PLAIN_LOGITS = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def read_output_row(place: Checkpoint) -> Loaded:
    """Read a causal LM whose reward head is row 0 of its output embedding, as the Nemotron reward models in HF form.

        reward = h_last · W_out[0], the logit of vocabulary id 0 after the conversation's last token

    Nothing in the files says so, and any other causal LM would give the logit of an ordinary word: so this layout is
    read only when the caller names it. The other rows are never read. A reward of NeMo's may differ from it by a
    constant, its head's bias, which a row cannot hold and no comparison notices.

    Source: the model card of Llama-3.1-Nemotron-70B-Reward-HF.

    Raises:
        ModelLoadError: if the folder is no causal LM of a known family, its output embedding is the input's, or another
            kind was asked for.
    """
    folder, options, architecture = place.folder, place.options, place.architecture
    if place.stored is not None and not place.is_classifier:
        first = next(iter(place.stored.tensors.values()))
        raise ModelLoadError(f"{folder} has a head of its own, {first}: leave head={place.head!r} out")
    config = config_of(folder, options)
    own = chosen_kind(place.kind, ("bradley-terry",), "a row of the output embedding is one reward")
    if not architecture.endswith("ForCausalLM") or config.model_type not in _PLAIN_LOGITS:
        raise ModelLoadError(
            f"{folder} holds {architecture} ({config.model_type}); head='lm-head-row-0' reads causal LMs of the types "
            f"{', '.join(sorted(_PLAIN_LOGITS))}: leave head out for other layouts"
        )
    if config.tie_word_embeddings:
        raise ModelLoadError(
            f"{folder} has one matrix for input and output embedding: its row 0 is a word's vector, not a reward head"
        )
    spec = ModelSpec(kind=own, dimension=1, max_length=min(_PUBLISHED_LENGTH, positions_of(config) or LONGEST))
    row = checkpoints.read_row(checkpoints.weight_files(folder), "lm_head.weight", 0)
    return Loaded(with_head(bare_backbone(folder, options), spec, {"value_head.weight": row}), spec)


def may_have_a_row(place: Checkpoint, config: Any) -> bool:
    """Return whether a causal LM could keep a reward in a row of its output embedding."""
    return (
        place.architecture.endswith("ForCausalLM")
        and config.model_type in _PLAIN_LOGITS
        and not config.tie_word_embeddings
    )


OUTPUT_ROWS = Family(
    "causal LMs with a reward in their output embedding (Llama-3.1-Nemotron-70B-Reward-HF)",
    found_by='`head="lm-head-row-0"`, said by the caller',
    becomes="`bradley-terry`, temperature 1, of 4,096 tokens: the logit of vocabulary id 0 after the last token",
    finds=lambda place: place.head == "lm-head-row-0",
    reads=read_output_row,
)
