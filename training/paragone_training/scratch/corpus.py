"""What the stages before the preferences learn from: texts of the training rows, as the model will see them."""

from collections.abc import Iterable, Sequence
from typing import Any

from paragone_evaluation.readers import Pair
from paragone_models.text.reader import Reading, TextReader, conversation
from paragone_training.data.groups import PromptGroup
from paragone_training.errors import DataError
from paragone_training.scratch.teacher import Frame, Lesson

__all__ = ["lessons", "reason_documents", "token_lengths"]


def token_lengths(tokenizer: Any) -> list[int]:
    """Return how many characters each token of the vocabulary stands for; special tokens stand for none.

    Args:
        tokenizer: a transformers tokenizer, byte-level.
    """
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [0 if index in special else len(name) for index, name in enumerate(names)]


def reason_documents(pairs: Iterable[Pair], reader: TextReader) -> list[list[int]]:
    """Return the annotators' reasons as token ids, each after its prompt, as a message of the system.

    Args:
        pairs: training rows; each distinct reason under a prompt counts once, one that does not fit is left out.
        reader: of the model.
    """
    reasons = dict.fromkeys((pair.prompt, pair.messages, pair.reason) for pair in pairs if pair.reason)
    first = {(pair.prompt, pair.messages): pair for pair in pairs}
    wanted = [
        conversation(first[prompt, messages].prompt_messages, {"role": "system", "content": reason})
        for prompt, messages, reason in reasons
    ]
    return [list(result.token_ids) for result in reader.read(wanted) if isinstance(result, Reading)]


def lessons(groups: Sequence[PromptGroup], readings: Sequence[Sequence[Reading]], reader: TextReader) -> list[Lesson]:
    """Return each prompt's frame and the tokens of its responses alone.

    Args:
        groups: prompts with their responses.
        readings: what the model sees of them.
        reader: of the model.

    Raises:
        DataError: if a prompt leaves no room for a response.
    """
    return [_lesson(group, read, reader) for group, read in zip(groups, readings, strict=True)]


def _lesson(group: PromptGroup, readings: Sequence[Reading], reader: TextReader) -> Lesson:
    (empty,) = reader.read([conversation(group.pair.prompt_messages, "")])
    if not isinstance(empty, Reading):
        raise DataError(f"{group.pair.where}: {empty}")
    shared = len(empty.token_ids)
    for reading in readings:
        same = next(
            (at for at, (one, two) in enumerate(zip(empty.token_ids, reading.token_ids, strict=False)) if one != two),
            min(len(empty.token_ids), len(reading.token_ids)),
        )
        if reading.dropped_tokens == 0 and group.responses:
            shared = min(shared, same)
    after = tuple(empty.token_ids[shared:])
    frame = Frame(tuple(empty.token_ids[:shared]), after, empty.prompt_length)
    return Lesson(frame, [reading.token_ids[shared : len(reading.token_ids) - len(after)] for reading in readings])
