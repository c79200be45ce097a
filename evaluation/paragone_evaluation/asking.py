"""Ask a model about an evaluation set. Every question is asked once, and its answer is kept on disk at once.

Scalar kinds are asked for the reward of each response, and the logit of a pair is the difference divided by the
temperature; all others are asked for each pair, and kinds that read both responses at once in both orders.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.measures.checks import Bools, Floats
from paragone_evaluation.scorers import (
    ModelCard,
    PairAnswer,
    PairQuestion,
    RatingAnswer,
    Refusal,
    ResponseQuestion,
    Scorer,
)

__all__ = ["AnswerStore", "Answers", "Progress", "ask_model", "only_ratings", "questions"]

Progress = Callable[[int, int], object]
"""Called with how many questions are answered, and how many there are."""

_Answer = RatingAnswer | PairAnswer | Refusal
_Pair = tuple[int, int]
_QuestionT = TypeVar("_QuestionT", ResponseQuestion, PairQuestion)

_FORMAT = 1


@dataclass(frozen=True)
class Answers:
    """The answers of a model to an evaluation set. NaN where it refused.

    Attributes:
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

    def case_scores(self, number: int, nodes: Sequence[int]) -> Floats:
        """Return one score per response of a case, in logits; NaN where the model refused. [K].

        The reward over the temperature where the kind has one, else the mean logit against the group, itself counted
        as 0.
        """
        if self.card.scalar or number not in self.matrices:
            return self.node_score[list(nodes)]
        return np.asarray(self.matrices[number].mean(axis=1))


class AnswerStore:
    """Appends answers to a JSONL file whose first line says which model gave them.

    An interrupted evaluation goes on from this file and asks nothing twice.

    Raises:
        EvaluationError: if the file holds another model's answers, is no such file, or cannot be written.
    """

    def __init__(self, path: Path, card: ModelCard) -> None:
        self.path = path
        self.known: dict[str, _Answer] = {}
        header = {"format": _FORMAT, "fingerprint": card.fingerprint, "model": card.name, "source": card.source}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            # A line without its end was being written when the run stopped.
            # It is dropped and asked again: half of a number may well read as a number.
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._read(whole, header)
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write([header])
        except OSError as error:
            raise EvaluationError(f"cannot keep answers in {path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, answers: Mapping[str, _Answer]) -> None:
        """Keep answers by their keys."""
        self.known.update(answers)
        self._write([{"key": key, **_to_json(answer)} for key, answer in answers.items()])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._file.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        # A chunk of answers may have cost minutes: it must survive whatever happens next.
        self._file.flush()

    def _read(self, content: bytes, expected: dict[str, Any]) -> None:
        lines = content.splitlines()
        try:
            header = json.loads(lines[0])
            written_by = header.get("format"), header.get("fingerprint")
            for line in lines[1:]:
                row = json.loads(line)
                self.known[row.pop("key")] = _from_json(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{self.path} is no file of answers: remove it, or choose another --output"
            ) from error
        # The fingerprint and not the name: the same name may stand for other weights, settings or kernels by now.
        if written_by != (_FORMAT, expected["fingerprint"]):
            raise EvaluationError(
                f"{self.path} holds the answers of {header.get('model')} (fingerprint {str(written_by[1])[:12]}…), and "
                f"{expected['model']} (fingerprint {expected['fingerprint'][:12]}…) is asked now: weights, settings, "
                "device or library versions differ. Choose another --output, or remove the folder"
            )


def only_ratings(data: EvaluationSet, card: ModelCard) -> bool:
    """Return whether only ratings can be measured: the model, or the file, has no preferences.

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


def _questions_of(data: EvaluationSet) -> list[tuple[int, int]]:
    """Return every pair of nodes whose logit is needed, once, the smaller number first, siblings side by side.

    These are the judged pairs, and all pairs of each case with more than two responses.
    """
    # Dictionaries without values are sets that keep their order: a file asks its questions in one order always.
    pairs = dict.fromkeys(zip(data.first.tolist(), data.second.tolist(), strict=True))
    for case in data.cases:
        if len(case.nodes) > 2:
            pairs.update(dict.fromkeys(itertools.combinations(case.nodes, 2)))
    once = dict.fromkeys((min(pair), max(pair)) for pair in pairs)
    # A service computes a shared prompt once where its responses come in one request.
    return sorted(once, key=lambda pair: (int(data.node_prompt[pair[0]]), *pair))


def questions(data: EvaluationSet) -> int:
    """Return how many pairs a model is asked about, in one order or in both."""
    return len(_questions_of(data))


def ask_model(data: EvaluationSet, scorer: Scorer, store: AnswerStore, *, progress: Progress | None = None) -> Answers:
    """Return the model's answers to all questions, asking only those that the store does not know.

    Raises:
        EvaluationError: if nothing of the file can be asked of this model, or it answered no question at all.
        ParagoneError: if a service does not answer.
        ModelError: if a local model fails.
    """
    card, pairs, keys = scorer.card, _questions_of(data), _response_keys(data)
    ratings_alone = only_ratings(data, card)
    score, attributes = np.full(len(data.responses), np.nan), dict[str, Floats]()
    # A reward is asked once for each response; of K responses that is K questions in place of K(K − 1)/2 pairs.
    if card.scalar:
        items = _items(data, pairs, keys)
        known = _put(items, scorer.rate, scorer.questions_per_call, store, progress)
        score, attributes = _ratings([known.get(key) for key in keys], card)
        logits = {pair: float(score[pair[0]] - score[pair[1]]) for pair in pairs}
    else:
        # Only a kind that reads both responses at once can answer the two orders differently.
        orders = [*pairs, *((second, first) for first, second in pairs)] if card.pairwise else pairs
        names = {order: f"{keys[order[0]]}>{keys[order[1]]}" for order in orders}
        asked = {names[order]: _pair_item(data, *order) for order in orders}
        known = _put(asked, scorer.compare, scorer.questions_per_call, store, progress)
        logits = {order: _logit(known[name]) for order, name in names.items()}
        score = _mean_logits(len(data.responses), pairs, logits)
    refused = Counter(answer.code for answer in known.values() if isinstance(answer, Refusal))
    answers = _arranged(data, card, logits, score, attributes, refused)
    # Refusals are reported, unless there is nothing but refusals: then no measure could be computed, and this is why.
    rated = any(np.isfinite(column).any() for column in attributes.values())
    if not (rated if ratings_alone else answers.answered.any()):
        codes = ", ".join(f"{code} ({count})" for code, count in refused.items())
        raise EvaluationError(f"{card.name} answered no question of {data.path}: {codes}")
    return answers


def _put(
    questions: dict[str, _QuestionT],
    put: Callable[[Sequence[_QuestionT]], Sequence[_Answer]],
    at_once: int,
    store: AnswerStore,
    progress: Progress | None,
) -> dict[str, _Answer]:
    """Return the answer of every question by its key; those that the store lacks are asked and stored."""
    # In the order of the questions, siblings together, and in parts: what was answered is on disk before the next part.
    waiting = [(key, question) for key, question in questions.items() if key not in store.known]
    for start in range(0, len(waiting), at_once):
        if progress:  # answers of an earlier run count as done
            progress(len(questions) - len(waiting) + start, len(questions))
        part = waiting[start : start + at_once]
        answers = put([question for _, question in part])
        store.add({key: answer for (key, _), answer in zip(part, answers, strict=True)})
    if progress:
        progress(len(questions), len(questions))
    return {key: store.known[key] for key in questions}


def _items(data: EvaluationSet, pairs: Sequence[_Pair], keys: Sequence[str]) -> dict[str, ResponseQuestion]:
    """Return the responses that are to be rated: of the pairs, and of cases with a single response."""
    nodes = sorted({node for pair in pairs for node in pair} | {node for case in data.cases for node in case.nodes})
    # One item per key: two nodes of the same text are one question, whose answer both get.
    items = {}
    for node in nodes:
        prompt, tools = data.prompts[data.node_prompt[node]]
        items[keys[node]] = ResponseQuestion(prompt, tools, data.responses[node])
    return items


def _pair_item(data: EvaluationSet, first: int, second: int) -> PairQuestion:
    prompt, tools = data.prompts[data.node_prompt[first]]
    return PairQuestion(prompt, tools, data.responses[first], data.responses[second])


def _ratings(answers: Sequence[_Answer | None], card: ModelCard) -> tuple[Floats, dict[str, Floats]]:
    """Return the score and the predicted attributes of every node. each [R]."""
    score = np.full(len(answers), np.nan)
    attributes = {name: np.full(len(answers), np.nan) for name in card.attributes}
    for node, answer in enumerate(answers):
        if isinstance(answer, RatingAnswer):
            # Divided here, so that a difference of scores is a logit like that of every other kind.
            score[node] = np.nan if answer.reward is None else answer.reward / card.temperature
            for name, column in attributes.items():
                column[node] = answer.attributes.get(name, np.nan)
    return score, attributes


def _logit(answer: _Answer) -> float:
    return answer.logit if isinstance(answer, PairAnswer) else float("nan")


def _mean_logits(count: int, pairs: Sequence[_Pair], logits: Mapping[_Pair, float]) -> Floats:
    """Return the mean logit of every node against the nodes that it was compared with. [R]."""
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    values = np.asarray([logits[pair] for pair in pairs])
    # A refusal says nothing about the other response: its comparisons are left out, not counted as 0.
    known = np.isfinite(values)
    (first, second), values = table[known].T, values[known]
    # Each logit counts for its first response as it is, and for the second with the opposite sign.
    total = np.bincount(first, values, count) - np.bincount(second, values, count)
    games = np.bincount(first, minlength=count) + np.bincount(second, minlength=count)
    with np.errstate(invalid="ignore"):  # 0/0 of a response that was compared with none is NaN: it has no score
        return np.asarray(np.where(games > 0, total / games, np.nan))


def _arranged(
    data: EvaluationSet,
    card: ModelCard,
    logits: dict[_Pair, float],
    score: Floats,
    attributes: dict[str, Floats],
    refused: Mapping[str, int],
) -> Answers:
    """Return the answers in the order of the judgements; logits are by the two nodes in the order of the question."""
    # For kinds that read responses one by one the other order is the negative, exactly, and was not asked for.
    both = (
        logits
        if card.pairwise
        else {**logits, **{(second, first): -logit for (first, second), logit in logits.items()}}
    )
    pairs = list(zip(data.first.tolist(), data.second.tolist(), strict=True))
    matrices = {}
    for number, case in enumerate(data.cases):
        if len(case.nodes) > 2:
            matrix = matrices[number] = np.zeros((len(case.nodes), len(case.nodes)))
            for (row, first), (column, second) in itertools.combinations(enumerate(case.nodes), 2):
                # The mean of both orders, so that a matrix is antisymmetric whatever the places do to the model.
                value = (both[first, second] - both[second, first]) / 2.0
                matrix[row, column], matrix[column, row] = value, -value
    return Answers(
        card=card,
        logit=np.asarray([both[pair] for pair in pairs], dtype=np.float64),
        swapped=np.asarray([both[second, first] for first, second in pairs]) if card.pairwise else None,
        node_score=score,
        matrices=matrices,
        attributes=attributes,
        refused=dict(refused),
    )


def _response_keys(data: EvaluationSet) -> list[str]:
    """Return a content hash of every response with its prompt, so that answers are found again in any order."""
    # By content and not by number: the file may be sorted anew, or grow, between two runs.
    # A prompt is hashed once, not once for each of its responses: it may be the longer part by far.
    prompts = [hashlib.sha256(_canonical(prompt)).digest() for prompt in data.prompts]
    return [
        hashlib.sha256(prompts[prompt] + _canonical(response)).hexdigest()[:24]
        for prompt, response in zip(data.node_prompt.tolist(), data.responses, strict=True)
    ]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()


def _to_json(answer: _Answer) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"refused": answer.code, "message": answer.message}
    if isinstance(answer, PairAnswer):
        return {"logit": answer.logit}
    return {"reward": answer.reward, **({"attributes": dict(answer.attributes)} if answer.attributes else {})}


def _from_json(row: dict[str, Any]) -> _Answer:
    if "refused" in row:
        return Refusal(row["refused"], row["message"])
    if "logit" in row:
        return PairAnswer(float(row["logit"]))
    reward = row["reward"]
    return RatingAnswer(
        None if reward is None else float(reward),
        {name: float(value) for name, value in row.get("attributes", {}).items()},
    )
