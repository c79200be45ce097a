"""The settings of the service: one frozen object, built once at the door (``settings_sources``)."""

import hashlib
import ipaddress
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from paragone_models.files.options import NAME
from paragone_models.files.sources import HOSTED
from paragone_service.api_keys import ApiKey, parse_keys, plain_key
from paragone_service.dialects.settings import DialectSettings, as_table
from paragone_service.engine import parse_remote
from paragone_service.engine.names import device_names
from paragone_service.judge.settings import JudgeSettings
from paragone_service.model_settings import AnyModelSettings, ModelSettings
from paragone_service.pairs.ensemble_settings import EnsembleSettings

__all__ = ["ConfigError", "Settings"]

_MIN_SECRET_BYTES = 16
_DEFAULT_MODEL = "mini-general-preference"
# What such a server decides for itself: set here it would have no effect, and nobody would notice.
_OWN_ENGINE_ONLY = ("device", "devices", "dtype", "deterministic", "prompt_cache_mb")


class ConfigError(ValueError):
    """Refuse to start, and say what to change."""


class Settings(BaseSettings):
    """All that can be set; the docstrings of the fields are also the help of the flags."""

    model_config = SettingsConfigDict(
        env_prefix="PARAGONE_",
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    models: dict[str, AnyModelSettings] = Field(
        default={name: ModelSettings(source=f"builtin:{name}") for name in HOSTED}, min_length=1
    )
    """The hosted models by name."""
    models_dir: Path | None = None
    """Folder of the models that an admin key may load while the server runs; without it none can be."""
    engines: dict[str, str] = Field(default={})
    """What runs a model's backbone instead of this process, by the model's name: ``triton:grpc://…`` or ``vllm:http://…``."""
    engine_timeout_s: float = Field(default=300, gt=0)
    """How long one call to such an engine may take."""
    engine_api_key: SecretStr | None = None
    """Bearer key for such engines, where a proxy in front of them wants one."""
    redis_url: SecretStr | None = None
    """Redis behind the memory cache: redis://, rediss:// or unix://; of a cluster, redis+cluster:// and any node."""
    api_key: SecretStr | None = None
    """The bearer key that every route but the health checks needs."""
    api_key_file: Path | None = None
    """File with the keys instead, a NAME:HASH a line as `paragone key new` writes it; read anew when it changes."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests that a key may send in a minute, where it has no number of its own; without it as many as it likes."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens that a key may have run in a minute, where it has no number of its own; what is cached costs none."""
    judge_calls_per_minute: int | None = Field(default=None, ge=1)
    """Calls to judges on other servers that each key may cause in a minute; without it as many as it likes."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names that requests may be sent to, * for any; without it those of loopback, where there is no key."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses or networks of proxies whose X-Forwarded-For says who asks; without it nobody's does."""
    cache_secret_file: Path | None = None
    """File with the secret that values in Redis are sealed and ids are keyed with; the same at every replica."""
    max_batch_tokens: int | Literal["auto"] | None = None
    """Tokens in a batch; auto finds the fastest by a warm-up; without it what suits the device."""
    max_queue_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens that may wait for one model; more are refused as overload."""
    max_wait_s: float = Field(default=2.5, gt=0)
    """Seconds of expected wait over which a request that names no deadline of its own is refused as overload."""
    deadline_s: float = Field(default=600, gt=0, allow_inf_nan=False)
    """Seconds in which a request is answered, or 504, where it names no deadline of its own."""
    cohort_keep_s: float = Field(default=3_600, gt=0, allow_inf_nan=False)
    """Seconds for which a cohort is kept after its deadline, so that repeats of its members are answered again."""
    forward_limit_s: float = Field(default=60, gt=0)
    """Seconds of one forward in this process after which its model counts as stuck; elsewhere: engine_timeout_s."""
    reading_limit_s: float = Field(default=30, gt=0)
    """Seconds of reading some of a request's texts after which their model counts as stuck."""
    loop_limit_s: float = Field(default=15, gt=0)
    """Seconds for which the event loop may be held up until it counts as stuck."""
    watchdog_exit_s: float = Field(default=60, ge=0)
    """Seconds for which something may be stuck before the process ends with code 70; 0 for ever."""
    max_body_mb: float = Field(default=64, gt=0)
    """Largest request body, in MB (10⁶ bytes)."""
    body_timeout_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Seconds in which a body is read; each kilobyte that has come adds one."""
    file_memory_mb: float = Field(default=1_000, ge=100)
    """Memory that reading one file of `/v1/files` may take, in MB (10⁶ bytes); two are read at a time."""
    file_limit_s: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Seconds that reading one such file may take."""
    header_timeout_s: float = Field(default=10, gt=0, allow_inf_nan=False)
    """Seconds in which the headers of a request come, from the opening of a connection on."""
    max_header_bytes: int = Field(default=32_768, ge=1_024)
    """Largest address and headers of a request together, in bytes."""
    max_headers: int = Field(default=100, ge=16)
    """Most headers of a request."""
    max_connections: int = Field(default=4_096, ge=1)
    """Most connections at a time; the longest idle ones give way to new ones."""
    idle_timeout_s: float = Field(default=75, gt=0, allow_inf_nan=False)
    """Seconds that a connection is kept between two requests; longer than load balancers keep theirs."""
    max_messages: int = Field(default=2_000, ge=2)
    """Most messages of one conversation, prompt and response together; empty ones count."""
    page: bool = True
    """Whether the page at / is served, on which people try the models in a browser."""
    dialects: Annotated[DialectSettings, NoDecode, BeforeValidator(as_table)] = DialectSettings()
    """Which other servers' routes are answered, and how: all, none, names with commas between, or a table."""
    aliases: dict[str, str] = Field(default={})
    """What models are called elsewhere, and which hosted one that is; ``*`` for every name that is not known, and none.
    For dialects alone."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1, …"""
    devices: str | None = None
    """Devices that every model has a replica on, of one queue: all (GPUs), or cuda:0,cuda:1, or cpu*2."""
    dtype: str = "auto"
    """What backbones compute in: auto, float32, bfloat16, float16."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged: debug, info, warning or error."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written: text, for people, or json, a line a record and a line a request."""
    log_texts: bool = False
    """Whether the line of a request holds the request, prompts and responses included; needs the json format."""
    access_log: bool | None = None
    """Whether every request is logged; without it only in the json format."""
    traces_url: str | None = None
    """Collector that traces of requests are sent to, by OTLP over HTTP, as http://HOST:4318/v1/traces."""
    memory_cache_mb: float = Field(default=512, ge=0)
    """Size of the memory cache, in MB (10⁶ bytes); 0 turns it off."""
    cache_ttl_days: float = Field(default=7, gt=0)
    """How long Redis keeps a representation, ±10 %."""
    strict_cache: bool = False
    """Share cached representations only between replicas with the same dtype, kernels and library versions."""
    drain_timeout_s: int = Field(default=30, ge=0)
    """How long requests in flight may take when the server is shut down."""

    @property
    def loaded(self) -> dict[str, ModelSettings]:
        """The models that this process loads, by name."""
        return {name: model for name, model in self.models.items() if isinstance(model, ModelSettings)}

    @property
    def judges(self) -> dict[str, JudgeSettings]:
        """The judges on other servers, by name."""
        return {name: model for name, model in self.models.items() if isinstance(model, JudgeSettings)}

    @property
    def ensembles(self) -> dict[str, EnsembleSettings]:
        """The models that are made of others, by name."""
        return {name: model for name, model in self.models.items() if isinstance(model, EnsembleSettings)}

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, in bytes."""
        return round(self.max_body_mb * 1e6)

    @property
    def default_model(self) -> str:
        """Name of the model that answers when a request names none: the first, of the built-ins ours."""
        bare = "models" not in self.model_fields_set
        return _DEFAULT_MODEL if bare and _DEFAULT_MODEL in self.models else next(iter(self.models))

    def check_aliases(self, models: Collection[str]) -> None:
        """Check that every alias leads to one of the models.

        Raises:
            ConfigError: if one does not.
        """
        for alias, name in self.aliases.items():
            if models and name not in models:
                raise ConfigError(f"aliases.{alias}: there is no model {name!r}; there are {', '.join(models)}")

    def devices_of(self, name: str) -> tuple[str, ...]:
        """Return the devices of a model, as ``device_names`` does; none where ``device`` says where it runs."""
        own = self.loaded.get(name)
        text = self.devices if own is None or (own.device, own.devices) == (None, None) else own.devices
        return () if text is None or name in self.engines else device_names(text)

    @field_validator("models")
    @classmethod
    def _names_fit_into_paths(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in models:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"model name {name!r}: only letters, digits, '.', '_' and '-' fit into a URL")
        return models

    @field_validator("max_batch_tokens", mode="before")
    @classmethod
    def _budget_is_auto_or_a_count(cls, value: Any) -> Any:
        if value is None or value == "auto" or re.fullmatch(r"0*[1-9]\d*", str(value)):
            return value
        raise ValueError("give a number of tokens, at least 1, or auto")

    @field_validator("redis_url")
    @classmethod
    def _redis_has_an_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            # Only where there is one: the driver takes a while to import.
            from paragone_service.cache.redis_servers import connect

            connect(url.get_secret_value())
        return url

    @field_validator("allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _lists_may_be_written_with_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError as error:
                raise ValueError(f"{proxy!r} is no address and no network: write 10.0.0.7 or 10.0.0.0/8") from error
        return proxies

    @property
    def served_hosts(self) -> frozenset[str] | None:
        """Host names that requests may be sent to, in lower case; None for any.

        A page in somebody's browser can have its own name resolve to 127.0.0.1 and so ask a server on loopback. Where
        no key stops it, its name does: a browser cannot hide that.
        """
        if "*" in self.allowed_hosts:
            return None
        if self.allowed_hosts:
            return frozenset(host.lower().strip("[]") for host in self.allowed_hosts)
        if self.api_key is not None or self.api_key_file is not None:
            return None
        return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})

    @field_validator("engines")
    @classmethod
    def _engines_are_known(cls, engines: dict[str, str]) -> dict[str, str]:
        for name, engine in engines.items():
            try:
                parse_remote(engine)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return engines

    @model_validator(mode="after")
    def _engines_fit_their_models(self) -> "Settings":
        for name in self.engines:
            if name not in self.models:
                raise ValueError(f"engine of {name!r}: there is no such model, these are: {', '.join(self.models)}")
            if name not in self.loaded:
                raise ValueError(f"engine of {name!r}: a judge or an ensemble has no backbone of its own")
            for field in _OWN_ENGINE_ONLY:
                if field in self.models[name].model_fields_set:
                    raise ValueError(f"{field} of {name}: its backbone runs on another server, so set that there")
        return self

    @model_validator(mode="after")
    def _devices_are_devices(self) -> "Settings":
        tables: dict[str, Settings | ModelSettings] = {
            "": self,
            **{f"models.{name}.": model for name, model in self.loaded.items()},
        }
        for place, table in tables.items():
            if table.devices is None:
                continue
            if "device" in table.model_fields_set and table.device is not None:
                raise ValueError(f"{place}device and {place}devices are both set: keep one")
            try:
                device_names(table.devices)
            except ValueError as error:
                raise ValueError(f"{place}devices: {error}") from error
        return self

    @model_validator(mode="after")
    def _texts_have_a_place_in_the_log(self) -> "Settings":
        if self.log_texts and (self.log_format != "json" or self.access_log is False):
            raise ValueError(
                "log_texts writes requests into their lines of JSON, and there are none: set log_format to json, and "
                "leave access_log on"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        # Neither wins: with a guess the server might run with the key that was meant to be replaced.
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file are both set: keep one")
        # Safe by default: nobody must find out later that the whole network could use the model.
        if self.api_key is None and self.api_key_file is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached by others and there is no key: set --api-key or --api-key-file "
                "(or PARAGONE_API_KEY), or listen on 127.0.0.1"
            )
        return self

    def remote_engine(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return which engine runs a model's backbone, and its addresses, or None if this process does."""
        return parse_remote(self.engines[name]) if name in self.engines else None

    def read_cache_secret(self) -> bytes:
        """Return the secret of the cache, 32 bytes, or none.

        Raises:
            ConfigError: if the file cannot be read, or holds fewer than 16 bytes.
        """
        if self.cache_secret_file is None:
            return b""
        try:
            secret = self.cache_secret_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"cache_secret_file {self.cache_secret_file} cannot be read: {error}") from error
        if len(secret) < _MIN_SECRET_BYTES:
            raise ConfigError(
                f"cache_secret_file {self.cache_secret_file} holds {len(secret)} bytes, and {_MIN_SECRET_BYTES} are "
                "the least: write one with `openssl rand -hex 32`"
            )
        return hashlib.blake2b(secret, digest_size=32).digest()

    def read_api_keys(self) -> tuple[ApiKey, ...]:
        """Return the keys that the server takes, from wherever they are; none if everybody may ask.

        Raises:
            ConfigError: if the file cannot be read, or holds anything but keys.
        """
        try:
            if self.api_key is not None:
                return (plain_key(self.api_key.get_secret_value()),)
            if self.api_key_file is not None:
                return parse_keys(self.api_key_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file {self.api_key_file} cannot be read: {error}") from error
        except ValueError as error:
            place = "" if self.api_key_file is None else f"api_key_file {self.api_key_file}: "
            raise ConfigError(f"{place}{error}") from error
        return ()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
