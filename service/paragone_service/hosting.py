"""What hosted models are made of: their weights, a replica for each of their devices, and what runs those."""

import copy
import logging
import pkgutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread

import torch
from torch import Tensor

from paragone.installing import pip_install
from paragone_models import load_model
from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.files.backbones import Residents
from paragone_models.model import PreferenceModel
from paragone_service.config import ConfigError, Settings
from paragone_service.engine import REMOTE_ENGINES
from paragone_service.engine.balancing import BalancedEngine
from paragone_service.engine.contract import Engine
from paragone_service.engine.local import DeviceThread, LocalEngine
from paragone_service.engine.names import ALL, torch_name
from paragone_service.logs import ONE_FACT, START_LOGGER
from paragone_service.model_settings import ModelSettings
from paragone_service.scoring.model_io import Replica

__all__ = ["Devices", "load_models", "load_one", "named_devices"]

logger = logging.getLogger("paragone.service")

_PATIENCE_S = 5.0
"""How long people wait without a word."""
_AGAIN_S = 30.0
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
    residents: Residents = {}
    models = {}
    for name, options in settings.loaded.items():
        with _saying_so_if_it_takes_long(name, options.source):
            models[name] = load_one(settings, name, options, residents)
    return models


@contextmanager
def _saying_so_if_it_takes_long(name: str, source: str) -> Iterator[None]:
    over, say = Event(), logging.getLogger(START_LOGGER).info

    def watch() -> None:
        began = time.monotonic()
        if not over.wait(_PATIENCE_S):
            say(f"loading {name} from {source} …")
        while not over.wait(_AGAIN_S):
            say(f"still loading {name}, {time.monotonic() - began:.0f} s so far")

    watching = Thread(target=watch, name="loading for long", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def load_one(
    settings: Settings, name: str, options: ModelSettings, residents: Residents | None = None
) -> PreferenceModel:
    """Load one model, on the first of its devices.

    Args:
        residents: backbones that nobody runs yet; a trial changes weights and puts them back.

    Raises:
        ModelLoadError: if it cannot be hosted.
    """
    started = time.perf_counter()
    devices = named_devices(settings.devices_of(name))
    model = load_model(
        options.source,
        name=name,
        kind=options.kind,
        head=options.head,
        device=torch_name(devices[0]) if devices else options.device or settings.device,
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
        symmetrise=options.symmetrise,
        chat_template=options.chat_template,
        backbone=options.backbone,
        trust_remote_code=options.trust_remote_code,
        max_batch_tokens=settings.max_batch_tokens,
        deterministic=options.deterministic,
        elsewhere=name in settings.engines,
        residents=residents,
        prompt_cache_bytes=None if options.prompt_cache_mb is None else round(options.prompt_cache_mb * 1e6),
    )
    logger.info(
        "model %s: %s, from %s in %.1f s, identity %s",
        name,
        model.kind,
        model.provenance.source,
        time.perf_counter() - started,
        model.identity,
        extra=ONE_FACT,
    )
    if model.spec.demonstration:
        logger.info(
            "model %s is a demonstration, no judge to rely on; it knows: %s", name, model.spec.domain, extra=ONE_FACT
        )
    return model


def named_devices(names: Sequence[str]) -> tuple[str, ...]:
    """Return the devices with ``all`` as every GPU, or the CPU where there is none."""
    if tuple(names) != (ALL,):
        return tuple(names)
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)


class Devices:
    """The devices of a server: one thread each, and the replicas of models on them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads: dict[str, DeviceThread] = {}
        self._moved: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)

    def replicas(self, name: str, model: PreferenceModel, engine: Engine | None = None) -> list[Replica]:
        """Return what runs a loaded model: a replica on each of its devices, or the servers that do it.

        Args:
            engine: what runs it whatever the settings say.

        Raises:
            ModelLoadError: if a device cannot run it as the first one does.
        """
        if name in self._settings.engines:
            # It waits for nobody's turn here. The engine has a time-out of its own; only if that does not hold is
            # something stuck here.
            limit_s = self._settings.engine_timeout_s + _REMOTE_MARGIN_S
            engine = engine or self._remote_engine(name, model)
            places = engine.places if isinstance(engine, BalancedEngine) else 1
            # Each batch is for all of its servers. A second one is on its way meanwhile, because a server that is
            # done with its part of the first has nothing else to do.
            lanes = [name] if places == 1 else [f"{name}, lane {lane}" for lane in (1, 2)]
            return [self._replica(model, self._thread(lane, limit_s), engine, budgets=places) for lane in lanes]
        where = str(next(model.network.parameters()).device)
        if engine is not None:
            return [self._replica(model, self._thread(where, self._settings.forward_limit_s), engine)]
        devices = named_devices(self._settings.devices_of(name)) or (where,)
        # A replica's trial runs where it will run: another thread's team of workers would be in its way for good.
        replicas = []
        for number, device in enumerate(devices):
            thread = self._thread(device, self._settings.forward_limit_s, _threads(devices))
            try:
                own = thread.run_now(partial(self._copy, name, model, device)) if number else model
            except ModelLoadError:
                # They would stay there, and pass for copies of the next model's tensors, which may have the same ids.
                self.forget_copies()
                raise
            replicas.append(self._replica(own, thread, LocalEngine(own, thread)))
        if len(replicas) > 1:
            logger.info("model %s: one queue for %s", name, ", ".join(devices), extra=ONE_FACT)
        return replicas

    def beside(self, replicas: Sequence[Replica], model: PreferenceModel) -> list[Replica]:
        """Return what runs a model of another head on the backbone that these replicas run, in their memory.

        Args:
            replicas: in this process.
            model: on the first of their devices.
        """
        first, *others = replicas
        assert model.reader is not None
        found = [self._replica(model, first.device, LocalEngine(model, first.device))]
        for replica in others:
            device = next(replica.model.network.parameters()).device
            head = copy.deepcopy(model.network.head).to(device)
            own = replica.model.with_head(head, model.spec, model.reader, model.provenance)
            found.append(self._replica(own, replica.device, LocalEngine(own, replica.device)))
        return found

    def _copy(self, name: str, model: PreferenceModel, device: str) -> PreferenceModel:
        there = torch_name(device)
        try:
            return model.replica(there, self._moved[there])
        except ModelLoadError as error:
            raise ModelLoadError(f"model {name} has no replica on {device}: {error}") from error
        except Exception as error:  # whatever a device or a driver raises
            raise ModelLoadError(f"model {name} has no replica on {device}: {reason_of(error)}") from error

    def forget_copies(self) -> None:
        """Forget which tensors were copied where: those that the next models are made of may have the same ids."""
        self._moved.clear()

    def close(self) -> None:
        """End the threads after the work that they have."""
        for thread in self._threads.values():
            thread.close()

    def _replica(self, model: PreferenceModel, thread: DeviceThread, engine: Engine, *, budgets: int = 1) -> Replica:
        return Replica(model=model, engine=engine, device=thread, max_batch_tokens=budgets * model.budget.tokens)

    def _thread(self, device: str, limit_s: float, threads: int | None = None) -> DeviceThread:
        # One thread a device, and its turn, for all models on it: two at once would fight for memory and cores.
        if device not in self._threads:
            self._threads[device] = DeviceThread(device, limit_s=limit_s, threads=threads)
        return self._threads[device]

    def _remote_engine(self, name: str, model: PreferenceModel) -> Engine:
        remote, key = self._settings.remote_engine(name), self._settings.engine_api_key
        assert remote is not None
        word, addresses = remote
        kind = REMOTE_ENGINES[word]
        logger.info("model %s: its backbone runs on %s at %s", name, word, ", ".join(addresses), extra=ONE_FACT)
        try:
            opener: Callable[..., Engine] = pkgutil.resolve_name(kind.opener)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the engine {word} of model {name} needs {error.name}: {pip_install(kind.extra)}"
            ) from error
        return opener(
            model,
            addresses,
            timeout_s=self._settings.engine_timeout_s,
            api_key=None if key is None else key.get_secret_value(),
        )


def _threads(devices: Sequence[str]) -> int | None:
    """Return how many cores each of several replicas on a CPU has; None where one has them all."""
    if len(devices) == 1 or not devices[0].startswith("cpu"):
        return None
    return max(1, torch.get_num_threads() // len(devices))
