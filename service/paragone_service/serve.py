"""``paragone serve``: read the settings, load the models, serve until a signal."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["serve"]


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [default: 8000]")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE",
            help="A model to host: a built-in (builtin:…), a Hugging Face id or a folder; repeatable. The first one "
            "answers requests that name none. [default: the built-ins]",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=vllm:URL",
            help="A vLLM server that runs a model's backbone instead of this process; repeatable.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="File with any of these settings.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to keep representations in.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Bearer key; needed to listen on more than loopback.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the key.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, … [default: auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: auto]")] = None,
    max_batch_tokens: Annotated[
        str | None,
        typer.Option(help="Tokens in a batch; auto finds the fastest by a warm-up. [default: by device]"),
    ] = None,
    max_queue_tokens: Annotated[int | None, typer.Option(help="Tokens that may wait. [default: 2000000]")] = None,
    max_body_mb: Annotated[float | None, typer.Option(help="Largest request body. [default: 64]")] = None,
    memory_cache_mb: Annotated[float | None, typer.Option(help="Size of the memory cache. [default: 512]")] = None,
    strict_cache: Annotated[
        bool | None, typer.Option("--strict-cache", help="Keep cached entries apart by dtype and versions too.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error. [default: info]")] = None,
    access_log: Annotated[bool | None, typer.Option("--access-log", help="Log every request.")] = None,
) -> None:
    """Host reward and preference models and answer which of two responses people prefer.

    Every option can also be set as PARAGONE_… in the environment or in the file; docs/serving.md lists them all.
    """
    given = dict(locals())
    apart = ("model", "engine", "config")
    flags = {name: value for name, value in given.items() if value is not None and name not in apart}
    _serve(flags, model or [], engine or [], config)


def _serve(flags: dict[str, Any], sources: list[str], engines: list[str], config: Path | None) -> None:
    # Imported here, so that `paragone --help` need not wait for torch.
    from paragone_service.config import load_settings, parse_engine, parse_model
    from paragone_service.process_memory import bound_shape_caches, keep_freed_memory

    if engines:
        flags["engines"] = dict(map(parse_engine, engines))
    if sources:
        flags["models"] = _named([parse_model(source) for source in sources])
    settings = load_settings(flags, config)
    settings.read_api_key()  # so that a missing file is not found out after a minute of loading
    _configure_logging(settings.log_level, access_log=settings.access_log)

    bound_shape_caches()
    from paragone_service.app import create_app
    from paragone_service.http.middleware import Drain
    from paragone_service.http.server import Server, configure
    from paragone_service.registry import load_models

    keep_freed_memory()
    drain = Drain()
    app = create_app(settings, load_models(settings), drain=drain)
    server = Server(configure(app, settings), drain)
    server.run()
    if not server.started:
        raise typer.Exit(1)


def _named(models: list[tuple[str, Any]]) -> dict[str, Any]:
    from paragone_service.config import ConfigError

    for name, _ in models:
        if [other for other, _ in models].count(name) > 1:
            raise ConfigError(f"two models are called {name!r}: give one another name with --model NAME=SOURCE")
    return dict(models)


def _configure_logging(level: str, *, access_log: bool) -> None:
    import logging

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("paragone", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    logging.getLogger("paragone.access").setLevel(logging.INFO if access_log else logging.WARNING)
