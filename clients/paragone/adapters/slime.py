"""slime: a function for ``--custom-rm-path``, for single samples and, with ``--group-rm``, for whole groups.

In the file that ``--custom-rm-path`` names:

    from paragone import AsyncClient
    from paragone.adapters import slime

    reward = slime.custom_rm(AsyncClient("http://oracle:8000"))
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from paragone.adapters.groups import Signal, bound, groups_of, host_turns, scalar_rewards
from paragone.async_client import AsyncClient
from paragone.batches import GroupLike
from paragone.exceptions import checked

__all__ = ["custom_rm"]


class _Sample(Protocol):
    """What is read of slime's ``Sample``."""

    prompt: Any
    response: str


def _prompt_of(sample: _Sample) -> Any:
    return sample.prompt


def custom_rm(
    client: AsyncClient,
    *,
    signal: Signal = "win_rate",
    model: str | None = None,
    prompt_of: Callable[[Any], Any] = _prompt_of,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return slime's reward coroutine. A failure is an exception: slime has no other word for it.

    Args:
        signal: ``win_rate``, the mean win probability within the samples of one prompt, in [0, 1], which needs
            ``--group-rm``; or ``reward``, the model's scalar reward.
        model: id of a hosted model; the client's if None.
        prompt_of: finds what was asked, a text or a list of messages. With ``--apply-chat-template`` a sample's prompt
            is the policy's templated text: keep the messages in its metadata and return them from here.

    Returns:
        ``reward(args, sample_or_samples, **kwargs)``: a number for a sample, a list for a list of samples. It raises
        ``ValueError`` for a win rate of a sample that is alone, and ``ParagoneError`` if there is no answer.
    """
    return bound(_reward, client, signal, model, prompt_of, name="reward")


async def _reward(
    client: AsyncClient,
    signal: Signal,
    model: str | None,
    prompt_of: Callable[[Any], Any],
    /,
    args: Any,  # noqa: ARG001 (slime's signature)
    samples: Any,
    **kwargs: Any,  # noqa: ARG001
) -> Any:
    alone = not isinstance(samples, list | tuple)
    asked = [samples] if alone else list(samples)
    prompts = [host_turns(prompt_of(sample), role="user") for sample in asked]
    if signal == "reward":
        items = [(prompt, sample.response) for prompt, sample in zip(prompts, asked, strict=True)]
        rewards = scalar_rewards(await client.rewards(items, model=model))
    else:
        rewards = await _win_rates(client, model, prompts, asked)
    return rewards[0] if alone else rewards


async def _win_rates(client: AsyncClient, model: str | None, prompts: list[Any], samples: list[Any]) -> list[float]:
    groups = groups_of(prompts)
    # Against itself it would win half of the time, and 0.5 looks like a reward.
    if any(len(places) == 1 for places in groups):
        raise ValueError("a sample that is alone with its prompt has no win rate: use --group-rm, or signal='reward'")
    tournaments: list[GroupLike] = [
        (prompts[places[0]], [samples[place].response for place in places]) for places in groups
    ]
    answer = await client.tournaments(tournaments, model=model)
    rates: dict[int, float] = {}
    for places, row in zip(groups, checked(answer.tournaments), strict=True):
        rates.update(zip(places, row.win_rates, strict=True))
    return [rates[place] for place in range(len(samples))]
