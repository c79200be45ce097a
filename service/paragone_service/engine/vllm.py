"""The engine that asks unmodified vLLM servers for hidden states: ``--engine NAME=vllm:http://…[,http://…]``.

A server runs a bare backbone (`paragone export vllm` writes one) as ``--runner pooling --convert embed``. Its
``/pooling`` takes token ids and returns the last hidden state of each sequence's last token; without
``use_activation: false`` that would be scaled to length 1. A backbone is causal, so the state at an earlier position is
that of the sequence which ends there: a gate's read is one more sequence, the prompt, once for all siblings.

What comes back is believed only if it is what was asked for: a row for every sequence, of the right width, finite, of
as many tokens as were sent, and not scaled to length 1.
"""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.files.saving import read_refusal
from paragone_models.model import PreferenceModel
from paragone_models.network import output_width
from paragone_models.text.reader import EncodeItem
from paragone_service.config import ConfigError
from paragone_service.engine.balancing import BalancedEngine, PlaceSlowError
from paragone_service.engine.contract import EngineUnavailableError
from paragone_service.tracing import add_trace_headers

__all__ = ["VllmError", "VllmPlace", "open_vllm"]

_TRIES = 3
_PAUSE_S = 0.5
_BUSY = frozenset({429, 502, 503, 504})
_CHECK_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5.0
_UNIT = 1e-4
_SHOWN = 200


class VllmError(Exception):
    """Say what the vLLM server answered instead of hidden states, or that it did not answer."""


class _VllmAwayError(VllmError, EngineUnavailableError):
    """Say that the vLLM server cannot be reached or is busy: it may be back in some seconds."""


class _VllmSlowError(_VllmAwayError, PlaceSlowError):
    """Say that it was too slow."""


def open_vllm(
    model: PreferenceModel,
    addresses: Sequence[str],
    *,
    timeout_s: float = 300.0,
    api_key: str | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> BalancedEngine:
    """Return the engine for a model at one or more vLLM servers.

    Args:
        model: loaded without its backbone's weights (``elsewhere=True``).
        timeout_s: how long one call may take.
        api_key: bearer key, where a proxy in front of the servers wants one.
        transport: what carries requests instead of the network.

    Raises:
        ConfigError: if the model reads positions that such a server does not return.
    """
    refusal = read_refusal(model.network, model.spec, first_token=model.first_token)
    if refusal is not None:
        raise ConfigError(f"model {model.name} cannot run on vLLM: {refusal}; leave its --engine out")
    # With others at hand nobody waits for one to come back.
    tries = _TRIES if len(addresses) == 1 else 1
    places = [
        VllmPlace(model, address, timeout_s=timeout_s, tries=tries, api_key=api_key, transport=transport)
        for address in addresses
    ]
    # A server's prefix cache shares what it has room for, and does not tell.
    return BalancedEngine("vllm", places, shares_prompts=False)


class VllmPlace:
    """One vLLM server that runs a model's backbone."""

    def __init__(
        self,
        model: PreferenceModel,
        url: str,
        *,
        timeout_s: float,
        tries: int,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = url.rstrip("/")
        self._tries = tries
        self._away = False
        self._hidden_size: int = output_width(model.network.config)
        self._client = httpx2.AsyncClient(
            base_url=self.name,
            timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            transport=transport,
            trust_env=False,
        )

    async def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden state of every read of every item, [n, R, H].

        Raises:
            _VllmAwayError: if the server cannot be reached, is busy or too slow.
            VllmError: if it refuses, or answers something else than was asked for.
            ValueError: if an item has content beside its tokens, or a read of several positions.
        """
        rows: dict[tuple[int, ...], int] = {}
        places = [[rows.setdefault(_sequence(item, read), len(rows)) for read in item.reads] for item in items]
        states = await self._states(list(rows), tries=1 if self._away else self._tries)
        return torch.from_numpy(states[np.asarray(places)])

    async def check(self) -> None:
        """Ask for the state of one token; ``/health`` would not tell that another model is served now.

        Raises:
            EngineUnavailableError: if that fails.
        """
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._states([(0,)], tries=1)
        except TimeoutError as error:
            raise _VllmAwayError(f"{self.name}/pooling did not answer a check in {_CHECK_TIMEOUT_S:g} s") from error
        except EngineUnavailableError:
            raise
        except VllmError as error:
            raise _VllmAwayError(str(error)) from error

    async def mend(self) -> None:
        """Do nothing: whoever runs the server restarts it."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _states(self, sequences: Sequence[tuple[int, ...]], *, tries: int) -> NDArray[np.float32]:
        """Return the last hidden state of each sequence, [n, H]."""
        body = {"input": sequences, "task": "embed", "use_activation": False, "encoding_format": "base64"}
        answer = await self._ask(body, tries)
        try:
            rows = {row["index"]: _vector(row["data"]) for row in answer["data"]}
            counted = answer["usage"]["prompt_tokens"]
        except (KeyError, TypeError, ValueError) as error:
            raise VllmError(f"{self.name}/pooling answered in another shape: {type(error).__name__} {error}") from error
        if sorted(rows) != list(range(len(sequences))):
            raise VllmError(f"{self.name}/pooling answered {len(rows)} rows for {len(sequences)} sequences")
        sent = sum(map(len, sequences))
        # A server that cuts sequences at a limit of its own gives itself away here.
        if counted != sent:
            raise VllmError(f"{self.name}/pooling read {counted} tokens of the {sent} that were sent")
        for row in rows.values():
            if row.shape != (self._hidden_size,):
                raise VllmError(
                    f"{self.name} returns {row.size} numbers a sequence and the model's hidden size is "
                    f"{self._hidden_size}: it serves another backbone, or another pooling than embed"
                )
        # Rows may come in any order, with their index; they are put back into the order that was sent.
        states = np.stack([rows[index] for index in range(len(sequences))])
        # A hidden state of length 1 does not happen by itself: the final norm gives it about the root of H.
        if bool((np.abs(np.linalg.norm(states, axis=1) - 1) < _UNIT).all()):
            raise VllmError(f"{self.name} scaled its hidden states to length 1, though asked not to: update vLLM")
        return states

    async def _ask(self, body: dict[str, Any], tries: int) -> Any:
        """Return the server's JSON; one that is away or busy for a moment is asked again.

        One that was away the last time is asked only once, so that a long queue does not wait for each of its batches.
        """
        problem = ""
        self._away = True  # until it answers: every way out of the loop but that one leaves it so
        headers: dict[str, str] = {}
        add_trace_headers(headers)
        for number in range(tries):
            if number:
                await asyncio.sleep(_PAUSE_S * number)
            try:
                answer = await self._client.post("/pooling", json=body, headers=headers)
            except httpx2.TimeoutException as error:
                raise _VllmSlowError(
                    f"{self.name}/pooling took too long: {type(error).__name__}; see engine_timeout_s"
                ) from error
            except httpx2.TransportError as error:
                problem = f"cannot be reached: {type(error).__name__} {error}"
                continue
            if answer.status_code in _BUSY:
                problem = f"is {answer.status_code}"
                continue
            self._away = False
            if answer.status_code != 200:
                raise VllmError(f"{self.name}/pooling is {answer.status_code}: {answer.text[:_SHOWN]}")
            try:
                return answer.json()
            except ValueError as error:
                raise VllmError(f"{self.name}/pooling answered no JSON: {answer.text[:_SHOWN]}") from error
        raise _VllmAwayError(f"{self.name}/pooling {problem}{f', {tries} times' if tries > 1 else ''}")


def _sequence(item: EncodeItem, read: tuple[int, int]) -> tuple[int, ...]:
    """Return the sequence whose last state is the one to read."""
    start, stop = read
    if stop - start != 1:
        raise ValueError(f"a mean over the positions {start} to {stop - 1}: vLLM returns the last token's state only")
    if item.content_key is not None:
        raise ValueError("content beside the tokens cannot be sent to vLLM")
    return tuple(item.token_ids[:stop])


def _vector(data: Any) -> NDArray[np.float32]:
    """Return what a row holds: base64 of little-endian float32, or a list of numbers from an older server.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(data, str):
        return np.asarray(data, dtype=np.float32)
    try:
        return np.frombuffer(base64.b64decode(data, validate=True), dtype="<f4").astype(np.float32)
    except binascii.Error as error:
        raise ValueError(f"a row is no base64: {error}") from error
