"""Pairs of chosen and rejected responses for trainers, made of annotated rows.

| format | a row |
|---|---|
| ``trl`` | ``prompt``, ``chosen``, ``rejected``: messages each; ``margin``; ``tools`` where there are some |
| ``axolotl`` | ``messages``, and ``chosen`` and ``rejected``: a message each (``chat_template.default``) |
| ``llama-factory`` | ``conversations``, ``chosen``, ``rejected`` in ShareGPT's keys; ``system``, ``tools``, or "" |

Sources: TRL's dataset formats (conversational preference, explicit prompt), axolotl's dpo strategies, LLaMA-Factory's
data/README (``"ranking": true``).
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic_core import to_json

from paragone_evaluation.annotation.files import cannot_write
from paragone_evaluation.annotation.kinds import AnswerKind
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.rows import as_messages

__all__ = ["FORMATS", "PairSettings", "Which", "dataset_info", "write_pairs"]

Fields = dict[str, Any]
Messages = list[dict[str, Any]]
Which = Literal["best-worst", "all"]


@dataclass(frozen=True)
class PairSettings:
    """Which pairs are made, and how they are written.

    Attributes:
        which: of each row the best response and the worst one, or every two.
        margin: least log-odds, temperature applied, that the chosen one is preferred. [nats]
        format: one of ``FORMATS``.

    Raises:
        DataError: if one of them is none of these.
    """

    which: Which = "best-worst"
    margin: float = 0.0
    format: str = "trl"

    def __post_init__(self) -> None:
        if self.which not in get_args(Which):
            raise DataError(f"--pairs is {self.which!r}; it must be {' or '.join(get_args(Which))}")
        if self.format not in FORMATS:
            raise DataError(f"--pairs-format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        if not 0.0 <= self.margin < float("inf"):
            raise DataError(f"--margin is {self.margin}; it must be 0 or more, in log-odds")


class _UnsaidError(ValueError):
    """A pair that a format cannot hold, and why."""


def _pairs_of(
    row: Fields, kind: AnswerKind, settings: PairSettings, temperature: float
) -> Iterator[tuple[int, int, float]]:
    """Yield the chosen and the rejected response of each pair, and the log-odds between them."""
    scores = kind.scores(row)
    # The best first; of equal ones the earlier, so that the same rows make the same pairs.
    order = sorted((at for at, score in enumerate(scores) if score is not None), key=lambda at: -(scores[at] or 0.0))
    two = itertools.combinations(order, 2) if settings.which == "all" else [(order[0], order[-1])] if order[1:] else []
    for first, second in two:
        logit = kind.logit(row, first, second, temperature)
        # In a circle, the one with the lower win rate may be the preferred one of two.
        chosen, rejected = (first, second) if logit > 0 or settings.which == "best-worst" else (second, first)
        logit = abs(logit) if settings.which == "all" else logit
        if logit > 0 and logit >= settings.margin and row["responses"][chosen] != row["responses"][rejected]:
            yield chosen, rejected, logit


def write_pairs(
    rows: Iterator[Fields], path: Path, kind: AnswerKind, settings: PairSettings, *, temperature: float
) -> dict[str, int]:
    """Write the pairs of annotated rows, and return how many, and how many a format could not hold, by reason.

    Args:
        temperature: of the model, by which differences of rewards become log-odds.

    Raises:
        EvaluationError: if the disk takes no more.
    """
    try:
        return _write_pairs(rows, path, kind, settings, temperature)
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_pairs(
    rows: Iterator[Fields], path: Path, kind: AnswerKind, settings: PairSettings, temperature: float
) -> dict[str, int]:
    written, counts = FORMATS[settings.format], {"pairs": 0}
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        for row in rows:
            for chosen, rejected, logit in _pairs_of(row, kind, settings, temperature):
                try:
                    fields = written(row, _answer(row, chosen), _answer(row, rejected))
                except _UnsaidError as error:
                    counts[str(error)] = counts.get(str(error), 0) + 1
                    continue
                origin = {"row": row["row"], **({"id": row["id"]} if "id" in row else {})}
                fields |= {**origin, "margin": logit}
                file.write(to_json(fields) + b"\n")
                counts["pairs"] += 1
    fresh.replace(path)
    return counts


def _answer(row: Fields, at: int) -> Messages:
    response = row["responses"][at]
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return [dict(response)] if isinstance(response, Mapping) else list(response)


def _trl(row: Fields, chosen: Messages, rejected: Messages) -> Fields:
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {"prompt": as_messages(row["prompt"]), "chosen": chosen, "rejected": rejected, **tools}


def _axolotl(row: Fields, chosen: Messages, rejected: Messages) -> Fields:
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    sides = {"chosen": _alone(chosen), "rejected": _alone(rejected)}
    return {"messages": as_messages(row["prompt"]), **sides, **tools}


def _alone(messages: Messages) -> dict[str, Any]:
    if len(messages) != 1:
        raise _UnsaidError("a response is several messages, and the format holds one")
    return messages[0]


def _llama_factory(row: Fields, chosen: Messages, rejected: Messages) -> Fields:
    messages = list(as_messages(row["prompt"]))
    system = messages.pop(0)["content"] if messages[0]["role"] in ("system", "developer") else None
    turns = [_sharegpt(message) for message in messages]
    # It reads turns by their places: what stands at an even one is the user's or a tool's.
    asking = [turn["from"] in ("human", "observation") for turn in turns]
    if asking != [at % 2 == 0 for at in range(len(turns))] or not asking[-1]:
        raise _UnsaidError("the prompt's turns do not alternate, as LLaMA-Factory needs them to")
    return {
        "conversations": turns,
        "chosen": _sharegpt(_alone(chosen)), "rejected": _sharegpt(_alone(rejected)),
        # It reads every column that dataset_info.json names, from every row.
        "system": system or "",
        "tools": json.dumps(row["tools"], ensure_ascii=False) if row.get("tools") else "",
    }  # fmt: skip


def _sharegpt(message: Mapping[str, Any]) -> dict[str, str]:
    calls: Sequence[Any] = message.get("tool_calls") or ()
    if calls:
        called = [{"name": call["function"]["name"], "arguments": _arguments(call)} for call in calls]
        return {"from": "function_call", "value": json.dumps(called[0] if len(called) == 1 else called)}
    speakers = {"user": "human", "assistant": "gpt", "tool": "observation"}
    if message["role"] not in speakers or not isinstance(message.get("content"), str):
        raise _UnsaidError(f"a message of {message['role']!r} has no place in ShareGPT's turns")
    return {"from": speakers[message["role"]], "value": message["content"]}


def _arguments(call: Mapping[str, Any]) -> Any:
    arguments = call["function"].get("arguments") or {}
    return json.loads(arguments) if isinstance(arguments, str) else arguments


FORMATS: Mapping[str, Callable[[Fields, Messages, Messages], Fields]] = {
    "trl": _trl, "axolotl": _axolotl, "llama-factory": _llama_factory,
}  # fmt: skip
"""How a pair is written for a trainer: of a row, the chosen messages and the rejected ones."""


def dataset_info(path: Path) -> dict[str, Any]:
    """Return the entry of LLaMA-Factory's ``dataset_info.json`` for a file of pairs."""
    columns = {name: name for name in ("chosen", "rejected", "system", "tools")}
    return {
        path.name.partition(".")[0]: {
            "file_name": path.name, "ranking": True, "formatting": "sharegpt",
            "columns": {"messages": "conversations", **columns},
        }
    }  # fmt: skip
