"""Models that come and go while the server runs: loaded beside the old one, checked, and exchanged at one moment.

Requests under way end on the model that they began with; whoever comes later finds the new one. Cached entries need no
care: they are kept by identity. A model that cannot be loaded, does not fit into memory or fails the built-in texts
changes nothing.
"""

import asyncio
import gc
import logging
import re
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from paragone.codes import ErrorCode
from paragone_models.errors import ModelLoadError
from paragone_models.files.backbones import home_of
from paragone_models.files.options import NAME
from paragone_models.files.sources import resolve
from paragone_models.golden import check_golden
from paragone_models.model import PreferenceModel
from paragone_service.config import Settings
from paragone_service.engine.names import torch_name
from paragone_service.hosting import load_one, named_devices
from paragone_service.http.errors import ServiceError, printable
from paragone_service.memory import available_bytes, weight_bytes
from paragone_service.model_settings import ModelSettings
from paragone_service.registry import Registry
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.model_io import Replica

__all__ = ["Rollout"]

logger = logging.getLogger("paragone.service")

_LINGER_S = 2.0
"""For how long nobody may have asked a model any more until it is let go: a request finds it, and then begins."""
_LOOK_EVERY_S = 0.1
_COLLECTIONS, _COLLECT_EVERY_S = 5, 1.0
_MARGIN = 1.2
"""Memory that has to be left, as a multiple of the weights: passes take some too."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Rollout:
    """Load and unload models of a running server.

    Args:
        changed: called once the hosted models are others.

    Attributes:
        made_here: names of the models that were fitted while the server ran.
        making: name of the one that is being fitted; empty while none is.
    """

    def __init__(self, settings: Settings, registry: Registry, changed: Callable[[], None]) -> None:
        self._settings = settings
        self._registry = registry
        self._changed = changed
        self._options: dict[str, ModelSettings] = dict(settings.loaded)
        self.made_here = registry.made_here
        self.making = ""
        self._loading = ""
        self._retiring: dict[asyncio.Task[None], HostedModel] = {}

    async def load(self, name: str, source: str | None, revision: str | None) -> HostedModel:
        """Load a model under a name, check it, and have it take over; return it.

        Args:
            source: a folder below ``models_dir``; None: what the name was loaded from.

        Raises:
            ServiceError: ``not_allowed``, without ``models_dir``; ``model_refused``, if it cannot be loaded, fails its
                check, or something else is being loaded.
        """
        options = self._options_of(name, source, revision)
        if self._loading:
            raise _refused(f"model {self._loading} is being loaded: one at a time, try again later", retry_after_s=5)
        self._loading = name
        # Whoever asked may leave: what was begun is brought to its end, and not left half-done.
        return await asyncio.shield(asyncio.ensure_future(self._load(name, options)))

    def check_new(self, name: str) -> None:
        """Refuse a name that something is called here already, or is about to be, or that clients call something.

        Raises:
            ServiceError: ``model_refused``.
        """
        if name in self._registry.names or name in self._settings.models or name == self._loading:
            raise _refused(f"there is a model {printable(name)} already: choose another name, or unload that one")
        self._check_free(name)

    def _check_free(self, name: str) -> None:
        meant = self._registry.meant(name)
        if meant is not None:
            raise _refused(f"clients that send {printable(name)} mean model {meant}: choose another name")

    def add(self, name: str, model: PreferenceModel, replicas: list[Replica], options: ModelSettings) -> HostedModel:
        """Host a model that was made here, under a name that is new, and return it; needs a running event loop."""
        self.made_here.add(name)
        return self._take_over(name, model, replicas, options)

    async def unload(self, name: str) -> HostedModel:
        """Host a model no more, and return it; requests under way end first.

        Raises:
            ServiceError: ``not_allowed``, without ``models_dir``; ``unknown_model``; ``model_refused`` for the default
                model.
        """
        if name not in self.made_here:
            self._check_allowed()
        hosted = self._registry.loaded(name) or self._registry.find(name)  # which says why there is none
        users = [other for other, one in self._settings.ensembles.items() if name in one.members]
        if users:
            raise _refused(f"model {name} is a member of {', '.join(users)}, so it stays: load another in its place")
        if name == self._registry.default:
            raise _refused(f"model {name} answers requests that name none, so it stays: load another in its place")
        self._registry.exchange(name, None)
        self._options.pop(name, None)
        self.made_here.discard(name)
        self._changed()
        hosted.forget_metrics()
        logger.warning("model %s is hosted no more", name)
        self._retire(hosted)
        return hosted

    async def close(self) -> None:
        """Close what was replaced and still had requests under way."""
        left = dict(self._retiring)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for hosted in self._retiring.values():
            await hosted.close()

    def _check_allowed(self) -> None:
        if self._settings.models_dir is None:
            raise ServiceError(
                ErrorCode.NOT_ALLOWED, "this server keeps the models that it was started with: set --models-dir"
            )

    def _options_of(self, name: str, source: str | None, revision: str | None) -> ModelSettings:
        self._check_allowed()
        if name == self.making:
            raise _refused(f"model {printable(name)} is being fitted: choose another name, or try again later")
        if not re.fullmatch(NAME, name):
            raise _refused(f"{printable(name)} is no name of a model: letters, digits, '.', '_' and '-' fit into a URL")
        if name in self._registry.pair_sources and self._registry.loaded(name) is None:
            raise _refused(f"model {name} is a judge or an ensemble, and runs elsewhere: exchange it there")
        if name in self._settings.engines:
            raise _refused(f"the backbone of model {name} runs on another server: exchange it there")
        before = self._options.get(name)
        if source is None:
            if before is None:
                raise _refused(f'there is no model {printable(name)}: name the "source" of a new one')
            # Without a revision the one that it was pinned to holds.
            return before if revision is None else before.model_copy(update={"revision": revision})
        if name not in self._registry.names and name not in self._settings.models:
            self._check_free(name)
        folder = _below(self._settings.models_dir or Path(), source)
        changes = {"source": str(folder), "revision": revision}
        # A field that was set for the old one (a dtype, weights, a template) holds for its successor.
        return ModelSettings(source=str(folder)) if before is None else before.model_copy(update=changes)

    async def _load(self, name: str, options: ModelSettings) -> HostedModel:
        loop = asyncio.get_running_loop()
        # A thread that ends with it, and its team of OpenMP workers too; see ``load_models``.
        loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading")
        try:
            model, replicas = await loop.run_in_executor(loading, partial(self._ready, name, options))
        except ModelLoadError as error:
            raise _refused(f"model {printable(name)} was not loaded: {error}") from error
        finally:
            self._loading = ""
            loading.shutdown(wait=False)
        return self._take_over(name, model, replicas, options)

    def _take_over(
        self, name: str, model: PreferenceModel, replicas: list[Replica], options: ModelSettings
    ) -> HostedModel:
        new = self._registry.hosted(name, model, replicas)
        new.start()
        old = self._registry.exchange(name, new)  # the one moment
        self._options[name] = options
        self._changed()
        before = "nothing" if old is None else old.model.identity
        logger.warning("model %s is another from now on: %s after %s", name, model.identity, before)
        if old is not None:
            self._retire(old)
        return new

    def _ready(self, name: str, options: ModelSettings) -> tuple[PreferenceModel, list[Replica]]:
        """Load, copy and check a model; in a thread."""
        self._check_memory(name, options)
        model = load_one(self._settings, name, options)
        replicas = self._registry.devices.replicas(name, model)
        self._registry.devices.forget_copies()
        for replica in replicas:
            # Between two batches of others: passes of two models at once may not fit into memory.
            texts = replica.device.run_now(partial(check_golden, replica.model))
            logger.info("model %s: %d built-in texts are sound on %s", name, texts, replica.device.name)
        return model, replicas

    def _check_memory(self, name: str, options: ModelSettings) -> None:
        folder = home_of(resolve(options.source, options.revision))[0].folder
        where = named_devices(self._settings.devices_of(name)) or (options.device or self._settings.device,)
        device = torch.device(_first(where[0]))
        size = _BYTES.get(options.dtype or self._settings.dtype, 2 if device.type == "cuda" else 4)
        try:
            need = round(_MARGIN * weight_bytes(folder, size))
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"its files cannot be read: {error}") from error
        left = available_bytes(device)
        if need > left:
            raise ModelLoadError(
                f"it takes {need / 1e6:.0f} MB on {device} and {left / 1e6:.0f} MB are left: unload another model first"
            )

    def _retire(self, hosted: HostedModel) -> None:
        task = asyncio.get_running_loop().create_task(self._let_go(hosted))
        self._retiring[task] = hosted

    async def _let_go(self, hosted: HostedModel) -> None:
        idle_s = 0.0
        while idle_s < _LINGER_S:
            await asyncio.sleep(_LOOK_EVERY_S)
            idle_s = 0.0 if hosted.under_way else idle_s + _LOOK_EVERY_S
        await hosted.close()
        task = asyncio.current_task()
        assert task is not None
        name, gone = hosted.name, weakref.ref(hosted.model.network)
        if any(other.model.local is hosted.model.local for other in self._registry):
            del self._retiring[task]  # its backbone stays, for the heads that read it
            return
        del self._retiring[task], hosted
        # The collector passes over what was there at the start, so cycles of a first model would stay with its weights.
        frozen = gc.get_freeze_count() > 0
        gc.unfreeze()
        for _ in range(_COLLECTIONS):
            gc.collect()
            if gone() is None:
                break
            await asyncio.sleep(_COLLECT_EVERY_S)
        else:
            logger.error("the memory of the model that was %s is not free: something still refers to it", name)
        if frozen:
            gc.freeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _first(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch_name(device)


def _below(models_dir: Path, source: str) -> Path:
    """Return a folder below the folder of models; a link that leads out of it does not count.

    Raises:
        ServiceError: ``model_refused``.
    """
    root = models_dir.expanduser().resolve()
    try:
        folder = (root / source).resolve()
    except (OSError, ValueError) as error:
        raise _refused(f"{printable(source)} is no folder of models_dir") from error
    if folder == root or not folder.is_relative_to(root) or not folder.is_dir():
        raise _refused(f"{printable(source)} is no folder of models_dir")
    return folder


def _refused(message: str, *, retry_after_s: int | None = None) -> ServiceError:
    return ServiceError(ErrorCode.MODEL_REFUSED, message, retry_after_s=retry_after_s)
