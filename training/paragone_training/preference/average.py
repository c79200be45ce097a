"""An exponential moving average of the weights, trained beside them: smoother than the last step, and what is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

__all__ = ["WeightAverage"]

_FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Keep the average of a network's trained weights over the steps.

        average <- decay_t * average + (1 - decay_t) * weights,   decay_t = min(decay, t / (t + 10))

    so that the first steps, far from the end, do not linger. It is written into every checkpoint.

    Args:
        network: whose weights are averaged.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start from the weights, unless a checkpoint brought an average."""
        if not self._average:
            self._average = {name: weight.detach().float().clone() for name, weight in self._trained()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the average towards the weights."""
        step = state.global_step
        keep = min(self._decay, step / (step + 10))
        for name, weight in self._trained():
            self._average[name].lerp_(weight.detach().float(), 1 - keep)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write the average beside the weights."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_file({name: tensor.contiguous() for name, tensor in self._average.items()}, folder / _FILE)

    def load(self, checkpoint: Path) -> None:
        """Take up the average of a checkpoint.

        Args:
            checkpoint: its folder.
        """
        device = {name: weight.device for name, weight in self._trained()}
        self._average = {name: tensor.to(device[name]) for name, tensor in load_file(checkpoint / _FILE).items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place until the context ends."""
        live = {name: weight.detach().clone() for name, weight in self._trained()}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(live)

    def put(self) -> None:
        """Put the average in the weights' place for good."""
        self._put(self._average)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._trained():
                if name in values:
                    weight.copy_(values[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self._network.named_parameters() if weight.requires_grad]
