"""Recipes: TOML files read into frozen pydantic models, and refused in one line that names value, limit and remedy.

A setting is described once, in the docstring of its field; ``settings_tables`` writes the tables of the documents from
there.
"""

import difflib
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    Strict,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo

from paragone.toml_values import toml_value
from paragone_evaluation.readers import HUB, BadRowsPolicy, ReadOptions
from paragone_training.errors import RecipeError

__all__ = [
    "DataFile",
    "DataFiles",
    "DataSection",
    "LoraSection",
    "Names",
    "Rate",
    "RecipeFile",
    "Section",
    "Share",
    "as_toml",
    "kind_and_limit",
    "load",
    "parse",
]

# Where a setting is here, and what trainers of other projects call it. Of several places the first counts that a recipe
# has. By spelling alone ``per_device_train_batch_size`` would be ``learning_rate``. Source: the argument lists of TRL,
# transformers, axolotl, LLaMA-Factory, OpenRLHF and verl.
_NAMES_ELSEWHERE = {
    "backbone.attention policy.attention": "attn_implementation flash_attention",
    "backbone.source policy.source": "base_model model_name model_name_or_path pretrain",
    "data.evaluate evaluation.prompts": "eval_dataset val_files",
    "data.limit data.per_iteration": "max_samples",
    "data.train data.prompts data.groups": "dataset dataset_name datasets train_files",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.rank": "lora_r lora_rank",
    "lora.targets": "lora_target lora_target_modules target_modules",
    "loss.label_smoothing loss.certainty": "label_smoothing",
    "loss.name method": "loss_type",
    "model.max_length policy.max_length max_length": "cutoff_len max_len max_seq_length sequence_len",
    "output.folder": "output_dir",
    "output.trackers": "report_to",
    "policy.dtype output.dtype": "torch_dtype",
    "sampling.max_new_tokens": "max_completion_length max_response_length",
    "sampling.responses": "num_generations rollout_n",
    "training.accumulation training.pairs_per_step": "gradient_accumulation_steps",
    "training.batch_responses training.pairs_per_pass training.batch_tokens": (
        "micro_batch_size micro_train_batch_size per_device_train_batch_size"
    ),
    "training.batch_responses training.pairs_per_step training.batch_tokens": "train_batch_size",
    "training.betas": "adam_beta1 adam_beta2",
    "training.checkpoints": "save_total_limit",
    "training.epochs": "max_epochs num_epochs num_train_epochs total_epochs",
    "training.learning_rate": "lr",
    "training.log_steps": "logging_steps",
    "training.max_gradient_norm": "max_grad_norm max_norm",
    "training.optimiser": "optim optimizer",
    "training.schedule": "learning_rate_scheduler lr_scheduler lr_scheduler_type",
    "training.warmup_steps training.warmup": "warmup_ratio",
}
_ELSEWHERE = {name: tuple(places.split()) for places, names in _NAMES_ELSEWHERE.items() for name in names.split()}

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Section(BaseModel):
    """A recipe or one of its tables: frozen, without conversions, and without unknown keys."""

    # Strict: TOML has types of its own, and "2" where a number belongs is a slip. NaN and infinity are refused in every
    # field: a limit says nothing about a number that compares with none.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Recipe = TypeVar("Recipe", bound=Section)


def beside(name: str, info: ValidationInfo) -> str:
    """Return the path of a file relative to the recipe."""
    folder = (info.context or {}).get("folder")
    return str((folder / name).resolve()) if folder else name


def _in_data(name: str, info: ValidationInfo) -> str:
    if name.startswith(HUB):
        return name
    data = (info.context or {}).get("data")
    if not data:
        return beside(name, info)
    # A path that leaves the recipe's folder says where the file lies in a clone; only its name can be looked up.
    path = (data / (Path(name).name if ".." in Path(name).parts else name)).resolve()
    zipped = path.with_name(f"{path.name}.gz")
    return str(zipped if zipped.is_file() and not path.exists() else path)


def _listed(names: Any) -> Any:
    return [names] if isinstance(names, str) else names


Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[tuple[str, ...], Strict(False)]  # TOML has lists and no tuples
# A file, relative to the recipe; and one of data (or a glob, a folder, a data set of the Hub), which is looked up in
# ``--data`` where that is given.
RecipeFile = Annotated[str, AfterValidator(beside)]
DataFile = Annotated[str, AfterValidator(_in_data)]
DataFiles = Annotated[tuple[DataFile, ...], BeforeValidator(_listed), Strict(False)]


class DataSection(Section):
    """How data files are read."""

    bad_rows: BadRowsPolicy = "refuse"
    """What rows do that cannot be read or do not fit the length: `refuse` the run, or `leave-out`, counted by reason in
    the log."""
    map: dict[str, str] = Field(default_factory=dict)
    """Columns of a layout of your own, by our names of fields: `{ prompt = "question", first = "a", second = "b",
    label = "winner" }`."""

    @property
    def reading(self) -> ReadOptions:
        """How files are read."""
        return ReadOptions(map=self.map, bad_rows=self.bad_rows)


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning; merged when the model is saved."""

    rank: PositiveInt = 16
    """Of each adapter."""
    alpha: float = 32.0
    """The adapter is scaled by alpha / rank."""
    dropout: float = 0.0
    """On the adapters' input."""
    targets: Names = ()
    """Names of the layers that get one; all linear layers of the backbone unless given."""


def load(
    recipe: type[Recipe], path: str | Path, assignments: Sequence[str] = (), *, data: Path | None = None
) -> Recipe:
    """Return the recipe of a TOML file, checked, its relative paths made absolute.

    Args:
        assignments: ``section.key=value``, the value in TOML syntax; what is no TOML value is taken as a string.
        data: folder of relative data files, in place of the recipe's own.

    Raises:
        RecipeError: if it cannot be read or cannot be run.
    """
    tables = _assigned(_read_toml(path), assignments)
    return parse(recipe, tables, folder=Path(path).resolve().parent, data=data)


def parse(
    recipe: type[Recipe], tables: Mapping[str, Any], *, folder: Path | None = None, data: Path | None = None
) -> Recipe:
    """Return the recipe that tables say, checked; relative paths stay as they are unless folders are given.

    Raises:
        RecipeError: if a key or a value is wrong, or two of them do not fit each other.
    """
    try:
        return recipe.model_validate(dict(tables), context={"folder": folder, "data": data})
    except ValidationError as error:
        raise RecipeError(_line(recipe, error)) from error


def as_toml(tables: Mapping[str, Any]) -> str:
    """Return settings as a recipe writes them; None and empty tables are left out, as TOML has no word for them.

    >>> print(as_toml({"model": {"kind": "bradley-terry", "gate": False, "domain": None}, "seed": 0}))
    seed = 0
    [model]
    kind = "bradley-terry"
    gate = false
    """
    filled = {name: value for name, value in tables.items() if value is not None}
    # A key behind a table's head would be one of that table.
    lines = [_assignment(name, value) for name, value in filled.items() if not isinstance(value, dict)]
    for name, table in filled.items():
        if isinstance(table, dict) and (inside := [_assignment(*one) for one in table.items() if one[1] is not None]):
            lines += [f"[{name}]", *inside]
    return "\n".join(lines)


def _assignment(name: str, value: Any) -> str:
    key = name if _BARE_KEY.fullmatch(name) else _toml_value(name)
    return f"{key} = {_toml_value(value)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(_assignment(key, one) for key, one in value.items() if one is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return toml_value(value)


def _read_toml(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def _assigned(tables: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the tables with the assignments applied."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key):
            raise RecipeError(f"--set {assignment!r} is not of the form section.key=value, as in training.epochs=2")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            value = text.strip()  # a word without quotes, as in loss.name=scaled
        table = tables.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {assignment!r}: {section} is no section of the recipe")
        table[key] = value
    return tables


def _line(recipe: type[Section], error: ValidationError) -> str:
    """Return the first problem in one line."""
    # A wrong key comes before what is missing because of it, and that before values that may be right after all.
    rank = {"extra_forbidden": 0, "missing": 1}
    first = min(error.errors(include_url=False), key=lambda problem: rank.get(problem["type"], 2))
    problem, where, value = first["type"], first["loc"], first["input"]
    if problem == "missing" and isinstance(where[-1], int):  # a list that is too short lacks its last entries
        problem, where = "too_long", where[:-1]
    name = _dotted(where)
    if problem == "value_error":  # one of our own cross-checks, which says everything
        return str(first["ctx"]["error"])
    if problem == "extra_forbidden":
        return f"unknown key {name!r}; {_nearest(recipe, where)}"
    if problem == "missing":
        return f"{name} is missing, and it has no default"
    hint, constraints = _setting_at(recipe, where)
    if problem == "too_long":
        return f"{name} has {len(value)} entries; it must have {len(get_args(hint))}"
    if remedy := _remedy(problem, hint, name, value):
        return f"{name} is {value!r}; it must be {remedy}"
    if limit := _limit(hint, constraints):
        return f"{name} is {float(value) if hint is float else value}; it must {limit}"
    return f"{name} is {value!r}: {first['msg']}"


def _remedy(problem: str, hint: Any, name: str, value: Any) -> str:
    """Say what a value of a wrong type or a wrong choice must be; nothing for a number out of its limits."""
    if problem == "model_type":
        return f"a table: [{name}]"
    if problem == "tuple_type":
        return f"a list, as in [{value!r}]"
    if problem == "literal_error":
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if problem == "finite_number":
        return "finite"
    return f"of type {hint.__name__}" if problem.endswith("_type") else ""


def _nearest(recipe: type[Section], where: tuple[int | str, ...]) -> str:
    """Say which setting an unknown key means: another trainer's name, a slip, or the right key in the wrong section."""
    *sections, key = map(str, where)
    table: Any = recipe
    for section in sections:
        table = _unwrapped(table.model_fields[section])[0]
    # In this order: a name that people bring along, a slip of the pen, a key in the wrong section.
    everything = {_dotted(path) for path, _ in _settings_of(recipe)}
    for setting in _ELSEWHERE.get(key.lower(), ()):
        if setting in everything:
            return f"did you mean {setting!r}?"
    if near := difflib.get_close_matches(key, table.model_fields, 1):
        return f"did you mean {near[0]!r}?"
    if f"training.{key}" in everything:
        return f"did you mean 'training.{key}'?"
    return f"known are {', '.join(sorted(table.model_fields))}"


def _settings_of(recipe: type[Section], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield every section and every setting of a recipe, by the path of its names."""
    for name, field in recipe.model_fields.items():
        yield (*above, name), field
        hint = _unwrapped(field)[0]
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _settings_of(hint, (*above, name))


def kind_and_limit(field: FieldInfo) -> tuple[Any, str]:
    """Return the type of a setting, and the limits of a number as the documents write them: ``in [0, 1)``, ``≥ 1``."""
    hint, constraints = _unwrapped(field)
    words = {"lie in": "in", "be at least": "≥", "be positive": "> 0", "be 0 or more": "≥ 0", "be above": ">"}
    limit = _limit(hint, constraints)
    for long, short in words.items():
        limit = limit.replace(long, short)
    return hint, limit


def _setting_at(recipe: type[Section], where: tuple[int | str, ...]) -> tuple[Any, list[Any]]:
    """Return the type and the constraints of a setting, or of an entry of a list."""
    # A name steps into a section, a number into a list, whose entries are all of one type.
    hint: Any = recipe
    constraints: list[Any] = []
    for step in where:
        hint, constraints = _unwrapped(hint.model_fields[step] if isinstance(step, str) else get_args(hint)[0])
    return hint, constraints


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """Return a type without ``Annotated`` and ``| None``, and the constraints that were around it."""
    if isinstance(hint, FieldInfo):
        inner, constraints = _unwrapped(hint.annotation)
        return inner, [*constraints, *hint.metadata]
    if get_origin(hint) is Annotated:
        inner, *around = get_args(hint)
        inner, constraints = _unwrapped(inner)
        for extra in around:
            constraints += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        return inner, constraints
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = [choice for choice in get_args(hint) if choice is not type(None)]
        return _unwrapped(inner)
    return hint, []


def _limit(hint: Any, constraints: Sequence[Any]) -> str:
    """Say what a number must do: ``lie in [0, 1)``, ``be positive``, ``be at least 3``."""
    low = next((limit for limit in constraints if isinstance(limit, Gt | Ge)), None)
    high = next((limit for limit in constraints if isinstance(limit, Lt | Le)), None)
    if high is None:
        return _lower_limit(hint, low) if low else ""
    upper: Any = high.lt if isinstance(high, Lt) else high.le
    if low is None:
        return f"be {'below' if isinstance(high, Lt) else 'at most'} {upper:g}"
    lower: Any = low.gt if isinstance(low, Gt) else low.ge
    return f"lie in {'(' if isinstance(low, Gt) else '['}{lower:g}, {upper:g}{')' if isinstance(high, Lt) else ']'}"


def _lower_limit(hint: Any, low: Gt | Ge) -> str:
    above = isinstance(low, Gt)
    limit: Any = low.gt if isinstance(low, Gt) else low.ge
    if hint is int:  # above 0 and at least 1 are the same; people count from 1
        return f"be at least {limit + above:g}"
    if limit == 0:
        return "be positive" if above else "be 0 or more"
    return f"be {'above' if above else 'at least'} {limit:g}"


def _dotted(where: Sequence[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")
