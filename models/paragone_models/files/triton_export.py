"""Write a Triton model repository: a model's own files, a `model.py` of three lines, and a configuration that names it.

The files are copied as they lie, so whatever layout ``load_model`` reads runs on Triton too. Nothing in the repository
is a path of this machine: it is moved, or put into an image, as it is.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragone_models.errors import ModelLoadError
from paragone_models.files.backbones import home_of, reference_to
from paragone_models.files.families.own import SPEC_FILE
from paragone_models.files.hashes import TOKENIZER_FILES
from paragone_models.files.loading import load_model
from paragone_models.files.sources import MODEL_FILES, PICKLES, Resolved, resolve
from paragone_models.model import PreferenceModel
from paragone_models.spec import ModelSpec
from paragone_models.triton import CALL_TOKENS, FORMAT, IDENTITY, INPUTS, OUTPUT

__all__ = ["OF_THE_ENGINE", "export_triton"]

_MODEL_PY = '''"""Written by `paragone export triton`: the backbone beside this file, run by paragone_models."""

import os
import site
import sys

# Triton's Python shows PYTHONPATH and does not follow it. addsitedir reads .pth files too, and appends: what was there
# before must not win over what the operator names.
before = list(sys.path)
for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    site.addsitedir(folder)
sys.path[:] = [place for place in sys.path if place not in before] + before

from paragone_models.triton import TritonPythonModel  # noqa: E402, F401
'''

OF_THE_ENGINE = ("dtype", "deterministic")
"""Settings of a model that change no representation beyond rounding, and are Triton's."""

_OF_THE_FILES = ("kind", "head", "trust_remote_code")


def export_triton(
    source: str, folder: str | Path, *, name: str | None = None, max_batch_tokens: int | None = None, **options: Any
) -> tuple[PreferenceModel, Path]:
    """Write a model into a Triton model repository.

    Args:
        source: a built-in, a folder or a Hugging Face id.
        folder: the repository, created where needed; other models may be in it.
        name: of the model on Triton; the last part of the source unless given.
        max_batch_tokens: of one forward pass; what suits the device unless given.
        options: as those of ``load_model``. Those that belong to the engine, dtype and deterministic, go into the
            configuration; those that change a representation, into the identity.

    Returns:
        The model without its backbone, as the service loads it, and the model's folder in the repository.

    Raises:
        ModelLoadError: if the source cannot be loaded by an engine elsewhere, or the model is there already.
    """
    engine = {key: options.pop(key) for key in OF_THE_ENGINE if key in options}
    if "device" in options:
        raise ModelLoadError("device is Triton's to choose: write it into instance_group of config.pbtxt")
    model = load_model(source, elsewhere=True, name=name, **options)
    target = Path(folder) / model.name
    if target.exists():
        raise ModelLoadError(f"{target} is there already: remove it, or export under another name (NAME={source})")
    files = target / "1" / "model"
    where = resolve(source, options.get("revision"))
    home, identity = home_of(where, options.get("backbone"))
    _copy(where, files)
    if identity is not None:
        _copy(home, files.with_name("backbone"))
        _rewrite_reference(files)
    loading = {key: options[key] for key in _OF_THE_FILES if key in options}
    content = load_model(files, elsewhere=True, **loading).identity
    parameters = {
        "format": FORMAT,
        IDENTITY: model.identity,
        "content": content,
        "kind": "auto",
        "head": "auto",
        "dtype": "auto",
        **{key: _text(False) for key in ("trust_remote_code", "deterministic")},
        **{key: _text(value) for key, value in (loading | engine).items()},
        "max_batch_tokens": "default" if max_batch_tokens is None else str(max_batch_tokens),
        "max_call_tokens": str(max(CALL_TOKENS, model.spec.max_length)),
    }
    (target / "1" / "model.py").write_text(_MODEL_PY, encoding="utf-8")
    (target / "config.pbtxt").write_text(_configuration(model.name, parameters), encoding="utf-8")
    return model, target


def _copy(where: Resolved, target: Path) -> None:
    """Copy the files that a model is read from."""
    target.mkdir(parents=True)
    paths = [path for pattern in MODEL_FILES for path in where.folder.glob(pattern)]
    if not any(path.suffix == ".safetensors" for path in paths):
        paths += [path for pattern in PICKLES for path in where.folder.glob(pattern)]
    paths += [path for pattern in TOKENIZER_FILES for path in where.tokenizer_folder.glob(pattern)]
    for path in paths:
        shutil.copyfile(path, target / path.name)


def _rewrite_reference(head: Path) -> None:
    """Have a head that was saved alone name the backbone that lies beside it now."""
    path = head / SPEC_FILE
    spec = ModelSpec.from_json(path.read_bytes())
    reference = reference_to(str(head.with_name("backbone")))
    # A bare name: it is looked for beside the head, wherever the repository is put.
    path.write_text(replace(spec, backbone=replace(reference, source="backbone")).to_json(), encoding="utf-8")


def _configuration(name: str, parameters: dict[str, str]) -> str:
    """Return the text of `config.pbtxt`."""
    inputs = ",\n".join(_tensor(input_name, dtype, dims) for input_name, (dtype, _, dims) in INPUTS.items())
    settings = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    )
    return f"""name: {json.dumps(name)}
backend: "python"
# A call is a batch already: the service makes it, and Triton adds nothing to it.
max_batch_size: 0
input [
{inputs}
]
output [
{_tensor(OUTPUT, "FP32", (-1, -1, -1))}
]
# One instance for each GPU, or one on the CPU where there is none.
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
{settings}
"""


def _tensor(name: str, dtype: str, dims: tuple[int, ...]) -> str:
    return f'  {{ name: "{name}" data_type: TYPE_{dtype} dims: [ {", ".join(map(str, dims))} ] }}'


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
