"""A model made of others of this server: their mean log-odds, how far they differ, and whom to ask only where it helps.

n is the number of duels of a request, m of members.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from paragone.codes import ErrorCode
from paragone.wire import EnsembleInfo, ModelInfo, ModelLimits
from paragone_models.ensembles import combined
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.ensemble_settings import EnsembleSettings
from paragone_service.pairs.source import Compared, Detail, Duel, PairSource
from paragone_service.scoring.hosted_model import HostedModel
from paragone_service.scoring.request import Call, Problems, RequestItem
from paragone_service.scoring.together import Together, families

__all__ = ["Ensemble", "open_ensembles"]

_DIGITS_OF_FINGERPRINT = 32


class _Hosts(Protocol):
    """Who finds the members, anew for each request: a name may lead to another model by then."""

    def find(self, name: str | None) -> HostedModel: ...

    def pair_source(self, name: str | None) -> PairSource | None: ...


class Ensemble:
    """Compare by several hosted models.

    Args:
        hosts: finds its members, which are not its own: it neither starts nor closes them.
    """

    takes_principles = False

    def __init__(self, name: str, settings: EnsembleSettings, hosts: _Hosts) -> None:
        self.name = name
        self._settings = settings
        self._hosts = hosts

    @property
    def header(self) -> Mapping[str, Any]:
        """What every answer says of the model, made of what its members are now."""
        headers = [member.header for member in self._members()]
        rules = self._settings.model_dump(mode="json")

        def made_of(field: str) -> str:
            parts = [rules, *(header[field] for header in headers)]
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

        return {
            "model": self.name,
            "identity": made_of("identity"),
            "fingerprint": made_of("fingerprint")[:_DIGITS_OF_FINGERPRINT],
            "calibrated": False,
        }

    def _members(self) -> list[HostedModel | PairSource]:
        return [self._hosts.pair_source(name) or self._hosts.find(name) for name in self._settings.members]

    def start(self) -> None:
        """Do nothing: members are started by whom they belong to."""

    async def close(self) -> None:
        """Do nothing: members are closed by whom they belong to."""

    async def alive(self, *, within_s: float, timeout_s: float) -> bool:
        """Return whether every member can answer."""
        return all([await member.alive(within_s=within_s, timeout_s=timeout_s) for member in self._members()])

    def described(self, limits: ModelLimits) -> ModelInfo:
        """Return what ``/v1/models`` says of it."""
        header = self.header
        return ModelInfo(
            id=self.name,
            kind="ensemble",
            cyclic=True,
            source=self._settings.source,
            identity=header["identity"],
            fingerprint=header["fingerprint"],
            numerics={},
            limits=limits,
            temperature=1.0,
            calibrated=False,
            attributes=[],
            dimension=None,
            demonstration=False,
            engine="ensemble",
            pooling="none",
            special_tokens="none",
            reasoning="none",
            ensemble=EnsembleInfo(
                members=self._settings.members,
                weights=self._settings.all_weights,
                margin=self._settings.margin,
                pessimism=self._settings.pessimism,
                pessimism_form=self._settings.pessimism_form,
                abstain=self._settings.abstain,
            ),
        )

    async def compare(self, duels: Sequence[Duel], call: Call) -> Compared:
        """Return the log-odds of each duel, with their spread where several members answered; see ``PairSource``.

        With a margin the first member is asked about every duel, and the others only where its log-odds lie within it.
        A duel that one of those asked cannot answer has that member's error.
        """
        settings, members = self._settings, self._members()
        together = families(member for member in members if isinstance(member, HostedModel))
        first = await _asked(members[0], duels, call, together)
        usage, errors = first.usage, dict(first.errors)
        unsure = np.ones(len(duels), np.bool_) if settings.margin is None else np.abs(first.logits) < settings.margin
        open_ = [number for number in np.flatnonzero(unsure).tolist() if number not in errors]
        table = np.full((len(members), len(open_)), np.nan)
        table[0] = first.logits[open_]
        for place, member in enumerate(members[1:], start=1):
            # One after the other: each watches whether the client is still there.
            answer = await _asked(member, [duels[number] for number in open_], call, together)
            table[place] = answer.logits
            usage = usage.plus(answer.usage)
            errors |= {open_[number]: error for number, error in answer.errors.items() if open_[number] not in errors}
        if settings.margin is not None:
            usage.escalated = len(open_)
        logits = first.logits.copy()
        logits[open_], spread = combined(
            table, settings.all_weights, pessimism=settings.pessimism, form=settings.pessimism_form
        )
        logits[list(errors)] = np.nan
        spreads = dict(zip(open_, spread.tolist(), strict=True))
        unsaid = np.zeros(len(duels), np.bool_) if settings.abstain is None else np.abs(logits) < settings.abstain
        details = {
            number: Detail(spread=spreads.get(number), abstained=bool(unsaid[number]))
            for number in range(len(duels))
            if number not in errors and (number in spreads or unsaid[number])
        }
        return Compared(logits, usage, errors, details)


async def _asked(
    member: HostedModel | PairSource,
    duels: Sequence[Duel],
    call: Call,
    together: Mapping[HostedModel, Together],
) -> Compared:
    if not isinstance(member, HostedModel):
        return await member.compare(duels, call)
    problems = Problems("duels", report=True)
    items = [
        RequestItem(number, duel.prompt, duel.tools, (duel.first, duel.second)) for number, duel in enumerate(duels)
    ]
    own = dataclasses.replace(call, problems=problems, ids=False, together=together.get(member))
    represented = await member.represent(items, own)
    with np.errstate(all="ignore"):  # what is not finite is found below
        logits = member.model.comparator.logit(represented.vectors[0::2], represented.vectors[1::2])
    for number in np.flatnonzero(~np.isfinite(logits)).tolist():
        if number not in problems.errors:
            problems.add(
                number, ServiceError(ErrorCode.NON_FINITE_SCORE, f"model {member.name} gave no finite log-odds")
            )
    return Compared(logits, represented.usage, problems.errors)


def open_ensembles(
    settings: Mapping[str, EnsembleSettings], hosts: _Hosts, refuse: Callable[[str], Exception]
) -> list[Ensemble]:
    """Return the ensembles of a server whose other models are there.

    Args:
        refuse: makes the error of a server that is not to start.

    Raises:
        Exception: that one, if a member is not hosted, cannot compare, or is an ensemble itself.
    """
    opened = []
    for name, one in settings.items():
        for member in one.members:
            if member in settings:
                raise refuse(f"models.{name}: member {member} is an ensemble itself: name its members")
            if hosts.pair_source(member) is None:
                try:
                    hosts.find(member).check_preferences()
                except ServiceError as error:
                    raise refuse(f"models.{name}: {error.message}") from None
        opened.append(Ensemble(name, one, hosts))
    return opened
