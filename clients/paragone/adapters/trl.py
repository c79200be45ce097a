"""TRL: reward functions for ``GRPOTrainer`` and ``OnlineDPOTrainer``, and the judges that TRL 1.1 removed.

    trainer = GRPOTrainer(..., reward_funcs=reward_function(Client("http://oracle:8000")))

TRL reads None in a list of rewards as "not scored", and -1 from a pairwise judge as "failed".
"""

import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from paragone.adapters.groups import Signal, bound, group_win_rates, groups_of, host_turns, item_rewards
from paragone.async_client import AsyncClient
from paragone.client import Client
from paragone.exceptions import checked
from paragone.wire import Preference

__all__ = ["PairwiseJudge", "RankJudge", "async_reward_function", "reward_function"]

logger = logging.getLogger("paragone")

Rewards = list[float | None]


class PairwiseJudge:
    """A judge of pairs in the shape of TRL's ``BasePairwiseJudge``.

    Args:
        model: id of a hosted model; the client's if None.
        seed: of the coin that decides which completion is put first when ``shuffle_order`` is set.
    """

    def __init__(self, client: Client, *, model: str | None = None, seed: int | None = None) -> None:
        self._client = client
        self._model = model
        self._coin = random.Random(seed)  # noqa: S311 (it swaps pairs, it hides nothing)

    def judge(
        self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], shuffle_order: bool = True
    ) -> list[int]:
        """Return the index of the better completion of each pair, -1 where the pair was refused.

        Args:
            prompts: texts or lists of messages.
            completions: the two completions of each prompt.
            shuffle_order: whether to swap pairs by a coin before asking. It matters to models that read both responses
                at once; to the others it only decides exact ties.

        Raises:
            ParagoneError: if the service does not answer at all.
            ValueError: if there are not two completions for each prompt.
        """
        return [
            -1 if probability is None else int(probability < 0.5)
            for probability in self.probabilities(prompts, completions, shuffle_order)
        ]

    def probabilities(
        self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], shuffle_order: bool = True
    ) -> list[float | None]:
        """Return the probability that the first completion of each pair is better, None where the pair was refused.

        Args:
            prompts: texts or lists of messages.
            completions: the two completions of each prompt.

        Raises:
            ParagoneError: if the service does not answer at all.
            ValueError: if there are not two completions for each prompt.
        """
        swaps = [shuffle_order and self._coin.random() < 0.5 for _ in prompts]
        pairs = []
        for prompt, (first, second), swap in zip(prompts, completions, swaps, strict=True):
            pair = (host_turns(first, role="assistant"), host_turns(second, role="assistant"))
            pairs.append((host_turns(prompt, role="user"), *(pair[::-1] if swap else pair)))
        answer = self._client.preferences(pairs, model=self._model, on_error="report")
        probabilities: list[float | None] = []
        for row, swap in zip(answer.preferences, swaps, strict=True):
            if isinstance(row, Preference):
                probabilities.append(1.0 - row.probability if swap else row.probability)
            else:
                logger.warning("a pair is not judged: %s (%s)", row.error.message, row.error.code)
                probabilities.append(None)
        return probabilities


class RankJudge:
    """A judge of groups in the shape of TRL's ``BaseRankJudge``.

    Args:
        model: id of a hosted model; the client's if None.
    """

    def __init__(self, client: Client, *, model: str | None = None) -> None:
        self._client = client
        self._model = model

    def judge(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Sequence[Any]],
        shuffle_order: bool = True,  # noqa: ARG002 (TRL's signature; no order enters a tournament)
    ) -> list[list[int]]:
        """Return the indices of each prompt's completions, the best one first.

        Args:
            prompts: texts or lists of messages.
            completions: the completions of each prompt.
            shuffle_order: ignored: all pairs of a group are compared, so none is first.

        Raises:
            ParagoneError: if any group has no answer; the host has no word for a failed ranking.
        """
        groups: list[tuple[Any, list[Any]]] = [
            (host_turns(prompt, role="user"), [host_turns(completion, role="assistant") for completion in group])
            for prompt, group in zip(prompts, completions, strict=True)
        ]
        answer = self._client.tournaments(groups, model=self._model)
        return [row.ranking for row in checked(answer.tournaments)]


def reward_function(client: Client, *, signal: Signal = "win_rate", model: str | None = None) -> Callable[..., Rewards]:
    """Return a reward function for TRL.

    Args:
        signal: ``win_rate``, the mean win probability within the group of one prompt, in [0, 1]; or ``reward``, the
            model's scalar reward.
        model: id of a hosted model; the client's if None.

    Returns:
        ``f(prompts, completions, **columns)``: one reward per completion, None where it could not be scored. With
        ``win_rate`` a completion that is alone with its prompt is not scored: keep each group on one process.
        It raises a ``ParagoneError`` if the service does not answer at all.
    """
    # The name is what TRL calls the reward in its logs.
    return bound(_rewards, client, signal, model, name=f"paragone_{signal}")


def async_reward_function(
    client: AsyncClient, *, signal: Signal = "win_rate", model: str | None = None
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Return a coroutine function that does what ``reward_function`` does; TRL awaits several of them at once.

    Args:
        model: id of a hosted model; the client's if None.
    """
    return bound(_rewards_async, client, signal, model, name=f"paragone_{signal}")


def _rewards(
    client: Client,
    signal: Signal,
    model: str | None,
    /,  # whatever the columns of a data set are called
    prompts: Sequence[Any],
    completions: Sequence[Any],
    **columns: Any,  # noqa: ARG001
) -> Rewards:
    if signal == "reward":
        return item_rewards(client.rewards(_items(prompts, completions), model=model, on_error="report"))
    groups, tournaments = _groups(prompts, completions)
    return group_win_rates(groups, client.tournaments(tournaments, model=model, on_error="report"), len(completions))


async def _rewards_async(
    client: AsyncClient,
    signal: Signal,
    model: str | None,
    /,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    **columns: Any,  # noqa: ARG001
) -> Rewards:
    if signal == "reward":
        return item_rewards(await client.rewards(_items(prompts, completions), model=model, on_error="report"))
    groups, tournaments = _groups(prompts, completions)
    return group_win_rates(
        groups, await client.tournaments(tournaments, model=model, on_error="report"), len(completions)
    )


def _items(prompts: Sequence[Any], completions: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [
        (host_turns(prompt, role="user"), host_turns(completion, role="assistant"))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _groups(prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[list[list[int]], list[tuple[Any, list[Any]]]]:
    """Return the places and the requests of the groups that have someone to compare with."""
    groups = groups_of(prompts)
    alone = sum(len(places) == 1 for places in groups)
    if alone:
        logger.warning("%d completions are alone with their prompt and have no win rate", alone)
    groups = [places for places in groups if len(places) > 1]
    items = _items(prompts, completions)
    return groups, [(items[places[0]][0], [items[place][1] for place in places]) for places in groups]
