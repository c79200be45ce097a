"""Sequence classifiers of transformers: one label is a reward, several are rated attributes."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from paragone_models.errors import ModelLoadError
from paragone_models.files import checkpoints, quantised
from paragone_models.files.families.backbone import (
    LONGEST,
    Options,
    all_shapes,
    bare_backbone,
    chosen_kind,
    config_of,
    read_head,
    with_head,
    with_weights,
)
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.kinds import KINDS, KindName
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec

__all__ = ["ENCODERS", "ONE_LABEL", "SEVERAL_LABELS", "read_classifier"]

_FIRST_TOKEN = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "deberta-v2"})


def read_classifier(place: Checkpoint) -> Loaded:
    """Read a transformers sequence classifier: one label is a Bradley-Terry reward, several are rated attributes.

    Where config.json says nothing of labels there are as many as the head has rows; transformers would take two.

    Raises:
        ModelLoadError: if any weight is missing, newly initialised or left over, or the head is one this package cannot
            apply outside the model.
    """
    folder, options, shapes = place.folder, place.options, place.shapes
    config = config_of(folder, options)
    rows = _rows(shapes)
    if rows is not None and not any(place.stated.get(name) for name in ("id2label", "num_labels")):
        config.num_labels = rows
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    possible: tuple[KindName, ...] = ("bradley-terry", "regression") if len(labels) == 1 else ("regression",)
    # One label can be rated too, if the caller says so; several are never one reward.
    own = chosen_kind(place.kind, possible, f"{folder} is a classifier with {len(labels)} labels")
    spec = ModelSpec(
        kind=own,
        dimension=len(labels),
        attributes=tuple(labels) if KINDS[own].has_attributes else (),
        max_length=min(positions_of(config) or LONGEST, LONGEST),
    )
    if options.elsewhere:
        return _linear_classifier(folder, config, spec, options)
    # Loaded whole, because transformers knows how its classifiers are put together; then taken apart.
    linear = {"score.weight", "score.bias"} & set(shapes)
    model: Any = with_weights(AutoModelForSequenceClassification, folder, config, options, linear)
    backbone: nn.Module = getattr(model, model.base_model_prefix)
    if isinstance(getattr(model, "score", None), nn.Linear):
        # From the files: read in half precision the head would be another one. Its class has no place for a bias.
        tensors = quantised.dense_head(folder, config, model.score) or read_head(folder, options, linear)
        head = {name.replace("score", "value_head"): tensor for name, tensor in tensors.items()}
        return Loaded(with_head(backbone, spec, head), spec)
    if config.model_type in _FIRST_TOKEN:
        module = _FirstTokenHead(model)
        _restore_precision(module, model, folder, options)
        head_of = RepresentationHead(config.hidden_size, spec, value_head=module)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]  # it is the head's now, in float32
        return Loaded(PreferenceNetwork(backbone, head_of), spec, first_token=True)
    raise ModelLoadError(
        f"{folder} is a {config.model_type} classifier, whose head is neither one linear layer named score nor one of "
        f"{', '.join(sorted(_FIRST_TOKEN))}: it cannot be hosted yet"
    )


def _rows(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Return the rows of a classifier's last layer, or None if it has another name."""
    for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if len(shapes.get(name, ())) == 2:
            return shapes[name][0]
    return None


def _restore_precision(head: nn.Module, model: nn.Module, folder: Path, options: Options) -> None:
    """Make a head's parameters those of the files in float32; they were loaded in the backbone's dtype."""
    own = {id(parameter) for parameter in head.parameters()}
    names = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}
    stored = read_head(folder, options, set(names) & set(all_shapes(folder, options)))
    head.float()
    for name, tensor in stored.items():
        names[name].data.copy_(tensor)


def _linear_classifier(folder: Path, config: Any, spec: ModelSpec, options: Options) -> Loaded:
    """Return a classifier whose backbone runs elsewhere: its head alone is read."""
    files = checkpoints.weight_files(folder)
    names = {"score.weight", "score.bias"} & set(checkpoints.tensor_shapes(files))
    if "score.weight" not in names:
        raise ModelLoadError(
            f"{folder} is a {config.model_type} classifier without one linear layer named score: its backbone can run "
            "in this process only"
        )
    tensors = checkpoints.read_tensors(files, names)
    head = {name.replace("score", "value_head"): tensor for name, tensor in tensors.items()}
    return Loaded(with_head(bare_backbone(folder, options, names), spec, head), spec)


class _FirstTokenHead(nn.Module):
    """The pooler and classifier of an encoder, applied to its first token's hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        pooler = getattr(model, "pooler", None) or getattr(getattr(model, str(model.base_model_prefix)), "pooler", None)
        self.pooler: nn.Module | None = pooler
        self.classifier: nn.Module = model.classifier  # type: ignore[assignment]  # torch types every attribute as Tensor | Module

    def forward(self, hidden: Tensor) -> Tensor:
        sequence = hidden[:, None, :]
        features = sequence if self.pooler is None else self.pooler(sequence)
        values: Tensor = self.classifier(features)
        return values


def _labels(place: Checkpoint) -> int:
    """Return how many labels a classifier has, as far as its files tell."""
    stated = place.stated
    if stated.get("id2label") or stated.get("num_labels"):
        return int(stated.get("num_labels") or len(stated["id2label"]))
    return _rows(place.shapes) or 2


ENCODERS = Family(
    "sequence classifiers of BERT, RoBERTa, XLM-R, CamemBERT and DeBERTa (OpenAssistant's DeBERTa)",
    found_by="`…ForSequenceClassification` and the type in config.json",
    becomes="`bradley-terry` of one label, `regression` of several, read at the first token; without a chat template "
    "of prompt and response as a text pair",
    finds=lambda place: place.is_classifier and place.stated.get("model_type") in _FIRST_TOKEN,
    reads=read_classifier,
)
ONE_LABEL = Family(
    "sequence classifiers of transformers, one label: Skywork (V1, V2), FsfairX, OffsetBias, GRM's fine-tuned, Tulu, "
    "OLMo, Nemotron of Qwen",
    found_by="`…ForSequenceClassification` in config.json",
    becomes="`bradley-terry`, temperature 1; Gemma 2 runs eagerly",
    finds=lambda place: place.is_classifier and _labels(place) == 1,
    reads=read_classifier,
)
SEVERAL_LABELS = Family(
    "sequence classifiers of transformers, several labels",
    found_by="the same; as many as the head has rows where the config says nothing of labels",
    becomes="`regression`, attributes named by `id2label`",
    finds=lambda place: place.is_classifier,
    reads=read_classifier,
)
