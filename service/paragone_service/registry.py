"""The hosted models: loaded from their sources, each with what runs and answers for it."""

import logging
import pkgutil
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from paragone.codes import ErrorCode
from paragone_models import load_model
from paragone_models.files.backbones import Residents
from paragone_models.model import PreferenceModel
from paragone_service.cache.keys import NO_SECRET
from paragone_service.cache.tiers import Cache
from paragone_service.config import ConfigError, Settings
from paragone_service.engine import REMOTE_ENGINES
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.http.errors import ServiceError, printable
from paragone_service.metrics import Metrics
from paragone_service.pairs.source import PairSource
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import Resources
from paragone_service.scoring.request import Reservation

__all__ = ["Registry", "load_models"]

logger = logging.getLogger("paragone.service")

_ANY = "*"
_MADE_UP = frozenset({"dummy", "reward_model", "default", "tgi", "model"})
"""Names that clients send where no model was chosen."""

_REMOTE_MARGIN_S = 30.0
"""For what a call to another server does beside its one long wait: tries to connect, pauses between them."""


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
    residents: Residents = {}
    for name, options in settings.loaded.items():
        started = time.perf_counter()
        model = models[name] = load_model(
            options.source,
            name=name,
            kind=options.kind,
            head=options.head,
            device=options.device or settings.device,
            dtype=options.dtype or settings.dtype,
            revision=options.revision,
            weights=options.weights,
            temperature=options.temperature,
            skew_weight=options.skew_weight,
            aggregation=options.aggregation,
            max_length=options.max_length,
            special_tokens=options.special_tokens,
            bos=options.bos,
            reasoning=options.reasoning,
            chat_template=options.chat_template,
            backbone=options.backbone,
            trust_remote_code=options.trust_remote_code,
            max_batch_tokens=settings.max_batch_tokens,
            deterministic=options.deterministic,
            elsewhere=name in settings.engines,
            residents=residents,
            prompt_cache_bytes=None if options.prompt_cache_mb is None else round(options.prompt_cache_mb * 1e6),
        )
        took_s = time.perf_counter() - started
        logger.info(
            "model %s: %s, from %s in %.1f s, identity %s",
            name,
            model.kind,
            model.provenance.source,
            took_s,
            model.identity,
        )
        if model.spec.demonstration:
            logger.info("model %s is a demonstration, no judge to rely on; it knows: %s", name, model.spec.domain)
    return models


class Registry:
    """Find a hosted model by the name that requests use.

    Args:
        default: the name of the one that answers when a request names none.
        engines: what runs a model instead of this process, by name.
        secret: what ids are keyed with, from ``secret_of``.
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
        self.pair_sources: dict[str, PairSource] = {}
        self._settings = settings
        self._devices: dict[str, DeviceThread] = {}
        self._hosted: dict[str, HostedModel] = {}
        # The default model first, the others in their order: /v1/models lists them so.
        for name in sorted(models, key=lambda name: name != default):
            model = models[name]
            device = self._device_of(name, model)
            resources = Resources(
                engine=(engines or {}).get(name) or self._engine(name, model, device),
                device=device,
                cache=cache,
                metrics=metrics,
                max_batch_tokens=model.budget.tokens,
                max_queue_tokens=settings.max_queue_tokens,
                max_wait_s=settings.max_wait_s,
                reading_limit_s=settings.reading_limit_s,
                clock=clock,
            )
            self._hosted[name] = HostedModel(name, model, resources, strict_cache=settings.strict_cache, secret=secret)

    def __iter__(self) -> Iterator[HostedModel]:
        """Iterate over the hosted models that represent responses, the default one first."""
        return iter(self._hosted.values())

    def add(self, source: PairSource) -> None:
        """Host a model that reads both responses at once."""
        assert source.name not in self.names
        self.pair_sources[source.name] = source

    @property
    def names(self) -> list[str]:
        """The names of all that is hosted, those that only compare last."""
        return [*self._hosted, *self.pair_sources]

    def pair_source(self, name: str | None) -> PairSource | None:
        """Return what compares under a name, None if it is no model that reads both responses at once."""
        return self.pair_sources.get(self.default if name is None else name)

    def find(self, name: str | None) -> HostedModel:
        """Return a hosted model that represents single responses, the default one if there is no name.

        Raises:
            ServiceError: ``unknown_model``, naming the hosted ones; ``return_unavailable``, if it only compares.
        """
        hosted = self._hosted.get(self.default if name is None else name)
        if hosted is None:
            raise self._not_found(name)
        return hosted

    def _not_found(self, name: str | None) -> ServiceError:
        known = self.default if name is None else name
        if known in self.pair_sources:
            return ServiceError(
                ErrorCode.RETURN_UNAVAILABLE,
                f"model {known} compares two responses at once and has nothing to say of one alone: ask "
                "/v1/preferences or /v1/tournaments",
            )
        return ServiceError(
            ErrorCode.UNKNOWN_MODEL,
            f"model {printable(name or '')} is not hosted here; these are: {', '.join(self.names)}",
        )

    def foreign_name(self, name: str | None) -> str | None:
        """Return the hosted model that a name from elsewhere stands for, None if nobody knows it.

        A name stands for the model that is called so, or that ``aliases`` says; a path, for the model that was loaded
        from it or is called like its last part. No name, and one that a client makes up because it must send one,
        stand for the default, which the alias ``*`` names; with that alias every other name does too.
        """
        aliases = self._settings.aliases
        default = aliases.get(_ANY, self.default)
        if not name:
            return default
        if name in self._hosted or name in self.pair_sources:
            return name
        if name in aliases:
            return aliases[name]
        by_source = next((own for own, hosted in self._hosted.items() if _same_source(name, hosted)), None)
        if by_source is not None:
            return by_source
        last = name.rstrip("/").rpartition("/")[2]
        if last in self._hosted:
            return last
        return default if _ANY in aliases or name in _MADE_UP or _is_path(name) else None

    def find_foreign(self, name: str | None) -> HostedModel:
        """Return the hosted model that a name from elsewhere stands for; see ``foreign_name``.

        Raises:
            ServiceError: ``unknown_model``, naming the hosted ones.
        """
        known = self.foreign_name(name)
        if known is None:
            raise ServiceError(
                ErrorCode.UNKNOWN_MODEL,
                f"model {printable(name or '')} is not hosted here; these are: {', '.join(self.names)}. If it stands "
                "for one of them, say so under [aliases]",
            )
        return self.find(known)

    @property
    def busy(self) -> bool:
        """Whether a model has so much to do that somebody may be refused."""
        return any(hosted.admission.busy for hosted in self._hosted.values())

    def judged(
        self, name: str | None, client: Hashable, body_bytes: int, deadline_s: float | None
    ) -> ServiceError | Reservation | None:
        """Return what a request of such a length, which was not parsed, is refused with, or what it reserves.

        None if there is no such model.
        """
        hosted = self._hosted.get(self.default if name is None else name)
        return None if hosted is None else hosted.admission.judged(client, body_bytes, deadline_s)

    def start(self) -> None:
        """Start every model's queues; needs a running event loop."""
        for hosted in (*self, *self.pair_sources.values()):
            hosted.start()

    async def close(self) -> None:
        """Stop every model, then the threads of the devices."""
        for hosted in (*self.pair_sources.values(), *self):  # a source may ask one of the others
            await hosted.close()
        for device in self._devices.values():
            device.close()

    def _engine(self, name: str, model: PreferenceModel, device: DeviceThread) -> Engine:
        remote, key = self._settings.remote_engine(name), self._settings.engine_api_key
        if remote is None:
            return LocalEngine(model, device)
        word, addresses = remote
        kind = REMOTE_ENGINES[word]
        logger.info("model %s: its backbone runs on %s at %s", name, word, ", ".join(addresses))
        try:
            opener: Callable[..., Engine] = pkgutil.resolve_name(kind.opener)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the engine {word} of model {name} needs {error.name}: pip install 'paragone[{kind.extra}]'"
            ) from error
        return opener(
            model,
            addresses,
            timeout_s=self._settings.engine_timeout_s,
            api_key=None if key is None else key.get_secret_value(),
        )

    def _forward_limit_s(self, name: str) -> float:
        # An engine elsewhere has a time-out of its own; only if that does not hold is something stuck here.
        if self._settings.remote_engine(name) is not None:
            return self._settings.engine_timeout_s + _REMOTE_MARGIN_S
        return self._settings.forward_limit_s

    def _device_of(self, name: str, model: PreferenceModel) -> DeviceThread:
        # A model whose backbone runs elsewhere waits for nobody's turn here.
        device = name if name in self._settings.engines else str(next(model.network.parameters()).device)
        # One thread a device, and its turn, for all models on it: two at once would fight for memory and cores.
        if device not in self._devices:
            self._devices[device] = DeviceThread(device, limit_s=self._forward_limit_s(name))
        return self._devices[device]


def _same_source(name: str, hosted: HostedModel) -> bool:
    return hosted.model.provenance.source.rstrip("/") == name.rstrip("/")


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~"))
