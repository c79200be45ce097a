"""Layouts of trainers whose columns are their own; their files of ``chosen`` and ``rejected`` are in own.py.

Sources: OpenAI's guide to preference fine-tuning; LLaMA-Factory's data/README; NeMo Aligner's and NeMo RL's guides to
reward models; TRL's dataset formats (unpaired preference, for KTO).
"""

import math
from collections.abc import Mapping
from typing import Any

from paragone_evaluation.readers.layouts.conversations import column_prompt, turns_of
from paragone_evaluation.readers.layouts.fields import (
    as_prompt,
    as_response,
    check_ending,
    common_of,
    float_of,
    is_response,
    prompt_of,
    response_of,
    sides_of,
    tools_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, has
from paragone_evaluation.readers.layouts.messages import are_messages, described
from paragone_evaluation.readers.rows import BadRowError, Content, DataRow, Fields, Label

__all__ = ["KTO", "NEMO_RL", "NEMO_TEXT", "OPENAI_PREFERENCES", "OUTPUTS", "only_prompt"]

_WORDS = {"true": 1.0, "false": 0.0}


def _columns(row: Fields) -> Content:
    """Return the prompt in the columns before the responses, wherever it stands."""
    before = column_prompt(row)
    if before is None:
        raise BadRowError("there is no prompt: the row has no prompt, instruction, messages or conversations")
    return check_ending(as_prompt(before, "prompt"), "prompt")


def _openai(row: Fields, line: int) -> DataRow:
    common, prompt = common_of(row), _openai_prompt(row)
    responses = sides_of(row, "preferred_output", "non_preferred_output")
    common["tools"] = common["tools"] or tools_of(row["input"].get("tools"))
    return DataRow(line, prompt, responses, (Label(0, 1, 1.0),), subset=common["group"], **common)


def _openai_prompt(row: Fields) -> Content:
    asked = value_of(row, "input")
    if not isinstance(asked, Mapping):
        raise BadRowError(f"field 'input' must be an object with messages, not {described(asked)}")
    return check_ending(prompt_of(dict(asked), "messages"), "input.messages")


def _outputs(row: Fields, line: int) -> DataRow:
    common, outputs = common_of(row), value_of(row, "output")
    if not isinstance(outputs, list) or len(outputs) != 2:
        raise BadRowError("field 'output' must be a list of two responses, the preferred one first")
    responses = tuple(response_of(output, f"output[{at}]") for at, output in enumerate(outputs))
    return DataRow(line, _columns(row), responses, (Label(0, 1, 1.0),), subset=common["group"], **common)


def _nemo_rl(row: Fields, line: int) -> DataRow:
    common, completions = common_of(row), value_of(row, "completions")
    if not isinstance(completions, list) or len(completions) < 2:
        raise BadRowError("field 'completions' must be a list of at least two objects with rank and completion")
    responses, ranks = [], []
    for at, one in enumerate(completions):
        if not isinstance(one, Mapping) or not math.isfinite(rank := float_of(one.get("rank"))):
            raise BadRowError(f"completions[{at}] must be an object with a completion and a rank, a number")
        responses.append(response_of(one.get("completion"), f"completions[{at}].completion"))
        ranks.append(rank)
    return DataRow(
        line, _columns(row), tuple(responses), ranks=tuple(ranks), subset=common["group"],
        strength_of="ranks" if max(ranks) - min(ranks) > 1 else "", **common,
    )  # fmt: skip


def _nemo_text(row: Fields, line: int) -> DataRow:
    common, turns = common_of(row), _nemo_turns(row)
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRowError("field 'text' must be a conversation in NeMo's notation that ends with the assistant's turn")
    return DataRow(
        line, check_ending(as_prompt(turns[:-1], "text"), "text"), (as_response(turns[-1:], "text"),),
        subset=common["group"], **common,
    )  # fmt: skip


def _nemo_turns(row: Fields) -> list[dict[str, Any]]:
    text = value_of(row, "text")
    return (turns_of(text) if isinstance(text, str) else None) or []


def _nemo_prompt(row: Fields) -> Content:
    return check_ending(as_prompt(_nemo_turns(row)[:-1], "text"), "text")


def _kto(row: Fields, line: int) -> DataRow:
    common, liked = common_of(row), _liked(row)
    if liked is None:
        raise BadRowError(f"field 'label' is {described(row.get('label'))}; it must be true or false")
    prompt, response = _answered(row)
    return DataRow(line, prompt, (response,), ratings=({"label": liked},), subset=common["group"], **common)


def _answered(row: Fields) -> tuple[Content, Any]:
    """Return prompt and response of a row that was liked or not; a conversation may hold both."""
    if row.get("completion") is not None:
        return _columns(row), response_of(row["completion"], "completion")
    turns = column_prompt(row) or []
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise BadRowError("there is no completion, and no conversation that ends with the assistant's message")
    return check_ending(as_prompt(turns[:-1], "messages"), "messages"), as_response(turns[-1:], "messages")


def _liked(row: Fields) -> float | None:
    value = next((row[name] for name in ("label", "kto_tag") if row.get(name) is not None), None)
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return float(value) if value in (True, False) else None


def _fits_kto(row: Fields) -> bool:
    talks = (row.get("messages"), row.get("conversations"))
    answered = is_response(row.get("completion")) or any(map(are_messages, talks))
    # A row of pairs may have a label as well, and is read as the pair.
    return answered and row.get("chosen") is None and _liked(row) is not None


def _ranked(completion: Any) -> bool:
    return isinstance(completion, Mapping) and has(dict(completion), "rank", "completion")


def only_prompt(row: Fields) -> Content:
    """Return the prompt of a row without responses; a conversation is one up to its last answer."""
    before = column_prompt(row)
    if before is None:
        before = turns_of(row["text"]) if isinstance(row.get("text"), str) else None
    if before is None:
        return prompt_of(row)  # which says what is missing
    while len(before) > 1 and before[-1]["role"] == "assistant" and row.get("prompt") is None:
        before = before[:-1]
    return check_ending(as_prompt(before, "prompt"), "prompt")


OPENAI_PREFERENCES = FileLayout(
    "openai-preferences", ("input", "preferred_output", "non_preferred_output"), _openai,
    lambda row: isinstance(row.get("input"), Mapping) and are_messages(row["input"].get("messages"))
    and is_response(row.get("preferred_output")) and is_response(row.get("non_preferred_output")),
    _openai_prompt,
)  # fmt: skip
OUTPUTS = FileLayout(
    "outputs", ("instruction", "output"), _outputs,
    lambda row: has(row, "instruction") and isinstance(row.get("output"), list) and len(row["output"]) == 2
    and all(map(is_response, row["output"])),
    _columns,
)  # fmt: skip
NEMO_RL = FileLayout(
    "nemo-rl", ("context", "completions"), _nemo_rl,
    lambda row: isinstance(row.get("completions"), list) and bool(row["completions"])
    and all(map(_ranked, row["completions"])),
    _columns, "the difference of two ranks, at most 3; 1 where there are two completions",
)  # fmt: skip
NEMO_TEXT = FileLayout(
    "nemo-text", ("prompt", "text"), _nemo_text,
    lambda row: isinstance(row.get("text"), str) and "<extra_id_1>" in row["text"] and bool(_nemo_turns(row)),
    _nemo_prompt, twos=True,
)  # fmt: skip
KTO = FileLayout(
    "kto", ("prompt", "completion", "label"), _kto, _fits_kto, lambda row: _answered(row)[0],
    "liked over disliked, where one prompt has both: strength 1", rates=True,
)  # fmt: skip
