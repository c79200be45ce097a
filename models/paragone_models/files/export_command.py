"""``paragone export``: write a model in a form that other programs run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from paragone_models.files.sources import completed
from paragone_models.progress import shown_work

__all__ = ["export"]

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")]

export = typer.Typer(no_args_is_help=True, add_completion=False, help="Write a model for other programs.")


@export.callback()
def _export() -> None:
    """Write a model for other programs."""


@export.command("vllm")
def vllm(
    model: Annotated[str, typer.Argument(autocompletion=completed, help="A built-in, a Hugging Face id or a folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must be empty or not exist.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hugging Face id.")] = None,
    as_json: _Json = False,
) -> None:
    """Write the bare backbone of a model, which an unmodified vLLM serves; the head stays with `paragone serve`."""
    from paragone_models.errors import ModelLoadError
    from paragone_models.files.loading import load_model
    from paragone_models.files.saving import export_backbone, read_refusal
    from paragone_models.files.weight_bars import hide_weight_bars

    hide_weight_bars()
    with shown_work(f"loading {model}") as work:
        loaded = load_model(model, revision=revision, elsewhere=True)
        refusal = read_refusal(loaded.network, loaded.spec, first_token=loaded.first_token)
        if refusal is not None:
            raise ModelLoadError(f"vLLM cannot run {model} for us: {refusal}")
        work.step(f"writing {folder}")
        written = export_backbone(model, folder, revision=revision)
    name = loaded.name
    _tell(
        written,
        f"{written} holds the backbone of {model}. Serve it, and the model on top of it:",
        (
            f"vllm serve {written} --runner pooling --convert embed --port 8123",
            f"paragone serve --model {name}={model} --engine {name}=vllm:http://127.0.0.1:8123",
        ),
        as_json=as_json,
    )


@export.command("triton")
def triton(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]SOURCE[,KEY=VALUE…]",
            autocompletion=completed,
            help="A model, as `paragone serve --model` has it.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Triton model repository; it may hold other models.")],
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, show_default="what suits the device", help="Tokens of one forward pass."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Write the backbone of a model for a Triton server; the head stays with `paragone serve`."""
    from paragone_models.files.options import load_options, named_source
    from paragone_models.files.triton_export import OF_THE_ENGINE, export_triton
    from paragone_models.files.weight_bars import hide_weight_bars

    hide_weight_bars()
    named = named_source(model)
    with shown_work(f"writing the backbone of {named.source}"):
        loaded, written = export_triton(
            named.source, folder, name=named.name, max_batch_tokens=max_batch_tokens, **load_options(named.settings)
        )
    name = loaded.name
    kept = {key: value for key, value in named.settings.items() if key not in OF_THE_ENGINE}
    settings = "".join(
        f",{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in kept.items()
    )
    _tell(
        written,
        f"{written} holds the backbone of {named.source}, identity {loaded.identity}. Serve it where the Python of "
        "Triton's stub can import paragone[models] (or finds it on PYTHONPATH), and the model on top of it:",
        (
            f"tritonserver --model-repository={folder} --model-control-mode=explicit --load-model={name}",
            f"paragone serve --model {name}={named.source}{settings} --engine {name}=triton:grpc://127.0.0.1:8001",
        ),
        as_json=as_json,
    )


@export.command("transformers")
def transformers(
    model: Annotated[str, typer.Argument(autocompletion=completed, help="A built-in, a Hugging Face id or a folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must be empty or not exist.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hugging Face id.")] = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="float32|bfloat16|float16", help="Of the weights; the latter two round the head too."),
    ] = "float32",
    as_json: _Json = False,
) -> None:
    """Write a reward or rating model as a sequence classifier of transformers, which vLLM, SGLang and TEI serve."""
    from paragone_models.files.classifier import export_classifier
    from paragone_models.files.loading import load_model
    from paragone_models.files.weight_bars import hide_weight_bars

    hide_weight_bars()
    with shown_work(f"loading {model}") as work:
        loaded = load_model(model, revision=revision, device="cpu", dtype=dtype)
        work.step(f"writing {folder}")
        written = export_classifier(loaded, folder)
    _tell(
        written,
        f"{written} holds {model} as AutoModelForSequenceClassification: the same rewards, read at the last token of "
        f"the chat template's text. A preference is sigmoid((reward - reward) / {loaded.spec.temperature:g}).",
        (f"vllm serve {written} --runner pooling",),
        as_json=as_json,
    )


def _tell(written: Path, text: str, commands: Sequence[str], *, as_json: bool) -> None:
    """Print what was written and the commands that use it."""
    if as_json:
        typer.echo(json.dumps({"folder": str(written), "commands": list(commands)}))
    else:
        typer.echo("\n".join([text, *(f"  {command}" for command in commands)]))
