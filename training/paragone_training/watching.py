"""What a run of training, or of ``paragone annotate``, has done so far, read from the files that it writes.

Nothing is asked of the run itself, so it can be on another machine that shares the disk, over, or killed.
"""

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paragone_training.errors import RunError
from paragone_training.progress_file import PROGRESS_FILE, read_progress
from paragone_training.run_series import Point, in_words, numbers_in_words, numbers_of, series_of

__all__ = ["Progress", "progress_of"]

State = Literal["running", "done", "stopped", "silent"]

_SILENT_S = 600.0
_LINES = 8


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        kind: ``policy``, ``model``, ``head`` or ``annotate``.
        state: ``stopped``: no process holds the folder; ``silent``: nothing was written for ten minutes.
        stage: what is done now, in words.
        done, total: of what ``unit`` says; the total is None where nobody knows it.
        rate: of it a second, None where too little is known.
        left_s: seconds to the end at that rate, None where it is not known.
        numbers: the latest loss, agreement, win rate and others, by name.
        lines: what was said last, the latest at the end.
        series: numbers over the run, by name: how far it was, in its unit, and the number; thinned.
    """

    kind: str
    state: State
    stage: str
    unit: str
    done: float
    total: float | None = None
    rate: float | None = None
    left_s: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    lines: Sequence[str] = ()
    series: Mapping[str, Sequence[Point]] = field(default_factory=dict)


def progress_of(run: Path, *, now: float | None = None) -> Progress:
    """Return how far the run in a folder is; of ``annotate``, that writes a file.

    Args:
        now: seconds since the epoch; the clock's if None.

    Raises:
        RunError: if there is no run.
    """
    moment = time.time() if now is None else now
    run = run.resolve()
    readers: tuple[tuple[Path, Callable[[Path, float], Progress]], ...] = (
        (run / "recipe.json", _policy),
        (run / "checkpoints" / "run.json", _model),
        (run / PROGRESS_FILE, _head),
        (_record_of(run), _annotate),
    )
    for sign, read in readers:
        if sign.is_file():
            try:
                return read(run, moment)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                raise RunError(f"{run}: its files cannot be read just now: {error}") from error
    raise RunError(
        f"{run} holds no run: name the folder of `paragone train` or the output of `paragone annotate`; a run that "
        "has just begun may have written nothing yet"
    )


def _policy(run: Path, _: float) -> Progress:
    recipe = json.loads((run / "recipe.json").read_bytes())
    total = int(recipe["training"]["iterations"])
    done = [json.loads(path.read_bytes()) for path in sorted(run.glob("iteration-*/metrics.json"))]
    lines = [_iteration_line(row) for row in done]
    series = series_of([*_gradient_steps(run), *((float(row["iteration"]), _measures(row)) for row in done)])
    if len(done) >= total:
        return Progress("policy", "done", f"all {total} iterations are done", "iterations", total, total,
                        numbers=_win_rates(done), lines=lines[-_LINES:], series=series)  # fmt: skip
    current = run / f"iteration-{len(done) + 1:02d}"
    history = _history(current.glob("step-*/checkpoints"))
    part, stage = _stage(current, recipe, history)
    rate = len(done) / sum(row["seconds"] for row in done) if done and sum(row["seconds"] for row in done) else None
    finished = len(done) + part
    numbers = {**_win_rates(done), **_latest(history)}
    return Progress(
        "policy", "running" if _is_held(run / "lock") else "stopped", f"iteration {len(done) + 1} of {total}: {stage}",
        "iterations", finished, total, rate, (total - finished) / rate if rate else None, numbers,
        (lines + _step_lines(history))[-_LINES:], series,
    )  # fmt: skip


def _gradient_steps(run: Path) -> Iterator[tuple[float, dict[str, float]]]:
    """Yield what the trainer of every iteration said, and where: 1.5 is the middle of the second iteration's steps.

    Of iterations whose checkpoints the recipe does not keep nothing is left.
    """
    folders = sorted(run.glob("iteration-*"))
    of_each = [sorted(path for path in folder.glob("step-*") if path.is_dir()) for folder in folders]
    # How many steps the first iteration will have nobody knows before they are there.
    count = max((len(steps) for steps in of_each), default=1)
    for before, steps in enumerate(of_each):
        for number, step in enumerate(steps):
            for row in _history([step / "checkpoints"]):
                yield before + (number + row["step"] / max(row["steps"], 1)) / count, numbers_of(row)


def _measures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what an iteration that is done was found to be, by name."""
    evaluation, named = row.get("evaluation") or {}, {"cyclic_share": "share of cyclic triples"}
    found = {label: row[name] for name, label in named.items() if row.get(name) is not None}
    for name, label in (("kl_to_initial", "KL to the initial policy"), ("entropy_per_token", "entropy a token")):
        if evaluation.get(name) is not None:
            found[label] = evaluation[name]
    return {**_win_rates([row]), **found}


def _stage(current: Path, recipe: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """Return how much of an iteration is done, roughly, and what it does now."""
    steps = sorted(path for path in current.glob("step-*") if path.is_dir())
    if steps and history and not (steps[-1] / "policy").exists():
        latest = history[-1]
        return 0.5 + 0.4 * latest["step"] / max(latest["steps"], 1), f"step {latest['step']} of {latest['steps']}"
    if steps:
        return 0.9, "evaluation, or the next step" if (
            steps[-1] / "policy"
        ).exists() else "likelihoods of the responses"
    rounds = sorted(current.glob("round-*"))
    if not rounds:
        return 0.0, "about to sample"
    if (rounds[-1] / "targets.parquet").exists():
        return 0.5, "likelihoods of the responses"
    parts = [sum(1 for _ in (rounds[-1] / "parts").glob(f"{name}-*.parquet")) for name in ("samples", "oracle")]
    per_chunk = max(int(recipe["sampling"]["batch"]) // int(recipe["sampling"]["responses"]), 1)
    prompts = recipe["data"].get("per_iteration")
    chunks = math.ceil(prompts / per_chunk) if prompts else None
    of = f" of {chunks}" if chunks else ""
    return 0.4 * parts[0] / chunks if chunks else 0.2, f"{parts[0]}{of} chunks sampled, {parts[1]} judged"


def _model(run: Path, now: float) -> Progress:
    work = run / "checkpoints"
    history = _history([work])
    lines = _step_lines(history)
    series = series_of((float(row["step"]), numbers_of(row)) for row in history)
    if (run / "paragone.json").is_file():
        total = history[-1]["steps"] if history else 0
        return Progress("model", "done", f"saved in {run}", "steps", total, total,
                        numbers=_latest(history), lines=lines, series=series)  # fmt: skip
    if not history:
        return Progress("model", _heard([work / "run.json"], now), "before the first step", "steps", 0)
    step, total = history[-1]["step"], history[-1]["steps"]
    rate = _rate(history)
    return Progress(
        "model", _heard([work / PROGRESS_FILE], now), f"step {step} of {total}", "steps", step, total, rate,
        (total - step) / rate if rate else None, _latest(history), lines, series,
    )  # fmt: skip


def _head(run: Path, now: float) -> Progress:
    """Read a fit of a head: lines of `train head`, each a stage, and how many responses have passed the backbone."""
    rows = read_progress(run)
    begins = [place for place, row in enumerate(rows) if row.get("begins")]
    rows = rows[begins[-1] if begins else 0 :]
    latest: Mapping[str, Any] = rows[-1] if rows else {"stage": "about to begin"}
    passing = [row for row in rows if "total" in row]
    done, total = (passing[-1]["done"], passing[-1]["total"]) if passing else (0, None)
    numbers = {name: value for row in rows for name, value in row.get("numbers", {}).items()}
    lines = [f"{_clock(row)} {row['stage']}" for row in rows if "done" not in row][-_LINES:]
    if (run / "paragone.json").is_file() and latest.get("ends"):
        return Progress("head", "done", f"saved in {run}", "responses", done, total, numbers=numbers, lines=lines)
    rate = _pace(passing, "done")
    state: State = "stopped" if latest.get("ends") else _heard([run / PROGRESS_FILE], now)
    # How long the fit itself takes nobody knows: once all have passed there is no time left to tell.
    left = (total - done) / rate if rate and total is not None and done < total else None
    return Progress("head", state, latest["stage"], "responses", done, total, rate, left, numbers, lines)


def _annotate(output: Path, now: float) -> Progress:
    record_file = _record_of(output)
    output = record_file.with_name(record_file.name.removesuffix(".run.json"))
    record = json.loads(record_file.read_bytes())
    settings = record["settings"]
    what = f"{settings['answers']} of {settings['model']}"
    counts = record.get("counts")
    if counts is not None and output.exists():
        rows = counts["rows"] + counts["failed_rows"]
        return Progress("annotate", "done", f"{what}, in {output}", "rows", rows, rows, numbers=dict(counts))
    rows_file = output.with_name(f"{output.name}.partial") / "rows.jsonl"
    rows, failures = (_count(rows_file.with_name(name)) for name in ("rows.jsonl", "failures.jsonl"))
    began = record_file.stat().st_mtime
    last = rows_file.stat().st_mtime if rows_file.exists() else began
    rate = rows / (last - began) if last > began else None
    total = _rows_of(settings)
    left = (total - rows) / rate if rate and total is not None and total >= rows else None
    state = _heard([record_file, rows_file], now)
    return Progress("annotate", state, what, "rows", rows, total, rate, left, {"rows": rows, "failures": failures})


def _rows_of(settings: Mapping[str, Any]) -> int | None:
    """Return how many rows the files have that are annotated, None where they cannot be counted."""
    from paragone_evaluation.errors import DataError
    from paragone_evaluation.readers import ReadOptions
    from paragone_evaluation.readers.files import FilePass

    try:
        options = ReadOptions(layout=settings["layout"], map=settings["map"], bad_rows="leave-out")
        counts = [part.count() for part in FilePass(*settings["sources"], options=options).parts]
    except (DataError, OSError):
        return None
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _record_of(output: Path) -> Path:
    name = output.name.removesuffix(".partial")
    return output.with_name(f"{name}.run.json")


def _history(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the lines of the trainers of some folders, the latest run of them last."""
    return [row for folder in sorted(folders) for row in read_progress(folder)]


def _rate(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return steps a second over the last lines, of this attempt alone: a resumed run paused in between."""
    recent = list(history[-_LINES:])
    again = [number for number in range(1, len(recent)) if recent[number]["step"] < recent[number - 1]["step"]]
    recent = recent[again[-1] if again else 0 :]
    return _pace(recent, "step")


def _pace(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return how much a number grew a second from the first to the last line; None where that is not known."""
    if len(rows) < 2 or rows[-1]["time"] <= rows[0]["time"]:
        return None
    return float((rows[-1][name] - rows[0][name]) / (rows[-1]["time"] - rows[0]["time"])) or None


def _latest(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last value of every number that a trainer said, by its name in words."""
    numbers: dict[str, float] = {}
    for row in history:
        numbers |= {in_words(name): value for name, value in numbers_of(row).items()}
    return numbers


def _win_rates(iterations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the win rates of the latest iterate that was evaluated, by the name of the judge."""
    evaluations = [row["evaluation"] for row in iterations if row.get("evaluation")]
    if not evaluations:
        return {}
    return {
        f"win rate ({name})": found["win_rate"]
        for name, found in evaluations[-1].items()
        if isinstance(found, dict) and found.get("win_rate") is not None
    }


def _iteration_line(row: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {100 * value:.1f} %" for name, value in _win_rates([row]).items())
    return f"iteration {row['iteration']} took {row['seconds']:.0f} s{f'; {rates}' if rates else ''}"


def _step_lines(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what the trainer said last."""

    def line(row: Mapping[str, Any], numbers: Mapping[str, float]) -> str:
        return f"{_clock(row)} step {row['step']} of {row['steps']}: {numbers_in_words(numbers)}"

    said = [(row, numbers) for row in history if (numbers := numbers_of(row))]
    return [line(row, numbers) for row, numbers in said[-_LINES:]]


def _clock(row: Mapping[str, Any]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(row["time"]))


def _heard(files: Sequence[Path], now: float) -> State:
    last = max(path.stat().st_mtime for path in files if path.exists())
    return "running" if now - last < _SILENT_S else "silent"


def _is_held(lock: Path) -> bool:
    """Return whether a process of this machine holds a run's folder."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _count(file: Path) -> int:
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        return sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b""))
