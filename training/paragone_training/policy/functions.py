"""A preference oracle that is a Python function, of a prompt and its K responses.

    function(prompt, responses) -> K rewards, in logits:  P(i > j) = sigmoid(r_i - r_j)
                                or K×K probabilities that the row is preferred to the column, both orders as they are

The prompt is a text or a list of messages, responses are texts. The function may be a coroutine. It is named by
``module:function`` or ``file.py:function``, or is an object of a module. What it does not answer never becomes a
number: an OSError (a connection, a timeout) may pass, and the function is asked again while the oracle's patience
lasts; any other error, and any answer of another form, stops the run, which can be resumed.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone_evaluation.readers import Prompt
from paragone_models.comparator import probability
from paragone_training.errors import OracleGoneError, OracleReplacedError, RecipeError, RunError
from paragone_training.policy.rows import Answer, Identity

__all__ = ["FunctionOracle", "function_of", "name_of"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which a run, and a resumed one, finds a function.

    Raises:
        RecipeError: if it has none: a lambda, a method or a function inside another one.
    """
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        found = function_of(name)
    except RecipeError:
        found = None
    if found is not function:
        raise RecipeError(
            f"oracle is {function!r}, which no name leads to, so that a resumed run would not find it: define it at "
            "the top level of a module"
        )
    return name


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of a name.

    Raises:
        RecipeError: if the module, the file or the function is not there, or takes other arguments.
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute.isidentifier()):
        raise RecipeError(
            f"oracle.function is {name!r}; it must be module:function or file.py:function (a service is named by "
            "oracle.url)"
        )
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever code of the user raises
        raise RecipeError(f"oracle.function {name!r}: {place} cannot be imported: {error!r}") from error
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        raise RecipeError(f"oracle.function {name!r}: {place} has no function {attribute}")
    try:
        inspect.signature(function).bind("prompt", ["response"])
    except TypeError as error:
        raise RecipeError(f"oracle.function {name!r} must take a prompt and its responses: {error}") from error
    return function  # type: ignore[no-any-return] # what a module holds has no type


def _module_of_file(path: Path) -> Any:
    # Once a process: a check and a run share what it loads.
    name = f"paragone_oracle_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class FunctionOracle:
    """Asks a function in the background, as ``OracleClient`` asks a service; a context manager.

    Args:
        concurrency: calls at the same time, in threads.
        identity: of the function that answered before, or None.
        on_identity: is told the identity before the first answer.

    Attributes:
        identity: its name, and a fingerprint of the file that it is defined in.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 4,
        patience_s: float = 600.0,
        identity: Identity | None = None,
        on_identity: Callable[[Identity], object] = lambda _: None,
    ) -> None:
        self._function, self._patience_s = function_of(name), patience_s
        self.identity = Identity(name, _fingerprint(self._function))
        # Win rates of two judges do not compare, and a run may be resumed weeks later.
        if identity is not None and identity != self.identity:
            raise OracleReplacedError(
                f"the oracle was {identity.model} ({identity.fingerprint[:12]}) and is now {name} "
                f"({self.identity.fingerprint[:12]}): put the file back and resume, or start a new run"
            )
        on_identity(self.identity)
        self._workers = ThreadPoolExecutor(concurrency, thread_name_prefix="oracle")

    def __enter__(self) -> "FunctionOracle":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def submit(self, groups: Sequence[tuple[Prompt, Sequence[str]]]) -> "Future[list[Answer]]":
        """Return what will hold the tables of some groups."""
        return self._workers.submit(lambda: [self._answer(prompt, list(texts)) for prompt, texts in groups])

    def _answer(self, prompt: Prompt, texts: list[str]) -> Answer:
        began, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                answered = self._function(prompt.content, texts)
                if inspect.isawaitable(answered):
                    answered = asyncio.run(_awaited(answered))
                break
            except OSError as error:
                gone_s = time.monotonic() - began
                if gone_s + wait_s > self._patience_s:
                    raise OracleGoneError(
                        f"the oracle {self.identity.model} gave no answer to prompt {prompt.id!r} for {gone_s:.0f} s "
                        f"({error!r}), and oracle.patience_s is {self._patience_s:g}: mend it and resume"
                    ) from error
                logger.warning("no answer from the oracle for %.0f s (%r); it is asked again", gone_s, error)
            except Exception as error:
                raise RunError(
                    f"the oracle {self.identity.model} failed for prompt {prompt.id!r}: {error!r}; mend it and resume"
                ) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return Answer(
            prompt.id, _table(answered, len(texts), f"the oracle {self.identity.model}, prompt {prompt.id!r}")
        )


async def _awaited(answer: Any) -> Any:
    return await answer


def _table(answered: Any, count: int, who: str) -> NDArray[np.float64]:
    """Return the K×K table of an answer.

    Raises:
        RunError: if it is none, or has a number that is none.
    """
    try:
        values = np.asarray(answered, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RunError(f"{who}: {answered!r} is neither rewards nor a table of probabilities") from error
    if values.shape not in ((count,), (count, count)):
        raise RunError(
            f"{who}: an answer of shape {values.shape}; {count} responses have {count} rewards or {count}×{count} "
            "probabilities"
        )
    if values.ndim == 1:
        if not np.isfinite(values).all():
            raise RunError(f"{who}: rewards {values.tolist()}; each must be a finite number: raise an error instead")
        return probability(values[:, None] - values[None, :])
    table = values.copy()
    # A response against itself is a tie, whatever stands there.
    np.fill_diagonal(table, 0.5)
    if not ((table >= 0) & (table <= 1)).all():
        raise RunError(f"{who}: {values.tolist()}; each must be a probability in [0, 1]: raise an error instead")
    return table


def _fingerprint(function: Callable[..., Any]) -> str:
    """Return a digest of the file that a function is defined in; of its name where there is none."""
    try:
        source = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_bytes()
    except (TypeError, OSError):
        source = repr(getattr(function, "__qualname__", "")).encode()
    return hashlib.sha256(source).hexdigest()
