"""What the adapters share: conversations as hosts hold them, and answers as the numbers that hosts take."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from paragone.exceptions import UnsupportedError, checked
from paragone.wire import ErrorDetail, Reward, RewardsAnswer

__all__ = ["bound", "host_turns", "item_rewards", "scalar_rewards", "tell"]

_Outcome = TypeVar("_Outcome")

logger = logging.getLogger("paragone")


def bound(function: Callable[..., _Outcome], *arguments: object, name: str) -> functools.partial[_Outcome]:
    """Return a function of a module with its first arguments given, under a name that hosts can log.

    Workers get it pickled, which a closure cannot be; ``inspect.iscoroutinefunction`` still sees what it is.
    """
    partial = functools.partial(function, *arguments)
    partial.__name__ = name  # type: ignore[attr-defined]
    return partial


def host_turns(turns: Any, *, role: str) -> Any:
    """Return a text unchanged and a list of messages as the wire takes it.

    Data sets fill the fields that a message lacks with None; those are left out. A message without a role gets one.

    Args:
        turns: a text, or messages as dicts.
        role: the role of a message that names none.
    """
    if isinstance(turns, str):
        return turns
    return [{"role": role, **{name: value for name, value in turn.items() if value is not None}} for turn in turns]


def item_rewards(answer: RewardsAnswer) -> list[float | None]:
    """Return each response's reward, None where it got an error.

    Raises:
        UnsupportedError: if the model's kind has no scalar reward.
    """
    rewards: list[float | None] = []
    for row in answer.rewards:
        if isinstance(row, Reward):
            rewards.append(_scalar(row, answer.model))
        else:
            tell(row.error, "a response has no reward")
            rewards.append(None)
    return rewards


def scalar_rewards(answer: RewardsAnswer) -> list[float]:
    """Return each response's reward.

    Raises:
        ParagoneError: the first error among the rows.
        UnsupportedError: if the model's kind has no scalar reward.
    """
    return [_scalar(row, answer.model) for row in checked(answer.rewards)]


def _scalar(row: Reward, model: str) -> float:
    if row.reward is None:
        raise UnsupportedError(
            f"{model} has no scalar reward: take another signal that the adapter has (win_rate in a group, "
            "against_reference or against_label for one response), or a model with rewards, as Bradley-Terry models are"
        )
    return row.reward


def tell(error: ErrorDetail, consequence: str) -> None:
    """Log why something has no number."""
    logger.warning("%s: %s (%s)", consequence, error.message, error.code)
