"""What ``paragone doctor`` says of a server: its settings, port and keys, and whether it reaches Redis and engines."""

import asyncio
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from paragone.installing import pip_install
from paragone_service.cache.redis_servers import FAILURES, connect, redis_address
from paragone_service.config import ConfigError, Settings
from paragone_service.http.listening import ListenError, bind, host_and_port
from paragone_service.settings_sources import load_settings, parse_engine

__all__ = ["checks"]

_Row = tuple[str, str, str, str]

_TIMEOUT_S = 5.0
_SLOW_MS = 5.0
_CONNECTION_REFUSED = "is it running, and does a firewall let this machine through?"


def checks(options: Mapping[str, Any]) -> Iterator[_Row]:
    """Yield subject, state, text and remedy of each check."""
    flags = {name: options[name] for name in ("redis_url", "api_key_file", "port") if options.get(name) is not None}
    try:
        if options.get("engines"):
            flags["engines"] = dict(map(parse_engine, options["engines"]))
            # Names of models that nobody has said: the engines are what is asked about.
            if options.get("config") is None:
                flags["models"] = {name: {"source": name} for name in flags["engines"]}
        settings = load_settings(flags, options.get("config"))
    except ConfigError as error:
        remedy = "paragone serve refuses to start with them: mend the file, the options or the environment"
        yield "settings", "fail", str(error).replace("\n", "; "), remedy
        return
    where = options.get("config") or "defaults and environment"
    default = settings.default_model
    others = [name for name in settings.models if name != default]
    yield "settings", "ok", f"{where}: hosting {', '.join([f'{default} (default)', *others])}", ""
    # Of a service that runs, its port is taken, and rightly so.
    if options.get("url") is None or options.get("port") is not None:
        yield _port(settings)
    yield _keys(settings)
    yield from _redis(settings)
    for name in settings.engines:
        yield from _engine(settings, name)
    for name, judge in settings.judges.items():
        yield _asked(f"judge {name}", f"{judge.url}/models", None)


def _port(settings: Settings) -> _Row:
    try:
        bound = bind(settings.host, settings.port)
    except ListenError as error:
        return "port", "warn" if error.taken else "fail", error.reason, error.remedy
    for one in bound:
        one.close()
    return "port", "ok", f"{host_and_port(settings.host, settings.port)} is free", ""


def _keys(settings: Settings) -> _Row:
    try:
        keys = settings.read_api_keys()
        settings.read_cache_secret()
    except ConfigError as error:
        return "keys", "fail", str(error), "make them with `paragone key new NAME --file FILE`"
    if not keys:
        remedy = "for others: paragone key new NAME --file keys.txt"
        return "keys", "ok", "none: whoever is on this machine may ask", remedy
    text = f"{len(keys)}: {', '.join(key.name for key in keys)}"
    file = settings.api_key_file
    if file is not None and stat.S_IMODE(file.stat().st_mode) & stat.S_IRWXO:
        return "keys", "warn", f"{text}; everybody on this machine can read {file}", f"chmod o= {file}"
    return "keys", "ok", text, ""


def _redis(settings: Settings) -> Iterator[_Row]:
    if settings.redis_url is None:
        return
    url = settings.redis_url.get_secret_value()
    subject = "redis"
    try:
        milliseconds, facts = asyncio.run(_ask_redis(url))
    except FAILURES as error:
        yield subject, "fail", f"{redis_address(url)}: {error or type(error).__name__}", _CONNECTION_REFUSED
        return
    text = f"{redis_address(url)} answers in {milliseconds:.1f} ms"
    slow = milliseconds > _SLOW_MS
    yield subject, "warn" if slow else "ok", text, "a cache so far away costs each request that: put it nearer" * slow
    policy, limit = facts
    if policy is None:
        yield "redis keeps", "ok", "it does not tell its policy", "set maxmemory-policy allkeys-lfu, with a maxmemory"
    elif not limit:
        yield "redis keeps", "warn", "it has no maxmemory", "set maxmemory, and maxmemory-policy allkeys-lfu"
    elif not policy.startswith("allkeys-"):
        text = f"maxmemory-policy {policy}: once {limit / 1e6:,.0f} MB are full nothing new is kept"
        yield "redis keeps", "warn", text, "set maxmemory-policy allkeys-lfu"
    else:
        yield "redis keeps", "ok", f"{limit / 1e6:,.0f} MB, {policy}", ""


async def _ask_redis(url: str) -> tuple[float, tuple[str | None, int]]:
    """Return the time of a ping, in milliseconds, and policy and limit of memory; None where it does not tell."""
    servers = connect(url)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await servers.ping()  # opens the connection
            began = time.perf_counter()
            await servers.ping()
            milliseconds = (time.perf_counter() - began) * 1000
            memory = await servers.client.info("memory")
    finally:
        await servers.close()
    # A cluster answers by node; one stands for all.
    first = memory if "maxmemory" in memory else next(iter(memory.values()), {})
    return milliseconds, (first.get("maxmemory_policy"), int(first.get("maxmemory", 0)))


def _engine(settings: Settings, name: str) -> Iterator[_Row]:
    remote = settings.remote_engine(name)
    assert remote is not None
    word, addresses = remote
    key = settings.engine_api_key
    for address in addresses:
        subject = f"engine {name}"
        if word == "vllm":
            yield _asked(subject, f"{address.rstrip('/')}/v1/models", None if key is None else key.get_secret_value())
        else:
            yield _triton(subject, name, address)


def _asked(subject: str, url: str, key: str | None) -> _Row:
    """Return whether an OpenAI-compatible server lists its models, and which."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        response = httpx2.get(url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        names = [str(card["id"]) for card in response.json()["data"]] if response.is_success else []
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return subject, "fail", f"{url}: {error or type(error).__name__}", _CONNECTION_REFUSED
    except (KeyError, TypeError, ValueError):
        return subject, "fail", f"{url} does not list models", "is that an OpenAI-compatible server?"
    if not response.is_success:
        wants_key = response.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN)
        remedy = "it wants a key: engine_api_key, or key_env of a judge" if wants_key else "look into its log"
        return subject, "warn", f"{url}: status {response.status_code}", remedy
    milliseconds = response.elapsed.total_seconds() * 1000
    return subject, "ok", f"{url} answers in {milliseconds:.0f} ms and has {', '.join(names)}", ""


def _triton(subject: str, name: str, address: str) -> _Row:
    try:
        import tritonclient.grpc
    except ModuleNotFoundError:
        return subject, "fail", f"{address}: its client is not installed", pip_install("triton")
    scheme, _, host = address.partition("://")
    with tritonclient.grpc.InferenceServerClient(host, ssl=scheme == "grpcs") as client:
        try:
            config = client.get_model_config(name, client_timeout=_TIMEOUT_S).config
        except tritonclient.grpc.InferenceServerException as error:
            remedy = f"{_CONNECTION_REFUSED} The model comes from: paragone export triton {name}=…"
            return subject, "fail", f"{address}: {error.message()}", remedy
    identity = config.parameters["identity"].string_value if "identity" in config.parameters else "of nobody's export"
    return subject, "ok", f"{address} has {name}, identity {identity[:12]}…", ""
