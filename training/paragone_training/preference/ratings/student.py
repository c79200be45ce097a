"""What a rated kind goes on from: the backbone, tokenizer and head of a trained model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paragone_models.errors import ModelLoadError
from paragone_models.files.loading import load_model
from paragone_models.model import PreferenceModel
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_training.errors import RecipeError
from paragone_training.preference.backbone import Student, build_student, check_fit
from paragone_training.preference.recipe import Recipe

__all__ = ["Start", "build_rated_student", "reward_on_top"]


@dataclass(frozen=True)
class Start:
    """A model that training goes on from.

    Attributes:
        source: as the recipe names it.
        identity: hash of all that its representations depend on.
        spec: what it is.
    """

    source: str
    identity: str
    spec: ModelSpec


def build_rated_student(recipe: Recipe, texts: Iterable[str]) -> tuple[Student, Start | None]:
    """Return the network that a recipe trains, and what it goes on from.

    Args:
        recipe: which one.
        texts: of the training rows, for a tokenizer that is trained.

    Raises:
        RecipeError: if the start cannot be loaded, or does not fit the recipe.
    """
    if recipe.model.start is None:
        return build_student(recipe, texts), None
    try:
        model = load_model(recipe.model.start, device="cpu", dtype="float32")
    except ModelLoadError as error:
        raise RecipeError(f"model.start {recipe.model.start}: {error}") from error
    if model.reader is None:
        raise RecipeError(f"model.start {recipe.model.start} has no tokenizer files: there is nothing to read with")
    tokenizer, backbone = model.reader.tokenizer, model.network.backbone
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_fit(backbone, tokenizer, recipe)
    torch.manual_seed(recipe.training.seed)
    spec = recipe.spec
    if recipe.model.kind == "helpsteer":
        spec = _checked(recipe, model.spec)
        head = reward_on_top(model.network.head, model.spec, spec)
    elif model.kind == "regression" and model.spec.attributes == spec.attributes:
        head = _headed(spec, model.network.head.value_head)
    else:
        head = RepresentationHead(_width(model), spec)
    network = PreferenceNetwork(backbone, head).requires_grad_(requires_grad=True)
    return Student(network, tokenizer, spec), Start(model.provenance.source, model.identity, model.spec)


def reward_on_top(head: RepresentationHead, spec: ModelSpec, wanted: ModelSpec) -> RepresentationHead:
    """Return a regression head with a reward above its attributes: the attributes, merged by the model's weights.

        W_helpsteer = [w . W; W]

    Args:
        head: of a regression model.
        spec: of that model, with weights.
        wanted: of the helpsteer model.

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

    old = head.value_head
    if not isinstance(old, nn.Linear):
        raise RecipeError(f"only a linear head can be built upon, not {old}")
    linear = nn.Linear(old.in_features, wanted.dimension, bias=old.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(above(old.weight))
        if old.bias is not None:
            linear.bias.copy_(above(old.bias))
    return _headed(wanted, linear)


def _headed(spec: ModelSpec, linear: nn.Module) -> RepresentationHead:
    return RepresentationHead(int(getattr(linear, "in_features", 0)), spec, value_head=linear)


def _width(model: PreferenceModel) -> int:
    return int(model.network.config.get_text_config().hidden_size)


def _checked(recipe: Recipe, found: ModelSpec) -> ModelSpec:
    spec, source = recipe.spec, recipe.model.start
    if found.kind != "regression":
        raise RecipeError(f"model.start {source} is a {found.kind} model; a helpsteer model starts from a regression")
    if found.attributes != spec.attributes:
        raise RecipeError(
            f"model.start {source} rates {', '.join(found.attributes)}; model.attributes must be the same, in order"
        )
    if found.pooling != spec.pooling:
        raise RecipeError(f"model.start {source} reads the {found.pooling}; set model.pooling = {found.pooling!r}")
    return replace(spec, temperature=recipe.model.temperature or found.temperature)
