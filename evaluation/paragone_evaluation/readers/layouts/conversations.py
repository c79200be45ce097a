"""What is the prompt and what are the responses in pairs of conversations, transcripts and texts.

What both sides begin with is the prompt, up to the last place where an answer of the assistant follows in both. Each
response is the rest. A prompt beside them that repeats this beginning is not read twice.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.layouts.fields import (
    as_prompt,
    as_response,
    check_encodable,
    check_ending,
)
from paragone_evaluation.readers.layouts.messages import are_messages, described, messages_of
from paragone_evaluation.readers.rows import BadRowError, Content, Fields, LeftOutError

__all__ = [
    "SAME",
    "Compared",
    "column_prompt",
    "compared_sides",
    "exchanges",
    "is_repeated",
    "split_conversations",
    "turns_of",
    "without_answer",
]

Compared = tuple[Content, tuple[ResponseText, ResponseText]]
"""A prompt and the two responses to it."""

Messages = list[dict[str, Any]]

SAME = "the two responses that are compared are the same"
"""Why a pair of equal responses is left out."""

_PROMPTS = ("prompt", "question", "instruction", "input", "query", "messages", "conversations", "conversation",
            "context")  # fmt: skip
_SYSTEMS = ("system", "system_prompt")
# Anthropic's HH files, and those of NeMo Aligner, in which HelpSteer's prompts of several turns are written as well.
_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_NEMO = re.compile(r"(?:^|\n)?<extra_id_[01]>(System|User|Assistant)\n")
_NEMO_LABEL = re.compile(r"\A<extra_id_2>[^\n]*\n")
# What chat templates wrote, which rendered once more would have their tokens twice: start and end of a turn.
_CHATML = re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"), "<|im_end|>"
_LLAMA = re.compile(r"<\|start_header_id\|>(system|user|assistant|tool)<\|end_header_id\|>\n\n"), "<|eot_id|>"
_SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant", "System": "system"}
# Where a text may be parted: behind a sentence or a line, otherwise between two words.
_SENTENCE_END = re.compile(r"[.!?:…。！？][\"'”’)\]]*\s+|\n\s*")
_WORD_END = re.compile(r"\s+")


def turns_of(text: str) -> Messages | None:
    """Return the turns of a transcript, without the header of an answer that is still to come; None for other texts."""
    if "<extra_id_1>" in text and _NEMO.search(text):
        # The pattern's group is kept by split, so roles and texts take turns behind the first text.
        first, *rest = _NEMO.split(text.removesuffix("<extra_id_1>"))
        turns = [*([("User", first)] if first.strip() else []), *zip(rest[::2], rest[1::2], strict=True)]
        turns = [(speaker, _NEMO_LABEL.sub("", content).strip("\n")) for speaker, content in turns]
    elif text.lstrip().startswith("Human:") and "\n\nAssistant:" in text:
        _, *rest = _HH.split(text.strip())
        turns = [(speaker, content.strip()) for speaker, content in zip(rest[::2], rest[1::2], strict=True)]
    elif (notation := _written_by_template(text)) is not None:
        start, end = notation
        _, *rest = start.split(text)
        turns = [(role, _without_end(content, end)) for role, content in zip(rest[::2], rest[1::2], strict=True)]
    else:
        return None
    messages: Messages = []
    for speaker, content in turns:
        role = _SPEAKERS.get(speaker, speaker)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"  # no template takes two turns of one speaker
        elif content or role != "system":
            messages.append({"role": role, "content": content})
    return messages[:-1] if messages and messages[-1] == {"role": "assistant", "content": ""} else messages


def _written_by_template(text: str) -> tuple[re.Pattern[str], str] | None:
    """Return how a text's turns begin and end, where a known chat template wrote it."""
    text = text.lstrip().removeprefix("<|begin_of_text|>")
    return next((notation for notation in (_CHATML, _LLAMA) if notation[0].match(text)), None)


def _without_end(content: str, end: str) -> str:
    return content.removesuffix("\n").removesuffix(end)


def column_prompt(row: Fields) -> Messages | None:
    """Return what the columns before the responses hold, the system's text first; None where there are none.

    Of an instruction with an input the two are joined by a line, as the Alpaca files' own code does.
    """
    name = next((name for name in _PROMPTS if row.get(name) not in (None, "", [])), None)
    if name is None:
        return None
    value, extra = row[name], row.get("input") if name == "instruction" else None
    if isinstance(value, str) and isinstance(extra, str) and extra.strip():
        value = f"{value}\n{extra}"
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if messages is None:
        if not isinstance(value, str):
            raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {described(value)}")
        if not value.strip():
            raise BadRowError(f"field {name!r} is empty")
        messages = turns_of(value) or [{"role": "user", "content": value}]
    return _with_system(row, [*_history(row.get("history")), *messages])


def _history(value: Any) -> Messages:
    """Return LLaMA-Factory's earlier turns: a list of what the user and the assistant said."""
    lists = isinstance(value, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in value
    )
    if not lists:
        return []
    return exchanges(value)


def exchanges(turns: Iterable[Iterable[str | None]]) -> Messages:
    """Return the messages of turns, each what the user asked and what the assistant answered."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _with_system(row: Fields, messages: Messages) -> Messages:
    text = next((text for name in _SYSTEMS if isinstance(text := row.get(name), str) and text.strip()), None)
    if text is None or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": text}, *messages]


def compared_sides(row: Fields, *names: str, repeated: bool = False) -> Compared:
    """Return the prompt and the responses of a row whose two sides stand under the names.

    Args:
        repeated: the sides are texts that begin with the prompt's text.
    """
    sides = [row.get(name) for name in names]
    told = [_as_messages(side, name) for side, name in zip(sides, names, strict=True)]
    if told[0] is None and told[1] is None:
        return _compared_texts(row, names, repeated=repeated)
    for at, name in enumerate(names):
        # One side may call a tool, and be a message for it, where the other one is a text.
        if told[at] is None:
            other = told[1 - at] or []
            if not isinstance(sides[at], str) or len(other) > 1:
                raise BadRowError(
                    f"field {name!r} must be text, as the other one is, or a list of messages, not "
                    f"{described(sides[at])}"
                )
            told[at] = [{"role": "assistant", "content": sides[at]}]
    shared, responses = split_conversations(told[0] or [], told[1] or [], names)
    return _joined(row, shared), responses


def _as_messages(side: Any, name: str) -> Messages | None:
    """Return a side's messages; of a transcript, its turns."""
    messages = messages_of([side] if isinstance(side, Mapping) else side, name)
    if messages is not None or not isinstance(side, str):
        return messages
    if not side.lstrip().startswith(("Human:", "<extra_id_0>")) and _written_by_template(side) is None:
        return None
    turns = turns_of(side)
    if turns and turns[-1]["role"] != "assistant":
        # Published transcripts have a few such rows: nothing is wrong with the others for it.
        raise LeftOutError("a side of it has no answer")
    return turns


def split_conversations(
    first: Messages, second: Messages, names: Sequence[str]
) -> tuple[Messages, tuple[ResponseText, ResponseText]]:
    """Return the messages that both conversations begin with, and what each of them goes on with."""
    for side, name in zip((first, second), names, strict=True):
        if side[-1]["role"] != "assistant":
            raise BadRowError(f"field {name!r} must end with the assistant's message, not {side[-1]['role']!r}")
    common = 0
    while common < min(len(first), len(second)) - 1 and first[common] == second[common]:
        common += 1
    # Both go on with the assistant: a tool's answer that differs belongs to the call before it.
    while common and not first[common]["role"] == second[common]["role"] == "assistant":
        common -= 1
    if not first[common]["role"] == second[common]["role"] == "assistant":
        raise BadRowError(
            f"{' and '.join(names)} must share every message before their answers: the shared ones are the prompt"
        )
    sides = (as_response(side[common:], name) for side, name in zip((first, second), names, strict=True))
    one, other = sides
    return first[:common], (one, other)


def _joined(row: Fields, shared: Messages) -> Content:
    """Return the prompt of conversations: what they share, which a prompt beside them mostly repeats."""
    before = column_prompt(row) if not shared or are_messages(row.get("prompt")) else None
    if not shared:
        if before is None:
            raise BadRowError(f"there is no prompt: a row has messages before the answers, or one of {_listed()}")
        return check_ending(as_prompt(before, "prompt"), "prompt")
    if before is None:
        return check_ending(as_prompt(_with_system(row, shared), "prompt"), "prompt")
    if before[-len(shared) :] == shared:
        shared = before  # it holds a system's message that the conversations lack
    elif not all(message in shared for message in before):
        shared = [*before, *shared]  # the conversations go on from it
    return check_ending(as_prompt(shared, "prompt"), "prompt")


def _listed() -> str:
    return ", ".join(_PROMPTS)


def _compared_texts(row: Fields, names: Sequence[str], *, repeated: bool) -> Compared:
    """Return the prompt and the responses of two texts."""
    first, second = (_text(row.get(name), name) for name in names)
    before = column_prompt(row)
    if before is None:
        prompt, one, other = _parted(first, second)
        return as_prompt(_with_system(row, [{"role": "user", "content": prompt}]), names[0]), (one, other)
    if repeated:
        first, second = (_rest(text, before, name) for text, name in zip((first, second), names, strict=True))
    if turns_of(_shown(row)) is not None:
        # What follows "Assistant:" begins with a space, and in NeMo's files the header of the next turn ends it.
        first, second = (text.lstrip(" ").removesuffix("<extra_id_1>").rstrip("\n") for text in (first, second))
        if (notation := _written_by_template(_shown(row))) is not None:
            first, second = (_without_end(text, notation[1]) for text in (first, second))
    return check_ending(as_prompt(before, "prompt"), "prompt"), (first, second)


def _shown(row: Fields) -> str:
    """Return the prompt's column as it stands, where it is a text."""
    return next((value for name in _PROMPTS if isinstance(value := row.get(name), str) and value), "")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {described(value)}")
    check_encodable(value, name)
    return value


def is_repeated(row: Fields, *names: str) -> bool:
    """Return whether two texts begin with the prompt's text and go on from it."""
    prompt = _shown(row).strip()
    if not prompt or turns_of(prompt) is not None:
        return False
    # A letter behind it would be another word: "Tea" is no beginning of "Teapots".
    texts = [text for name in names if isinstance(text := row.get(name), str) and text.startswith(prompt)]
    return len(texts) == len(names) and all(not text[len(prompt) :][:1].isalnum() for text in texts)


def _rest(text: str, before: Messages, name: str) -> str:
    prompt = str(before[-1]["content"]).strip()
    if not text.startswith(prompt):
        raise BadRowError(f"field {name!r} does not begin with the prompt, as the first rows of the file do")
    return text[len(prompt) :].lstrip()


def _parted(first: str, second: str) -> tuple[str, str, str]:
    """Return what two texts begin with, up to the end of a sentence, a line or a word, and the rest of each."""
    common = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if common is None:
        common = min(len(first), len(second))
    if first == second:
        raise LeftOutError(SAME)  # and nobody can say where the prompt ends
    # One text may end where the other goes on: then its response would be empty, and the cut must come before that.
    beginning = first[: min(common, len(first) - 1, len(second) - 1)]
    for pattern in (_SENTENCE_END, _WORD_END):
        ends = [match.end() for match in pattern.finditer(beginning)]
        if ends and beginning[: ends[-1]].strip():
            cut = ends[-1]
            return first[:cut].rstrip(), first[cut:], second[cut:]
    raise BadRowError(f"there is no prompt: the two texts share no beginning, and the row has none of {_listed()}")


def without_answer(messages: Messages, name: str) -> Content:
    """Return the prompt in a conversation that may end with its answer."""
    end = len(messages)
    while end and messages[end - 1]["role"] not in ("user", "tool"):
        end -= 1
    if not end:
        raise BadRowError(f"field {name!r} has no message of the user")
    return as_prompt(messages[:end], name)
