"""A policy's answers in the layouts that other people's benchmarks read.

alpaca_eval    one JSON list: dataset, instruction, output, generator
arena-hard     JSON Lines: uid, ans_id, model, messages, tstamp, metadata.token_len
mt-bench       JSON Lines: question_id, answer_id, model_id, choices[{index, turns}], tstamp
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from paragone_training.errors import RecipeError
from paragone_training.policy.rounds import Response, read_responses
from paragone_training.policy.rows.files import write_text

__all__ = ["Layout", "export_answers"]

Layout = Literal["alpaca_eval", "arena-hard", "mt-bench"]


def export_answers(samples: Path, output: Path, *, layout: str, name: str) -> int:
    """Write the first answer to each prompt of a samples file, and return how many.

    Args:
        samples: a samples.parquet, RUN/evaluation-03/samples.parquet say.
        output: file to write.
        layout: one of ``Layout``.
        name: of the policy.

    Returns:
        How many answers were written.

    Raises:
        RecipeError: if there is no such layout, or the answers do not fit it.
        RunError: if the samples cannot be read.
        DiskFullError: if there is no room.
    """
    if layout not in get_args(Layout):
        raise RecipeError(f"layout is {layout!r}; it must be one of {', '.join(get_args(Layout))}")
    rows = [row for row in read_responses(samples) if row.number == 0]
    if layout == "alpaca_eval":
        text = json.dumps([_alpaca(row, name) for row in rows], indent=1, ensure_ascii=False) + "\n"
    else:
        made = [_arena(row, name) if layout == "arena-hard" else _mt(row, name) for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    write_text(output, text)
    return len(rows)


def _alpaca(row: Response, name: str) -> dict[str, Any]:
    messages = _messages(row)
    if len(messages) != 1:
        raise RecipeError(
            f"prompt {row.prompt_id!r} has {len(messages)} messages; alpaca_eval has one instruction each"
        )
    return {"dataset": "paragone", "instruction": messages[0]["content"], "output": row.text, "generator": name}


def _arena(row: Response, name: str) -> dict[str, Any]:
    return {
        "uid": row.prompt_id,
        "ans_id": _id(row, name),
        "model": name,
        "messages": [*_messages(row), {"role": "assistant", "content": {"answer": row.text}}],
        "tstamp": 0.0,
        "metadata": {"token_len": len(row.token_ids)},
    }


def _mt(row: Response, name: str) -> dict[str, Any]:
    earlier = [message["content"] for message in _messages(row) if message["role"] == "assistant"]
    return {
        "question_id": int(row.prompt_id) if row.prompt_id.isdigit() else row.prompt_id,
        "answer_id": _id(row, name),
        "model_id": name,
        "choices": [{"index": 0, "turns": [*earlier, row.text]}],
        "tstamp": 0.0,
    }


def _messages(row: Response) -> list[dict[str, Any]]:
    if row.prompt.startswith("[{"):
        try:
            messages: list[dict[str, Any]] = json.loads(row.prompt)
        except ValueError:
            pass
        else:
            return messages
    return [{"role": "user", "content": row.prompt}]


def _id(row: Response, name: str) -> str:
    """Return an id that is the same whenever the same answers are exported."""
    return hashlib.blake2b(f"{name}\0{row.prompt_id}\0{row.text}".encode(), digest_size=11).hexdigest()
