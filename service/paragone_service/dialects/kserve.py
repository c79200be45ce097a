"""KServe's inference protocol V2, in JSON and with binary tensors, as tritonclient and pytriton ask it.

    POST /v2/models/{model}/infer: sentences BYTES [n, 1]  ->  rewards FP32 [n, 1], exceeded BOOL [n, 1]

A sentence is a rendered text; ``tokens`` and ``sequence_lengths`` may come in its place. The tensors are those of
NeMo-Aligner's reward server. ``exceeded`` says which texts were cut, so a client that asks for it by name has them cut.

Source: kserve/open-inference-protocol, inference_rest.md; Triton's extension_binary_data.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from paragone.codes import ErrorCode
from paragone_service.dialects.dialect import Dialect, Endpoint
from paragone_service.dialects.raters import Scalars
from paragone_service.dialects.texts import Question, checked_text, rendered_item
from paragone_service.dialects.vllm_pooling import health
from paragone_service.http.bodies import MAX_ITEMS, parsed
from paragone_service.http.errors import HTTP_STATUS, ServiceError
from paragone_service.scoring.request import RequestItem

__all__ = ["KSERVE"]

_HEADER = "Inference-Header-Content-Length"
_INTEGERS = {"INT64": "<i8", "INT32": "<i4", "UINT32": "<u4", "UINT16": "<u2"}
_OUTPUTS = {"rewards": ("FP32", "<f4"), "exceeded": ("BOOL", "?")}
_VERSION = "1"
_MOST_DIMENSIONS, _LARGEST_SIZE = 8, 2**31 - 1
_MOST_DIGITS = 18
"""Of a length in a header: Python refuses to read numbers of thousands of digits."""


async def _infer(question: Question) -> Any:
    model = question.rater(question.path["model"])
    values, tail = await _parts(question)
    tensors = _tensors(values, tail)
    outputs = _wanted(values)
    head = {"model_name": model.name, "model_version": _VERSION}
    if isinstance(values.get("id"), str):
        head["id"] = checked_text(values["id"], "id")
    where, items = _items(tensors)
    # Who reads which texts were cut has agreed that they are.
    named = isinstance(values.get("outputs"), list) and "exceeded" in outputs
    scalars = await question.scalars(model, items, where, truncation="prompt" if named else None)
    return _answer(question, head, outputs, scalars)


async def _parts(question: Question) -> tuple[Mapping[str, Any], bytes]:
    """Return the JSON of a request, and the bytes of its tensors behind it."""
    body: bytes = question.body
    if question.request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read: send it uncompressed")
    stated = question.request.headers.get(_HEADER)
    digits = stated is not None and stated.isascii() and stated.isdigit() and len(stated) <= _MOST_DIGITS
    if stated is not None and not (digits and int(stated) <= len(body)):
        raise _refused(f"{_HEADER} must be the number of bytes of the JSON, at most those of the body")
    end = len(body) if stated is None else int(stated)
    values = await parsed(body[:end])
    if not isinstance(values, Mapping) or not isinstance(values.get("inputs"), list):
        raise _refused("the body must be a JSON object with a list of inputs")
    return values, body[end:]


def _refused(message: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_REQUEST, message)


def _parameters(tensor: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = tensor.get("parameters")
    return parameters if isinstance(parameters, Mapping) else {}


def _tensors(values: Mapping[str, Any], tail: bytes) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Return datatype, shape and elements of each input by its name; binary ones stand in the tail in their order."""
    found: dict[str, tuple[str, list[int], list[Any]]] = {}
    at = 0
    for number, tensor in enumerate(values["inputs"]):
        if not isinstance(tensor, Mapping) or not isinstance(name := tensor.get("name"), str):
            raise _refused(f"inputs[{number}] must be an object with name, shape, datatype and data")
        shape, datatype = tensor.get("shape"), tensor.get("datatype")
        if not _is_shape(shape):
            raise _refused(f"inputs[{number}].shape must be a list of at most {_MOST_DIMENSIONS} sizes")
        if not isinstance(datatype, str) or datatype not in ("BYTES", *_INTEGERS):
            raise _refused(f"inputs[{number}].datatype must be BYTES, or one of {', '.join(_INTEGERS)} for token ids")
        count, size = math.prod(shape), _parameters(tensor).get("binary_data_size")
        if size is None:
            elements = _flat(tensor.get("data"))
        elif type(size) is not int or not 0 <= size <= len(tail) - at:
            raise _refused(f"inputs[{number}] has more bytes than came behind the JSON")
        else:
            elements = _of_bytes(tail[at : at + size], datatype, number)
            at += size
        if len(elements) != count:
            raise _refused(f"inputs[{number}] has {len(elements)} elements, and its shape {count}")
        if name in found:
            raise _refused(f"inputs[{number}] has the name of another one: send each tensor once")
        found[name] = (datatype, shape, elements)
    if at != len(tail):
        raise _refused(f"{len(tail) - at} bytes behind the JSON belong to no tensor: binary_data_size counts them")
    return found


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    """Return whether it is a shape; one of great numbers would be multiplied, and written into messages."""
    sizes = isinstance(shape, list) and 0 < len(shape) <= _MOST_DIMENSIONS
    return sizes and all(type(size) is int and 0 <= size <= _LARGEST_SIZE for size in shape)


def _flat(data: Any) -> list[Any]:
    """Return the elements of data, which may be nested as their shape is."""
    while isinstance(data, list) and any(isinstance(element, list) for element in data):
        data = [inner for element in data for inner in (element if isinstance(element, list) else [element])]
    return data if isinstance(data, list) else []


def _of_bytes(content: bytes, datatype: str, number: int) -> list[Any]:
    if datatype != "BYTES":
        width = np.dtype(_INTEGERS[datatype]).itemsize
        if len(content) % width:
            raise _refused(f"inputs[{number}] is no whole number of {datatype}")
        integers: list[Any] = np.frombuffer(content, _INTEGERS[datatype]).tolist()
        return integers
    elements: list[Any] = []
    at = 0
    while at < len(content):
        # Each element has its length before it, in four bytes, little-endian.
        end = at + 4 + int.from_bytes(content[at : at + 4], "little")
        if at + 4 > len(content) or end > len(content):
            raise _refused(f"inputs[{number}]: an element goes on behind the end of its tensor")
        try:
            elements.append(content[at + 4 : end].decode())
        except UnicodeDecodeError:
            raise ServiceError(
                ErrorCode.INVALID_ENCODING, f"inputs[{number}] has an element that is not UTF-8"
            ) from None
        at = end
    return elements


def _items(tensors: Mapping[str, tuple[str, list[int], list[Any]]]) -> tuple[str, list[RequestItem]]:
    """Return the name of the tensor that has the texts, and an item for each."""
    texts = [name for name, (datatype, _, _) in tensors.items() if datatype == "BYTES"]
    # Under another name it is still the one tensor of texts.
    name = "sentences" if "sentences" in texts else texts[0] if len(texts) == 1 else None
    if name is not None:
        elements = tensors[name][2]
        if not all(isinstance(element, str) for element in elements):
            raise _refused(f"{name} must hold texts")
        rows: Sequence[Any] = elements
    elif "tokens" in tensors and "sequence_lengths" in tensors:
        name, rows = "tokens", _sequences(tensors["tokens"], tensors["sequence_lengths"][2])
    else:
        raise _refused("inputs must hold sentences (BYTES), or tokens and sequence_lengths")
    if not rows:
        raise _refused(f"{name} is empty: send at least one text")
    Question.check_number(len(rows), name)
    return name, [rendered_item(index, row, name) for index, row in enumerate(rows)]


def _sequences(tokens: tuple[str, list[int], list[Any]], lengths: list[Any]) -> list[list[Any]]:
    _, shape, elements = tokens
    width = shape[-1]
    if len(shape) != 2 or len(lengths) != shape[0] or not all(type(n) is int and 0 < n <= width for n in lengths):
        raise _refused("tokens must have the shape [n, longest], and sequence_lengths a length from 1 for each row")
    return [elements[row * width : row * width + length] for row, length in enumerate(lengths)]


def _wanted(values: Mapping[str, Any]) -> dict[str, bool]:
    """Return the names of the outputs, and whether each is to be binary."""
    binary = _parameters(values).get("binary_data_output") is True
    asked = values.get("outputs")
    if asked is None:
        return dict.fromkeys(_OUTPUTS, binary)
    if not isinstance(asked, list):
        raise _refused("outputs must be a list")
    wanted: dict[str, bool] = {}
    for number, output in enumerate(asked):
        name = output.get("name") if isinstance(output, Mapping) else None
        if not isinstance(name, str) or name not in _OUTPUTS:
            raise _refused(f"outputs[{number}] must be one of {', '.join(_OUTPUTS)}")
        wanted[name] = bool(_parameters(output).get("binary_data", binary))
    return wanted


def _answer(question: Question, head: dict[str, Any], outputs: Mapping[str, bool], scalars: Scalars) -> Any:
    columns: dict[str, NDArray[Any]] = {"rewards": scalars.values, "exceeded": scalars.truncated}
    described, tail = [], b""
    for name, binary in outputs.items():
        datatype, form = _OUTPUTS[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(columns[name]), 1]}
        if binary:
            content = columns[name].astype(form).tobytes()
            tail += content
            output["parameters"] = {"binary_data_size": len(content)}
        else:
            output["data"] = columns[name].tolist()
        described.append(output)
    answer = {**head, "outputs": described}
    if not any(outputs.values()):
        return answer
    written = json.dumps(answer).encode()
    headers = {**question.headers, _HEADER: str(len(written))}
    return Response(written + tail, media_type="application/octet-stream", headers=headers)


async def _server(question: Question) -> dict[str, Any]:  # noqa: ARG001 (an endpoint has it)
    extensions = ["binary_tensor_data", "model_configuration"]
    return {"name": "paragone", "version": version("paragone"), "extensions": extensions}


async def _live(question: Question) -> dict[str, Any]:  # noqa: ARG001 (an endpoint has it)
    return {}


async def _model_ready(question: Question) -> dict[str, Any]:
    question.rater(question.path["model"])
    return await health(question)


async def _metadata(question: Question) -> dict[str, Any]:
    return {
        "name": question.rater(question.path["model"]).name,
        "versions": [_VERSION],
        "platform": "paragone",
        "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, 1]} for name, (kind, _) in _OUTPUTS.items()],
    }


async def _configuration(question: Question) -> dict[str, Any]:
    return {
        "name": question.rater(question.path["model"]).name,
        "platform": "",
        "backend": "python",
        "max_batch_size": MAX_ITEMS,
        "batch_input": [],
        "batch_output": [],
        "input": [{"name": "sentences", "data_type": "TYPE_STRING", "dims": [-1]}],
        "output": [{"name": name, "data_type": f"TYPE_{kind}", "dims": [-1]} for name, (kind, _) in _OUTPUTS.items()],
        "instance_group": [],
        "dynamic_batching": {},
        "model_transaction_policy": {"decoupled": False},
    }


def _error(error: ServiceError) -> tuple[int, Any]:
    """Return an error whose ``error`` is a text: tritonclient fails on anything else."""
    return HTTP_STATUS[error.code], {"error": error.message}


def _asked(path: str, answer: Any) -> Endpoint:
    return Endpoint(path, answer, "GET", reads="nothing", scores=False)


def _of_model(path: str) -> tuple[Endpoint, ...]:
    return (
        Endpoint(f"{path}/infer", _infer, reads="bytes"),
        _asked(f"{path}/ready", _model_ready),
        _asked(f"{path}/config", _configuration),
    )


KSERVE = Dialect(
    "kserve",
    "Triton's and KServe's clients",
    (
        _asked("/v2", _server),
        _asked("/v2/health/live", _live),
        _asked("/v2/health/ready", health),
        *_of_model("/v2/models/{model:path}/versions/{version}"),
        *_of_model("/v2/models/{model:path}"),
        _asked("/v2/models/{model:path}/versions/{version}", _metadata),
        _asked("/v2/models/{model:path}", _metadata),
    ),
    _error,
    below="/v2/",
)
