"""The hosted models: loaded from their sources, each with what runs and answers for it."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from paragone.codes import ErrorCode
from paragone_models.model import PreferenceModel
from paragone_service.cache.keys import NO_SECRET
from paragone_service.cache.tiers import Cache
from paragone_service.config import Settings
from paragone_service.engine.contract import Engine
from paragone_service.hosting import Devices
from paragone_service.http.errors import ServiceError, printable
from paragone_service.metrics import Metrics
from paragone_service.pairs.pairwise import PairwiseModel
from paragone_service.pairs.source import PairSource
from paragone_service.scoring.devices import Device
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import Replica, Resources
from paragone_service.scoring.request import Reservation
from paragone_service.scoring.workers import DeviceWatch, Workers
from paragone_service.watchdog import Watched

__all__ = ["Registry"]

_ANY = "*"
_MADE_UP = frozenset({"dummy", "reward_model", "default", "tgi", "model"})
"""Names that clients send where no model was chosen."""


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
        self.made_here: set[str] = set()
        """Names of the models that were fitted while the server ran."""
        self.pair_sources: dict[str, PairSource] = {}
        self.devices = Devices(settings)
        self._settings = settings
        self._cache = cache
        self._metrics = metrics
        self._secret = secret
        self._clock = clock
        self._hosted: dict[str, HostedModel] = {}
        # The default model first, the others in their order: /v1/models lists them so.
        for name in sorted(models, key=lambda name: name != default):
            replicas = self.devices.replicas(name, models[name], (engines or {}).get(name))
            self._host(name, self.hosted(name, models[name], replicas))
        self.devices.forget_copies()

    def hosted(self, name: str, model: PreferenceModel, replicas: Sequence[Replica]) -> HostedModel:
        """Return what answers for a loaded model; nobody finds it yet."""
        resources = Resources(
            replicas=replicas,
            cache=self._cache,
            metrics=self._metrics,
            max_queue_tokens=self._settings.max_queue_tokens,
            max_wait_s=self._settings.max_wait_s,
            reading_limit_s=self._settings.reading_limit_s,
            clock=self._clock,
        )
        strict = self._settings.strict_cache
        return HostedModel(name, model, resources, strict_cache=strict, secret=self._secret)

    def exchange(self, name: str, hosted: HostedModel | None) -> HostedModel | None:
        """Have a name lead to another model, or to none, from this moment on, and return the one it led to."""
        before = self._hosted.get(name)
        if hosted is not None:
            self._host(name, hosted)
        elif before is not None:
            del self._hosted[name]
            self.pair_sources.pop(name, None)
        return before

    def _host(self, name: str, hosted: HostedModel) -> None:
        self._hosted[name] = hosted
        self.pair_sources.pop(name, None)  # of the model that was called so before
        if hosted.model.spec.rules.reads_pairs:
            self.pair_sources[name] = PairwiseModel(hosted)

    def __iter__(self) -> Iterator[HostedModel]:
        """Iterate over the models that run on this server's queues, the default one first."""
        return iter(self._hosted.values())

    def add(self, source: PairSource) -> None:
        """Host a model that reads both responses at once."""
        assert source.name not in self.names
        self.pair_sources[source.name] = source

    @property
    def names(self) -> list[str]:
        """The names of all that is hosted, those that only compare last."""
        return list(dict.fromkeys([*self._hosted, *self.pair_sources]))

    @property
    def all(self) -> list[HostedModel | PairSource]:
        """All that is hosted, each once."""
        # A pairwise model is both: as a source it asks itself.
        return [*self, *(source for source in self.pair_sources.values() if source.name not in self._hosted)]

    def loaded(self, name: str) -> HostedModel | None:
        """Return the model that this server runs under a name, whatever it reads; None if it runs none."""
        return self._hosted.get(name)

    def pair_source(self, name: str | None) -> PairSource | None:
        """Return what compares under a name, None if it is no model that reads both responses at once."""
        return self.pair_sources.get(self.default if name is None else name)

    def find(self, name: str | None) -> HostedModel:
        """Return a hosted model that represents single responses, the default one if there is no name.

        Raises:
            ServiceError: ``unknown_model``, naming the hosted ones; ``return_unavailable``, if it only compares.
        """
        known = self.default if name is None else name
        if known not in self._hosted or known in self.pair_sources:
            raise self._not_found(name)
        return self._hosted[known]

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

        No name stands for the default, which the alias ``*`` names; with that alias every name does that ``meant`` does
        not know.
        """
        aliases = self._settings.aliases
        known = self.meant(name) if name else self.default_elsewhere
        return self.default_elsewhere if known is None and _ANY in aliases else known

    @property
    def default_elsewhere(self) -> str:
        """The name of the model that answers dialects where none was chosen."""
        return self._settings.aliases.get(_ANY, self.default)

    def meant(self, name: str) -> str | None:
        """Return the hosted model that a name from elsewhere means by itself, None if nobody knows it.

        That is the model that is called so, or that ``aliases`` says; of a path, the model that was loaded from it or
        is called like its last part, if it was not fitted here. Another path, and a name that a client makes up
        because it must send one, mean the default.
        """
        aliases = self._settings.aliases
        if name in self._hosted or name in self.pair_sources:
            return name
        if name in aliases:
            return aliases[name]
        by_source = next((own for own, hosted in self._hosted.items() if _same_source(name, hosted)), None)
        if by_source is not None:
            return by_source
        last = name.rstrip("/").rpartition("/")[2]
        # A head that somebody fits must not take over the path that others send.
        if last in self._hosted and last not in self.made_here:
            return last
        return self.default_elsewhere if name in _MADE_UP or _is_path(name) else None

    def known_foreign(self, name: str | None) -> str:
        """Return the name of the hosted model that a name from elsewhere stands for; see ``foreign_name``.

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
        return known

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

    def watched(self) -> list[Watched]:
        """Return what the watchdog looks at: the models, and the devices of those that have several."""
        by_name: dict[str, list[tuple[Workers, Device]]] = {}
        for hosted in self:
            for scheduler in hosted.schedulers():
                for device in scheduler.devices if len(scheduler.devices) > 1 else ():
                    by_name.setdefault(device.name, []).append((scheduler.workers, device))
        return [*self, *(DeviceWatch(name, workers) for name, workers in by_name.items())]

    def start(self) -> None:
        """Start every model's queues; needs a running event loop."""
        for hosted in self.all:
            hosted.start()

    async def close(self) -> None:
        """Stop every model, then the threads of the devices."""
        for hosted in reversed(self.all):  # the sources first: they may ask one of the others
            await hosted.close()
        self.devices.close()


def _same_source(name: str, hosted: HostedModel) -> bool:
    return hosted.model.provenance.source.rstrip("/") == name.rstrip("/")


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~"))
