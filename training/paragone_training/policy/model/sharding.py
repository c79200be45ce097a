"""FSDP2: what training accepts when accelerate shards the model over processes, and the whole weights afterwards.

Weights are whole in every process before training (frozen columns and the first-batch check need them) and after it:
the outcome is written once and read back. Only while gradient steps are taken does a process hold its share alone.
"""

from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor

from paragone_training.policy.errors import RunError
from paragone_training.policy.sections import PolicyTrainingSection

__all__ = ["check_sharding", "is_sharded", "whole_state", "whole_trained"]


def check_sharding(plugin: Any, training: PolicyTrainingSection) -> None:
    """Refuse what does not work with a sharded model.

    Args:
        plugin: accelerate's FSDP settings, or None where nothing is sharded.
        training: how gradient steps are taken.

    Raises:
        RunError: if the settings are those of FSDP1, ranks would load without weights, or checkpoints would not be
            written in shares.
    """
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise RunError(f"fsdp_version is {plugin.fsdp_version}; only 2 is supported: set it in accelerate's file")
    if plugin.cpu_ram_efficient_loading:
        raise RunError(
            "fsdp_cpu_ram_efficient_loading leaves all ranks but the first without weights, and the first-batch check "
            "needs them: set it to false"
        )
    if training.save_steps and plugin.state_dict_type is not StateDictType.SHARDED_STATE_DICT:
        raise RunError(
            f"training.save_steps is {training.save_steps} and fsdp_state_dict_type {plugin.state_dict_type.name}: "
            "each process writes its share of a checkpoint, so set it to SHARDED_STATE_DICT, or save_steps to 0"
        )


def is_sharded(model: Any) -> bool:
    """Return whether a model's weights are spread over processes.

    Args:
        model: after training.
    """
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(model: Any) -> dict[str, Tensor]:
    """Return the whole weights, on the CPU, in the first process; every process has to call this.

    Args:
        model: sharded.

    Returns:
        The model's state by name in the first process; nothing in the others.
    """
    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return found


def whole_trained(model: Any) -> dict[str, Tensor]:
    """Return the whole weights that are trained, in every process; every process has to call this.

    Args:
        model: sharded; its frozen weights stay where they are.

    Returns:
        The weights by name.
    """
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    # A second name of a frozen weight, as that of a tied output layer, is left in.
    return {name: found[name] for name, weight in model.named_parameters() if weight.requires_grad}
