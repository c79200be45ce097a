"""The hosted models: loaded from their sources, each with an oracle that answers for it."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from paragone.codes import ErrorCode
from paragone.wire import ModelInfo, ModelLimits
from paragone_models import load_model
from paragone_models.model import PreferenceModel
from paragone_service.cache.ids import NO_SECRET
from paragone_service.cache.tiers import Cache
from paragone_service.config import Settings
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.engine.vllm import VllmEngine
from paragone_service.http.bodies import MAX_ITEMS
from paragone_service.http.errors import ServiceError, printable
from paragone_service.metrics import Metrics
from paragone_service.scoring.oracle import Oracle

__all__ = ["Registry", "load_models"]

logger = logging.getLogger("paragone.service")


def load_models(settings: Settings) -> dict[str, PreferenceModel]:
    """Load every model of the settings, in their order, on a thread of its own.

    OpenMP gives each thread that computes a team of workers. With two teams on the machine's cores their workers sleep
    instead of spinning between two loops, and every pass of the engine pays for waking them: a fifth of its time for
    30 million parameters. So the loading thread ends, and its team with it.

    Raises:
        ModelLoadError: (of ``paragone_models``) if a source cannot be hosted; the message says which and why.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading") as loading:
        return loading.submit(_load_models, settings).result()


def _load_models(settings: Settings) -> dict[str, PreferenceModel]:
    models = {}
    for name, wanted in settings.models.items():
        started = time.perf_counter()
        model = models[name] = load_model(
            wanted.source,
            name=name,
            kind=wanted.kind,
            head=wanted.head,
            device=wanted.device or settings.device,
            dtype=wanted.dtype or settings.dtype,
            revision=wanted.revision,
            weights=wanted.weights,
            temperature=wanted.temperature,
            max_length=wanted.max_length,
            special_tokens=wanted.special_tokens,
            bos=wanted.bos,
            reasoning=wanted.reasoning,
            trust_remote_code=wanted.trust_remote_code,
            max_batch_tokens=settings.max_batch_tokens,
            deterministic=wanted.deterministic,
            elsewhere=name in settings.engines,
            prompt_cache_bytes=None if wanted.prompt_cache_mb is None else round(wanted.prompt_cache_mb * 1e6),
        )
        took_s = time.perf_counter() - started
        logger.info(
            "model %s: %s, from %s in %.1f s, identity %s", name, model.kind, model.source, took_s, model.identity
        )
        if model.demonstration:
            logger.info("model %s is a demonstration, no judge to rely on; it knows: %s", name, model.domain)
    return models


class Registry:
    """Find the oracle of a model by the name that requests use.

    Args:
        models: loaded models by name.
        default: the name of the one that answers when a request names none.
        settings: budgets and limits.
        cache: shared by all models.
        metrics: shared by all models.
        engines: what runs a model instead of this process, by name.
        secret: what ids are keyed with, from ``secret_of``.
        clock: in seconds.
    """

    def __init__(
        self,
        models: Mapping[str, PreferenceModel],
        default: str,
        settings: Settings,
        cache: Cache,
        metrics: Metrics,
        *,
        engines: Mapping[str, Engine] | None = None,
        secret: bytes = NO_SECRET,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.default = default
        self._settings = settings
        self._devices: dict[str, DeviceThread] = {}
        self._oracles: dict[str, Oracle] = {}
        for name in sorted(models, key=lambda name: name != default):
            model = models[name]
            thread = self._thread_of(name, model)
            self._oracles[name] = Oracle(
                name,
                model,
                (engines or {}).get(name) or self._engine(name, model, thread),
                thread,
                cache,
                metrics,
                max_batch_tokens=model.max_batch_tokens,
                max_queue_tokens=settings.max_queue_tokens,
                strict_cache=settings.strict_cache,
                secret=secret,
                clock=clock,
            )

    def __iter__(self) -> Iterator[Oracle]:
        """Iterate over the oracles, the default model's first."""
        return iter(self._oracles.values())

    def find(self, name: str | None) -> Oracle:
        """Return the oracle of a model, or of the default one.

        Raises:
            ServiceError: ``unknown_model``, naming the hosted ones.
        """
        oracle = self._oracles.get(self.default if name is None else name)
        if oracle is None:
            hosted = ", ".join(self._oracles)
            raise ServiceError(
                ErrorCode.UNKNOWN_MODEL, f"model {printable(name or '')} is not hosted here; these are: {hosted}"
            )
        return oracle

    def start(self) -> None:
        """Start every scheduler; needs a running event loop."""
        for oracle in self:
            oracle.start()

    async def close(self) -> None:
        """Stop every oracle, then the threads of the devices."""
        for oracle in self:
            await oracle.close()
        for thread in self._devices.values():
            thread.close()

    def info(self, oracle: Oracle) -> ModelInfo:
        """Return what ``/v1/models`` says of a model."""
        model = oracle.model
        spec = model.spec
        return ModelInfo(
            id=oracle.name,
            kind=model.kind,
            source=model.source,
            revision=model.revision,
            identity=model.identity,
            fingerprint=model.fingerprint,
            numerics=model.numerics,
            limits=ModelLimits(
                max_tokens=model.max_length, max_items=MAX_ITEMS, max_body_bytes=self._settings.max_body_bytes
            ),
            temperature=spec.temperature,
            calibrated=spec.calibrated,
            attributes=list(spec.attributes),
            weights=None if spec.weights is None else list(spec.weights),
            dimension=spec.dimension,
            domain=spec.domain,
            demonstration=spec.demonstration,
            engine=oracle.engine.name,
            batching=model.batching,
            max_batch_tokens=oracle.scheduler.max_batch_tokens,
            max_batch_tokens_reason=self._budget_reason(oracle),
            pooling=spec.pooling,
            special_tokens=spec.special_tokens,
            reasoning=spec.reasoning,
        )

    @staticmethod
    def _budget_reason(oracle: Oracle) -> str:
        budget = oracle.model.budget
        if oracle.scheduler.max_batch_tokens < budget.tokens:
            return f"the device had not enough memory for {budget.tokens}"
        return budget.reason

    def _engine(self, name: str, model: PreferenceModel, thread: DeviceThread) -> Engine:
        url, key = self._settings.engine_url(name), self._settings.engine_api_key
        if url is None:
            return LocalEngine(model, thread)
        logger.info("model %s: its backbone runs on the vLLM server at %s", name, url)
        return VllmEngine(
            model,
            url,
            timeout_s=self._settings.engine_timeout_s,
            api_key=None if key is None else key.get_secret_value(),
        )

    def _thread_of(self, name: str, model: PreferenceModel) -> DeviceThread:
        # A model whose backbone runs elsewhere waits for nobody's turn here.
        device = name if name in self._settings.engines else str(next(model.network.parameters()).device)
        if device not in self._devices:
            self._devices[device] = DeviceThread(device)
        return self._devices[device]
