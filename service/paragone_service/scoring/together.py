"""Several models of one backbone that a request asks about the same responses: each response is run once for all.

The first of them that lacks a response runs it, and the heads of the later ones ride with it, each with its own reads.
Every value is kept under its own model's identity, so the cache knows nothing of this. What a model would read
otherwise (another template, a shorter limit that the text does not fit) it runs itself.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from paragone_models.model import PreferenceModel
from paragone_models.network import RepresentationHead
from paragone_models.text.reader import read_plan
from paragone_models.text.template import tokenizer_hash
from paragone_service.engine.local import LocalEngine
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.heads import Rider
from paragone_service.scoring.model_io import Resources
from paragone_service.scoring.tickets import Job, Ticket

if TYPE_CHECKING:  # a hosted model takes part in what is asked together
    from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["Together", "families", "pass_of"]

_READ_ALIKE = (
    "special_tokens",
    "bos",
    "reasoning",
    "final_eos",
    "principle_question",
    "reward_token",
    "step_token",
    "pair_format",
)
"""Fields of a spec that decide which tokens a text becomes. Its limit does not, where the text fits."""


def pass_of(model: PreferenceModel, resources: Resources) -> Hashable | None:
    """Return what two hosted models must have in common for one pass to serve both; None if none can.

    That is the very backbone in this process, on the same devices, run in the same way, of the same tokens.
    """
    local = all(isinstance(replica.engine, LocalEngine) for replica in resources.replicas)
    if not local or model.reader is None or not isinstance(model.network.head, RepresentationHead):
        return None
    return (
        model.network.backbone,
        model.network.images is None,
        tuple(replica.device.name for replica in resources.replicas),
        tuple(sorted(model.provenance.numerics.items())),
        model.local.deterministic,
        model.first_token,
        tokenizer_hash(model.reader.tokenizer, model.reader.signature),
        tuple(getattr(model.spec, field) for field in _READ_ALIKE),
    )


def families(models: Iterable["HostedModel"]) -> Mapping["HostedModel", "Together"]:
    """Return what each of the models is asked with that has others of its backbone among them."""
    by_pass: dict[Hashable, list[HostedModel]] = {}
    for model in models:
        if model.pass_ is not None:
            by_pass.setdefault(model.pass_, []).append(model)
    found = [Together(family) for family in by_pass.values() if len(family) > 1]
    return {model: together for together in found for model in together.models}


class Together:
    """What one request learns of several models of one backbone, which it asks one after the other.

    Attributes:
        models: in the order in which they are asked.
        values: what is known by now, by key, errors included.
    """

    def __init__(self, models: Sequence["HostedModel"]) -> None:
        self.models = tuple(models)
        self.values: dict[bytes, bytes | ServiceError] = {}
        self._lacking: dict[HostedModel, set[bytes]] = {}

    async def look_up(self, asked: "HostedModel", keys: Iterable[bytes], tenant: str | None) -> None:
        """Find out which of the responses that one model lacks the later ones lack too.

        Args:
            keys: of that model.
        """
        for model in self._later(asked):
            own = [model.key_of(key, tenant) for key in keys]
            hits = await model.known(own)
            self.values.update((key, value) for key, value in zip(own, hits, strict=True) if value is not None)
            self._lacking[model] = {key for key, value in zip(own, hits, strict=True) if value is None}

    def with_riders(self, asked: "HostedModel", job: Job, tenant: str | None) -> Job:
        """Return a job of one model with the heads of the later ones that lack it, and read the same of it."""
        assert job.key is not None  # what has none is nobody's response
        item, riders = job.item, []
        reads = item.reads
        for model in self._later(asked):
            key = model.key_of(job.key, tenant)
            spec = model.model.spec
            if job.dropped or len(item.token_ids) > spec.max_length or key not in self._lacking.get(model, ()):
                continue
            riders.append(Rider(model.head, key, len(reads)))
            first_token = model.model.first_token
            reads += read_plan(spec, item.prompt_length, len(item.token_ids), first_token=first_token)
        if not riders:
            return job
        return job._replace(item=replace(item, reads=reads), riders=tuple(riders))

    def learn(self, tickets: Iterable[Ticket]) -> None:
        """Note what those who rode with tickets have, once these have their outcomes."""
        for ticket in tickets:
            self.values.update((rider.key, rider.outcome) for rider in ticket.riders if rider.outcome is not None)

    def _later(self, asked: "HostedModel") -> Sequence["HostedModel"]:
        return self.models[self.models.index(asked) + 1 :]
