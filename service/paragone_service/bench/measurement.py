"""One measurement from start to end: texts, this process, our server cold and warm, and the other server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paragone.addresses import without_userinfo
from paragone_models.errors import ModelError
from paragone_models.files.loading import load_model
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Reading
from paragone_service.bench import BenchError
from paragone_service.bench.compute import Compute, measure
from paragone_service.bench.load import DIALECTS, Level, ScoredText, ask_all, served_model
from paragone_service.bench.workload import TextGroup, from_file, made_up, readings

__all__ = ["Measurement", "Plan", "run"]

_WARM_UP = 3


@dataclass(frozen=True)
class Plan:
    """The options of a measurement, as ``paragone bench`` explains them.

    Attributes:
        groups, turns: groups of a turn, and turns that count.
        responses, lengths: of made-up texts: responses of a group, fewest and most tokens.
        url, dialect, url_model, api_key: of another server.
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


@dataclass(frozen=True)
class _Side:
    """A server under load: its name for people, and its levels by number of clients, growing."""

    name: str
    levels: Sequence[Level]


@dataclass(frozen=True)
class Measurement:
    """All numbers of one run, and in words by name the machine and the model that they are of."""

    machine: Mapping[str, str]
    model: Mapping[str, str]
    compute: Compute
    sides: Sequence[_Side]


def run(plan: Plan, *, say: Callable[[str], None], machine: Mapping[str, str]) -> Measurement:
    """Return the measurement of a plan.

    Args:
        say: called with a line on every step.
        machine: what it runs on, in words.

    Raises:
        BenchError: if the model cannot be loaded, its texts cannot be used, or a server cannot be asked.
    """
    if plan.dialect not in DIALECTS:
        raise BenchError(f"--dialect is {plan.dialect!r}; it must be one of {', '.join(DIALECTS)}")
    try:
        say(f"loading {plan.model}")
        model = load_model(plan.model, device=plan.device, dtype=plan.dtype)
        workloads = _workloads(plan, model)
        say(f"{plan.turns} turns in this process")
        turns = [[reading.item for group in read for reading in group] for _, read in workloads[: plan.turns + 1]]
        compute = measure(model, turns)
        described = {"model": plan.model, "kind": model.kind, "batching": model.local.batching}
        numerics = model.provenance.numerics
        described |= {name: numerics[name] for name in ("dtype", "device", "attention") if name in numerics}
        # The server reads other texts than the turns did, and each level others than the level before.
        rest = [_interleaved(groups, read) for groups, read in workloads[plan.turns + 1 :]]
        del model  # its memory is the server's now
        sides = _over_http(plan, rest, say)
    except ModelError as error:
        raise BenchError(str(error)) from error
    return Measurement(machine, described, compute, sides)


def _workloads(plan: Plan, model: PreferenceModel) -> list[tuple[list[TextGroup], list[list[Reading]]]]:
    """Return as many workloads as there are turns, one to warm up, and one for every number of clients."""
    count = plan.turns + 1 + len(plan.clients)
    if model.reader is None:
        raise BenchError(f"{plan.model} has no tokenizer files: there is nothing to read texts with")
    if plan.data:
        everything = from_file(plan.data, plan.groups * count)
        parts = [everything[start : start + plan.groups] for start in range(0, len(everything), plan.groups)]
    else:
        parts = [
            made_up(model.reader.tokenizer, plan.groups, responses=plan.responses, lengths=plan.lengths, seed=number)
            for number in range(count)
        ]
    return [(part, readings(part, model.reader)) for part in parts]


def _interleaved(groups: Sequence[TextGroup], read: Sequence[Sequence[Reading]]) -> list[ScoredText]:
    """Return single responses, siblings apart, as the workers of a loop send them."""
    rows = [
        [
            ScoredText(group.prompt, text, reading.text, group.tools)
            for text, reading in zip(group.responses, row, strict=True)
        ]
        for group, row in zip(groups, read, strict=True)
    ]
    longest = max(map(len, rows))
    return [row[place] for place in range(longest) for row in rows if place < len(row)]


def _over_http(plan: Plan, workloads: Sequence[Sequence[ScoredText]], say: Callable[[str], None]) -> list[_Side]:
    cold, warm, other = list[Level](), list[Level](), list[Level]()
    say("starting paragone serve")
    with served_model(plan.model, ["--device", plan.device, "--dtype", plan.dtype]) as address:
        for _ in range(_WARM_UP):  # first requests pay for imports and thread pools
            ask_all(address, "paragone", [ScoredText("warm", "up", "")], clients=1, batch=1)
        for clients, texts in zip(plan.clients, workloads, strict=True):
            say(f"{clients} clients, one response a request")
            # In turns, so that what else the machine does falls on both.
            cold.append(ask_all(address, "paragone", texts, clients=clients, batch=1))
            if plan.url:
                name, key = plan.url_model, plan.api_key
                other.append(ask_all(plan.url, plan.dialect, texts, clients=clients, batch=1, model=name, api_key=key))
            # The same texts again: this time the cache has all of them.
            warm.append(ask_all(address, "paragone", texts, clients=clients, batch=1))
    sides = [_Side("Paragone, new texts", cold), _Side("Paragone, texts seen before", warm)]
    return [*sides, _Side(f"{without_userinfo(plan.url)} ({plan.dialect})", other)] if plan.url else sides
