"""What a server says of itself once it listens: at most ten lines for people, about what it hosts, how and for whom.

    Paragone 0.1.0, process 4711
    models    judge (default): bradley-terry, 0.6 B parameters, 4,096 tokens, from Skywork/Skywork-Reward-V2-Qwen3-0.6B
    engine    this process on cpu, 2 threads
    …
    ready     http://127.0.0.1:8000 in 9.1 s; /docs has every route

In the JSON format nothing of this is written: there the same facts have lines of their own.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from fastapi import FastAPI

from paragone.versions import own_version
from paragone_models.machine import automatic_dtype
from paragone_models.packing.backend import explained
from paragone_service.cache.redis_servers import redis_address
from paragone_service.config import Settings
from paragone_service.http.listening import host_and_port
from paragone_service.logs import START_LOGGER
from paragone_service.registry import Registry
from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["announce", "startup_lines"]

logger = logging.getLogger(START_LOGGER)

_WIDTH = 10
_MOST_MODEL_LINES = 3
_SIZES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def announce(app: FastAPI, settings: Settings, *, port: int, seconds: float) -> None:
    """Log the lines of a server that has begun to listen.

    Args:
        port: where it listens, which the settings may leave open.
        seconds: how long the start took.
    """
    for line in startup_lines(app, settings, port=port, seconds=seconds):
        logger.info("%s", line)


def startup_lines(app: FastAPI, settings: Settings, *, port: int, seconds: float) -> list[str]:
    """Return the lines that ``announce`` logs; no secret and no identity is in them."""
    registry: Registry = app.state.registry
    local = [hosted for hosted in registry if settings.remote_engine(hosted.name) is None]
    computed = _grouped([(hosted.name, f"{_dtype(hosted, settings)}; {_kernels(hosted)}") for hosted in local])
    sections: list[tuple[str, Sequence[str]]] = [
        ("models", _models(registry, settings)),
        ("engine", [_engines(registry, settings)]),
        ("compute", [computed] if computed else []),
        ("cache", [_cache(settings, up=app.state.redis is not None and app.state.redis.up)]),
        ("keys", [_keys(settings)]),
        ("dialects", [", ".join(settings.dialects.on) or "none"]),
        ("ready", [_ready(settings, port, seconds)]),
    ]
    lines = [f"Paragone {own_version()}, process {os.getpid()}"]
    for name, texts in sections:
        lines += [f"{'' if number else name:<{_WIDTH}}{text}" for number, text in enumerate(texts)]
    return lines


def _models(registry: Registry, settings: Settings) -> list[str]:
    """Return a line for each model; of many, one for the default model and one for all others."""
    lines, short, domains = [], [], dict[str, None]()
    for name in registry.names:
        hosted = registry.loaded(name)
        default = " (default)" if name == registry.default else ""
        if hosted is not None:
            lines.append(f"{name}{default}: {_model(hosted)}")
            short.append(f"{name} ({hosted.model.kind})")
            if hosted.model.spec.demonstration:
                domains[hosted.model.spec.domain or "nothing in particular"] = None
        elif name in settings.judges:
            judge = settings.judges[name]
            lines.append(f"{name}{default}: judge, {judge.model} at {judge.url}")
            short.append(f"{name} (judge)")
        else:
            made = f"ensemble, {settings.ensembles[name].source}" if name in settings.ensembles else "compares two"
            lines.append(f"{name}{default}: {made}")
            short.append(f"{name} ({made.partition(',')[0]})")
    if len(lines) + bool(domains) > _MOST_MODEL_LINES:
        first = list(registry.names).index(registry.default)
        others = [text for number, text in enumerate(short) if number != first]
        lines = [lines[first], f"and {', '.join(others)}; /v1/models says more"]
    if domains:
        lines.append(f"demonstrations, no judges to rely on; they know {'; '.join(domains)}")
    return lines


def _model(hosted: HostedModel) -> str:
    model, origin = hosted.model, hosted.model.provenance
    revision = f"@{origin.revision[:12]}" if origin.revision else ""
    facts = [model.kind, f"{model.spec.max_length:,} tokens", f"from {origin.source}{revision}"]
    parameters = sum(parameter.numel() for parameter in model.network.backbone.parameters())
    if model.local.batching != "elsewhere" and parameters:
        facts.insert(1, f"{_count(parameters)} parameters")
    return ", ".join(facts)


def _count(number: int) -> str:
    """Return a number of parameters in words.

    >>> _count(7_240_000_000), _count(812)
    ('7.24 B', '812')
    """
    for size, unit in _SIZES:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _engines(registry: Registry, settings: Settings) -> str:
    texts = []
    for hosted in registry:
        remote = settings.remote_engine(hosted.name)
        if remote is not None:
            texts.append((hosted.name, f"{remote[0]} at {', '.join(remote[1])}"))
        else:
            devices = ", ".join(device.name for device in hosted.scheduler.devices)
            texts.append((hosted.name, f"this process on {_with_threads(devices)}"))
    return _grouped(texts) or "none: every model is on another server"


def _with_threads(devices: str) -> str:
    if not devices.startswith("cpu"):
        return devices
    threads = torch.get_num_threads()
    return f"{devices}, {threads} thread{'' if threads == 1 else 's'}"


def _dtype(hosted: HostedModel, settings: Settings) -> str:
    weight = next(hosted.model.network.backbone.parameters())
    name = str(weight.dtype).removeprefix("torch.")
    options = settings.loaded.get(hosted.name)
    asked = (options.dtype if options is not None else None) or settings.dtype
    if asked != "auto":
        return f"{name}, as the settings say"
    parameters = sum(one.numel() for one in hosted.model.network.backbone.parameters())
    choice = automatic_dtype(weight.device, parameters=parameters, demonstration=hosted.model.spec.demonstration)
    return f"{name}: {choice.reason}" if choice.dtype == weight.dtype else f"{name}, as its files are"


def _kernels(hosted: HostedModel) -> str:
    local = hosted.model.local
    if local.way is None:
        return local.batching
    return explained(local.way, next(hosted.model.network.backbone.parameters()).dtype)


def _cache(settings: Settings, *, up: bool) -> str:
    memory = f"{settings.memory_cache_mb:g} MB of memory" if settings.memory_cache_mb else "none in memory"
    if settings.redis_url is None:
        return f"{memory}; no Redis (--redis-url), so a restart begins with nothing"
    where = redis_address(settings.redis_url.get_secret_value())
    state = f"for {settings.cache_ttl_days:g} days" if up else "which is away: it is asked again every few seconds"
    return f"{memory}; Redis at {where}, {state}"


def _keys(settings: Settings) -> str:
    keys = settings.read_api_keys()
    if not keys:
        return "none: whoever reaches this address on this machine may ask"
    admins = sum(key.admin for key in keys)
    place = "--api-key" if settings.api_key_file is None else str(Path(settings.api_key_file))
    loading = f", {admins} of them may load models" if admins else ""
    return f"{len(keys)} in {place}{loading}"


def _ready(settings: Settings, port: int, seconds: float) -> str:
    page = "a page to try the models; " if settings.page else ""
    return f"http://{host_and_port(settings.host, port)} in {seconds:.1f} s; {page}/docs has every route"


def _grouped(texts: Sequence[tuple[str, str]]) -> str:
    """Return each text once, with the names that it is about where they have several texts."""
    names: dict[str, list[str]] = {}
    for name, text in texts:
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return " | ".join(f"{', '.join(about)}: {text}" for text, about in names.items())
