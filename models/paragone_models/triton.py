"""A backbone behind Triton: how a batch becomes tensors, and what Triton's Python backend runs of it.

A call is one batch, packed by whoever sends it: all tokens in a row, where each sequence begins, how much of it is
prompt, and where it is read. Back come the hidden states at the reads, never all of them. `1/model.py` of an exported
repository imports ``TritonPythonModel``; heads stay with the service.

n = sequences of a call, T = tokens of all of them, R = reads of each, H = hidden size.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.forward import by_prompt
from paragone_models.machine import is_out_of_memory
from paragone_models.text.reader import EncodeItem

__all__ = ["CALL_TOKENS", "FORMAT", "IDENTITY", "INPUTS", "OUTPUT", "TritonPythonModel", "from_tensors", "to_tensors"]

FORMAT = "1"
"""Of the tensors below; service and server must agree on it."""

CALL_TOKENS = 65_536
"""The most tokens of one call, a shared prompt counted for each sequence, unless the model reads longer texts."""

INPUTS: Mapping[str, tuple[str, type[np.generic], tuple[int, ...]]] = {
    "TOKENS": ("INT32", np.int32, (-1,)),
    "OFFSETS": ("INT64", np.int64, (-1,)),
    "PROMPTS": ("INT64", np.int64, (-1,)),
    "READS": ("INT64", np.int64, (-1, -1, 2)),
}
"""What a call holds, with Triton's type, numpy's and the shape: [T], [n + 1], [n], [n, R, 2]."""

OUTPUT = "HIDDEN"
"""Hidden states at the reads, float32. [n, R, H]"""

IDENTITY = "identity"
"""Of the model, as a parameter of the configuration and of every call: two models of one name never mix."""

_WARM_TOKENS = 2048
_WARM_LENGTH = 64


def to_tensors(items: Sequence[EncodeItem]) -> dict[str, NDArray[Any]]:
    """Return a call's tensors by name.

    Args:
        items: at least one, all with the same number of reads.

    Raises:
        ValueError: if an item has content beside its tokens.
    """
    if any(item.content_key is not None for item in items):
        raise ValueError("content beside the tokens cannot be sent to Triton")
    rows = [np.asarray(item.token_ids, dtype=np.int32) for item in items]
    return {
        "TOKENS": np.concatenate(rows),
        "OFFSETS": np.cumsum([0, *map(len, rows)], dtype=np.int64),
        "PROMPTS": np.asarray([item.prompt_length for item in items], dtype=np.int64),
        "READS": np.asarray([item.reads for item in items], dtype=np.int64),
    }


def from_tensors(tensors: Mapping[str, NDArray[Any]], *, vocabulary: int, max_tokens: int) -> list[EncodeItem]:
    """Return the items of a call.

    Args:
        tensors: as ``to_tensors`` makes them.
        max_tokens: of the whole call.

    Raises:
        ValueError: if the tensors do not fit each other, a token is outside the vocabulary, a read is outside its
            sequence, or the call is too large; the message names value, limit and remedy.
    """
    tokens, offsets, prompts, reads = (tensors[name] for name in INPUTS)
    count = len(prompts)
    if not count or len(offsets) != count + 1 or reads.shape != (count, reads.shape[1], 2) or not reads.shape[1]:
        raise ValueError(
            f"OFFSETS has {len(offsets)} entries, PROMPTS {count} and READS the shape {reads.shape}: for n sequences "
            "of R reads they are n + 1, n and [n, R, 2]"
        )
    if offsets[0] != 0 or offsets[-1] != len(tokens) or bool((np.diff(offsets) < 1).any()):
        raise ValueError(f"OFFSETS must rise from 0 to the {len(tokens)} entries of TOKENS, by at least 1 each")
    if len(tokens) > max_tokens:
        raise ValueError(
            f"the call has {len(tokens)} tokens and the limit is {max_tokens}: send fewer at a time, or raise "
            "max_call_tokens in config.pbtxt"
        )
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise ValueError(f"token ids reach from {tokens.min()} to {tokens.max()}; they must lie in [0, {vocabulary})")
    return [
        EncodeItem(
            tokens[start:stop].tolist(),
            tuple((int(first), int(last)) for first, last in spans),
            min(int(prompt), stop - start),
        )
        for start, stop, prompt, spans in zip(
            offsets[:-1].tolist(), offsets[1:].tolist(), prompts.tolist(), reads, strict=True
        )
    ]


class TritonPythonModel:
    """Run a backbone inside Triton's Python backend.

    Nothing that happens leaves ``execute`` as an exception: Triton would answer with a traceback and paths, and to an
    error of the process itself with "unhealthy" for ever.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model that lies beside `model.py`, and run it once.

        Raises:
            TritonModelException: (of Triton) if it cannot be loaded, or is another one than the configuration names.
        """
        import triton_python_backend_utils  # type: ignore[import-not-found]  # there is none outside of Triton

        self._triton: Any = triton_python_backend_utils
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        folder = Path(args["model_repository"]) / args["model_version"] / "model"
        try:
            self._load(folder, parameters, device)
        except Exception as error:
            message = str(error) if isinstance(error, ModelLoadError) else reason_of(error)
            raise self._triton.TritonModelException(message) from error

    def _load(self, folder: Path, parameters: Mapping[str, str], device: str) -> None:
        # Here and not above: the service's engine needs the tensors of this file, and nothing that loads weights.
        from paragone_models.files.loading import load_model

        budget = parameters["max_batch_tokens"]
        model = load_model(
            folder,
            kind=parameters["kind"],
            head=parameters["head"],  # type: ignore[arg-type]  # load_model checks it
            dtype=parameters["dtype"],
            device=device,
            trust_remote_code=parameters["trust_remote_code"] == "true",
            deterministic=parameters["deterministic"] == "true",
            max_batch_tokens=None if budget == "default" else int(budget),
        )
        # Else a repository whose weights were exchanged would pass for the model that its configuration names.
        if model.identity != parameters["content"]:
            raise ModelLoadError(
                f"the files beside model.py have the identity {model.identity}, and config.pbtxt is of "
                f"{parameters['content']}: export the model again"
            )
        self._model = model
        self._identity = parameters[IDENTITY]
        self._max_tokens = int(parameters["max_call_tokens"])
        self._vocabulary: int = model.network.config.get_text_config().vocab_size
        tokens = min(_WARM_TOKENS, model.budget.tokens)
        length = min(_WARM_LENGTH, tokens, model.spec.max_length)
        made_up = EncodeItem([0] * length, ((length - 1, length),) * model.network.head.reads, 1)
        model.encode([made_up] * max(1, tokens // length))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return Triton's answer to each request, in their order: hidden states, or why there are none."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        error = self._triton.TritonError
        try:
            asked = json.loads(request.parameters() or "{}").get(IDENTITY)
            if asked != self._identity:
                return self._refusal(
                    f"the model here has the identity {self._identity}, and the call is for {asked}", error.NOT_FOUND
                )
            tensors = {name: self._tensor(request, name) for name in INPUTS}
            items = from_tensors(tensors, vocabulary=self._vocabulary, max_tokens=self._max_tokens)
            hidden = self._encode(items, request)
            if hidden is None:
                return self._refusal("the caller has cancelled", error.CANCELLED)
            return self._triton.InferenceResponse([self._triton.Tensor.from_dlpack(OUTPUT, hidden)])
        except (ValueError, TypeError) as reason:
            return self._refusal(str(reason), error.INVALID_ARG)
        except Exception as reason:  # noqa: BLE001 (whatever it is, the process must live on)
            if is_out_of_memory(reason):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                # gRPC's word for it, RESOURCE_EXHAUSTED, is none of Triton's; nothing else here is unsupported.
                return self._refusal(f"out of memory: {reason_of(reason)}", error.UNSUPPORTED)
            return self._refusal(reason_of(reason), error.INTERNAL)

    def _encode(self, items: Sequence[EncodeItem], request: Any) -> Tensor | None:
        """Return the hidden states of a call, on the CPU, or None if it was cancelled meanwhile."""
        parts: list[Tensor] = []
        order: list[int] = []
        passes = list(_families(items, self._model.local.max_batch_tokens))
        for part in passes:
            # Asked between passes, because nothing can stop one: a call that nobody waits for ends with the pass.
            if request.is_cancelled():
                self._triton.Logger.log_info(f"a call was cancelled after {len(parts)} of {len(passes)} passes")
                return None
            parts.append(self._model.encode([items[place] for place in part]).cpu())
            order += part
        hidden = torch.empty(len(items), *parts[0].shape[1:])
        hidden[torch.tensor(order)] = torch.cat(parts)
        return hidden

    def _tensor(self, request: Any, name: str) -> NDArray[Any]:
        tensor = self._triton.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise ValueError(f"the input {name} is missing; a call has {', '.join(INPUTS)}")
        # By DLPack: as_numpy() of the backend was built for numpy 1, and gives other numbers under numpy 2.
        values: Tensor = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
        return values.numpy()

    def _refusal(self, message: str, code: int) -> Any:
        return self._triton.InferenceResponse(error=self._triton.TritonError(message, code))


def _families(items: Sequence[EncodeItem], max_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of items that are run together; siblings stay together where they fit, and share their prompt.

    Args:
        max_tokens: of one part, a prompt counted once; a longer sequence is a part of its own.
    """
    part: list[int] = []
    tokens = 0
    for siblings in by_prompt(items).values():
        shared = 0
        for number in siblings:
            item = items[number]
            cost = len(item.token_ids) - shared
            if part and tokens + cost > max_tokens:
                yield part
                part, tokens, cost = [], 0, len(item.token_ids)
            part.append(number)
            tokens += cost
            shared = item.prompt_length
    yield part
