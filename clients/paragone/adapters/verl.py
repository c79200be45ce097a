"""verl: a ``compute_score`` for ``reward.custom_reward_function``.

In the file that ``reward.custom_reward_function.path`` names:

    from paragone import AsyncClient
    from paragone.adapters import verl

    compute_score = verl.compute_score(AsyncClient("http://oracle:8000"))
"""

from collections.abc import Callable, Coroutine
from typing import Any, Literal

from paragone.adapters.groups import bound, host_turns, scalar_rewards
from paragone.async_client import AsyncClient
from paragone.exceptions import checked

__all__ = ["compute_score"]


def compute_score(
    client: AsyncClient,
    *,
    signal: Literal["reward", "against_ground_truth"] = "reward",
    prompt_field: str = "prompt",
    model: str | None = None,
) -> Callable[..., Coroutine[Any, Any, dict[str, float]]]:
    """Return verl's reward coroutine.

    verl asks for one sample at a time and does not say what was asked, so the data set has to keep the prompt in
    ``extra_info``. A failure is an exception: verl has no other word for it (its ``limit`` manager makes it 0.0).

    Args:
        signal: ``reward``, the model's scalar reward; or ``against_ground_truth``, the probability in [0, 1] that the
            solution is preferred to the ground truth, which any kind of model can answer.
        prompt_field: the field of ``extra_info`` that holds the prompt, a text or a list of messages.
        model: id of a hosted model; the client's if None.

    Returns:
        ``compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)``, which gives ``{"score": …}``
        and raises ``KeyError`` if ``extra_info`` has no prompt, and ``ParagoneError`` if there is no answer.
    """
    return bound(_score, client, signal, prompt_field, model, name="score")


async def _score(
    client: AsyncClient,
    signal: Literal["reward", "against_ground_truth"],
    prompt_field: str,
    model: str | None,
    /,  # whatever else verl passes by name
    data_source: str,  # noqa: ARG001 (verl's signature)
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> dict[str, float]:
    if not extra_info or prompt_field not in extra_info:
        raise KeyError(f"extra_info has no {prompt_field!r}: let the data set keep the prompt there")
    prompt = host_turns(extra_info[prompt_field], role="user")
    if signal == "reward":
        answer = await client.rewards([(prompt, solution_str)], model=model)
        return {"score": scalar_rewards(answer)[0]}
    preferences = await client.preferences([(prompt, solution_str, ground_truth)], model=model)
    preference = checked(preferences.preferences)[0]
    return {"score": preference.probability, "logit": preference.logit}
