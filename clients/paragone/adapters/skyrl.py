"""SkyRL: an environment of one turn whose reward is the oracle's; put it before SkyRL-Gym's class.

    class PreferenceEnv(skyrl.OneTurn, BaseTextEnv):
        client = Client("http://oracle:8000")

SkyRL makes one environment per trajectory and names no groups. A failure is an exception: SkyRL has no other word for
"no reward" (its example's 0.0 would be one).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paragone.adapters.groups import host_turns
from paragone.adapters.single import Judged, judged
from paragone.client import Client

__all__ = ["OneTurn"]


class OneTurn:
    """What makes a ``BaseTextEnv`` judge the policy's answer to its prompt.

    Attributes:
        client: whom to ask.
        model: id of a hosted model; the client's if None.
        signal: ``reward``, the model's scalar reward; or ``against_reference``, the probability in [0, 1] that the
            answer is preferred to the row's reference, which any kind of model can answer.
        reference_field: the field of the row's ``reward_spec`` that holds the reference.
    """

    client: Client
    model: str | None = None
    signal: Judged = "reward"
    reference_field: str = "ground_truth"

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.env_config = env_config
        self._row = dict(extras or {})
        self._prompt: Sequence[Any] = ()

    def init(self, prompt: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the prompt unchanged, and keep it."""
        self._prompt = prompt
        return prompt, {}

    def step(self, action: str) -> dict[str, Any]:
        """Return the end of the episode, with the action's reward.

        Raises:
            ParagoneError: if there is no answer.
            KeyError: if the row has no reference to compare with.
        """
        references = None
        if self.signal == "against_reference":
            reference = self._row.get("reward_spec", {}).get(self.reference_field)
            if reference is None:
                raise KeyError(f"the row's reward_spec has no {self.reference_field!r}: set reference_field")
            references = [host_turns(reference, role="assistant")]
        items = [(host_turns(self._prompt, role="user"), action)]
        reward = judged(self.client, items, references, model=self.model)[0]
        return {"observations": [], "reward": reward, "done": True, "metadata": {"paragone": reward}}
