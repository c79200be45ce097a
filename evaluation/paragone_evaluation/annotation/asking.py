"""Ask about chunks of rows: as many requests at once as the service takes, and a bad row costs nobody else's answer."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from paragone import AsyncClient, ParagoneError
from paragone.exceptions import RequestError, ServerError, UnsupportedError
from paragone.wire import ModelInfo, Truncation, Usage
from paragone_evaluation.annotation.kinds import AnswerKind, Failure, RowAnswer, refused
from paragone_evaluation.annotation.rows import Chunk
from paragone_evaluation.errors import EvaluationError

__all__ = ["Asker", "Window"]

_START = 4.0  # requests in flight before anything is known of the service
_FAULTS = 20  # rows one after the other that are refused without being named: then it is not the rows


class Window:
    """How many requests may be in flight: more while the service takes them, half as many when it asks to wait.

    ``sleep`` is the client's: whenever a request waits for its next try, none begins for as long.

    Args:
        most: requests in flight at most.
        clock: seconds since any fixed moment.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.limit = most, min(_START, float(most))
        self._clock, self._flying, self._held_until = clock, 0, 0.0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> None:
        while True:
            if (held := self._held_until - self._clock()) > 0:
                await asyncio.sleep(held)
            elif self._flying < int(self.limit):
                self._flying += 1
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flying -= 1
        if error is None:
            # One more with every round of answers.
            self.limit = min(float(self.most), self.limit + 1.0 / self.limit)
        self._changed.set()

    async def sleep(self, wait_s: float) -> None:
        """Wait before the next try of a request, and let no other one begin until then."""
        now = self._clock()
        # All that are in flight are refused together: that is one refusal.
        if now >= self._held_until:
            self.limit = max(1.0, self.limit / 2)
        self._held_until = max(self._held_until, now + wait_s)
        await asyncio.sleep(wait_s)


@dataclass
class Asker:
    """Asks a model for one kind of answers.

    Attributes:
        usage: what the answers cost so far.
    """

    client: AsyncClient
    kind: AnswerKind
    info: ModelInfo
    window: Window
    truncation: Truncation = "prompt"
    usage: dict[str, int] = field(default_factory=dict)
    _faults: int = 0

    async def ask(self, chunk: Chunk) -> list[RowAnswer]:
        """Return the answer of each row of a chunk.

        Raises:
            ParagoneError: if the service gives no answers at all: it is gone, or refuses the key.
            EvaluationError: if another model answers than the one that was there at first.
        """
        async with self.window:
            answers: dict[int, RowAnswer] = {}
            asked: list[tuple[int, list[Any]]] = []
            for row in chunk.rows:
                if isinstance(row.questions, str):
                    answers[row.number] = RowAnswer(None, (Failure(row.code, row.questions),))
                else:
                    asked.append((row.number, row.questions))
            await self._ask(asked, answers)
        return [answers[row.number] for row in chunk.rows]

    async def _ask(self, asked: Sequence[tuple[int, list[Any]]], answers: dict[int, RowAnswer]) -> None:
        """Ask about rows; where the request is refused, find the row that is at fault and ask about the others."""
        waiting = [list(asked)]
        while waiting:
            rows = waiting.pop()
            if not rows:
                continue
            try:
                answered = await self.kind.ask(
                    self.client, [one for _, questions in rows for one in questions], self.info.id, self.truncation
                )
            except UnsupportedError:
                raise  # no row of this model has such an answer
            except (RequestError, ServerError) as error:
                # A fault of the server may be one row's, as NaN is, and must not end a night's work.
                if error.status is None and isinstance(error, RequestError):
                    waiting.append(self._carried(rows, error, answers))
                elif len(rows) == 1:
                    self._fail(rows[0][0], error, answers)
                else:
                    waiting += _without_culprit(rows, error, answers)
                continue
            self._faults = 0
            self._check(answered.fingerprint)
            self._count(answered.usage)
            at = 0
            for number, questions in rows:
                answers[number] = self.kind.answer(answered.rows[at : at + len(questions)])
                at += len(questions)

    def _carried(
        self, rows: list[tuple[int, list[Any]]], error: RequestError, answers: dict[int, RowAnswer]
    ) -> list[tuple[int, list[Any]]]:
        """Return the rows that the wire can carry, of a request that was never sent."""
        carried = []
        for number, questions in rows:
            failure = refused(self.kind, questions)
            if failure is None:
                carried.append((number, questions))
            else:
                answers[number] = RowAnswer(None, (failure,))
        if len(carried) == len(rows):
            raise error
        return carried

    def _fail(self, number: int, error: ParagoneError, answers: dict[int, RowAnswer]) -> None:
        self._faults += error.item is None
        if self._faults >= _FAULTS:
            raise error
        answers[number] = RowAnswer(None, (_failure(error),))

    def _check(self, fingerprint: str) -> None:
        if fingerprint != self.info.fingerprint:
            raise EvaluationError(
                f"{self.info.id} now answers with another model or other settings than when this run began "
                f"(fingerprint {fingerprint[:12]}… instead of {self.info.fingerprint[:12]}…), or two URLs "
                "serve different ones: start again with another output"
            )

    def _count(self, usage: Usage) -> None:
        for name in Usage.model_fields:
            self.usage[name] = self.usage.get(name, 0) + getattr(usage, name)


def _failure(error: ParagoneError) -> Failure:
    _, colon, rest = error.message.partition("]: ")
    return Failure(str(error.code or type(error).__name__), rest if colon else error.message)


def _without_culprit(
    rows: list[tuple[int, list[Any]]], error: ParagoneError, answers: dict[int, RowAnswer]
) -> list[list[tuple[int, list[Any]]]]:
    """Return what is left to ask: all rows but the one at fault, or where none is named, the two halves."""
    if error.item is not None and isinstance(error, RequestError):
        at = 0
        for place, (number, questions) in enumerate(rows):
            at += len(questions)
            if error.item < at:
                answers[number] = RowAnswer(None, (_failure(error),))
                return [rows[:place] + rows[place + 1 :]]
    middle = len(rows) // 2
    return [rows[middle:], rows[:middle]]
