"""``paragone serve``: read the settings, load the models, serve until a signal.

Nothing that needs torch is imported before the settings are known to be sound: it takes seconds, and some of what the
process does with memory has to be decided before.
"""

import ctypes
import gc
import inspect
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from paragone_models.files.sources import completed
from paragone_service.config import ConfigError, Settings
from paragone_service.http.listening import bind
from paragone_service.logs import configure_logging
from paragone_service.settings_sources import load_settings, parse_engine, parse_model

if TYPE_CHECKING:
    from socket import socket

    from paragone_models.model import PreferenceModel
    from paragone_service.engine.contract import Engine

__all__ = ["forget_the_start", "host", "keep_freed_memory", "serve"]

_MODELS, _LISTENING, _ASKING = "Models", "Where it listens", "Who may ask"
_FLAGS = {
    _MODELS: ("models_dir", "device", "devices", "dtype"),
    _LISTENING: ("host", "port", "page", "max_connections", "trusted_proxies"),
    _ASKING: ("api_key", "api_key_file", "allowed_hosts", "requests_per_minute", "tokens_per_minute"),
    "Cache": ("redis_url", "cache_secret_file", "memory_cache_mb", "strict_cache"),
    "Load and limits": (
        "max_batch_tokens",
        "max_queue_tokens",
        "max_wait_s",
        "deadline_s",
        "forward_limit_s",
        "watchdog_exit_s",
        "max_body_mb",
    ),
    "Log": ("log_level", "log_format", "log_texts", "access_log", "traces_url"),
}
"""Settings that have a flag of their name, as the help groups them; the others are rarely set, and go into the file or
the environment."""
_VALUES = {"max_batch_tokens": "auto|TOKENS", "allowed_hosts": "HOST,…", "trusted_proxies": "ADDRESS,…"}
_PARSED_BY_TYPER = (bool, int, float, Path)

# Of malloc.h; setting either also ends glibc's own guessing at both.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_SHAPES = "512"
"""More than a decoder's passes have, since their rows are rounded up: some fifty lengths, six products each."""


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE[,KEY=VALUE…]",
            autocompletion=completed,
            help="A model to host: a built-in (builtin:…), a Hugging Face id or a folder; repeatable. The first one "
            "answers requests that name none. Keys are those of a model in the file: kind, head, max_length, "
            "temperature, trust_remote_code, revision, dtype, …",
            show_default="the built-ins",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=triton:grpc://HOST:PORT|NAME=vllm:URL",
            help="Servers that run a model's backbone instead of this process, several with commas between them; "
            "repeatable.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    dialects: Annotated[
        str | None,
        typer.Option(
            metavar="all|none|NAME,…",
            help="Which other servers' routes are answered; docs/dialects.md lists them.",
            show_default="all",
            rich_help_panel=_LISTENING,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="File with any of these settings.")] = None,
    **flags: Any,
) -> None:
    """Host reward and preference models and answer which of two responses people prefer.

    Without options it hosts the built-in models on 127.0.0.1:8000, with a page to try them. Every option can also be
    set as PARAGONE_… in the environment or in the file; docs/serving.md lists them all.
    """
    values = {name: value for name, value in flags.items() if value is not None}
    if engine:
        values["engines"] = dict(map(parse_engine, engine))
    if dialects is not None:
        values["dialects"] = dialects
    if model:
        values["models"] = _named(model)
    settings = load_settings(values, config)
    settings.check_aliases(settings.models)
    settings.read_cache_secret()
    settings.read_api_keys()  # a missing file is refused now, and not after a minute of loading
    configure_logging(settings)
    started = time.perf_counter()

    with ExitStack() as opened:
        sockets = [opened.enter_context(one) for one in bind(settings.host, settings.port)]
        _bound_shape_caches()
        from paragone_models.files.weight_bars import hide_weight_bars
        from paragone_service.hosting import load_models

        hide_weight_bars()
        keep_freed_memory()
        if not host(settings, load_models(settings), sockets=sockets, started=started):
            raise typer.Exit(1)


def host(
    settings: Settings,
    models: "Mapping[str, PreferenceModel]",
    *,
    engines: "Mapping[str, Engine] | None" = None,
    sockets: "Sequence[socket] | None" = None,
    started: float | None = None,
) -> bool:
    """Serve loaded models until a signal, with a watchdog beside; return whether the server came up.

    Args:
        engines: what runs a model instead of this process, by name.
        sockets: where it listens, bound; those of the settings if None.
        started: when the start began, by ``time.perf_counter``; now if None.

    Raises:
        ListenError: if the address of the settings cannot be listened on.
    """
    began = time.perf_counter() if started is None else started
    from paragone_service.app import create_app
    from paragone_service.http.middleware import Drain
    from paragone_service.http.server import Server, configure
    from paragone_service.startup import announce
    from paragone_service.watchdog import Watchdog

    drain = Drain()
    watchdog = Watchdog(
        loop_limit_s=settings.loop_limit_s,
        exit_s=settings.watchdog_exit_s,
        drain_s=settings.drain_timeout_s,
        draining=lambda: drain.begun,
    )
    app = create_app(settings, models, engines=engines, drain=drain, watchdog=watchdog)
    sockets = list(sockets or bind(settings.host, settings.port))
    del models, engines  # a model that is replaced while the server runs is to be let go
    server = Server(
        configure(app, settings),
        drain,
        listens=lambda port: announce(app, settings, port=port, seconds=time.perf_counter() - began),
    )
    forget_the_start()
    watchdog.start()
    server.run(sockets)  # the watchdog goes on after it: a thread that hangs would keep the interpreter from ending
    return server.started


def _flag(name: str, group: str) -> inspect.Parameter:
    """Return a setting as an option of the command: its type, its help and its default are the field's."""
    field = Settings.model_fields[name]
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    flag = f"--{name.replace('_', '-')}"
    # What is on unless somebody says otherwise has a flag that turns it off.
    names = f"{flag}/--no-{flag[2:]}" if bool in kinds and field.default is not False else flag
    choices = "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else None
    option = typer.Option(
        names,
        help=(field.description or "").replace("``", "`"),
        metavar=choices or _VALUES.get(name),
        show_default="" if field.default in (None, (), True, False) else f"{field.default}",
        rich_help_panel=group,
    )
    # A secret, a choice, "auto" or a number: such a value is read as text, and the settings check it.
    kind = kinds[0] if len(kinds) == 1 and kinds[0] in _PARSED_BY_TYPER else str
    # No flag has a default of its own, else it would win over the environment and the file.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


_written_out = [
    option for option in inspect.signature(serve).parameters.values() if option.kind is not option.VAR_KEYWORD
]
_flags = [_flag(name, group) for group, names in _FLAGS.items() for name in names]
serve.__signature__ = inspect.Signature([*_written_out, *_flags])  # type: ignore[attr-defined]  # for Typer


def _named(sources: Sequence[str]) -> dict[str, Any]:
    models = [parse_model(source) for source in sources]
    names = [name for name, _ in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name!r}: give one another name with --model NAME=SOURCE")
    return dict(models)


def _bound_shape_caches() -> None:
    """Have oneDNN, and torch's use of it, remember so many shapes of products. Call it before torch is imported.

    A product of a new shape costs milliseconds: with 128 entries passes of random lengths had 0.9 of the speed. With
    the thousand that is the default, padded batches, which hardly ever meet a shape again, take several hundred
    megabytes more. A variable that is set stays as it is.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _SHAPES)


def forget_the_start() -> None:
    """Have the garbage collector pass over all that is there now and stays: libraries, models and the application.

    It went through their million objects each time that a burst of connections had made some thousands of new ones,
    and nothing was answered for 0.3 s.
    """
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: passes take and free the same megabytes; fresh pages were 5 % of their time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
