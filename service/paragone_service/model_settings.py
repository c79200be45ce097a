"""How one model is set, in ``[models.NAME]`` or ``--model``: one that is loaded, a judge elsewhere, or an ensemble."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from paragone_models.files.sources import check_builtin
from paragone_models.kinds import KindName
from paragone_models.spec import Bos, Head, Reasoning, SpecialTokens, Symmetrise
from paragone_models.steps import Aggregation
from paragone_service.judge.settings import SCHEME, JudgeSettings
from paragone_service.pairs.ensemble_settings import ENSEMBLE, EnsembleSettings

__all__ = ["MODEL_TAGS", "AnyModelSettings", "ModelSettings"]


class ModelSettings(BaseModel):
    """How one model is loaded; ``[models.NAME]`` in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    """A built-in (``builtin:…``), a Hugging Face id or a folder."""
    kind: Literal["auto", KindName] = "auto"
    """The model's kind; ``auto`` finds it out."""
    head: Head = "auto"
    """Where its head is: ``auto`` finds it out; ``lm-head-row-0`` for Nemotron reward models in Hugging Face form."""
    device: str | None = None
    """Where it runs; None: the service's ``device`` or ``devices``."""
    devices: str | None = None
    """On which devices it has a replica each; None: those of the service."""
    dtype: str | None = None
    """What its backbone computes in; None: the service's ``dtype``."""
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What logits are divided by; None: the model's own."""
    skew_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How much the skew form of a hybrid model counts beside its reward; None: the model's own."""
    weights: dict[str, float] | tuple[float, ...] | None = None
    """What merges a model's attributes into the reward: by name, or in the attributes' order."""
    aggregation: Aggregation | None = None
    """What makes one reward of the steps of a process model: ``min``, ``prod`` or ``last``; None: nothing."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest conversation, in tokens; None: the model's own."""
    special_tokens: SpecialTokens | None = None
    """What a special token's text inside a message is: ``escape`` (text) or ``parse``."""
    bos: Bos | None = None
    """Whether a beginning-of-sequence token may be doubled, ``as-published``, or not, ``once``."""
    reasoning: Reasoning | None = None
    """Whether a response's thoughts are scored, ``keep``, or removed before, ``strip``."""
    symmetrise: Symmetrise | None = None
    """How a pairwise model's two orders become log-odds: mean-logit, mean-probability, sum or none; None: its own."""
    chat_template: str | None = None
    """A chat template of the tokenizer by name, or a file with one; None: its default, and ``tool_use`` for tools."""
    backbone: str | None = None
    """Where the backbone of a head that was saved alone is; None: where the head says."""
    revision: str | None = None
    """Revision of a Hugging Face id."""
    trust_remote_code: bool = False
    """Whether the model may bring Python code of its own; it runs with the service's rights."""
    deterministic: bool = False
    """Whether a representation depends on its own text alone, bit for bit, whatever shares its batch. Slower."""
    prompt_cache_mb: float | None = Field(default=None, ge=0)
    """Memory for keys and values of prompts, in MB (10⁶ bytes); None: what suits the device."""

    @field_validator("source")
    @classmethod
    def _built_in_models_are_there(cls, source: str) -> str:
        check_builtin(source)
        return source


_LOADED, _JUDGE, _ENSEMBLE = "<model>", "<judge>", "<ensemble>"
MODEL_TAGS: Mapping[str, type[BaseModel]] = {_LOADED: ModelSettings, _JUDGE: JudgeSettings, _ENSEMBLE: EnsembleSettings}
"""What pydantic calls each of them in an error's place, and the keys that it has."""


def _model_kind(value: Any) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    starts = {SCHEME: _JUDGE, ENSEMBLE: _ENSEMBLE}
    tags = (tag for start, tag in starts.items() if isinstance(source, str) and source.startswith(start))
    return next(tags, _LOADED)


AnyModelSettings = Annotated[
    Annotated[ModelSettings, Tag(_LOADED)]
    | Annotated[JudgeSettings, Tag(_JUDGE)]
    | Annotated[EnsembleSettings, Tag(_ENSEMBLE)],
    Discriminator(_model_kind),
]
