"""OpenRLHF: the ``reward_func`` of a Python file that ``--reward.remote_url`` names.

    from paragone import Client
    from paragone.adapters import openrlhf

    reward_func = openrlhf.reward_func(Client("http://oracle:8000"))

OpenRLHF asks for one sample at a time and names no groups. A service can also be asked without this file, at its route
``/get_reward``; here the prompt may be the messages of the data, which the model's own template renders.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from paragone.adapters.groups import bound, host_turns
from paragone.adapters.single import ENDS, judged, without_ends
from paragone.client import Client
from paragone.exceptions import ParagoneError

__all__ = ["reward_func"]

logger = logging.getLogger("paragone")

Judged = Literal["reward", "against_label"]
PromptOf = Callable[[str, Any], Any]
ReferenceOf = Callable[[Any], Any]


def _same_prompt(prompt: str, label: Any) -> Any:  # noqa: ARG001 (the signature of the hook)
    return prompt


def _same_label(label: Any) -> Any:
    return label


def reward_func(
    client: Client,
    *,
    signal: Judged = "reward",
    model: str | None = None,
    prompt_of: PromptOf = _same_prompt,
    reference_of: ReferenceOf = _same_label,
    ends: Sequence[str] = ENDS,
) -> Callable[..., dict[str, Any]]:
    """Return OpenRLHF's reward function.

    Args:
        signal: ``reward``, the model's scalar reward; or ``against_label``, the probability in [0, 1] that the response
            is preferred to the label's reference, which any kind of model can answer.
        model: id of a hosted model; the client's if None.
        prompt_of: finds what was asked in ``(prompt, label)``, a text or a list of messages. With a chat template the
            prompt is the policy's templated text: keep the messages in the label and return them from here.
        reference_of: finds the reference in a label.
        ends: texts that are cut from the end of a response.

    Returns:
        ``reward_func(queries, prompts, labels)``, which gives ``rewards``, ``scores`` in [0, 1] for filters (the
        sigmoid of a scalar reward) and ``extra_logs``: numbers for one sample, lists for several. It raises
        ``ParagoneError`` if there is no answer, and ``ValueError`` if a query does not begin with its prompt; OpenRLHF
        makes of both a sample without a reward.
    """
    return bound(_reward, client, signal, model, (prompt_of, reference_of, tuple(ends)), name="reward_func")


def _reward(
    client: Client,
    signal: Judged,
    model: str | None,
    hooks: tuple[PromptOf, ReferenceOf, tuple[str, ...]],
    /,
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any],
) -> dict[str, Any]:
    prompt_of, reference_of, ends = hooks
    asked = [
        (host_turns(prompt_of(prompt, label), role="user"), _response(query, prompt, ends))
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    try:
        if signal == "reward":
            rewards = judged(client, asked, None, model=model)
            scores = [1.0 / (1.0 + math.exp(-max(-700.0, reward))) for reward in rewards]
        else:
            references = [host_turns(reference_of(label), role="assistant") for label in labels]
            rewards = scores = judged(client, asked, references, model=model)
    except ParagoneError as error:
        # The host says so at INFO alone, and goes on without a reward.
        logger.warning("%d samples have no reward: %s", len(asked), error)
        raise
    # A number alone becomes a tensor of one element there, which is what its own examples return.
    values: tuple[Any, Any] = (rewards[0], scores[0]) if len(rewards) == 1 else (rewards, scores)
    return {"rewards": values[0], "scores": values[1], "extra_logs": {"paragone": values[0]}}


def _response(query: str, prompt: str, ends: tuple[str, ...]) -> str:
    if not query.startswith(prompt):
        raise ValueError("a query does not begin with its prompt: was the prompt cut? raise max_len, or cut the data")
    return without_ends(query[len(prompt) :], ends)
