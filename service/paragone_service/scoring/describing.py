"""What a server says of a model that it hosts."""

from paragone.wire import DeviceInfo, ModelInfo, ModelLimits
from paragone_service.scoring.devices import Device
from paragone_service.scoring.hosted_model import HostedModel

__all__ = ["described"]


def described(hosted: HostedModel, limits: ModelLimits) -> ModelInfo:
    """Return what ``/v1/models`` says of a model, with its own limit of tokens."""
    model, spec, budget = hosted.model, hosted.model.spec, hosted.model.budget
    max_batch_tokens, reason = hosted.scheduler.max_batch_tokens, budget.reason
    if max_batch_tokens < budget.tokens:  # the scheduler has lowered it since the model was loaded
        reason = f"the device had not enough memory for {budget.tokens}"
    info = ModelInfo(
        id=hosted.name,
        kind=model.kind,
        cyclic=spec.rules.has_vector or spec.rules.reads_pairs,
        source=model.provenance.source,
        revision=model.provenance.revision,
        identity=model.identity,
        fingerprint=model.fingerprint,
        numerics=model.provenance.numerics,
        limits=limits.model_copy(update={"max_tokens": spec.max_length}),
        temperature=spec.temperature,
        calibrated=spec.calibrated,
        attributes=list(spec.attributes),
        weights=None if spec.weights is None else list(spec.weights),
        aggregation=spec.aggregation,
        dimension=None if spec.rules.reads_pairs else spec.dimension,
        domain=spec.domain,
        demonstration=spec.demonstration,
        engine=hosted.engine.name,
        batching=model.local.batching,
        max_batch_tokens=max_batch_tokens,
        max_batch_tokens_reason=reason,
        devices=[_device(device) for device in hosted.scheduler.devices],
        pooling=spec.pooling,
        special_tokens=spec.special_tokens,
        reasoning=spec.reasoning,
        not_shown=model.reader.template.notes if model.reader is not None else [],
    )
    if hosted.takes_principles:  # only fields that were set are sent
        info.judged_by = ["principle"]
    return info


def _device(device: Device) -> DeviceInfo:
    trouble = device.trouble()
    info = DeviceInfo(name=device.name, serves=not trouble, max_batch_tokens=device.max_batch_tokens)
    if trouble:
        info.problem = trouble
    return info
