"""Who draws a policy's responses, and who has the device meanwhile: this process, or completions servers.

Phases take turns where servers are colocated: they are up in the sampling phase, with the weights of every process of
the run in main memory; outside of it they rest, and the run computes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState

from paragone_evaluation.readers import Prompt
from paragone_training.policy.gradient.barrier import Barrier
from paragone_training.policy.model.weights import Policy, servable
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.sampling.fleet import FleetSampler
from paragone_training.policy.sampling.in_process import Draw, InProcessSampler, Sampler
from paragone_training.policy.sampling.probes import Probe, probe_logprobs, stored_probes
from paragone_training.policy.sampling.servers import Held, SamplerServers

__all__ = ["Drawing"]


class Drawing:
    """The samplers of a run.

    Args:
        recipe: what is run.
        folder: of the run.
        policy: in memory; takes the weights that are drawn from.
        prompts: with token ids.
        barrier: where the processes of the run wait for each other.
        longest: tokens that a prompt may have.
    """

    def __init__(
        self,
        recipe: PolicyRecipe,
        folder: Path,
        policy: Policy,
        prompts: Sequence[Prompt],
        barrier: Barrier,
        *,
        longest: int,
    ) -> None:
        self._recipe, self._folder, self._policy, self._prompts = recipe, folder, policy, prompts
        self._barrier, self._longest = barrier, longest
        self._state = PartialState()
        self._servers: SamplerServers | None = None
        self._probes: list[Probe] = []

    @property
    def noise(self) -> float | None:
        """Nats a token that servers were from the trainer after their last load; None where there are none."""
        return self._servers.noise if self._servers is not None else None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the servers, if the recipe has any. For the main process alone.

        Raises:
            RunError: if the stored responses cannot be read or written.
        """
        section, recipe = self._recipe.servers, self._recipe
        if section is None:
            yield
            return
        self._probes = stored_probes(
            self._folder / "probes.parquet",
            self._policy,
            self._prompts,
            source=recipe.policy.source,
            seed=recipe.training.seed,
            max_new_tokens=recipe.sampling.max_new_tokens,
        )
        tokenizer = self._policy.tokenizer
        texts = [tokenizer.decode(list(probe.prompt_ids)) for probe in self._probes]
        servers = SamplerServers(
            section,
            self._folder,
            self._probes,
            tolerance=recipe.sampling.tolerance,
            longest=self._longest + recipe.sampling.max_new_tokens,
            texts={text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts},
        )
        with servers as self._servers:
            yield
        self._servers = None

    def sampler(self, source: str) -> Sampler:
        """Return what draws from a policy; servers have its weights, and were checked, when this returns.

        Args:
            source: of its weights.

        Raises:
            RunError: if servers do not come up, do not take the weights, or are not the policy.
        """
        sampling = self._recipe.sampling
        settings = Draw(sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens)
        if self._servers is None:
            self._policy.become(source)
            return InProcessSampler(self._policy, settings)
        if not self._servers.holds(source):
            self.end()
            self._policy.become(source)
            expected = probe_logprobs(self._policy, self._probes, self._recipe.training)
            if self._colocated:
                self._policy.park()
            model = servable(source, self._recipe.policy.revision)
            self._servers.take(Held(source, model, tuple(expected)))
        return FleetSampler(self._servers.fleet, self._servers.background, settings, self._policy.end_ids)

    def end(self) -> None:
        """Give the device back to this process, where servers share it.

        Raises:
            RunError: if a server cannot be put to sleep.
        """
        if self._servers is not None:
            self._servers.rest()
        self._policy.unpark()

    @contextlib.contextmanager
    def phase(self) -> Iterator[None]:
        """Be in the sampling phase. For all processes of the run, of which the main one draws."""
        if self._colocated:
            if not self._state.is_main_process:
                self._policy.park()
            self._barrier.wait()
        yield
        if self._state.is_main_process:
            self.end()
        if self._colocated:
            self._barrier.wait()
            self._policy.unpark()

    @property
    def _colocated(self) -> bool:
        return self._recipe.servers is not None and self._recipe.servers.phases == "colocated"
