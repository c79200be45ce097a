"""slime and miles: functions for ``--custom-rm-path``, for groups (``--group-rm``), single samples and evaluation.

In the file that ``--custom-rm-path`` names:

    from paragone import AsyncClient
    from paragone.adapters import slime

    reward = slime.custom_rm(AsyncClient("http://oracle:8000"))

With ``--group-rm`` one call holds exactly one group, whatever its prompts say. Evaluation has no groups: give its data
sets a ``custom_rm_path`` of their own, which names an ``eval_rm``.
"""

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol

from paragone.adapters.groups import bound, host_turns, scalar_rewards
from paragone.adapters.signals import GroupSignal
from paragone.async_client import AsyncClient
from paragone.exceptions import checked
from paragone.wire import Shaping, Signal

__all__ = ["custom_rm", "eval_rm"]

logger = logging.getLogger("paragone")

PromptOf = Callable[[Any], Any]
ReferencesOf = Callable[[Any], Sequence[Any]]


class _Sample(Protocol):
    """What is read of slime's ``Sample``."""

    prompt: Any
    response: str
    label: Any


def _prompt_of(sample: _Sample) -> Any:
    return sample.prompt


def custom_rm(
    client: AsyncClient,
    *,
    signal: Signal = "win_rate",
    shaping: Shaping | None = None,
    model: str | None = None,
    prompt_of: PromptOf = _prompt_of,
    references_of: ReferencesOf | None = None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return slime's reward coroutine. A failure is an exception: slime has no other word for it.

    Args:
        signal: ``win_rate``, the mean win probability within the samples of the call, in [0, 1], or another signal of a
            group (``docs/cohorts.md``), which need ``--group-rm``; or ``reward``, the model's scalar reward.
        shaping: what the signal gains or loses by length and style; it needs ``--group-rm``.
        model: id of a hosted model; the client's if None.
        prompt_of: finds what was asked, a text or a list of messages. With ``--apply-chat-template`` a sample's prompt
            is the policy's templated text: keep the messages in its metadata and return them from here. If the prompts
            of a group differ, all its samples are judged under the first one.
        references_of: finds the responses that ``anchor`` compares a group with, from its first sample.

    Returns:
        ``reward(args, sample_or_samples, **kwargs)``: a number for a sample, and for a list of samples a list of the
        same shape; a sample that a generate function fanned out into a list is a list there too. It raises
        ``ValueError`` for a group's signal of a sample that is alone, and ``ParagoneError`` if there is no answer.

    Raises:
        ValueError: if ``anchor`` is asked for without references.
    """
    if signal == "anchor" and references_of is None:
        raise ValueError("signal='anchor' compares with references: give references_of")
    asked = GroupSignal(signal, shaping)
    return bound(_reward, client, asked, model, (prompt_of, references_of), name="reward")


def eval_rm(
    client: AsyncClient,
    *,
    signal: Literal["reward", "against_label"] = "reward",
    model: str | None = None,
    prompt_of: PromptOf = _prompt_of,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a reward coroutine for samples without a group, as slime's evaluation has them.

    Args:
        signal: ``reward``, the model's scalar reward; or ``against_label``, the probability in [0, 1] that the response
            is preferred to the sample's label, a text, which any kind of model can answer.
        model: id of a hosted model; the client's if None.
        prompt_of: as for ``custom_rm``.

    Returns:
        ``reward(args, sample_or_samples, **kwargs)``, which answers and fails as ``custom_rm``'s does.
    """
    return bound(_eval_reward, client, signal, model, prompt_of, name="reward")


async def _reward(
    client: AsyncClient,
    signal: GroupSignal,
    model: str | None,
    hooks: tuple[PromptOf, ReferencesOf | None],
    /,
    args: Any,
    samples: Any,
    **kwargs: Any,  # noqa: ARG001 (slime's signature)
) -> Any:
    asked = _flat(samples)
    if signal.is_scalar:
        return _like(samples, iter(await _scalars(client, model, hooks[0], asked)))
    # Without --group-rm a list is what one sample was fanned out into: its parts are no rivals.
    if signal.needs_rivals and (len(asked) < 2 or not getattr(args, "group_rm", True)):
        # Against itself it would win half of the time, and 0.5 looks like a reward.
        raise ValueError(f"a sample without its group has no {signal.name}: use --group-rm, signal='reward' or eval_rm")
    return _like(samples, iter(await _compared(client, signal, model, hooks, asked)))


async def _eval_reward(
    client: AsyncClient,
    signal: Literal["reward", "against_label"],
    model: str | None,
    prompt_of: PromptOf,
    /,
    args: Any,  # noqa: ARG001 (slime's signature)
    samples: Any,
    **kwargs: Any,  # noqa: ARG001
) -> Any:
    asked = _flat(samples)
    if signal == "reward":
        return _like(samples, iter(await _scalars(client, model, prompt_of, asked)))
    without = [place for place, sample in enumerate(asked) if not isinstance(sample.label, str)]
    if without:
        raise ValueError(f"sample {without[0]} has no text as its label to compare with: use signal='reward'")
    pairs: list[Any] = [(host_turns(prompt_of(sample), role="user"), sample.response, sample.label) for sample in asked]
    answer = await client.preferences(pairs, model=model)
    return _like(samples, iter([row.probability for row in checked(answer.preferences)]))


async def _scalars(client: AsyncClient, model: str | None, prompt_of: PromptOf, samples: list[_Sample]) -> list[float]:
    items = [(host_turns(prompt_of(sample), role="user"), sample.response) for sample in samples]
    return scalar_rewards(await client.rewards(items, model=model))


async def _compared(
    client: AsyncClient,
    signal: GroupSignal,
    model: str | None,
    hooks: tuple[PromptOf, ReferencesOf | None],
    samples: list[_Sample],
) -> list[float]:
    prompt_of, references_of = hooks
    prompts = [host_turns(prompt_of(sample), role="user") for sample in samples]
    if any(prompt != prompts[0] for prompt in prompts):
        logger.warning("the prompts of a group differ: all its samples are judged under the first (see prompt_of)")
    group: dict[str, Any] = {"prompt": prompts[0], "responses": [sample.response for sample in samples]}
    if signal.name == "anchor" and references_of is not None:
        group["references"] = [host_turns(one, role="assistant") for one in references_of(samples[0])]
    answer = await client.tournaments([group], model=model, **signal.options())
    return signal.all_values(checked(answer.tournaments)[0])


def _flat(samples: Any) -> list[_Sample]:
    if isinstance(samples, list | tuple):
        return [sample for part in samples for sample in _flat(part)]
    return [samples]


def _like(samples: Any, values: Any) -> Any:
    """Return the values in the shape of the samples."""
    return [_like(part, values) for part in samples] if isinstance(samples, list | tuple) else next(values)
