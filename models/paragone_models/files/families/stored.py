"""Backbones with a head among or beside their tensors, of which config.json says nothing."""

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import (
    LONGEST,
    bare_backbone,
    chosen_kind,
    config_of,
    read_head,
    with_head,
)
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.heads import StoredHead, standardised
from paragone_models.kinds import KINDS, KindName
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["DEEP_HEADS", "GENERAL_PREFERENCE", "LINEAR_HEADS", "read_stored_head"]

_PUBLISHED_LENGTH = 4096
_PUBLISHED = "value_head"


def read_stored_head(place: Checkpoint) -> Loaded:
    """Read a backbone with a head beside its tensors, of which config.json says nothing.

    ``value_head.weight`` [d, H], perhaps with ``prompt_head.weight`` [d/2, H], is the layout of the published general
    preference models and of OpenRLHF; temperature 0.1, L2 normalisation, the softmax gate and the overwritten last
    token are theirs. Under any other name a head of one row is a Bradley-Terry reward, and one of several rows rates.

    Rewards that a trainer standardises are (reward − mean) / std; a temperature of 1 / std then keeps preferences as
    they were trained.

    Raises:
        ModelLoadError: if the shapes do not fit each other or the kind asked for, or the rewards are read in a way that
            the tensors do not tell.
    """
    folder, options, found = place.folder, place.options, _head_of(place)
    published = found.prefix == _PUBLISHED
    possible: tuple[KindName, ...] = ("bradley-terry", "regression")
    if found.rows > 1:
        possible = ("general-preference",) if published else ("regression",)
    own = chosen_kind(place.kind, possible, f"{folder} has a head {found.prefix} of {found.rows} rows")
    rules = KINDS[own]
    if found.gated and not rules.has_vector and found.rows > 1:
        raise ModelLoadError(f"{folder} has a gate, prompt_head.weight, beside a head of kind {own}, which has none")
    tensors, std = standardised(found, read_head(folder, options, found.claimed))
    if not rules.has_vector:
        # The gate of a single row weighs it by softmax(x) = 1.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("prompt_head")}
    config = config_of(folder, options)
    longest = _PUBLISHED_LENGTH if published else LONGEST
    spec = ModelSpec(
        kind=own,
        dimension=found.rows,
        attributes=tuple(f"LABEL_{row}" for row in range(found.rows)) if rules.has_attributes else (),
        temperature=rules.default_temperature / std,
        gate="softmax" if rules.has_vector and found.gated else "none",
        normalise=rules.has_vector,
        max_length=min(longest, positions_of(config) or LONGEST),
        final_eos=published,
    )
    return Loaded(with_head(bare_backbone(folder, options, found.claimed), spec, tensors), spec)


def _head_of(place: Checkpoint) -> StoredHead:
    assert place.stored is not None  # else it were of another family
    # InternLM2's and its like append this token and read there; the head's shape does not tell.
    if place.stated.get("reward_token_id") is not None:
        raise ModelLoadError(
            f"{place.folder} reads its reward at a token of its own (reward_token_id "
            f"{place.stated['reward_token_id']}), which is known of InternLM2 alone: its rewards would be read at "
            "another token"
        )
    return place.stored


def _has_own_head(place: Checkpoint) -> bool:
    # transformers knows how its own classifiers are put together; every other head is found by its tensors.
    found = place.stored
    return found is not None and (found.deep or not (place.is_classifier and found.prefix == "score"))


GENERAL_PREFERENCE = Family(
    "published general preference models, OpenRLHF",
    found_by="a tensor `value_head.weight` [d, hidden]",
    becomes="`general-preference` with temperature 0.1, L2 and the overwritten last token; a gate if there is a "
    "`prompt_head.weight`; `bradley-terry` if d is 1",
    finds=lambda place: _has_own_head(place) and place.stored is not None and place.stored.prefix == _PUBLISHED,
    reads=read_stored_head,
)
DEEP_HEADS = Family(
    "heads of several linear layers with a ReLU between them: INF-ORM, Qwen2.5-Math-RM, WorldPM, GRM",
    found_by="tensors `score.0`, `score.2`, … or `v_head.summary.0`, …, perhaps a layer norm in front",
    becomes="`bradley-terry`, or `regression` of several rows; other names are refused, because no file says which "
    "activation they have",
    finds=lambda place: _has_own_head(place) and place.stored is not None and place.stored.deep,
    reads=read_stored_head,
)
LINEAR_HEADS = Family(
    "one linear head on the last token: Eurus, UltraRM, Starling, TRL, LLaMA-Factory, DeepSpeed-Chat",
    found_by="a tensor `v_head.summary`, `v_head`, `score`, `regression_head`, `reward_head` or `rm_head` `.weight`, "
    "also in `value_head.safetensors`",
    becomes="`bradley-terry`, or `regression` of several rows",
    finds=_has_own_head,
    reads=read_stored_head,
)
