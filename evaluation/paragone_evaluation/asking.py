"""From an evaluation set and a model to arrays of answers: every question once, kept on disk as it is answered.

Scalar kinds are asked for the reward of each response, and the logit of a pair is the difference divided by the
temperature; all others are asked for each pair, and kinds that read both responses at once in both orders.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from paragone_evaluation.answers import Answer, AnswerStore
from paragone_evaluation.dataset import Case, EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.checks import Bools, Floats
from paragone_evaluation.scorers import Comparison, Item, ModelCard, PairItem, Rating, Refusal, Scorer

__all__ = ["Answers", "ask", "questions_of", "rates_alone"]

Progress = Callable[[int, int], object]
QuestionT = TypeVar("QuestionT", Item, PairItem)


@dataclass(frozen=True)
class Answers:
    """What a model said about an evaluation set. NaN where it refused to answer.

    Attributes:
        card: of the model.
        logit: log-odds of each judgement's first response. [J]
        swapped: log-odds of the second one, asked in the other order; None for pointwise kinds. [J]
        node_score: of each response, comparable within a prompt, in logits: the reward over the temperature where there
            is one, else the mean logit against the responses that it was compared with. [R]
        matrices: log-odds of row over column of every case with more than two responses, by case. each [K, K]
        attributes: predicted ratings by name. each [R]
        refused: how many questions had no answer, by code.
    """

    card: ModelCard
    logit: Floats
    swapped: Floats | None
    node_score: Floats
    matrices: dict[int, Floats]
    attributes: dict[str, Floats]
    refused: dict[str, int]

    @property
    def answered(self) -> Bools:
        """Return which judgements have an answer. [J]."""
        known = np.isfinite(self.logit)
        return known if self.swapped is None else known & np.isfinite(self.swapped)


def rates_alone(data: EvaluationSet, card: ModelCard) -> bool:
    """Return whether only ratings can be measured: the model, or the file, has no preferences.

    Args:
        data: what is evaluated on.
        card: of the model.

    Raises:
        EvaluationError: if nothing at all can be measured.
    """
    if card.compares and data.decided:
        return False
    names = ", ".join(card.attributes)
    if data.rated is None:
        raise EvaluationError(
            f"{card.name} rates {names} and has no weights to merge them into a preference, and {data.path} holds "
            "comparisons: give a file of ratings, or the model weights (weights in its paragone.json, or in the "
            "service's table of the model)"
        )
    if not set(card.attributes) & set(data.attributes):
        rates = f"{card.name} rates {names}" if names else f"{card.name} rates no attributes"
        if card.compares:
            raise EvaluationError(
                f"{data.path}: no two responses of a prompt differ in {data.rated!r}, so nothing is preferred, and "
                f"{rates}, so no rating can be compared either: take another --attribute, or a model that rates "
                f"{', '.join(data.attributes)}"
            )
        raise EvaluationError(
            f"{data.path} rates {', '.join(data.attributes)}, and {rates}: no name is in both. Rename the ratings in "
            "the file, or take another model"
        )
    return True


def questions_of(data: EvaluationSet) -> list[tuple[int, int]]:
    """Return every pair of nodes whose logit is needed, once and in a fixed direction, siblings side by side.

    Args:
        data: with judgements, and cases with more than two responses, all of whose pairs are needed.
    """
    pairs = dict.fromkeys(zip(data.first.tolist(), data.second.tolist(), strict=True))
    for case in data.cases:
        if len(case.nodes) > 2:
            pairs.update(dict.fromkeys(itertools.combinations(case.nodes, 2)))
    once = dict.fromkeys((min(pair), max(pair)) for pair in pairs)
    return sorted(once, key=lambda pair: (int(data.node_prompt[pair[0]]), *pair))


def ask(data: EvaluationSet, scorer: Scorer, store: AnswerStore, *, progress: Progress | None = None) -> Answers:
    """Return the model's answers to all questions, asking only those that the store does not know.

    Args:
        data: what is evaluated on.
        scorer: asks the model.
        store: keeps the answers.
        progress: called with how many questions are answered, and how many there are.

    Raises:
        EvaluationError: if nothing of the file can be asked of this model, or it answered no question at all.
        ParagoneError: if a service does not answer.
        ModelError: if a local model fails.
    """
    alone = rates_alone(data, scorer.card)
    pairs = questions_of(data)
    keys = _node_keys(data)
    prompt_of: list[int] = data.node_prompt.tolist()
    told = progress or _silent
    attributes: dict[str, Floats] = {}
    logits: dict[tuple[int, int], float] = {}
    reversed_logits: dict[tuple[int, int], float] = {}
    score = np.full(len(data.responses), np.nan)
    if scorer.card.scalar:
        nodes = sorted({node for pair in pairs for node in pair} | {n for case in data.cases for n in case.nodes})
        items = {keys[node]: Item(*data.prompts[prompt_of[node]], data.responses[node]) for node in nodes}
        found = _asked(items, scorer.rate, scorer.chunk, store, told)
        score, attributes = _ratings(nodes, [found[keys[node]] for node in nodes], scorer.card, len(data.responses))
        logits = {pair: float(score[pair[0]] - score[pair[1]]) for pair in pairs}
    else:
        orders = (pairs, [(two, one) for one, two in pairs]) if scorer.card.pairwise else (pairs,)
        questions = {
            f"{keys[one]}>{keys[two]}": PairItem(
                prompt=data.prompts[prompt_of[one]][0],
                tools=data.prompts[prompt_of[one]][1],
                first=data.responses[one],
                second=data.responses[two],
            )
            for one, two in itertools.chain(*orders)
        }
        found = _asked(questions, scorer.compare, scorer.chunk, store, told)
        logits = {pair: _logit(found[f"{keys[pair[0]]}>{keys[pair[1]]}"]) for pair in pairs}
        if scorer.card.pairwise:
            reversed_logits = {pair: _logit(found[f"{keys[pair[1]]}>{keys[pair[0]]}"]) for pair in pairs}
    refused = Counter(answer.code for answer in found.values() if isinstance(answer, Refusal))
    answers = _arranged(
        data, scorer.card, logits, reversed_logits, score=score, attributes=attributes, refused=dict(refused)
    )
    rated = any(np.isfinite(column).any() for column in attributes.values())
    if not (rated if alone else answers.answered.any()):
        codes = ", ".join(f"{code} ({count})" for code, count in refused.items())
        raise EvaluationError(f"{scorer.card.name} answered no question of {data.path}: {codes}")
    return answers


def _silent(done: int, total: int) -> None:
    """Tell nobody."""
    del done, total


def _asked(
    questions: dict[str, QuestionT],
    put: Callable[[Sequence[QuestionT]], Sequence[Answer]],
    chunk: int,
    store: AnswerStore,
    told: Progress,
) -> dict[str, Answer]:
    waiting = [(key, question) for key, question in questions.items() if key not in store.known]
    done = len(questions) - len(waiting)
    told(done, len(questions))
    for start in range(0, len(waiting), chunk):
        part = waiting[start : start + chunk]
        answers = put([question for _, question in part])
        store.add({key: answer for (key, _), answer in zip(part, answers, strict=True)})
        done += len(part)
        told(done, len(questions))
    return {key: store.known[key] for key in questions}


def _ratings(
    nodes: Sequence[int], answers: Sequence[Answer], card: ModelCard, count: int
) -> tuple[Floats, dict[str, Floats]]:
    score = np.full(count, np.nan)
    attributes = {name: np.full(count, np.nan) for name in card.attributes}
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, Rating):
            score[node] = np.nan if answer.reward is None else answer.reward / card.temperature
            for name, column in attributes.items():
                column[node] = answer.attributes.get(name, np.nan)
    return score, attributes


def _logit(answer: Answer) -> float:
    return answer.logit if isinstance(answer, Comparison) else float("nan")


def _arranged(
    data: EvaluationSet,
    card: ModelCard,
    logits: dict[tuple[int, int], float],
    reversed_logits: dict[tuple[int, int], float],
    *,
    score: Floats,
    attributes: dict[str, Floats],
    refused: dict[str, int],
) -> Answers:
    def oriented(one: int, two: int, *, swapped: bool = False) -> float:
        """Return the log-odds of ``one`` as they were asked, with ``one`` in the first place (or the second)."""
        if not card.pairwise:
            return logits[one, two] if one <= two else -logits[two, one]
        table = reversed_logits if (one > two) != swapped else logits
        return table[min(one, two), max(one, two)]

    pairs = list(zip(data.first.tolist(), data.second.tolist(), strict=True))
    swapped = np.asarray([oriented(one, two, swapped=True) for one, two in pairs]) if card.pairwise else None
    matrices = {
        number: _matrix(case, oriented, pairwise=card.pairwise)
        for number, case in enumerate(data.cases)
        if len(case.nodes) > 2
    }
    logit = np.asarray([oriented(one, two) for one, two in pairs], dtype=np.float64)
    if not card.scalar:
        score = _mean_logits(data, logits)
    return Answers(card, logit, swapped, score, matrices, attributes, refused)


def _matrix(case: Case, oriented: Callable[..., float], *, pairwise: bool) -> Floats:
    """Return the log-odds of row over column; of both orders the mean, for kinds that have two."""
    size = len(case.nodes)
    matrix = np.zeros((size, size))
    for one, two in itertools.combinations(range(size), 2):
        first, second = case.nodes[one], case.nodes[two]
        value = oriented(first, second)
        if pairwise:
            value = (value - oriented(second, first)) / 2.0
        matrix[one, two], matrix[two, one] = value, -value
    return matrix


def _mean_logits(data: EvaluationSet, logits: dict[tuple[int, int], float]) -> Floats:
    pairs = np.asarray(list(logits), dtype=np.int64).reshape(-1, 2)
    values = np.asarray(list(logits.values()))
    known = np.isfinite(values)
    pairs, values = pairs[known], values[known]
    count = len(data.responses)
    total = np.bincount(pairs[:, 0], values, count) - np.bincount(pairs[:, 1], values, count)
    games = np.bincount(pairs[:, 0], minlength=count) + np.bincount(pairs[:, 1], minlength=count)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(games > 0, total / games, np.nan))


def _node_keys(data: EvaluationSet) -> list[str]:
    """Return a content hash of every response with its prompt, so that answers are found again in any order."""
    prompts = [hashlib.sha256(_canonical(prompt)).digest() for prompt in data.prompts]
    return [
        hashlib.sha256(prompts[prompt] + _canonical(response)).hexdigest()[:24]
        for prompt, response in zip(data.node_prompt.tolist(), data.responses, strict=True)
    ]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()
