"""``paragone doctor``: what is installed, what would be chosen here and why, what can be reached, and what to do.

A package adds checks by an entry point of the group ``paragone.checks``: a function of the command's options that
yields ``(subject, state, text, remedy)``. The state is ``ok``, ``warn``, ``fail``, or ``info`` for what is neither good
nor bad, as an extra that is not installed. Checks raise nothing.
"""

import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import httpx2
import typer
from rich.console import Console

from paragone.addresses import DEFAULT_URL, without_userinfo
from paragone.installing import pip_install
from paragone.versions import VERSION_HEADER, incompatibility, minor_difference, own_version

__all__ = ["Finding", "doctor", "findings"]

State = Literal["info", "ok", "warn", "fail"]

_GROUP = "paragone.checks"
_EXTRAS = {
    "models": "for models in this process",
    "service": "for `paragone serve`",
    "triton": "for engines on Triton",
    "evaluation": "for `paragone eval`, `data` and `annotate`",
    "training": "for `paragone train`",
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?.*; extra == ['\"](\w+)['\"]")
_TIMEOUT_S = 5.0
_STYLES = {"info": "dim", "ok": "green", "warn": "yellow", "fail": "bold red"}
_RANKS: tuple[State, ...] = ("info", "ok", "warn", "fail")


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        remedy: what to do; empty where nothing is to be done.
    """

    subject: str
    state: State
    text: str
    remedy: str = ""


def doctor(
    url: Annotated[str | None, typer.Option(help="A service to look at.", envvar="PARAGONE_URL")] = None,
    *,
    api_key: Annotated[
        str | None, typer.Option(help="Key of that service.", envvar="PARAGONE_API_KEY", show_envvar=True)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="A server's file: its settings are checked as serve does.")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis of a server.", envvar="PARAGONE_REDIS_URL")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A server's file of keys.")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=vllm:URL|NAME=triton:grpc://…", help="Servers that run backbones; repeatable."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port that a server would listen on; 8000 if omitted.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes seconds, as importing torch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of lines.")] = False,
) -> None:
    """Check this installation and this machine, line by line: ok, warn or fail, and what to do.

    Versions, devices, the dtype and kernels that would be chosen and why, cache folders, and what a server needs:
    port, keys, Redis, engines. Ends with 1 if something fails.
    """
    options = {
        "url": url, "api_key": api_key, "config": config, "redis_url": redis_url, "api_key_file": api_key_file,
        "engines": engine or [], "port": port, "quick": quick,
    }  # fmt: skip
    made: list[Finding] = []
    console = Console(soft_wrap=True, highlight=False)
    with Console(stderr=True).status("looking …"):
        for finding in findings(options):
            made.append(finding)
            if not as_json:
                _print(finding, console)
    worst = max((finding.state for finding in made), key=_RANKS.index)
    if as_json:
        typer.echo(json.dumps({"state": worst, "findings": [finding._asdict() for finding in made]}))
    if worst == "fail":
        raise typer.Exit(1)


def findings(options: Mapping[str, Any], *, checks: Iterable[EntryPoint] | None = None) -> Iterator[Finding]:
    """Yield what every check finds.

    Args:
        options: of the command, by name.
        checks: what other packages add; what is installed if None.
    """
    yield _python()
    yield from _extras()
    for check in sorted(entry_points(group=_GROUP) if checks is None else checks, key=lambda check: check.name):
        try:
            found = check.load()
        except ModuleNotFoundError:
            continue  # its extra is not there, which was said
        yield from (Finding(*one) for one in found(options))
    if options.get("url"):
        yield from _service(options["url"], options.get("api_key"))


def _python() -> Finding:
    text = f"{own_version()} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Finding("paragone", "warn", text, "it is tested on Linux alone: expect less speed elsewhere")
    return Finding("paragone", "ok", text)


def _extras() -> Iterator[Finding]:
    needed: dict[str, list[str]] = {}
    for line in requires("paragone") or ():
        requirement = _REQUIREMENT.match(line)
        if requirement is not None and requirement[1] != "paragone":
            needed.setdefault(requirement[2], []).append(requirement[1])
    said: set[str] = set()  # an extra that has another inside lists its packages too
    for extra, purpose in _EXTRAS.items():
        versions = {name: _installed(name) for name in needed.get(extra, ()) if name not in said}
        said |= set(versions)
        there = [f"{name} {number}" for name, number in versions.items() if number]
        lacking = [name for name, number in versions.items() if not number]
        install = f"{purpose}: {pip_install(extra)}"
        if not there:
            yield Finding(extra, "info", "not installed", install)
        elif lacking:
            yield Finding(extra, "warn", f"{', '.join(there)}; without {', '.join(lacking)}", install)
        else:
            yield Finding(extra, "ok", ", ".join(there))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _service(url: str, api_key: str | None) -> Iterator[Finding]:
    headers = {VERSION_HEADER: own_version()}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    subject = f"service {without_userinfo(url)}"
    try:
        response = httpx2.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=_TIMEOUT_S)
    except (httpx2.InvalidURL, ValueError):
        # The reason may be a part of the password.
        remedy = f"write http://HOST:PORT, as {DEFAULT_URL}, and give the key by --api-key or PARAGONE_API_KEY"
        yield Finding(subject, "fail", "its address cannot be read", remedy)
        return
    except httpx2.HTTPError as error:
        yield Finding(subject, "fail", f"no answer: {error}", "start it with `paragone serve`, or mend the address")
        return
    server = response.headers.get(VERSION_HEADER)
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        remedy = "give its key by --api-key or PARAGONE_API_KEY" if not api_key else "it takes another key"
        yield Finding(subject, "fail", "it refuses without a key that it knows", remedy)
    elif response.status_code != httpx2.codes.OK:
        text = f"status {response.status_code} of /v1/models"
        yield Finding(subject, "fail", text, f"is that Paragone? its usual address is {DEFAULT_URL}")
    else:
        names = _names(response)
        milliseconds = response.elapsed.total_seconds() * 1000
        yield Finding(subject, "ok", f"answers in {milliseconds:.0f} ms and hosts {', '.join(names)}")
    if server is None:
        yield Finding(
            "versions", "warn", f"it tells none ({VERSION_HEADER})", "is that Paragone, or a proxy before it?"
        )
    else:
        refusal, difference = incompatibility(own_version(), server), minor_difference(own_version(), server)
        if refusal is not None:
            yield Finding("versions", "fail", refusal.partition(": ")[0], refusal.partition(": ")[2])
        elif difference is not None:
            yield Finding("versions", "warn", difference.partition("; ")[0], difference.partition("; ")[2])
        else:
            yield Finding("versions", "ok", f"client and service are both {server}")


def _names(response: httpx2.Response) -> list[str]:
    try:
        return [str(info["id"]) for info in response.json()["models"]]
    except (KeyError, TypeError, ValueError):
        return ["nothing that can be read"]


def _print(finding: Finding, console: Console) -> None:
    shown = "–" if finding.state == "info" else finding.state
    console.print(f"{shown:<5}", style=_STYLES[finding.state], end="")
    console.print(f"{finding.subject:<12} {finding.text}", markup=False)
    if finding.remedy:
        console.print(f"     {'':<12} → {finding.remedy}", markup=False, style="dim")
