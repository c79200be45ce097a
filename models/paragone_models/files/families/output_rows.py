"""Causal LMs that keep a reward in their output embedding: nothing in the files says so, so the caller has to."""

from typing import Any

from transformers import AutoTokenizer

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
from paragone_models.spec import PRINCIPLE, ModelSpec

__all__ = ["OUTPUT_ROWS", "PRINCIPLES", "may_have_a_row", "read_output_row"]

_PUBLISHED_LENGTH = 4096
_EMBEDDING = "lm_head.weight"
_ROW = "lm-head-row-0"
_QUESTION = (
    f"Evaluate the response to the previous prompt in terms of whether it satisfies this principle: {PRINCIPLE}. "
    "Only answer Yes or No."
)
# Others scale or cap their logits, which a bare row would leave out without a word.
_PLAIN_LOGITS = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def read_output_row(place: Checkpoint) -> Loaded:
    """Read a causal LM whose reward is in its output embedding, as that of the Nemotron reward models in HF form.

        row 0:   reward = h_last · W_out[0], the logit of vocabulary id 0 after the conversation's last token
        yes-no:  reward = h_last · (W_out[Yes] - W_out[No]), where the answer begins to whether a response satisfies a
                 principle: the log-odds of Yes

    Nothing in the files says so, and any other causal LM would give the logit of an ordinary word: so this layout is
    read only when the caller names it. The other rows are never read. A reward of NeMo's may differ from it by a
    constant, its head's bias, which a row cannot hold and no comparison notices.

    Source: the model cards of Llama-3.1-Nemotron-70B-Reward-HF and Llama-3.3-Nemotron-70B-Reward-Principle.

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
            f"{folder} holds {architecture} ({config.model_type}); head={place.head!r} reads causal LMs of the types "
            f"{', '.join(sorted(_PLAIN_LOGITS))}: leave head out for other layouts"
        )
    if config.tie_word_embeddings:
        raise ModelLoadError(
            f"{folder} has one matrix for input and output embedding: a row of it is a word's vector, not a reward head"
        )
    spec = ModelSpec(
        kind=own,
        dimension=1,
        max_length=min(_PUBLISHED_LENGTH, positions_of(config) or LONGEST),
        principle_question=None if place.head == _ROW else _QUESTION,
    )
    files = checkpoints.weight_files(folder)
    if place.head == _ROW:
        head = checkpoints.read_row(files, _EMBEDDING, 0)
    else:
        yes, no = (checkpoints.read_row(files, _EMBEDDING, token) for token in _answers(place))
        head = yes - no
    return Loaded(with_head(bare_backbone(folder, options), spec, {"value_head.weight": head}), spec)


def _answers(place: Checkpoint) -> list[int]:
    """Return the ids of Yes and No, each one token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.folder, trust_remote_code=place.options.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelLoadError(f"{place.folder} has no tokenizer that tells the tokens Yes and No: {error}") from error
    tokens = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("Yes", "No")]
    if any(len(ids) != 1 for ids in tokens):
        raise ModelLoadError(
            f"the tokenizer of {place.folder} writes Yes as {tokens[0]} and No as {tokens[1]}: head={place.head!r} "
            "needs one token for each"
        )
    return [ids[0] for ids in tokens]


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
    finds=lambda place: place.head == _ROW,
    reads=read_output_row,
)
PRINCIPLES = Family(
    "causal LMs that answer whether a response satisfies a principle (Llama-3.3-Nemotron-70B-Reward-Principle)",
    found_by='`head="lm-head-yes-no"`, said by the caller',
    becomes="`bradley-terry`, temperature 1, of 4,096 tokens: the log-odds of Yes against No where the answer to the "
    "card's question would begin; each request has its `principle`",
    finds=lambda place: place.head == "lm-head-yes-no",
    reads=read_output_row,
)
