"""``paragone bench``: measure a model on this machine, beside plain transformers and a server that runs already."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paragone.installing import pip_install
from paragone_models.files.sources import completed
from paragone_service.bench import BenchError

if TYPE_CHECKING:
    from paragone_service.bench.measurement import Measurement

__all__ = ["bench"]


def bench(
    model: Annotated[
        str, typer.Argument(autocompletion=completed, help="A model: builtin:NAME, folder or Hugging Face id.")
    ] = ("builtin:mini-general-preference"),
    *,
    data: Annotated[
        Path | None, typer.Option(show_default="English texts", help="File to score, as `paragone data` reads it.")
    ] = None,
    groups: Annotated[int, typer.Option(help="Groups of a turn.", min=1)] = 8,
    responses: Annotated[int, typer.Option(help="Responses of a group, without --data.", min=2)] = 8,
    tokens: Annotated[
        str, typer.Option(metavar="FEWEST-MOST", help="Tokens of a prompt and of a response.")
    ] = "64-512",
    turns: Annotated[int, typer.Option(help="Turns that count; the median is shown.", min=1)] = 3,
    clients: Annotated[str, typer.Option(metavar="N,…", help="Numbers of clients to ask with.")] = "1,8,64",
    url: Annotated[str | None, typer.Option(help="A server that runs already, to compare with.")] = None,
    dialect: Annotated[
        str, typer.Option(metavar="paragone|openrlhf|vllm|tei", help="How --url is asked.")
    ] = "paragone",
    url_model: Annotated[str | None, typer.Option(help="Name of the model at --url.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key of --url.", envvar="PARAGONE_API_KEY")] = None,
    wait_s: Annotated[float, typer.Option(help="Wait so many seconds for --url that is still starting.")] = 0.0,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16|float16", help="What it computes in.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder of bench.json and bench.html.")] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")] = False,
) -> None:
    """Measure throughput, latency and what is left of the hardware's peak, on your machine and your model.

    Everything runs in turns in one go, so that a busy machine slows all sides alike: read ratios, not rates.
    """
    from paragone_models.files.weight_bars import hide_weight_bars
    from paragone_service.bench.load import check_address
    from paragone_service.bench.measurement import Plan, run  # not before: torch takes seconds

    try:
        if url is not None:  # not after minutes of measuring the other side
            check_address(url, wait_s=wait_s)
        plan = Plan(
            model=model, data=data, groups=groups, responses=responses, lengths=_range(tokens), turns=turns,
            clients=_numbers(clients), url=url, dialect=dialect, url_model=url_model, api_key=api_key, device=device,
            dtype=dtype,
        )  # fmt: skip
        hide_weight_bars()
        measurement = run(plan, say=lambda text: typer.echo(text, err=True), machine=_machine())
    except BenchError as error:
        raise typer.BadParameter(str(error)) from error
    _show(measurement, output, as_json=as_json)


def _show(measurement: "Measurement", output: Path, *, as_json: bool) -> None:
    """Print the tables, or JSON; write ``bench.json`` and, where the look of reports is installed, ``bench.html``."""
    from rich.console import Console

    from paragone_service.bench.bench_report import headline, page, tables, values

    console = Console(stderr=as_json)
    console.print(headline(measurement), soft_wrap=True, highlight=False, markup=False)
    for table in tables(measurement):
        console.print(table)
    found = values(measurement)
    output.mkdir(parents=True, exist_ok=True)
    numbers, report = output / "bench.json", output / "bench.html"
    numbers.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    try:
        report.write_text(page(measurement), encoding="utf-8")
    except ModuleNotFoundError as error:
        remedy = f"{numbers}; for a page with charts: {pip_install('evaluation')} ({error})"
        console.print(remedy, markup=False, soft_wrap=True)
    else:
        console.print(f"{numbers} and {report}")
    if as_json:
        typer.echo(json.dumps(found))


def _machine() -> dict[str, str]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": platform.machine(), "cores": f"{cores} cores", "load": f"load {load:.1f} at the start"}


def _range(text: str) -> tuple[int, int]:
    least, dash, most = text.partition("-")
    values = _parsed([least, most if dash else least], "--tokens", "as in 64-512")
    if not 1 <= values[0] <= values[1]:
        raise typer.BadParameter(f"--tokens is {text}; give the fewest and the most, as in 64-512")
    return values[0], values[1]


def _numbers(text: str) -> tuple[int, ...]:
    values = _parsed(text.split(","), "--clients", "as in 1,8,64")
    if min(values) < 1:
        raise typer.BadParameter(f"--clients is {text}; every number must be at least 1")
    return tuple(sorted(set(values)))


def _parsed(parts: Sequence[str], name: str, example: str) -> list[int]:
    try:
        return [int(part) for part in parts]
    except ValueError as error:
        raise typer.BadParameter(f"{name} must be whole numbers, {example}") from error
