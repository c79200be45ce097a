"""The engine that asks Triton servers for hidden states: ``--engine NAME=triton:grpc://HOST:PORT[,HOST:PORT…]``.

A server runs what `paragone export triton` wrote. A call is one packed batch, in the tensors of
``paragone_models.triton``. It carries the identity of the model, and the server refuses another's, so that a server
that comes back with another model never gives numbers for this one.

Statuses of gRPC, and what they mean here:

    UNAVAILABLE, NOT_FOUND, CANCELLED   away: the batch runs at another server, or its requests are told to come back
    INTERNAL "… is not healthy"         the process that runs the model is dead: away
    INTERNAL                            its forward failed: away, and the batch is tried once more, at another server
    DEADLINE_EXCEEDED                   too slow: away, and no other server is tried with the batch
    UNIMPLEMENTED                       out of memory: the batch is split

A server whose real call ends with INTERNAL has its model unloaded and loaded again: its process, or the process's
device, is in ruins, and Triton leaves it so.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import tritonclient.grpc
import tritonclient.grpc.aio
from torch import Tensor
from tritonclient.utils import InferenceServerException

from paragone_models.forward import by_prompt
from paragone_models.model import PreferenceModel
from paragone_models.network import output_width
from paragone_models.text.reader import EncodeItem
from paragone_models.triton import CALL_TOKENS, FORMAT, IDENTITY, INPUTS, OUTPUT, to_tensors
from paragone_service.config import ConfigError
from paragone_service.engine.balancing import BalancedEngine, PlaceSlowError
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from paragone_service.tracing import add_trace_headers

__all__ = ["TritonEngineError", "TritonPlace", "open_triton"]

logger = logging.getLogger("paragone.service")

_AWAY = frozenset({"UNAVAILABLE", "NOT_FOUND", "CANCELLED"})
_DEAD_STUB = "not healthy"
_CHECK_S = 5.0
_START_S = 2.0
_LOAD_S = 300.0
_LARGEST_MESSAGE = 2**31 - 1
_CHANNEL = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # Left alone gRPC waits for seconds, longer each time, before it connects again to a server that is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A host that vanished resets no connection.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class TritonEngineError(Exception):
    """Say what Triton answered instead of hidden states."""


def open_triton(
    model: PreferenceModel, addresses: Sequence[str], *, timeout_s: float = 300.0, api_key: str | None = None
) -> BalancedEngine:
    """Return the engine for a model at one or more Triton servers.

    Args:
        model: loaded without its backbone's weights (``elsewhere=True``).
        addresses: ``grpc://HOST:PORT`` or, encrypted, ``grpcs://HOST:PORT``.
        timeout_s: how long one call may take.
        api_key: bearer key, where a proxy in front of the servers wants one.

    Raises:
        ConfigError: if a server that answers has no such model, another one, or one of another format.
    """
    places = [TritonPlace(model, address, timeout_s=timeout_s, api_key=api_key) for address in addresses]
    for place in places:
        place.check_export()
    return BalancedEngine("triton", places, shares_prompts=True)


class TritonPlace:
    """One Triton server that runs a model's backbone."""

    def __init__(self, model: PreferenceModel, address: str, *, timeout_s: float, api_key: str | None = None) -> None:
        self.name = address
        scheme, _, self._host = address.partition("://")
        self._encrypted = scheme == "grpcs"
        self._model = model.name
        self._identity = model.identity
        self._budget = model.budget.tokens
        self._call_tokens = max(CALL_TOKENS, model.spec.max_length)
        self._hidden_size = output_width(model.network.config)
        self._probe = [EncodeItem((0,), ((0, 1),) * model.network.head.reads, 1)]
        self._timeout_s = timeout_s
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client: Any = None
        self._in_ruins = False

    async def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden state of every read of every item, [n, R, H].

        Raises:
            EngineUnavailableError: if the server is away, has no such model, or is too slow.
            EngineOutOfMemoryError: if the call does not fit into the memory there.
            TritonEngineError: if it refuses, or answers something else than was asked for.
            ValueError: if an item has content beside its tokens.
        """
        # A batch counts a prompt once for all its siblings, and holds the budgets of servers that are away: in full it
        # may be longer than one call.
        states: list[Tensor] = []
        order: list[int] = []
        for part in _calls(items, self._call_tokens):
            states.append(await self._call([items[number] for number in part], self._timeout_s))
            order += part
        return torch.cat(states)[torch.tensor(order).argsort()]

    async def check(self) -> None:
        """Run one token: Triton calls a model ready whose process is dead.

        Raises:
            EngineUnavailableError: if that fails.
        """
        try:
            await self._call(self._probe, _CHECK_S)
        except (TritonEngineError, EngineOutOfMemoryError) as error:
            raise EngineUnavailableError(str(error)) from error

    async def mend(self) -> None:
        """Unload and load the model if its process or device is in ruins, which nothing else brings back."""
        if not self._in_ruins:
            return
        logger.warning("model %s at %s cannot run a token: loading it again", self._model, self.name)
        client = self._connected()
        try:
            await client.unload_model(self._model, headers=self._headers, client_timeout=_LOAD_S)
            await client.load_model(self._model, headers=self._headers, client_timeout=_LOAD_S)
        except InferenceServerException as error:
            logger.error(
                "model %s cannot be loaded again at %s: %s; restart it, or start it with --model-control-mode=explicit",
                self._model,
                self.name,
                error.message(),
            )

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()

    def check_export(self) -> None:
        """Compare the model with the one that the server has, if it answers now.

        Raises:
            ConfigError: if it has none of that name, one of another identity, or another format.
        """
        with tritonclient.grpc.InferenceServerClient(self._host, ssl=self._encrypted, channel_args=_CHANNEL) as client:
            options = {"headers": self._headers, "client_timeout": _START_S}
            try:
                index = client.get_model_repository_index(**options)
                names = [model.name for model in index.models]
                if self._model not in names:
                    raise ConfigError(
                        f"Triton at {self.name} has no model {self._model}; it has {', '.join(names) or 'none'}: "
                        "export it under that name, paragone export triton NAME=SOURCE"
                    )
                config = client.get_model_config(self._model, **options).config
            except InferenceServerException as error:
                logger.warning("model %s: Triton at %s is not ready yet: %s", self._model, self.name, error.message())
                return
        values = {name: value.string_value for name, value in config.parameters.items()}
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"model {self._model} at {self.name} has the format {values.get('format')}, and this version of "
                f"paragone speaks {FORMAT}: export it with the version that serves it"
            )
        if values.get(IDENTITY) != self._identity:
            raise ConfigError(
                f"model {self._model} at {self.name} has the identity {values.get(IDENTITY)}, and the one that is "
                f"served here {self._identity}: export what you serve, with the same settings"
            )
        limit = int(values.get("max_call_tokens", "0"))
        if limit < self._budget:
            raise ConfigError(
                f"max_batch_tokens is {self._budget}, and model {self._model} at {self.name} takes {limit} a call: set "
                "--max-batch-tokens to that, or raise max_call_tokens in its config.pbtxt"
            )
        self._call_tokens = limit

    async def _call(self, items: Sequence[EncodeItem], timeout_s: float) -> Tensor:
        inputs = []
        for name, values in to_tensors(items).items():
            tensor = tritonclient.grpc.InferInput(name, values.shape, INPUTS[name][0])
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        headers = dict(self._headers)
        add_trace_headers(headers)
        try:
            answer = await self._connected().infer(
                self._model,
                inputs,
                outputs=[tritonclient.grpc.InferRequestedOutput(OUTPUT)],
                parameters={IDENTITY: self._identity},
                headers=headers,
                client_timeout=timeout_s,
            )
        except InferenceServerException as error:
            raise self._refusal(error, timeout_s) from error
        self._in_ruins = False
        states = answer.as_numpy(OUTPUT)
        shape = (len(items), len(items[0].reads), self._hidden_size)
        if states is None or states.shape != shape or states.dtype.name != "float32":
            raise TritonEngineError(
                f"{self.name} answered {None if states is None else (states.dtype.name, states.shape)} to a call for "
                f"float32 states of shape {shape}"
            )
        # gRPC's buffer is read-only, and is kept alive by whatever is a view of it.
        return torch.from_numpy(states.copy())

    def _refusal(self, error: InferenceServerException, timeout_s: float) -> Exception:
        """Return what a status of gRPC is here."""
        status = str(error.status()).rpartition(".")[2]
        message = f"model {self._model} at {self.name} is {status}: {error.message()}"
        self._in_ruins = status == "INTERNAL"
        if status in _AWAY or (self._in_ruins and _DEAD_STUB in str(error.message())):
            return EngineUnavailableError(message)
        if status == "DEADLINE_EXCEEDED":
            return PlaceSlowError(f"model {self._model} at {self.name} took more than {timeout_s:g} s")
        if status == "UNIMPLEMENTED":
            return EngineOutOfMemoryError(message)
        return TritonEngineError(message)

    def _connected(self) -> Any:
        # Made in the event loop that uses it: gRPC binds a channel to the loop of the moment.
        if self._client is None:
            self._client = tritonclient.grpc.aio.InferenceServerClient(
                self._host, ssl=self._encrypted, channel_args=_CHANNEL
            )
        return self._client


def _calls(items: Sequence[EncodeItem], most_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of the items of each call, siblings side by side; what is longer runs alone."""
    part: list[int] = []
    tokens = 0
    for siblings in by_prompt(items).values():
        for number in siblings:
            length = len(items[number].token_ids)
            if part and tokens + length > most_tokens:
                yield part
                part, tokens = [], 0
            part.append(number)
            tokens += length
    yield part
