"""``paragone verify``: the command and its table."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paragone.installing import pip_install
from paragone.waiting import in_few_words
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.eval_command import ApiKey, Device, Layout, Map, RemoteCode, console_of, read_options
from paragone_evaluation.verification.servers import DIALECTS
from paragone_models.progress import shown_work

if TYPE_CHECKING:
    from paragone_evaluation.verification.verify import Verification

__all__ = ["verify"]

_SENT = ("template", "without-bos", "joined")
_SHOWN = 40  # rows of the table


def verify(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub id of the model; with --dialect paragone, the id under which it is hosted.",
            show_default=False,
        ),
    ],
    *,
    url: Annotated[str, typer.Option(help="Address of the server; a path in it is kept.", show_default=False)],
    dialect: Annotated[str, typer.Option(metavar="|".join(DIALECTS), help="How it is asked.")] = "paragone",
    file: Annotated[list[str] | None, typer.Option(help="Your own texts beside the built-in ones.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of --file: how many rows.")] = 50,
    source: Annotated[
        str | None, typer.Option(help="Of a hosted model: its folder or Hub id here; what the server says if omitted.")
    ] = None,
    remote_model: Annotated[
        str | None,
        typer.Option(
            help="The server's name of the model, if it is another; openrlhf, slime, sglang and tei send none."
        ),
    ] = None,
    send: Annotated[
        str,
        typer.Option(metavar="|".join(_SENT), help="To dialects of rendered texts: how your trainer sends them."),
    ] = "template",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference that is none; float32's and bfloat16's own if omitted.")
    ] = None,
    layout: Layout = "auto",
    columns: Map = None,
    api_key: ApiKey = None,
    device: Device = "auto",
    trust_remote_code: RemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say whether a reward server gives its model's numbers, and if not, why.

    Compares the server with plain transformers and with this package, about built-in texts and your own. Ends with 0 if
    all agree, with 1 if not. See docs/verify.md.
    """
    if send not in _SENT:
        raise typer.BadParameter(f"--send is {send!r}; it must be one of {', '.join(_SENT)}")
    if dialect not in DIALECTS:
        raise typer.BadParameter(f"--dialect is {dialect!r}; it must be one of {', '.join(DIALECTS)}")
    try:
        from paragone_evaluation.verification.verify import VerifySettings, texts_of, verified
    except ModuleNotFoundError as error:
        raise EvaluationError(f"verify loads the model: {pip_install('evaluation', 'models')} ({error})") from error
    texts = texts_of(file or [], rows, read_options(layout, columns, "leave-out", None, 0.0, "all"))
    settings = VerifySettings(
        model=model,
        url=url,
        dialect=dialect,
        source=source,
        remote_model=remote_model,
        api_key=api_key,
        send=send,
        device=device,
        tolerance=tolerance,
        trust_remote_code=trust_remote_code,
    )
    with in_few_words(), shown_work(f"looking for {model}") as work:
        found = verified(settings, texts, progress=work.step)
    if as_json:
        typer.echo(json.dumps(_values(found), ensure_ascii=False, indent=1))
    else:
        _print(found, console_of())
    if not found.agrees:
        raise typer.Exit(1)


def _values(found: "Verification") -> dict[str, Any]:
    return {
        "agrees": found.agrees,
        "reference": found.reference,
        "batch_dependence": found.dependence,
        "columns": {
            column.name: {key: _plain(value) for key, value in asdict(column.verdict).items()}
            for column in found.columns
        },
        "texts": [
            {"name": text.name, "tokens": found.tokens[at], "expected": found.expected[at]}
            | {column.name: _plain(column.values[at]) for column in found.columns}
            for at, text in enumerate(found.texts)
        ],
        "left_out": list(found.left_out),
    }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(found: "Verification", console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("text", max_width=32)
    for name in ("tokens", "expected", *(column.name for column in found.columns)):
        table.add_column(name, justify="right")
    for at, text in enumerate(found.texts[:_SHOWN]):
        cells = [f"{column.values[at]:.4f}" for column in found.columns]
        table.add_row(escape(text.name), f"{found.tokens[at] or ''}", f"{found.expected[at]:.4f}", *cells)
    console.print(table)
    if len(found.texts) > _SHOWN:
        console.print(f"… and {len(found.texts) - _SHOWN} more texts", style="dim")
    say = _Lines(console)
    say(f"expected: {found.reference}", "dim")
    for reason in found.left_out:
        say(f"not compared: {reason}", "dim")
    for column in found.columns:
        say(*_verdict(column.name, column.verdict))
    if found.dependence is not None:
        say(
            f"batch dependence: a text's answer changes by up to {found.dependence:.4g} with the texts beside it "
            "(padding that is attended to, or positions that count it)",
            "red",
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def _verdict(name: str, verdict: Any) -> tuple[str, str]:
    if not verdict.cause:
        return f"{name}: agrees (at most {verdict.difference:.2g} apart)", "green"
    far = f"up to {verdict.difference:.4g} apart"
    if verdict.agrees:
        return f"{name}: agrees, {far}: {verdict.cause}", "green"
    texts = f"; they are: {', '.join(verdict.texts)}" if verdict.texts else ""
    rest = f"; {verdict.unexplained:.2g} is left" if not verdict.texts else ""
    return f"{name}: differs, {far}: {verdict.cause}{rest}{texts}", "red"
