"""The parts of a model that is trained: backbone, tokenizer and head, from random weights, a checkpoint or a model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, Qwen3Model

from paragone_models.errors import ModelLoadError
from paragone_models.files.loading import load_model
from paragone_models.files.saving import is_storable
from paragone_models.files.sources import resolve
from paragone_models.kinds import KINDS
from paragone_models.model import PreferenceModel
from paragone_models.network import AnyHead, PreferenceNetwork, RepresentationHead, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec
from paragone_models.text.pair_reader import PairReader
from paragone_models.text.reader import TextReader
from paragone_training.errors import RecipeError
from paragone_training.preference.recipe import Recipe
from paragone_training.scratch.decoder import decoder_config, train_tokenizer
from paragone_training.scratch.sections import BackboneSection, TokenizerSection

# What a head's numbers mean, and how a text is read that they are computed from.
_MEANING = ("kind", "attributes", "dimension", "pooling", "gate", "normalise")
_READING = ("special_tokens", "bos", "reasoning", "final_eos")

__all__ = ["ModelParts", "build_model", "reward_on_top"]


@dataclass(frozen=True)
class _Start:
    """A model that training goes on from: as the recipe names it, the hash of what it represents, and what it is."""

    source: str
    identity: str
    spec: ModelSpec


@dataclass
class ModelParts:
    """A model before it is saved.

    Attributes:
        start: the model that it goes on from, or None.
        head_origin: whether the head is kept from a trained model or new, and why; None with a backbone from random
            weights.
        fitted: whether the head was fitted to the backbone as it is, and nothing was trained since.
    """

    network: PreferenceNetwork
    tokenizer: Any
    spec: ModelSpec
    start: _Start | None = None
    head_origin: str | None = None
    fitted: bool = False

    @property
    def reader(self) -> TextReader:
        """What reads its texts: responses, or pairs of them."""
        reads = PairReader if self.spec.rules.reads_pairs else TextReader
        return reads(self.tokenizer, self.spec)

    @property
    def pad_id(self) -> int:
        """The token that fills up shorter sequences."""
        return int(self.tokenizer.pad_token_id)


def build_model(recipe: Recipe, texts: Iterable[str]) -> ModelParts:
    """Return the parts of the model that a recipe trains.

    Args:
        texts: of the training rows, for a tokenizer that is trained; nothing else is read from them.

    Raises:
        RecipeError: if start, backbone or tokenizer cannot be loaded, or do not fit the recipe.
    """
    if KINDS[recipe.model.kind].reads_pairs:
        return _reading_pairs(recipe)
    if recipe.model.start is not None:
        return _go_on_from(recipe.model.start, recipe)
    if needed := KINDS[recipe.model.kind].starts_from:
        raise RecipeError(
            f"model.start is missing; a {recipe.model.kind} model starts from a trained {needed} model: name it"
        )
    tokenizer = _tokenizer(recipe.tokenizer, recipe.backbone, texts, recipe.model.max_length)
    # The tokenizer is trained without chance; weights are drawn from here on, backbone first, then the head.
    torch.manual_seed(recipe.training.seed)
    if recipe.backbone.source is None:
        config = decoder_config(recipe.backbone, tokenizer, recipe.model.max_length, use_cache=False)
        backbone: Any = Qwen3Model(config)
        origin = None
    else:
        parts, reason = _from_reward_model(recipe.backbone.source, recipe, tokenizer)
        if parts:
            return parts
        torch.manual_seed(recipe.training.seed)
        backbone = _from_checkpoint(recipe.backbone.source, recipe.backbone)
        origin = f"new: {reason}"
    recipe = _fitting(recipe, backbone, tokenizer)
    head = RepresentationHead(output_width(backbone.config), recipe.spec)
    return ModelParts(PreferenceNetwork(backbone, head), tokenizer, recipe.spec, head_origin=origin)


def reward_on_top(head: AnyHead, spec: ModelSpec, rewarding: ModelSpec) -> RepresentationHead:
    """Return a regression head with a reward above its attributes: the attributes, merged by the model's weights.

        W_helpsteer = [w . W; W]

    Args:
        spec: of that model, with weights.

    Raises:
        RecipeError: if the regression model has no weights.
    """
    if spec.weights is None:
        raise RecipeError(
            "the regression model has no weights to start a reward from: train it with pairs in data.train, so that "
            "they are fitted"
        )
    weights = torch.tensor(spec.weights)

    def above(rows: Tensor) -> Tensor:
        return torch.cat([torch.tensordot(weights, rows.float(), dims=1)[None], rows.float()])

    # A published head may have several layers; nothing can be put on top of those by weights alone.
    old = head.value_head
    if not isinstance(old, nn.Linear):
        raise RecipeError(f"only a linear head can be built upon, not {old}")
    linear = nn.Linear(old.in_features, rewarding.dimension, bias=old.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(above(old.weight))
        if old.bias is not None:
            linear.bias.copy_(above(old.bias))
    return RepresentationHead(old.in_features, rewarding, value_head=linear)


def _tokenizer(section: TokenizerSection, backbone: BackboneSection, texts: Iterable[str], max_length: int) -> Any:
    source = section.source or backbone.source
    if source is None:
        return train_tokenizer(texts, section.vocabulary_size, max_length=max_length)
    try:
        # The built-in models share a tokenizer, which is in none of their folders.
        place = resolve(source, None).tokenizer_folder if source.startswith("builtin:") else source
        tokenizer = AutoTokenizer.from_pretrained(place, revision=None if section.source else backbone.revision)
    except (ModelLoadError, OSError, ValueError) as error:
        raise RecipeError(f"cannot load a tokenizer from {source}: {error}") from error
    return _padding(tokenizer)


def _padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        # Any token will do: a padded position is masked, and nothing reads it.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_checkpoint(source: str, section: BackboneSection) -> Any:
    options = {"revision": section.revision, "attn_implementation": section.attention}
    try:
        # The configuration is read alone first: an encoder-decoder is refused before its weights are fetched.
        config = AutoConfig.from_pretrained(source, revision=section.revision)
        if getattr(config, "is_encoder_decoder", False):
            raise RecipeError(f"{source} is an encoder-decoder; a backbone must be a decoder or an encoder")
        # Weights stay in float32 while they are trained: small steps vanish in bfloat16. ``bf16`` casts passes alone.
        return AutoModel.from_pretrained(source, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"cannot load the backbone {source}: {error}") from error


def _fitting(recipe: Recipe, backbone: Any, tokenizer: Any) -> Recipe:
    """Return the recipe with a length that the backbone has; refuse one with fewer tokens than the tokenizer."""
    config = backbone.config
    recipe = recipe.within(positions_of(config))
    # An embedding may have more rows than there are tokens (many are padded to a round number), never fewer.
    vocabulary = config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise RecipeError(
            f"the tokenizer has {len(tokenizer)} tokens and the backbone's embedding {vocabulary}: they do not "
            "belong together"
        )
    return recipe


def _go_on_from(source: str, recipe: Recipe) -> ModelParts:
    """Return the parts of a model that goes on from another: backbone and tokenizer, and the head where it fits."""
    try:
        model = load_model(source, device="cpu", dtype="float32")
    except ModelLoadError as error:
        raise RecipeError(f"model.start {source}: {error}") from error
    if model.reader is None:
        raise RecipeError(f"model.start {source} has no tokenizer files: there is nothing to read with")
    return _on_top(model, _padding(model.reader.tokenizer), recipe, f"model.start {source}")


def _from_reward_model(source: str, recipe: Recipe, tokenizer: Any) -> tuple[ModelParts | None, str]:
    """Return the parts of a model that goes on from a reward model, or None and why the source is none."""
    # Asked of the loader that serves models: what it finds no head in has none that is known.
    try:
        model = load_model(source, device="cpu", dtype="float32", revision=recipe.backbone.revision)
    except ModelLoadError as error:
        if recipe.model.head == "keep":
            raise RecipeError(f"model.head is 'keep', and backbone.source {source}: {error}") from error
        return None, str(error)
    _attend(model.network, recipe)
    return _on_top(model, tokenizer, recipe, f"backbone.source {source}"), ""


def _reading_pairs(recipe: Recipe) -> ModelParts:
    """Return the parts of a causal LM that answers A or B: its backbone, and the two letters' rows as the head."""
    asked = recipe.model
    source, name = (asked.start, "model.start") if asked.start else (recipe.backbone.source, "backbone.source")
    assert source is not None  # the recipe sees to it
    revision = None if asked.start else recipe.backbone.revision
    try:
        model = load_model(source, kind=asked.kind, device="cpu", dtype="float32", revision=revision)
    except ModelLoadError as error:
        raise RecipeError(f"{name} {source}: {error}") from error
    network = model.network
    if model.reader is None:
        raise RecipeError(f"{name} {source} has no tokenizer files: there is nothing to read with")
    if model.spec.pair_format != recipe.spec.pair_format:
        raise RecipeError(
            f"{name} {source} reads pairs by {model.spec.pair_format}; what is trained here answers by letters: name a "
            "causal LM"
        )
    tokenizer = _padding(model.reader.tokenizer)
    recipe = _fitting(recipe, network.backbone, tokenizer)
    _attend(network, recipe)
    kept = {field: getattr(model.spec, field) for field in (*_READING, "symmetrise", "temperature")}
    given = {"symmetrise": asked.symmetrise, "temperature": asked.temperature}
    spec = replace(recipe.spec, **kept | {field: value for field, value in given.items() if value is not None})
    network.head.spec = spec
    network.requires_grad_(requires_grad=True)
    start = _Start(model.provenance.source, model.identity, model.spec)
    return ModelParts(network, tokenizer, spec, start, f"kept, the output rows of A and B: {name} {source}")


def _attend(network: PreferenceNetwork, recipe: Recipe) -> None:
    """Have a loaded network attend as the recipe says."""
    if network.config._attn_implementation != recipe.backbone.attention:  # noqa: SLF001 - no other name
        backbone: Any = network.backbone
        backbone.set_attn_implementation(recipe.backbone.attention)


def _on_top(model: PreferenceModel, tokenizer: Any, recipe: Recipe, name: str) -> ModelParts:
    """Return a loaded model's backbone with its own head, if that means the same in the recipe, or with a new one."""
    network = model.network
    recipe = _fitting(recipe, network.backbone, tokenizer)
    spec = recipe.spec
    torch.manual_seed(recipe.training.seed)
    start = _Start(model.provenance.source, model.identity, model.spec)
    # How a text was read is part of what backbone and head know.
    spec = replace(spec, **{field: getattr(model.spec, field) for field in _READING})
    if "normalise" not in recipe.model.model_fields_set and spec.kind == model.spec.kind:
        # Fitted vectors are not normalised, and the recipe that fitted one goes on from it.
        spec = replace(spec, normalise=model.spec.normalise)
    width, misfit, fitted = output_width(network.config), _misfit(model, spec), False
    head: AnyHead
    if KINDS[spec.kind].starts_from == model.spec.kind or (KINDS[spec.kind].starts_from and misfit):
        # Training begins with the answers of the model it starts from: its merged attributes are the reward.
        spec = replace(_continued(recipe, model.spec, name), **{field: getattr(spec, field) for field in _READING})
        head, origin = reward_on_top(network.head, model.spec, spec), f"kept, with its merged ratings on top: {name}"
    elif recipe.model.head == "new":
        head, origin = RepresentationHead(width, spec), "new, as asked"
    elif misfit is None:
        # Now, and not when everything was trained and is to be saved.
        if not is_storable(network.head.value_head, width, spec.dimension):
            raise RecipeError(f"{name} has a head that cannot be saved after training: {network.head.value_head}")
        spec = replace(spec, temperature=recipe.model.temperature or model.spec.temperature)
        head, origin = network.head, f"kept: {name}"
        head.spec = spec
        fitted = model.spec.backbone is not None
    elif recipe.model.head == "keep":
        raise RecipeError(f"model.head is 'keep', and {name} {misfit}: make the recipe the same, or take 'new'")
    else:
        head, origin = RepresentationHead(width, spec), f"new: {name} {misfit}"
    network.head = head
    # A loaded model is frozen.
    network.requires_grad_(requires_grad=True)
    return ModelParts(network, tokenizer, spec, start, origin, fitted)


def _misfit(model: PreferenceModel, spec: ModelSpec) -> str | None:
    """Return why a loaded model's head would mean something else under the recipe's spec, or None."""
    if model.first_token:
        return "reads the first token of a text, and what is trained here reads the last or a mean"
    for field in _MEANING:
        old, new = getattr(model.spec, field), getattr(spec, field)
        if old != new:
            return f"has {field} {list(old) if isinstance(old, tuple) else old}, and the recipe {new}"
    return None


def _continued(recipe: Recipe, start: ModelSpec, name: str) -> ModelSpec:
    """Return what a model is that takes the head of its start over, with the start's temperature unless given."""
    spec = recipe.spec
    needed = KINDS[spec.kind].starts_from
    if start.kind != needed:
        raise RecipeError(f"{name} is a {start.kind} model; a {spec.kind} model starts from a {needed}")
    if start.attributes != spec.attributes:
        raise RecipeError(f"{name} rates {', '.join(start.attributes)}; model.attributes must be the same, in order")
    if start.pooling != spec.pooling:
        raise RecipeError(f"{name} reads the {start.pooling}; set model.pooling = {start.pooling!r}")
    return replace(spec, temperature=recipe.model.temperature or start.temperature)
