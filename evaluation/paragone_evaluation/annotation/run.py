"""One run: rows are read, asked about and written, in their order, in memory that does not grow with the file."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from paragone import AsyncClient
from paragone.wire import ModelInfo, Truncation
from paragone_evaluation.annotation.asking import Asker, Window
from paragone_evaluation.annotation.files import RunFiles
from paragone_evaluation.annotation.kinds import KINDS, AnswerKind, RowAnswer
from paragone_evaluation.annotation.reading import Reader, ReadSettings, input_of
from paragone_evaluation.annotation.rows import Chunk
from paragone_evaluation.annotation.trainer_pairs import PairSettings, write_pairs
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.options import ReadOptions

__all__ = ["AnnotateSettings", "Annotation", "annotate_files"]

_CHUNK_FORWARDS, _CHUNK_CHARACTERS = 256, 1 << 20
_WAITING_CHARACTERS = 16 << 20
"""Characters of rows that are asked about, or answered and not yet written: the memory of a run goes by it."""
_LARGE = 16 << 20
"""Bytes of files that are read in a process of its own."""


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """What is asked, of whom, about which files.

    Attributes:
        answers: name of a kind of answers; ``auto``: rewards where the model has them, else win rates, and tables
            where pairs are made of them.
        concurrency: requests in flight at most, for each URL.
        pairs: the pairs that are made of the answers, if any.
        apart: whether files are read in a process of its own; where they are large, if None.
    """

    sources: Sequence[str]
    urls: Sequence[str]
    answers: str = "auto"
    model: str | None = None
    api_key: str | None = None
    wait_s: float = 0.0
    options: ReadOptions = field(default_factory=lambda: ReadOptions(bad_rows="leave-out"))
    split: str | None = None
    truncation: Truncation = "prompt"
    concurrency: int = 16
    pairs: PairSettings | None = None
    apart: bool | None = None


@dataclass(frozen=True)
class Annotation:
    """What came of a run.

    Attributes:
        counts: ``rows`` that were answered, ``failed_rows``, and ``failures``, of single responses too.
        usage: what this run's answers cost.
        pairs: ``pairs`` that were written, and those that the format cannot hold, by reason; None where none are made.
        already: whether an earlier run had finished all.
    """

    info: ModelInfo
    answers: str
    counts: dict[str, int]
    usage: dict[str, int]
    pairs: dict[str, int] | None
    output: Path
    failed: Path | None
    pairs_file: Path | None
    pairs_format: str | None
    already: bool = False


Progress = Callable[[int, int, int | None], object]
"""Called with how many rows are done, how many of them by an earlier run, and about how many there are."""


def annotate_files(settings: AnnotateSettings, output: Path, *, progress: Progress | None = None) -> Annotation:
    """Ask about every row of files and write what was answered, in their order.

    Raises:
        DataError: if the files or the output cannot be read or written as named.
        EvaluationError: if the model has no such answers, the output belongs to another run, another model answers in
            the middle, or no row has an answer.
        ParagoneError: if the service gives no answers; what was answered is kept.
    """
    return asyncio.run(_annotate(settings, output, progress))


async def _annotate(settings: AnnotateSettings, output: Path, progress: Progress | None) -> Annotation:
    # Files that are not there are told before anybody is asked.
    reading = input_of(settings.sources, settings.options, settings.split, output)
    window = Window(settings.concurrency * len(settings.urls))
    client = AsyncClient(
        settings.urls, api_key=settings.api_key, wait_s=settings.wait_s, sleep=window.sleep, retry_s=300.0
    )
    async with client:
        info = (await client.models())[0] if settings.model is None else await client.model(settings.model)
        kind = _kind(settings, info)
        kind.check(info)
        record = await asyncio.to_thread(_record, settings, reading, info, kind)
        total = await asyncio.to_thread(_total, reading)
        with RunFiles(output, record, kind.columns) as files:
            asker = Asker(client, kind, info, window, settings.truncation)
            if not files.asked:
                read = ReadSettings(
                    sources=tuple(settings.sources), options=settings.options, split=settings.split, output=output,
                    answers=kind.name, most_forwards=min(_CHUNK_FORWARDS, info.limits.max_items or _CHUNK_FORWARDS),
                    most_characters=_CHUNK_CHARACTERS, behind=files.done,
                    in_pairs=info.dimension is None,  # of one response alone it has no vector
                )  # fmt: skip
                apart = _is_large(reading) if settings.apart is None else settings.apart
                with Reader(read, apart=apart) as reader:
                    await _ask_all(
                        reader, asker, files, lambda done, before: progress and progress(done, before, total)
                    )
            return _finished(settings, files, asker, output)


def _kind(settings: AnnotateSettings, info: ModelInfo) -> AnswerKind:
    name = settings.answers
    if name == "auto":
        name = "rewards" if not info.cyclic else "tables" if settings.pairs else "win-rates"
    if name not in KINDS:
        raise EvaluationError(f"--answers is {name!r}; it must be auto or one of {', '.join(KINDS)}")
    if settings.pairs and name == "win-rates":
        raise EvaluationError("pairs need the log-odds between two responses: ask for --answers tables")
    return KINDS[name]


def _record(settings: AnnotateSettings, reading: FilePass, info: ModelInfo, kind: AnswerKind) -> dict[str, Any]:
    """Return everything that the output depends on."""
    options, pairs = settings.options, settings.pairs
    return {
        "answers": kind.name, "model": info.id, "identity": info.identity, "fingerprint": info.fingerprint,
        "sources": [part.name for part in reading.parts], "sha256": reading.sha256(),
        "layout": options.layout, "map": dict(options.map), "split": settings.split, "attribute": options.attribute,
        "rankings": options.rankings, "truncation": settings.truncation,
        "pairs": None if pairs is None else [pairs.which, pairs.margin, pairs.format],
    }  # fmt: skip


def _total(reading: FilePass) -> int | None:
    counts = [part.count() for part in reading.parts]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_large(reading: FilePass) -> bool:
    """Return whether reading is worth a process of its own."""
    sizes = [_LARGE if part.table is not None else Path(part.name).stat().st_size for part in reading.parts]
    return sum(sizes) >= _LARGE


async def _ask_all(reader: Reader, asker: Asker, files: RunFiles, progress: Callable[[int, int], object]) -> None:
    """Keep chunks in flight and write them in their order, each as soon as those before it are written."""
    waiting: deque[tuple[Chunk, asyncio.Task[list[RowAnswer]]]] = deque()
    before = files.done + 1
    done = before

    async def write_first() -> None:
        nonlocal done
        chunk, task = waiting[0]
        answers = await task
        waiting.popleft()
        _write(files, chunk, answers)
        done = chunk.last + 1
        progress(done, before)

    try:
        progress(done, before)
        # Reading is work of its own, which a thread does while answers are on their way.
        while (chunk := await asyncio.to_thread(reader.next)) is not None:
            waiting.append((chunk, asyncio.create_task(asker.ask(chunk))))
            while waiting and (waiting[0][1].done() or _is_full(waiting, asker.window)):
                if waiting[0][1].done():
                    await write_first()
                else:
                    under_way = [task for _, task in waiting if not task.done()]
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        while waiting:
            await write_first()
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


def _is_full(waiting: Sequence[tuple[Chunk, Any]], window: Window) -> bool:
    # One more than fit is ready when a place becomes free; what is done waits for those before it.
    under_way = sum(not task.done() for _, task in waiting)
    return under_way > int(window.limit) + 1 or sum(chunk.characters for chunk, _ in waiting) > _WAITING_CHARACTERS


def _write(files: RunFiles, chunk: Chunk, answers: Sequence[RowAnswer]) -> None:
    rows, failures, lost = list[bytes](), list[dict[str, Any]](), 0
    for entry, answer in zip(chunk.rows, answers, strict=True):
        if entry.number <= files.done:
            continue  # of a chunk that an earlier run wrote in part
        for failure in answer.failures:
            response = {} if failure.response is None else {"response": failure.response}
            failures.append({**entry.place, **response, "code": failure.code, "message": failure.message})
        if answer.fields is None:
            lost += 1
        else:
            # Two JSON objects in one: the row was written where it was read.
            rows.append(b"%b,%b\n" % (entry.content[:-1], to_json(answer.fields)[1:]))
    files.add(rows, failures, lost)


def _finished(settings: AnnotateSettings, files: RunFiles, asker: Asker, output: Path) -> Annotation:
    counts, made = files.counts, None
    pairs_file = output.with_name(f"{output.name.partition('.')[0]}.pairs.jsonl") if settings.pairs else None
    if not files.whole:
        if not counts["rows"]:
            raise EvaluationError(f"no row has an answer: {files.abandon() or 'the files have no row'}")
        if settings.pairs and pairs_file is not None:
            made = write_pairs(files.rows(), pairs_file, asker.kind, settings.pairs, temperature=asker.info.temperature)
        files.finish(pairs=made)
    return Annotation(
        asker.info, asker.kind.name, counts, asker.usage, made, output,
        files.failed if counts["failures"] else None, pairs_file,
        settings.pairs.format if settings.pairs else None, files.whole,
    )  # fmt: skip
