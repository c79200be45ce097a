"""Where the settings come from: flags, the environment and a TOML file, and what is said of a mistake in them.

Flags win over the environment (``PARAGONE_…``), and the environment over the file. Unknown keys are refused with the
nearest known one. Nobody else reads the environment.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError

from paragone.addresses import without_userinfo
from paragone_models.errors import ModelLoadError
from paragone_models.files.options import NAME, named_source
from paragone_service.config import ConfigError, Settings
from paragone_service.dialects.settings import DialectSettings, as_table
from paragone_service.judge.settings import JudgeSettings
from paragone_service.model_settings import MODEL_TAGS, AnyModelSettings, ModelSettings
from paragone_service.pairs.ensemble_settings import EnsembleSettings

__all__ = ["load_settings", "parse_engine", "parse_model"]

_NAMED_ENGINE = re.compile(rf"({NAME})=(.+)")
# A setting of a stronger source → what it replaces in weaker ones.
_REPLACED = {
    "models": {"models"},
    "api_key": {"api_key", "api_key_file"},
    "api_key_file": {"api_key", "api_key_file"},
}
_SECRETS = {"api_key", "engine_api_key", "redis_url"}
_MODEL_SETTINGS: TypeAdapter[ModelSettings | JudgeSettings | EnsembleSettings] = TypeAdapter(AnyModelSettings)
_TABLES: Mapping[str, type[BaseModel]] = {"models": ModelSettings, "dialects": DialectSettings, **MODEL_TAGS}


class _Below(PydanticBaseSettingsSource):
    """A source whose models or key are left out if a stronger source has its own: these are replaced, not merged."""

    def __init__(self, settings_cls: type[BaseSettings], read: Callable[[], dict[str, Any]]) -> None:
        super().__init__(settings_cls)
        self._read = read

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return one value; part of pydantic-settings' interface, and unused."""
        return self._read().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values that count."""
        # Merged, a model of the file would stay hosted beside those of --model, and two sources of a key would clash.
        replaced = {lower for higher in self.current_state for lower in _REPLACED.get(higher, ())}
        return _with_tables({name: value for name, value in self._read().items() if name not in replaced})


def _with_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    # A text that says which dialects are on must not replace the table of a weaker source.
    return {name: as_table(value) if name == "dialects" else value for name, value in values.items()}


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Build the settings.

    Args:
        flags: what was given on the command line, by field name.
        config: the TOML file, or None.

    Raises:
        ConfigError: if the file cannot be read, or a key or value cannot be used.
    """
    values = {} if config is None else _read_toml(config)

    # A class of its own for each call, because pydantic-settings asks a class, and not a call, for its sources.
    class FromEverywhere(Settings):
        """The settings with the file as their last source."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (not read)
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (not read)
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Read flags, then the environment, then the file."""
            return init_settings, _Below(settings_cls, env_settings), _Below(settings_cls, lambda: values)

    try:
        return FromEverywhere(**_with_tables(flags))
    except SettingsError as error:
        raise ConfigError(f"the environment cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(map(_explained, error.errors(include_url=False)))) from None


def parse_model(text: str) -> tuple[str, ModelSettings | JudgeSettings | EnsembleSettings]:
    """Return name and settings of ``NAME=SOURCE,key=value,…``; a bare SOURCE is called by its last path part.

    Keys are those of ``[models.NAME]``. Only a comma with a key and an equals sign behind it ends what stands before,
    so a folder may have commas in its name. A list or table is written as JSON.

    Raises:
        ConfigError: if there is no source, no usable name, or a setting that there is not, or that is given twice.

    >>> parse_model("judge=Skywork/Skywork-Reward-V2-Qwen3-0.6B,dtype=bfloat16,max_length=4096")[1].max_length
    4096
    >>> parse_model("builtin:mini-bradley-terry")[0]
    'mini-bradley-terry'
    """
    try:
        name, source, values = named_source(text)
    except ModelLoadError as error:
        raise ConfigError(f"--model {error}") from None
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--model {text!r}: no name can be made of it; write NAME=SOURCE")
    try:
        return name, _MODEL_SETTINGS.validate_python({"source": source, **values})
    except ValidationError as error:
        # With its place in the file, so that the same is said of the same mistake.
        reasons = [_explained({**one, "loc": ("models", name, *one["loc"])}) for one in error.errors(include_url=False)]
        raise ConfigError("\n".join(reasons)) from None


def parse_engine(text: str) -> tuple[str, str]:
    """Return name and engine of ``NAME=triton:grpc://…`` or ``NAME=vllm:http://…``.

    Raises:
        ConfigError: if it has another form.

    >>> parse_engine("judge=vllm:http://gpu-7:8123")
    ('judge', 'vllm:http://gpu-7:8123')
    """
    named = _NAMED_ENGINE.fullmatch(text)
    if named is None:
        raise ConfigError(
            f"--engine {without_userinfo(text)!r}: write NAME=triton:grpc://HOST:PORT or NAME=vllm:http://HOST:PORT"
        )
    return named[1], named[2]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from error


def _explained(error: ErrorDetails) -> str:
    """Return what is wrong with one setting, naming the nearest known key for an unknown one."""
    tables = [_TABLES[part] for part in map(str, error["loc"][:-1]) if part in _TABLES]
    location = [str(part) for part in error["loc"] if part not in MODEL_TAGS]
    place = ".".join(location)
    if error["type"] == "extra_forbidden":
        inside = tables[-1] if tables else Settings
        nearest = difflib.get_close_matches(location[-1], inside.model_fields, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(inside.model_fields)}"
        return f"unknown key {place!r}: {hint}"
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    # A mistyped secret must not end up in a log.
    value = without_userinfo(value) if isinstance(value, str) and "://" in value else value
    shown = f" (it is {value!r})" if isinstance(value, str | int | float) and place not in _SECRETS else ""
    return f"{place}: {message}{shown}" if place else message
