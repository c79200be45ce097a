"""``paragone ask``: one question to a running service, and one line of answer."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from paragone.addresses import DEFAULT_URL
from paragone.client import Client
from paragone.exceptions import checked
from paragone.waiting import in_few_words
from paragone.wire import ModelInfo

__all__ = ["ask"]

_TEXT = "A text; @FILE reads it from a file, - from the standard input, @@… is a text that begins with @."


def ask(
    prompt: Annotated[str, typer.Argument(help=f"What was asked. {_TEXT}")],
    first: Annotated[str, typer.Argument(help="The response whose win is measured.")],
    second: Annotated[str, typer.Argument(help="The response it is compared with.")],
    url: Annotated[str, typer.Option(help="Address of the service.", envvar="PARAGONE_URL")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Id of a hosted model; the server's default if omitted.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key of the service.", envvar="PARAGONE_API_KEY", show_envvar=True)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Give up on an answer after so many seconds.")] = 60.0,
    wait_s: Annotated[float, typer.Option(help="Wait so long for a service that is still starting.")] = 0.0,
) -> None:
    """Ask a running service which of two responses to a prompt is preferred."""
    if [prompt, first, second].count("-") > 1:  # it can be read only once
        raise typer.BadParameter("the standard input (-) can be only one of the three texts")
    texts = [_text(argument) for argument in (prompt, first, second)]
    try:
        # Waiting for the service is part of the first request, whose deadline must not end it.
        patience_s = timeout_s + wait_s
        client = Client(url, api_key=api_key, model=model, timeout_s=patience_s, retry_s=timeout_s, wait_s=wait_s)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with client, in_few_words(), Console(stderr=True).status(f"asking {url} …"):
        answer = client.preferences([(texts[0], texts[1], texts[2])])
        row = checked(answer.preferences)[0]
        info = client.model(answer.model)
    if json:
        fields = {
            **answer.model_dump(mode="json", exclude={"preferences", "usage"}),
            **row.model_dump(mode="json"),
            "demonstration": info.demonstration,
        }
        typer.echo(json_format.dumps(fields))
        return
    remark = "; it abstains: this is no verdict" if row.abstained else ""
    typer.echo(f"first preferred: {_percent(row.probability)}  (logit {row.logit:.2f}, {answer.model}{remark})")
    if info.demonstration:
        typer.echo(_caution(info))


def _caution(info: ModelInfo) -> str:
    domain = f"; it knows: {info.domain}" if info.domain else ""
    return f"{info.id} is a demonstration, no judge to rely on{domain}."


def _percent(probability: float) -> str:
    """Return a probability in percent, with decimals only near 0 and 100, where whole numbers would claim too much."""
    percent = 100.0 * probability
    if 1.0 <= percent <= 99.0:
        return f"{percent:.0f} %"
    if percent < 0.01:
        return "< 0.01 %"
    if percent > 99.99:
        return "> 99.99 %"
    return f"{percent:.2f} %"


def _text(argument: str) -> str:
    """Return the text that an argument stands for, without the final newline of a file or of the standard input."""
    if argument.startswith("@@"):
        return argument[1:]
    if argument == "-":
        source, content = "the standard input", sys.stdin.buffer.read()
    elif argument.startswith("@"):
        path = Path(argument[1:])
        try:
            source, content = str(path), path.read_bytes()
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}") from None
    else:
        return argument
    # Strict: with replaced bytes it would be another text, and get another answer. The final newline is the editor's.
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{source} is not UTF-8") from None
