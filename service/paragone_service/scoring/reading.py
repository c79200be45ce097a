"""The thread that reads a model's texts: chat template, tokens, cuts and read positions, off the event loop.

What is read to be run may wait for long, and much of it at a time: it is kept as bare token ids, two or four bytes each
(a list of Python's ints takes 36), and its rendered text is let go.
"""

import asyncio
import functools
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Conversation, EncodeItem, Reading, characters
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Call

__all__ = ["Job", "ReadingThread"]

_CHUNK, _CHUNK_CHARACTERS = 128, 1 << 18
"""Most conversations of a chunk, and about its most characters: seconds of a tokenizer, and a hundred megabytes."""
_LARGEST_SHORT = 2**16 - 1

Job = tuple[EncodeItem, int]
"""What is run of a conversation, its token ids an array, and how many tokens of its prompt were cut."""


class ReadingThread:
    """Read conversations for one hosted model, one chunk at a time.

    A tokenizer keeps how special tokens are split as state of its own, so there is one thread and no more.

    Args:
        name: what the model is called in requests.
        model: the loaded model.
        clock: in seconds.
    """

    def __init__(self, name: str, model: PreferenceModel, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._name = name
        self._reader = model.reader
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")

    async def read(self, conversations: Sequence[Conversation], call: Call) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it sees nothing.

        The call's truncation policy counts, and its timings are filled in.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        return [reading async for chunk in self._chunks(conversations, call) for reading in chunk]

    async def jobs(self, conversations: Sequence[Conversation], call: Call) -> list[Job | TextError]:
        """Return what is to be run of each conversation, as small as it can be kept, or why it cannot be read.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        return [
            reading if isinstance(reading, TextError) else _job(reading)
            async for chunk in self._chunks(conversations, call)
            for reading in chunk
        ]

    async def _chunks(
        self, conversations: Sequence[Conversation], call: Call
    ) -> AsyncIterator[list[Reading | TextError]]:
        reader = self._reader
        if reader is None:
            raise ServiceError(
                ErrorCode.TEXT_UNAVAILABLE,
                f"model {self._name} was loaded from a folder without a tokenizer and reads no text: add its "
                "tokenizer files to the folder",
            )
        started = self._clock()
        loop = asyncio.get_running_loop()
        for chunk in _chunked(conversations):  # other requests' chunks come in between
            yield await loop.run_in_executor(
                self._thread, functools.partial(reader.read, chunk, truncation=call.truncation)
            )
        call.timings.tokenize_s += self._clock() - started

    def close(self) -> None:
        """Let the thread end after the chunk it has."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _chunked(conversations: Sequence[Conversation]) -> Iterator[Sequence[Conversation]]:
    first = total = 0
    for place, one in enumerate(conversations):
        count = characters((*one.prompt, *one.response))
        if place - first == _CHUNK or (place > first and total + count > _CHUNK_CHARACTERS):
            yield conversations[first:place]
            first, total = place, 0
        total += count
    if first < len(conversations):
        yield conversations[first:]


def _job(reading: Reading) -> Job:
    ids = reading.token_ids
    compact = array("H" if max(ids) <= _LARGEST_SHORT else "I", ids)
    return EncodeItem(compact, reading.reads, reading.prompt_length), reading.dropped_tokens
