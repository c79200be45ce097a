"""TRL: reward functions for its online trainers, a win-rate callback for all, and the judges that TRL 1.1 removed.

    client = Client("http://oracle:8000")
    reward = reward_function(client, num_generations=8)
    trainer = GRPOTrainer(..., reward_funcs=reward)
    trainer.add_callback(WinRateCallback(client, trainer))

TRL reads None in a list of rewards as "not scored", and -1 from a pairwise judge as "failed".
"""

import json
import logging
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from paragone.adapters.groups import bound, host_turns, item_rewards
from paragone.adapters.signals import GroupSignal
from paragone.async_client import AsyncClient
from paragone.client import Client
from paragone.exceptions import ParagoneError, checked
from paragone.wire import Preference, RewardsAnswer, Shaping, Signal, Tournament, TournamentsAnswer

__all__ = ["PairwiseJudge", "RankJudge", "WinRateCallback", "async_reward_function", "reward_function"]

logger = logging.getLogger("paragone")

Rewards = list[float | None]
Generate = Callable[[Any, Any, list[Any]], list[Any]]


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


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a reward function was made with."""

    signal: GroupSignal
    references: str | None
    model: str | None
    num_generations: int | None
    num_generations_eval: int | None


def reward_function(
    client: Client,
    *,
    signal: Signal = "win_rate",
    shaping: Shaping | None = None,
    references: str | None = None,
    model: str | None = None,
    num_generations: int | None = None,
    num_generations_eval: int | None = None,
) -> Callable[..., Rewards]:
    """Return a reward function for TRL.

    Args:
        signal: ``win_rate``, the mean win probability within the group of one prompt, in [0, 1]; another signal of a
            group (``docs/cohorts.md``); or ``reward``, the model's scalar reward.
        shaping: what the signal gains or loses by length and style within its group.
        references: the column that holds a list of responses for each prompt, which ``anchor`` compares with.
        model: id of a hosted model; the client's if None.
        num_generations: the trainer's, for signals of a group: so many completions after one another are a group. None:
            the completions of equal prompts are, wherever they stand, which suits ``OnlineDPOTrainer`` and is wrong for
            the other trainers where a prompt occurs twice.
        num_generations_eval: the trainer's, if it is another one; 1: completions of evaluation have no win rate.

    Returns:
        ``f(prompts, completions, **columns)``: one reward per completion, None where it could not be scored. In a
        group's signals a completion that is alone is not scored. If TRL gives ``log_metric`` and
        ``log_extra``, it logs the share ``paragone/unscored``, the count ``paragone/cyclic_triples`` and each
        completion's ``paragone_rank`` (1 is the best) or ``paragone_reward``. It raises a ``ParagoneError`` if the
        service does not answer at all, and ``ValueError`` if the completions are not whole groups to one prompt.

    Raises:
        ValueError: if a number of generations is below 1, or ``anchor`` has no references.
    """
    settings = _settings(GroupSignal(signal, shaping), references, model, num_generations, num_generations_eval)
    return bound(_NAMED[signal, "waits"], client, settings, name=f"paragone_{signal}")


def async_reward_function(
    client: AsyncClient,
    *,
    signal: Signal = "win_rate",
    shaping: Shaping | None = None,
    references: str | None = None,
    model: str | None = None,
    num_generations: int | None = None,
    num_generations_eval: int | None = None,
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Return a coroutine function that does what ``reward_function`` does; TRL awaits several of them at once."""
    settings = _settings(GroupSignal(signal, shaping), references, model, num_generations, num_generations_eval)
    return bound(_NAMED[signal, "awaits"], client, settings, name=f"paragone_{signal}")


def _settings(
    signal: GroupSignal,
    references: str | None,
    model: str | None,
    num_generations: int | None,
    num_generations_eval: int | None,
) -> _Settings:
    if signal.name == "anchor" and references is None:
        raise ValueError("signal='anchor' compares with references: name the column that holds them")
    numbers = {"num_generations": num_generations, "num_generations_eval": num_generations_eval}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: give the trainer's, at least 1")
    return _Settings(signal, references, model, num_generations, num_generations_eval)


def _named(signal: Signal) -> dict[tuple[Signal, str], Callable[..., Any]]:
    """Return the two functions that TRL calls for a signal."""

    # Positional-only, whatever the columns of a data set are called.
    def waits(client: Client, settings: _Settings, /, prompts: Any, completions: Any, **columns: Any) -> Rewards:
        return _rewards(client, settings, prompts, completions, columns)

    async def awaits(
        client: AsyncClient, settings: _Settings, /, prompts: Any, completions: Any, **columns: Any
    ) -> Rewards:
        return await _rewards_async(client, settings, prompts, completions, columns)

    made: dict[tuple[Signal, str], Callable[..., Any]] = {(signal, "waits"): waits, (signal, "awaits"): awaits}
    for (_, kind), function in made.items():
        # TRL takes the name in its logs from the function inside a partial; pickle finds it by the qualified name.
        function.__name__ = f"paragone_{signal}"
        function.__qualname__ = f"_{signal}_{kind}"
        globals()[function.__qualname__] = function
    return made


_NAMED = {place: function for signal in get_args(Signal) for place, function in _named(signal).items()}


def _rewards(
    client: Client, settings: _Settings, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]
) -> Rewards:
    if settings.signal.is_scalar:
        rewards = client.rewards(_items(prompts, completions), model=settings.model, on_error="report")
        return _scored(rewards, columns)
    groups, tournaments = _groups(settings, prompts, completions, columns)
    answer = client.tournaments(tournaments, model=settings.model, on_error="report", **settings.signal.options())
    return _won(settings.signal, groups, answer, len(completions), columns)


async def _rewards_async(
    client: AsyncClient,
    settings: _Settings,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: dict[str, Any],
) -> Rewards:
    if settings.signal.is_scalar:
        rewards = await client.rewards(_items(prompts, completions), model=settings.model, on_error="report")
        return _scored(rewards, columns)
    groups, tournaments = _groups(settings, prompts, completions, columns)
    answer = await client.tournaments(tournaments, model=settings.model, on_error="report", **settings.signal.options())
    return _won(settings.signal, groups, answer, len(completions), columns)


def _scored(answer: RewardsAnswer, columns: dict[str, Any]) -> Rewards:
    rewards = item_rewards(answer)
    _log(columns, {"paragone/unscored": _share_unscored(rewards)}, {"paragone_reward": rewards})
    return rewards


def _won(
    signal: GroupSignal, groups: list[list[int]], answer: TournamentsAnswer, count: int, columns: dict[str, Any]
) -> Rewards:
    rates = signal.placed(groups, answer, count)
    ranks: list[int | None] = [None] * count
    triples = 0
    for places, row in zip(groups, answer.tournaments, strict=True):
        if isinstance(row, Tournament):
            triples += row.cyclic_triples
            for rank, place in enumerate(row.ranking, start=1):
                # One that is left alone is ranked first of itself.
                ranks[places[place]] = rank if row.win_rates[place] is not None else None
    metrics = {"paragone/unscored": _share_unscored(rates), "paragone/cyclic_triples": float(triples)}
    _log(columns, metrics, {"paragone_rank": ranks})
    return rates


def _share_unscored(rewards: Rewards) -> float:
    return sum(reward is None for reward in rewards) / max(1, len(rewards))


def _log(columns: dict[str, Any], metrics: dict[str, float], extras: dict[str, list[Any]]) -> None:
    """Log where the host offers it; every call logs the same names, as TRL's processes must."""
    if columns.get("log_metric") is not None:
        for name, value in metrics.items():
            columns["log_metric"](name, value)
    if columns.get("log_extra") is not None:
        for name, values in extras.items():
            columns["log_extra"](name, values)


def _items(prompts: Sequence[Any], completions: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [
        (host_turns(prompt, role="user"), host_turns(completion, role="assistant"))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _groups(
    settings: _Settings, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Return the places and the requests of the groups that have someone to compare with."""
    groups = _equal_prompts(prompts) if settings.num_generations is None else _successive(settings, prompts)
    if settings.signal.needs_rivals:
        alone = sum(len(places) == 1 for places in groups)
        if alone:
            logger.warning("%d completions are alone in their group and have no %s", alone, settings.signal.name)
        groups = [places for places in groups if len(places) > 1]
    items = _items(prompts, completions)
    asked: list[dict[str, Any]] = [
        {"prompt": items[places[0]][0], "responses": [items[place][1] for place in places]} for places in groups
    ]
    if settings.signal.name == "anchor":
        against = columns[str(settings.references)]
        for places, group in zip(groups, asked, strict=True):
            group["references"] = [host_turns(one, role="assistant") for one in against[places[0]]]
    return groups, asked


def _equal_prompts(prompts: Sequence[Any]) -> list[list[int]]:
    """Return the places of each distinct prompt, in the order in which the prompts appear first."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        # Hosts repeat a prompt for each of its samples, mostly as equal and not as the same object.
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
        places.setdefault(key, []).append(place)
    return list(places.values())


def _successive(settings: _Settings, prompts: Sequence[Any]) -> list[list[int]]:
    """Return the places of the groups, by the number of generations whose groups have one prompt each."""
    count = len(prompts)
    # TRL does not say whether a call belongs to evaluation: the prompts do.
    sizes = [size for size in (settings.num_generations, settings.num_generations_eval) if size is not None]
    for size in sizes:
        groups = [list(range(start, start + size)) for start in range(0, count, size)]
        if count % size == 0 and all(prompts[place] == prompts[places[0]] for places in groups for place in places):
            return groups
    raise ValueError(
        f"{count} completions are not whole groups of {' or '.join(map(str, sizes))} to one prompt each: give the "
        "trainer's num_generations (and num_generations_eval), and let a process's batch be a multiple of it"
    )


class WinRateCallback:
    """Logs how often the policy's completions are preferred to references, by one tournament per prompt.

    It logs ``eval_win_rate``, the mean over the prompts of the probability in [0, 1] that the policy's completion is
    preferred to a reference, and ``eval_win_rate_unjudged``, how many prompts had no answer and are left out. Where no
    prompt had one, the win rate is not logged. Both are in the metrics of an evaluation, for ``metric_for_best_model``.

    Args:
        trainer: any trainer of transformers or TRL; it logs.
        prompts: texts or lists of messages; the column ``prompt`` of the trainer's ``eval_dataset`` if None.
        references: for each prompt the responses to compare with, or ``{"set": NAME}`` of a stored set
            (``Client.add_references``). If None, the policy's own completions at the start of training.
        every: compare every so many steps; at each evaluation if None.
        model: id of a hosted model; the client's if None.
        generate: ``generate(policy, tokenizer, prompts)``, which returns one completion per prompt, a text or a list of
            messages. It is called in every process, as sharded policies need. If None, the main process calls
            ``policy.generate`` on batches of the trainer's ``per_device_eval_batch_size``.
        generation_config: of transformers, for that call.

    Raises:
        ValueError: if there are no prompts, or not one list of references for each.
    """

    def __init__(
        self,
        client: Client,
        trainer: Any,
        *,
        prompts: Sequence[Any] | None = None,
        references: Sequence[Sequence[Any]] | Mapping[str, str] | None = None,
        every: int | None = None,
        model: str | None = None,
        generate: Generate | None = None,
        generation_config: Any = None,
    ) -> None:
        if prompts is None and getattr(trainer, "eval_dataset", None) is None:
            raise ValueError("give prompts, or the trainer an eval_dataset with a column 'prompt'")
        self._prompts = list(trainer.eval_dataset["prompt"] if prompts is None else prompts)
        if isinstance(references, Mapping):
            against: list[Any] | None = [references] * len(self._prompts)
        else:
            against = (
                None
                if references is None
                else [[host_turns(one, role="assistant") for one in responses] for responses in references]
            )
        if not self._prompts or (against is not None and len(against) != len(self._prompts)):
            count = "no" if against is None else str(len(against))
            raise ValueError(f"{len(self._prompts)} prompts with {count} lists of references: give one list for each")
        self._client = client
        self._trainer = trainer
        self._references = against
        self._every = every
        self._model = model
        self._generate = generate
        self._generation_config = generation_config

    def __getattr__(self, name: str) -> Callable[..., None]:
        # The trainer calls a method for every event that its version has. One that is not of interest does nothing.
        if name.startswith("on_"):
            return _ignore
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Keep the policy's first completions, if they are the references."""
        if self._references is None:
            completions = self._completions(args, state, kwargs)
            self._references = completions and [[host_turns(one, role="assistant")] for one in completions]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Compare and log, if no number of steps was given."""
        if self._every is None:
            self._compare(args, state, control, kwargs, metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare and log, if it is the step's turn."""
        if self._every is not None and state.global_step % self._every == 0:
            self._compare(args, state, control, kwargs, None)

    def _compare(self, args: Any, state: Any, control: Any, event: dict[str, Any], metrics: Any) -> None:
        completions = self._completions(args, state, event)
        if completions is None or not state.is_world_process_zero:
            return
        if self._references is None:
            raise ValueError("an evaluation before training has no completions to compare with: give references")
        logs = self._measured(completions, self._references)
        if isinstance(metrics, dict):
            metrics.update(logs)
        # As Trainer.log does, which in TRL would end the averages of the training metrics too. The handler's own on_log
        # would take the log of this step for done.
        state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
        self._trainer.callback_handler.call_event("on_log", args, state, control, logs=dict(logs))

    def _measured(self, completions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        groups: list[dict[str, Any]] = [
            {
                "prompt": host_turns(prompt, role="user"),
                "responses": [host_turns(completion, role="assistant")],
                "references": against,
            }
            for prompt, completion, against in zip(self._prompts, completions, references, strict=True)
        ]
        try:
            answer = self._client.tournaments(groups, model=self._model, on_error="report")
        except ParagoneError as error:
            # It measures a run and is no part of it: the run goes on, without the number.
            logger.warning("no win rate of the policy: %s", error)
            return {"eval_win_rate_unjudged": float(len(groups))}
        rates = GroupSignal().placed([[place] for place in range(len(groups))], answer, len(groups))
        judged = [rate for rate in rates if rate is not None]
        logs = {"eval_win_rate_unjudged": float(len(rates) - len(judged))}
        return {"eval_win_rate": sum(judged) / len(judged), **logs} if judged else logs

    def _completions(self, args: Any, state: Any, event: dict[str, Any]) -> list[Any] | None:
        """Return the policy's completions, None in a process that has no part in it."""
        policy: Any = event["model"]
        tokenizer: Any = event.get("processing_class")
        if self._generate is not None:
            return self._generate(policy, tokenizer, self._prompts)
        if not state.is_world_process_zero:
            return None
        training, side = policy.training, tokenizer.padding_side
        policy.eval()
        tokenizer.padding_side = "left"
        try:
            size = args.per_device_eval_batch_size
            batches = [self._prompts[start : start + size] for start in range(0, len(self._prompts), size)]
            return [text for batch in batches for text in self._continued(policy, tokenizer, batch)]
        finally:
            policy.train(training)
            tokenizer.padding_side = side

    def _continued(self, policy: Any, tokenizer: Any, prompts: list[Any]) -> list[str]:
        texts = [
            prompt
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            for prompt in prompts
        ]
        # A chat template writes its own special tokens.
        encoded = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=isinstance(prompts[0], str)
        ).to(policy.device)
        tokens = policy.generate(**encoded, generation_config=self._generation_config)
        continued: list[str] = tokenizer.batch_decode(
            tokens[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return continued


def _ignore(*arguments: Any, **kwargs: Any) -> None:
    """Do nothing at an event."""
