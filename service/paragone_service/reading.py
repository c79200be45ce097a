"""The thread that reads a model's texts: chat template, tokens, cuts and read positions, off the event loop."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.messages import Conversation
from paragone_models.model import PreferenceModel
from paragone_models.reader import Reading
from paragone_service.calls import Call
from paragone_service.errors import ServiceError

__all__ = ["ReadingThread"]

_CHUNK = 128


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
        reader = self._reader
        if reader is None:
            raise ServiceError(
                ErrorCode.TEXT_UNAVAILABLE,
                f"model {self._name} was loaded from a folder without a tokenizer and reads no text: add its "
                "tokenizer files to the folder",
            )
        started = self._clock()
        loop = asyncio.get_running_loop()
        readings: list[Reading | TextError] = []
        for start in range(0, len(conversations), _CHUNK):  # other requests' chunks come in between
            chunk = conversations[start : start + _CHUNK]
            readings += await loop.run_in_executor(
                self._thread, functools.partial(reader.read, chunk, truncation=call.truncation)
            )
        call.timings.tokenize_s += self._clock() - started
        return readings

    def close(self) -> None:
        """Let the thread end after the chunk it has."""
        self._thread.shutdown(wait=True, cancel_futures=True)
