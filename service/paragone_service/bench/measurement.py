"""One measurement from start to end: texts, this process, our server cold and warm, and the other server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paragone_models.errors import ModelError
from paragone_models.files.loading import load_model
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Reading
from paragone_service.bench.compute import measure
from paragone_service.bench.dialects import DIALECTS, Asked
from paragone_service.bench.load import Level, LoadError, ask_all
from paragone_service.bench.process import served
from paragone_service.bench.report import Measurement, Side
from paragone_service.bench.workload import Group, WorkloadError, from_file, items_of, made_up, readings

__all__ = ["Plan", "PlanError", "run"]


_WARM_UP = 3


class PlanError(ValueError):
    """What was asked for cannot be measured."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        model: source of the model.
        data: file of texts, or None for English ones.
        groups: of a turn.
        responses: of a group, where the texts are made up.
        lengths: fewest and most tokens of a made-up text.
        turns: that count.
        clients: numbers of clients.
        url: of another server, or None.
        dialect: how that is asked.
        url_model: name of the model there, or None.
        api_key: of that server, or None.
        device: of the model.
        dtype: of the model.
    """

    model: str
    data: Path | None
    groups: int
    responses: int
    lengths: tuple[int, int]
    turns: int
    clients: tuple[int, ...]
    url: str | None
    dialect: str
    url_model: str | None
    api_key: str | None
    device: str
    dtype: str


def run(plan: Plan, *, say: Callable[[str], None], machine: Mapping[str, str]) -> Measurement:
    """Return what was measured.

    Args:
        plan: what.
        say: told of every step.
        machine: what it runs on, in words.

    Raises:
        PlanError: if the model cannot be loaded, its texts cannot be used, or a server cannot be asked.
    """
    if plan.dialect not in DIALECTS:
        raise PlanError(f"--dialect is {plan.dialect!r}; it must be one of {', '.join(DIALECTS)}")
    try:
        say(f"loading {plan.model}")
        model = load_model(plan.model, device=plan.device, dtype=plan.dtype)
        workloads = _workloads(plan, model)
        say(f"{plan.turns} turns in this process")
        compute = measure(model, [items_of(read) for _, read in workloads[: plan.turns + 1]])
        described = {"model": plan.model, "kind": model.kind, "batching": model.batching, **_numerics(model)}
        rest = [_asked(groups, read) for groups, read in workloads[plan.turns + 1 :]]
        del model  # its memory is the server's now
        sides = _over_http(plan, rest, say)
    except (ModelError, WorkloadError, LoadError) as error:
        raise PlanError(str(error)) from error
    return Measurement(machine, described, compute, sides)


def _workloads(plan: Plan, model: PreferenceModel) -> list[tuple[list[Group], list[list[Reading]]]]:
    """Return as many workloads as there are turns, one to warm up, and one for every number of clients."""
    wanted = plan.turns + 1 + len(plan.clients)
    if model.reader is None:
        raise PlanError(f"{plan.model} has no tokenizer files: there is nothing to read texts with")
    if plan.data:
        everything = from_file(plan.data, plan.groups * wanted)
        parts = [everything[start : start + plan.groups] for start in range(0, len(everything), plan.groups)]
    else:
        parts = [
            made_up(model.reader.tokenizer, plan.groups, responses=plan.responses, lengths=plan.lengths, seed=number)
            for number in range(wanted)
        ]
    return [(part, readings(part, model.reader)) for part in parts]


def _asked(groups: Sequence[Group], read: Sequence[Sequence[Reading]]) -> list[Asked]:
    """Return single responses, siblings apart, as the workers of a loop send them."""
    rows = [
        [Asked(group.prompt, text, one.text) for text, one in zip(group.responses, found, strict=True)]
        for group, found in zip(groups, read, strict=True)
    ]
    longest = max(map(len, rows))
    return [row[place] for place in range(longest) for row in rows if place < len(row)]


def _over_http(plan: Plan, workloads: Sequence[Sequence[Asked]], say: Callable[[str], None]) -> list[Side]:
    ours = DIALECTS["paragone"]
    options = ["--device", plan.device, "--dtype", plan.dtype]
    cold, warm, other = list[Level](), list[Level](), list[Level]()
    say("starting paragone serve")
    with served(plan.model, options) as address:
        for _ in range(_WARM_UP):  # first requests pay for imports and thread pools
            ask_all(address, ours, [Asked("warm", "up", "")], clients=1, batch=1)
        for clients, asked in zip(plan.clients, workloads, strict=True):
            say(f"{clients} clients, one response a request")
            # In turns, so that what else the machine does falls on both.
            cold.append(ask_all(address, ours, asked, clients=clients, batch=1))
            if plan.url:
                theirs = DIALECTS[plan.dialect]
                other.append(
                    ask_all(
                        plan.url, theirs, asked, clients=clients, batch=1, model=plan.url_model, api_key=plan.api_key
                    )
                )
            warm.append(ask_all(address, ours, asked, clients=clients, batch=1))
    sides = [Side("Paragone, new texts", cold), Side("Paragone, texts seen before", warm)]
    return [*sides, Side(f"{plan.url} ({plan.dialect})", other)] if plan.url else sides


def _numerics(model: PreferenceModel) -> dict[str, str]:
    return {name: value for name, value in model.numerics.items() if name in ("dtype", "device", "attention")}
