"""What a preference model is, apart from its weights: the contents of ``paragone.json``, and its identity."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from paragone_models.errors import ModelLoadError
from paragone_models.kinds import KINDS, Kind, KindName
from paragone_models.steps import AGGREGATIONS, Aggregation
from paragone_models.symmetrise import Symmetrise

__all__ = [
    "PRINCIPLE",
    "BackboneReference",
    "Bos",
    "Gate",
    "Head",
    "ModelSpec",
    "PairFormat",
    "Pooling",
    "Reasoning",
    "SpecialTokens",
    "Symmetrise",
]

_FORMAT = 1
PRINCIPLE = "{principle}"
"""Stands for the principle in the question of a model that follows one."""

Pooling = Literal["last", "mean"]
Gate = Literal["none", "softmax", "attributes"]
SpecialTokens = Literal["escape", "parse"]
Bos = Literal["once", "as-published"]
Reasoning = Literal["keep", "strip"]
PairFormat = Literal["letters", "markers"]
Head = Literal["auto", "lm-head-row-0", "lm-head-yes-no"]
"""Where the head of a source is: what its files say, or a row of the output embedding, which nothing in them says."""

_CHOICES = {
    "kind": tuple(KINDS),
    "pooling": get_args(Pooling),
    "gate": get_args(Gate),
    "special_tokens": get_args(SpecialTokens),
    "bos": get_args(Bos),
    "reasoning": get_args(Reasoning),
    "pair_format": (None, *get_args(PairFormat)),
    "symmetrise": (None, *get_args(Symmetrise)),
}


def _is_number(value: Any) -> bool:
    # JSON's true is an integer to Python.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dimension": (_is_count, "an integer"),
    "max_length": (_is_count, "an integer"),
    "temperature": (_is_number, "a number"),
    "skew_weight": (_is_number, "a number"),
    "attributes": (lambda value: _is_list(value, lambda item: isinstance(item, str)), "a list of names"),
    "weights": (lambda value: value is None or _is_list(value, _is_number), "a list of numbers, or null"),
    "domain": (lambda value: value is None or isinstance(value, str), "a text, or null"),
    "principle_question": (lambda value: value is None or isinstance(value, str), "a text, or null"),
    "reward_token": (lambda value: value is None or _is_count(value), "a token id, or null"),
    "step_token": (lambda value: value is None or _is_count(value), "a token id, or null"),
    "gate_distance": (lambda value: value is None or _is_count(value), "a number of tokens, or null"),
    "aggregation": (lambda value: value is None or isinstance(value, str), "a name, or null"),
    "backbone": (lambda value: value is None or _is_reference(value), "source, revision and identity, or null"),
    **{
        name: (lambda value: isinstance(value, bool), "true or false")
        for name in ("calibrated", "normalise", "final_eos", "demonstration")
    },
}


def _is_reference(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"source", "revision", "identity"}:
        return False
    texts = [value["source"], value["identity"], value["revision"] or ""]
    return all(isinstance(text, str) for text in texts)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(of, value))


# Fields of a spec that change a representation; temperature, weights of all kinds and calibration only change answers.
_IDENTITY_FIELDS = (
    "kind",
    "dimension",
    "pooling",
    "gate",
    "normalise",
    "max_length",
    "special_tokens",
    "bos",
    "reasoning",
    "final_eos",
)
_RARE_IDENTITY_FIELDS = ("principle_question", "reward_token", "step_token", "pair_format", "gate_distance")


@dataclass(frozen=True)
class BackboneReference:
    """The backbone of a head that was saved alone.

    Attributes:
        source: as ``load_model`` takes it: a folder, a Hugging Face id or ``builtin:NAME``.
        revision: commit of a hub id, or None.
        identity: of its weights, tokenizer and code, from ``paragone_models.files.hashes.backbone_identity``.
    """

    source: str
    revision: str | None
    identity: str


@dataclass(frozen=True)
class ModelSpec:
    """Everything that turns hidden states into answers, and text into tokens.

    Attributes:
        kind: which head and comparator (see the table of kinds in docs/models.md).
        dimension: length d of a representation.
        attributes: names of the rated attributes, in the order of the head's rows.
        weights: how much each attribute counts in the reward; None means that a ``regression`` model rates but does not
            compare, and that a ``helpsteer`` model has the reward of its own head.
        temperature: what logits are divided by. 0.1 for published general preference models, 1 for Bradley-Terry.
        skew_weight: how much the skew form of a ``hybrid`` model counts beside its reward.
        calibrated: True once the temperature was fitted on held-out judgements.
        pooling: ``last`` reads the last token, ``mean`` averages the tokens after the prompt.
        gate: ``softmax`` weighs each 2-block by a softmax over the prompt's last hidden state (GPM's scale gate);
            ``attributes`` weighs the attributes into the reward by a network that reads the same state (ArmoRM).
        gate_distance: how many tokens before the prompt's end a gate reads (QRM of Gemma: 2); None: its last token.
        normalise: L2-normalise a general preference vector before the gate.
        special_tokens: ``escape`` keeps a special token's string inside a message as plain text; ``parse`` does not.
        bos: ``once`` never doubles the beginning-of-sequence token; ``as-published`` tokenises the rendered template
            with special tokens again, as several published models were trained.
        reasoning: ``strip`` removes a response's ``<think>`` part before it is scored.
        final_eos: overwrite the last token by the end-of-sequence token (published general preference models).
        principle_question: what a user asks after the response, with ``{principle}`` in it, of a model that follows a
            principle of each request; the reward is read where the answer would begin. None: it has no place for one.
        step_token: id of the token that closes each step of a response and is read, of a ``process`` model; else None.
        aggregation: what makes one reward of the steps, or None: then they are scored, and nothing is compared.
        reward_token: id of a token that is appended to each text and read (InternLM2's reward models), or None.
        pair_format: of a pairwise model, ``letters`` or ``markers``, see ``paragone_models.text.pairs``; else None.
        symmetrise: how a pairwise model's two orders become log-odds, see ``paragone_models.symmetrise``; else None.
        domain: what the model knows, in words, or None.
        demonstration: True for models that show the software, not a judgement to rely on.
        backbone: where the backbone is, of a head that was saved alone; None where both are in one folder.
    """

    kind: KindName
    dimension: int
    attributes: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    temperature: float = 1.0
    skew_weight: float = 1.0
    calibrated: bool = False
    pooling: Pooling = "last"
    gate: Gate = "none"
    gate_distance: int | None = None
    normalise: bool = False
    max_length: int = 4096
    special_tokens: SpecialTokens = "escape"
    bos: Bos = "once"
    reasoning: Reasoning = "keep"
    final_eos: bool = False
    principle_question: str | None = None
    reward_token: int | None = None
    step_token: int | None = None
    aggregation: Aggregation | None = None
    pair_format: PairFormat | None = None
    symmetrise: Symmetrise | None = None
    domain: str | None = None
    demonstration: bool = False
    backbone: BackboneReference | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ModelLoadError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(str, allowed))}"
                )
        # From here on the kind is one of those that exist, and has rules.
        if not 0 < self.temperature < float("inf"):
            raise ModelLoadError(f"temperature is {self.temperature}; it must be a positive number")
        self._check_skew_weight()
        if self.max_length < 1:
            raise ModelLoadError(f"max_length is {self.max_length}; it must be at least 1 token")
        if not self.rules.dimension_fits(self.dimension, len(self.attributes)):
            raise ModelLoadError(
                f"dimension {self.dimension} with {len(self.attributes)} attributes does not fit kind {self.kind}: "
                f"{self.rules.dimension_rule}"
            )
        if len(set(self.attributes)) < len(self.attributes):
            raise ModelLoadError(f"attributes are {list(self.attributes)}; every name may occur once")
        if self.weights is not None:
            self._check_weights(self.weights)
        self._check_steps()
        if self.principle_question is not None and PRINCIPLE not in self.principle_question:
            raise ModelLoadError(f"principle_question is {self.principle_question!r}: it has no {PRINCIPLE} in it")
        if (self.pair_format is None, self.symmetrise is None) != (not self.rules.reads_pairs,) * 2:
            raise ModelLoadError(
                f"pair_format and symmetrise say how a pairwise model reads two responses; this one is {self.kind}"
            )
        if self.gate == "softmax" and not self.rules.has_vector:
            raise ModelLoadError(f"a gate scales general preference blocks; kind {self.kind} has none")
        if self.gate == "attributes" and not (self.rules.has_reward and self.rules.has_attributes):
            raise ModelLoadError(f"a gate weighs attributes into a reward; kind {self.kind} has not both")
        if self.gate_distance is not None and (self.gate == "none" or self.gate_distance < 1):
            raise ModelLoadError(
                f"gate_distance is {self.gate_distance}, and the gate {self.gate}: a gate reads the prompt 1 or more "
                "tokens before its end"
            )

    def _check_steps(self) -> None:
        if self.rules.has_steps != (self.step_token is not None):
            raise ModelLoadError(
                f"step_token is {self.step_token} and the kind {self.kind}: a process model has one, and no other has"
            )
        if self.aggregation is None:
            return
        if not self.rules.has_steps:
            raise ModelLoadError(f"aggregation makes one reward of steps; this model is {self.kind}: leave it out")
        if self.aggregation not in AGGREGATIONS:
            raise ModelLoadError(f"aggregation is {self.aggregation!r}; it must be one of {', '.join(AGGREGATIONS)}")

    def _check_skew_weight(self) -> None:
        if not 0 <= self.skew_weight < float("inf"):
            raise ModelLoadError(f"skew_weight is {self.skew_weight}; it must be a finite number of at least 0")
        if self.skew_weight != 1 and not self.rules.weighs_skew:
            raise ModelLoadError(
                f"skew_weight weighs the skew form of a hybrid model beside its reward; this one is {self.kind}: leave "
                "it out"
            )

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        if len(weights) != len(self.attributes):
            raise ModelLoadError(
                f"{len(weights)} weights for {len(self.attributes)} attributes ({', '.join(self.attributes)}): "
                "give one weight per attribute"
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise ModelLoadError(f"weights are {list(weights)}; they must be finite numbers")
        if not self.rules.has_attributes:
            raise ModelLoadError(f"weights merge the attributes of a model that has some; this one is {self.kind}")

    @property
    def rules(self) -> Kind:
        """What its kind holds and computes."""
        return KINDS[self.kind]

    @property
    def blocks(self) -> int:
        """Number of 2-blocks of the general preference part, 0 where there is none."""
        return self.rules.blocks(self.dimension)

    def identity(self, weights: str, tokenizer: str | None, code: str | None = None) -> str:
        """Return the identity of a model: equal if and only if its representations of all texts are meant to be equal.

        Args:
            weights: content hash, or hub id and commit, of backbone and head.
            tokenizer: from ``tokenizer_hash``, or None where the model has none.
            code: content hash of the code that came with it and runs, or None.

        Returns:
            64 hexadecimal digits.
        """
        # By name and sorted: the order of fields may change, the identity may not.
        values = asdict(self)
        parts = {"weights": weights, "tokenizer": tokenizer, **{name: values[name] for name in _IDENTITY_FIELDS}}
        # Only where they are set: identities of models that have none stay what they were.
        parts |= {name: values[name] for name in _RARE_IDENTITY_FIELDS if values[name] is not None}
        if code is not None:
            parts["code"] = code
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def fingerprint(self, identity: str, numerics: Mapping[str, str]) -> str:
        """Return the fingerprint of a model's answers: identity, numerics, and what turns representations into answers.

        Args:
            numerics: dtype, kernels and library versions.

        Returns:
            32 hexadecimal digits.
        """
        answers: list[Any] = [self.temperature, self.weights, self.attributes, self.calibrated]
        # Only where it was set: fingerprints of models that have none stay what they were.
        answers += [self.skew_weight] if self.skew_weight != 1 else []
        answers += [] if self.aggregation is None else [self.aggregation]
        answers += [] if self.symmetrise is None else [self.symmetrise]
        parts = [identity, dict(numerics), answers]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """Return the text of ``paragone.json``."""
        values = asdict(self)
        for name in ("backbone", "aggregation", "symmetrise", *_RARE_IDENTITY_FIELDS):
            if values[name] is None:
                del values[name]
        if self.skew_weight == 1:
            del values["skew_weight"]
        return json.dumps({"format": _FORMAT, **values}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelSpec":
        """Read ``paragone.json``.

        Raises:
            ModelLoadError: if it is no JSON object, of a later format, or has unknown or impossible fields.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ModelLoadError(f"paragone.json is not JSON: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise ModelLoadError(f"paragone.json is not of format {_FORMAT}: a newer version of paragone may read it")
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Build a spec from plain values, refusing unknown names.

        Raises:
            ModelLoadError: if a field is unknown, missing or impossible.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ModelLoadError(f"paragone.json has unknown fields {unknown}; known are {sorted(known)}")
        if missing := {"kind", "dimension"} - set(values):
            raise ModelLoadError(f"paragone.json lacks {sorted(missing)}")
        settings = dict(values)
        settings["attributes"] = settings.get("attributes") or ()
        for name, (fits, rule) in _TYPES.items():
            if name in settings and not fits(settings[name]):
                raise ModelLoadError(f"{name} is {settings[name]!r}; it must be {rule}")
        settings["attributes"] = tuple(settings["attributes"])
        if settings.get("weights") is not None:
            settings["weights"] = tuple(float(weight) for weight in settings["weights"])
        if settings.get("backbone") is not None:
            settings["backbone"] = BackboneReference(**settings["backbone"])
        return cls(**settings)
