"""The application: everything built and wired once, from settings and loaded models, as an ASGI app."""

import asyncio
import functools
import logging
import operator
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from paragone.versions import own_version
from paragone.wire import ModelLimits
from paragone_models.model import PreferenceModel
from paragone_service.api_keys import KeyRing
from paragone_service.cache.keys import secret_of
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.cache.tiers import Cache, MemoryCache
from paragone_service.cohorts.memory import MemoryStore
from paragone_service.cohorts.redis import RedisStore
from paragone_service.cohorts.waiting import Cohorts
from paragone_service.config import ConfigError, Settings
from paragone_service.dialects.dialect import dialect_routes, error_shapes, scoring_paths
from paragone_service.dialects.dialects import DIALECTS
from paragone_service.dialects.elsewhere import ELSEWHERE
from paragone_service.engine.contract import Engine
from paragone_service.files.reading import FileReader
from paragone_service.fitting.heads import HeadFitting
from paragone_service.http.bodies import MAX_ITEMS
from paragone_service.http.deadlines import Deadlines
from paragone_service.http.docs_page import docs_route
from paragone_service.http.errors import install_handlers
from paragone_service.http.middleware import (
    Authorization,
    BodyLimit,
    Drain,
    Draining,
    HostGuard,
    Lingering,
    Observation,
    Quota,
    Versions,
)
from paragone_service.http.openapi_document import describe_routes
from paragone_service.http.overload import QuickRefusals, Reserving
from paragone_service.http.page import page_files, page_routes
from paragone_service.http.routes.cohorts import cohort_routes
from paragone_service.http.routes.files import file_routes
from paragone_service.http.routes.heads import head_routes
from paragone_service.http.routes.operation import health_routes, inspection_routes
from paragone_service.http.routes.references import reference_routes
from paragone_service.http.routes.rollout import rollout_routes
from paragone_service.http.routes.runs import run_routes
from paragone_service.http.routes.scoring import scoring_routes
from paragone_service.judge.hosted_judge import HostedJudge
from paragone_service.logs import ONE_FACT
from paragone_service.metrics import Metrics
from paragone_service.pairs.ensemble import open_ensembles
from paragone_service.pairs.source import PairSource
from paragone_service.quotas import Quotas
from paragone_service.references.sets import ReferenceSets
from paragone_service.references.stores import MemorySets, RedisSets
from paragone_service.registry import Registry
from paragone_service.rollout import Rollout
from paragone_service.runs import Runs
from paragone_service.scoring.describing import described
from paragone_service.tracing import Tracing, make_tracer
from paragone_service.watchdog import Watchdog

__all__ = ["create_app"]

logger = logging.getLogger("paragone.service")

_DAY_S = 86_400
_MAX_WORKERS = 4
_KEYS_EVERY_S = 1.0


def create_app(
    settings: Settings,
    models: Mapping[str, PreferenceModel],
    *,
    engines: Mapping[str, Engine] | None = None,
    pair_sources: Sequence[PairSource] = (),
    drain: Drain | None = None,
    tracer: Any = None,
    watchdog: Watchdog | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> FastAPI:
    """Return the service as an ASGI application; its lifespan starts and stops everything it owns.

    Args:
        models: loaded models by name, the default one first unless the settings say otherwise. None are enough for
            the OpenAPI document.
        engines: what runs a model instead of this process, by name.
        pair_sources: what compares two responses at once, and is open already.
        tracer: what makes spans (an OpenTelemetry ``Tracer``), if not that of ``traces_url``.
        drain: whether the server is shutting down, shared with whoever handles signals.
        watchdog: looks at the models' workers and the event loop, once it is started.

    Raises:
        ConfigError: if the API key cannot be read, or an alias leads nowhere.
    """
    drain = drain or Drain()
    metrics = Metrics()
    version = own_version()
    redis = _redis(settings, metrics)
    memory = MemoryCache(round(settings.memory_cache_mb * 1e6))
    cache = Cache(memory, redis, metrics, seal=Seal(settings.read_cache_secret()))
    quotas = Quotas(
        metrics,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        judge_calls_per_minute=settings.judge_calls_per_minute,
        redis=redis,
    )
    names = [*models, *(source.name for source in pair_sources), *settings.judges, *settings.ensembles]
    default = settings.default_model if settings.default_model in names else next(iter(names), "")
    keys = settings.read_api_keys()
    ring = KeyRing(keys)
    # Replicas need one secret: that of the cache, else the first key, which therefore is the last to be exchanged.
    secret = settings.read_cache_secret() or secret_of(keys[0].digest if keys else None)
    settings.check_aliases(names)
    shapes = error_shapes(DIALECTS, settings.dialects.on)
    registry = Registry(models, default, settings, cache, metrics, engines=engines, secret=secret, clock=clock)
    for source in (*pair_sources, *_judges(settings, cache, metrics, redis)):
        registry.add(source)
    for ensemble in open_ensembles(settings.ensembles, registry, ConfigError):
        registry.add(ensemble)
    workers = _workers()
    keep_s = settings.cohort_keep_s
    store = (
        MemoryStore(keep_s=keep_s)
        if redis is None
        else RedisStore(redis, keep_s=keep_s, seal=Seal(settings.read_cache_secret()), metrics=metrics)
    )
    sets = ReferenceSets(
        MemorySets() if redis is None else RedisSets(redis, seal=Seal(settings.read_cache_secret()), metrics=metrics)
    )
    file_reader = FileReader(memory_bytes=round(settings.file_memory_mb * 1e6), limit_s=settings.file_limit_s)
    cohorts = Cohorts(store, drain, deadline_s=settings.deadline_s)

    def guards(inner: ASGIApp) -> tuple[HostGuard, Authorization]:
        return HostGuard(inner, hosts=settings.served_hosts), Authorization(inner, keys=ring)

    files = page_files() if settings.page else {}
    open_files = frozenset(files)

    # The outermost first: Observation counts what the inner ones refuse, and Lingering sees whatever is answered.
    middleware = [
        Middleware(Reserving),
        Middleware(Lingering, drain=drain),
        Middleware(Observation, metrics=metrics, clock=clock),
        Middleware(Draining, drain=drain),
        Middleware(HostGuard, hosts=settings.served_hosts),
        Middleware(Authorization, keys=ring, files=open_files),
        Middleware(Versions, version=version, files=open_files),
        Middleware(Quota, quotas=quotas),
        Middleware(BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s),
        Middleware(Deadlines, default_s=settings.deadline_s),
    ]

    tracer = tracer or make_tracer(settings.traces_url)
    if tracer is not None:
        middleware.insert(0, Middleware(Tracing, tracer=tracer))

    def watch() -> None:
        if watchdog is not None:
            watchdog.watch(asyncio.get_running_loop(), registry.watched())

    rollout = Rollout(settings, registry, watch)
    fitting = HeadFitting(settings, registry, rollout)

    # Requests have all ended when this goes on after its yield: uvicorn drains before it shuts the lifespan down.
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 (starlette's signature)
        await cache.start()
        registry.start()
        await cohorts.start()
        watch()
        following = asyncio.create_task(_follow_keys(settings, ring))
        logger.info("hosting %s; %s answers by default", ", ".join(registry.names), registry.default, extra=ONE_FACT)
        yield
        following.cancel()
        if watchdog is not None:
            watchdog.unwatch()
        await cohorts.stop()
        await rollout.close()
        await registry.close()  # before the cache, because its last batches still write into the cache
        await cache.close()
        fitting.close()
        workers.shutdown(wait=True, cancel_futures=True)

    app = FastAPI(
        title="Paragone",
        version=version,
        lifespan=lifespan,
        middleware=middleware,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operator.attrgetter("name"),
    )
    app.state.max_messages = settings.max_messages
    app.state.registry = registry
    app.state.redis = redis
    app.state.reference_sets = sets
    app.state.log_texts = settings.log_texts
    app.state.metrics = metrics
    app.state.error_shapes = shapes
    app.state.elsewhere = ELSEWHERE
    # Behind a proxy the usual way finds out who asks; and with traces each refusal is to have one.
    if tracer is None and not settings.trusted_proxies:
        foreign = scoring_paths(DIALECTS, settings.dialects.on)
        app.state.quick_refusals = QuickRefusals(
            registry, drain, metrics, guards=guards, clock=clock, shapes=shapes, foreign=foreign
        )
    install_handlers(app)
    describe_routes(app)
    app.include_router(scoring_routes(registry, sets, workers))
    app.include_router(cohort_routes(registry, sets, cohorts, workers))
    app.include_router(reference_routes(registry, sets))
    app.include_router(file_routes(file_reader))
    app.include_router(run_routes(Runs()))
    limits = ModelLimits(max_tokens=0, max_items=MAX_ITEMS, max_body_bytes=settings.max_body_bytes)
    app.include_router(inspection_routes(registry, limits))
    info = functools.partial(described, limits=limits)
    keyless = not keys and settings.api_key_file is None
    app.include_router(rollout_routes(rollout, info, keyless=keyless))
    app.include_router(head_routes(fitting, info, keyless=keyless))
    app.include_router(health_routes(registry, metrics, drain))
    app.include_router(docs_route(app))
    app.router.routes.extend(page_routes(files))  # before the dialects, of which one answers browsers at the root
    app.router.routes.extend(dialect_routes(DIALECTS, settings.dialects, registry))
    return app


async def _follow_keys(settings: Settings, ring: KeyRing) -> None:
    """Take the keys of the file whenever it changes, so that a key is added or withdrawn without a restart."""
    if settings.api_key_file is not None:
        await ring.follow(settings.read_api_keys, every_s=_KEYS_EVERY_S)


def _judges(settings: Settings, cache: Cache, metrics: Metrics, redis: RedisCache | None) -> list[HostedJudge]:
    judges = []
    for name, judge in settings.judges.items():
        try:
            judges.append(HostedJudge(name, judge, cache=cache, metrics=metrics, redis=redis))
        except ValueError as error:
            raise ConfigError(f"models.{name}: {error}") from None
        logger.info("model %s: judge %s at %s, format %s", name, judge.model, judge.url, judge.format, extra=ONE_FACT)
    return judges


def _workers() -> ThreadPoolExecutor:
    # For arithmetic that takes seconds: the event loop, and with it every other request, must not wait for it.
    return ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1), thread_name_prefix="tournaments")


def _redis(settings: Settings, metrics: Metrics) -> RedisCache | None:
    if settings.redis_url is None:
        return None
    return RedisCache(settings.redis_url.get_secret_value(), ttl_s=settings.cache_ttl_days * _DAY_S, metrics=metrics)
