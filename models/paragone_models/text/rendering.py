"""Render chat templates in a process of their own, within limits that hold whatever a template does."""

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paragone_models.errors import TextError

__all__ = ["Rendering", "StoppedError", "TemplateProcess", "Turn", "TurnEndedError"]

_Messages = Sequence[Mapping[str, Any]]
Rendering = tuple[int, _Messages, _Messages | None] | tuple[int, _Messages, _Messages | None, bool]
"""What is to be rendered: the number of the template, the messages, the tools, and perhaps whether an answer begins."""

_SCRIPT = Path(__file__).with_name("rendering_process.py")
_PROCESSOR_S = 1.0
_BATCH_S = 20.0
_LOOK_S = 0.05
_MEMORY_BYTES = 1 << 30
_PIECE = 1 << 16
# Conversations of one exchange, and about its bytes: both sides hold all of them.
_EXCHANGE, _EXCHANGE_BYTES = 512, 1 << 23
_LAST_WORD_S = 0.5


class StoppedError(TextError):
    """The template did not come to an end by itself: it ran into a limit, or its process was ended."""


class TurnEndedError(Exception):
    """A turn was ended before its time: nobody waits for what was to be read."""


class Turn:
    """A stretch of reading for one caller, while others wait for its end.

    Its time is processor time of templates, since that is what a text can make long; a busy machine ends no turn.

    Args:
        seconds: after which no further conversation is begun.

    Attributes:
        seconds: the same.
        used_s: processor time so far.
        ended: whether somebody ended it.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.used_s = 0.0
        self.ended = False

    @property
    def over(self) -> bool:
        """Whether its time is used up."""
        return self.used_s >= self.seconds

    def spend(self, seconds: float) -> None:
        """Count processor time."""
        self.used_s += seconds

    def end(self) -> None:
        """End it in the middle of whatever is rendered, from any thread."""
        self.ended = True


class _EndedError(Exception):
    """The process has ended, or was ended: why, and whether the template's own work was the reason."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class _Asked(NamedTuple):
    """How a call to ``TemplateProcess.render`` was made."""

    turn: Turn
    least: int
    prompts: Container[int]

    def next(self, lines: Sequence[tuple[int, bytes]], stopped: int) -> int:
        """Return which of the lines to go on with after one that was stopped."""
        following = stopped + 1
        if lines[stopped][0] in self.prompts:
            while following < len(lines) and lines[following][0] not in self.prompts:
                following += 1
        return following


class TemplateProcess:
    """Render the templates of one model, from any thread. The process starts with the first conversation.

    Args:
        sources: the templates.
        variables: what every rendering is told beside messages and tools: the strings of special tokens.
        most_characters: longest text that a template may write.
        processor_s: how long one conversation may take, in processor time.
        batch_s: how long some hundred conversations may take together, by the clock.
    """

    def __init__(
        self,
        sources: Sequence[str],
        variables: Mapping[str, Any],
        *,
        most_characters: int,
        processor_s: float = _PROCESSOR_S,
        batch_s: float = _BATCH_S,
    ) -> None:
        self._settings = {
            "sources": list(sources),
            "variables": dict(variables),
            "most_characters": most_characters,
            "processor_s": processor_s,
            "memory_bytes": _MEMORY_BYTES,
        }
        self._processor_s = processor_s
        self._batch_s = batch_s
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def render(
        self,
        renderings: Sequence[Rendering],
        turn: Turn | None = None,
        *,
        least: int = 1,
        prompts: Container[int] = (),
    ) -> list[str | TextError]:
        """Return the text of each conversation, or why there is none, in order.

        Args:
            turn: no conversation is begun after it, but for the first ``least``.
            prompts: the places of prompts alone; what follows one, up to the next, begins with it. Where a prompt takes
                too long, they are not tried.

        Returns:
            Fewer than were given if the turn is over. Errors have the code ``unsupported_content``: the template
            refuses the messages, or, ``StoppedError``, did not come to an end.

        Raises:
            TurnEndedError: if the turn was ended.
        """
        asked = _Asked(turn or Turn(), least, prompts)
        results: list[str | TextError | None] = [None] * len(renderings)
        lines: list[tuple[int, bytes]] = []
        size = 0
        for place, rendering in enumerate(renderings):
            try:
                lines.append((place, _JSON.encode(rendering).encode() + b"\n"))
                size += len(lines[-1][1])
            except (ValueError, TypeError, RecursionError):
                results[place] = TextError(
                    "unsupported_content", "the messages or tools hold something that is no JSON, or is nested too deep"
                )
            if len(lines) == _EXCHANGE or size > _EXCHANGE_BYTES:
                if not self._exchange(lines, results, asked):
                    break
                lines, size = [], 0
        else:
            self._exchange(lines, results, asked)
        # What the turn did not come to, and all behind it.
        reached = results.index(None) if None in results else len(results)
        return [result for result in results[:reached] if result is not None]

    def _exchange(self, lines: list[tuple[int, bytes]], results: list[str | TextError | None], asked: "_Asked") -> bool:
        """Have lines answered, and return whether all of them were."""
        with self._lock:
            try:
                return self._fill(lines, results, asked)
            finally:
                # A process that owes answers, or was interrupted, is of no use to the next exchange.
                if self._child is not None and self._child.owed:
                    self._child.kill()
                    self._child = None

    def _fill(self, lines: list[tuple[int, bytes]], results: list[str | TextError | None], asked: "_Asked") -> bool:
        turn = asked.turn
        end = time.monotonic() + self._batch_s
        done, lost = 0, 0
        while done < len(lines):
            answered = done
            try:
                for place, _ in lines[done:]:
                    if turn.over and place >= asked.least:
                        return False
                    if done == answered:
                        child = self._running()
                        child.send([line for _, line in lines[done:]])
                    used_s, answer = child.receive(end, turn)
                    turn.spend(used_s)
                    results[place] = _result(answer)
                    done += 1
            except _EndedError as ended:
                self._child = None
                # A process that somebody else has ended (for memory, say) is no verdict on a conversation: once more.
                lost = 1 if done > answered else lost + 1
                if not ended.final and lost < 2:
                    continue
                turn.spend(self._processor_s)
                refusal = StoppedError("unsupported_content", f"the model's chat template was stopped: {ended}")
                # Beyond the time of the whole call nothing more is tried: each try takes as long again.
                stop = len(lines) if time.monotonic() >= end else asked.next(lines, done)
                for place, _ in lines[done:stop]:
                    results[place] = refusal
                done, lost = stop, 0
        return True

    def _running(self) -> "_Child":
        # A fork has copied the pipes, not the process: two that talk through them would get each other's answers.
        if self._child is None or self._child.owner != os.getpid():
            self._child = _Child(self._settings, self._processor_s)
        return self._child


class _Child:
    """A running process, and what came of its answers so far."""

    def __init__(self, settings: Mapping[str, Any], processor_s: float) -> None:
        self.owner = os.getpid()
        self._processor_s = processor_s
        # A session of its own: Ctrl-C is for the parent, whose end closes the pipe and so ends this one too.
        self._process = subprocess.Popen(  # noqa: S603 (nothing in the command comes from outside)
            [sys.executable, "-I", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._received = bytearray()
        self.owed = 0
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self.end = weakref.finalize(self, _end, self._process, self.owner)
        self._write(json.dumps(settings).encode() + b"\n")

    def send(self, lines: Sequence[bytes]) -> None:
        """Send conversations; each is answered in turn."""
        self.owed = len(lines)
        self._write(b"%d\n" % len(lines) + b"".join(lines))

    def receive(self, end: float, turn: Turn) -> Any:
        """Return the next answer, and before it the processor time that it took.

        Args:
            end: when it is too late, on the monotonic clock.

        Raises:
            TurnEndedError: if the turn was ended meanwhile.
        """
        start = 0
        while (line_end := self._received.find(b"\n", start)) < 0:
            start = len(self._received)
            while not self._poll.poll(1000 * _LOOK_S):
                if turn.ended:
                    raise TurnEndedError
                if time.monotonic() >= end:
                    self.kill()
                    raise _EndedError("the conversations of this request take too long to render", final=True)
            piece = os.read(self._answers.fileno(), _PIECE)
            if not piece:
                raise self._ended()
            self._received += piece
        line = bytes(self._received[:line_end])
        del self._received[: line_end + 1]
        self.owed -= 1
        return json.loads(line)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self.end()

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._requests.fileno(), rest) :]
        except OSError:
            raise self._ended() from None

    def _ended(self) -> _EndedError:
        self.end()
        code = self._process.returncode
        if code == -signal.SIGPROF:
            return _EndedError(f"it took more than {self._processor_s:g} s for one conversation", final=True)
        return _EndedError(f"its process ended with code {code}", final=False)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return  # a fork's copy: the process is the parent's to end
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # which ends it, unless a template keeps it
    try:
        process.wait(_LAST_WORD_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_JSON = json.JSONEncoder(default=_plain)


def _result(answer: Any) -> str | TextError:
    if isinstance(answer, str):
        return answer
    if "stopped" in answer:
        return StoppedError("unsupported_content", f"the model's chat template was stopped: {answer['stopped']}")
    return TextError("unsupported_content", f"the model's chat template refuses these messages: {answer['refused']}")
