"""One evaluation of a file that was read: the model is asked, measures are computed, results are written."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from paragone import ParagoneError
from paragone_evaluation.asking import Answers, AnswerStore, ask_model, questions
from paragone_evaluation.benchmark_results import write_rewardbench_files
from paragone_evaluation.dataset import EvaluationSet
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.results import MeasureSettings, check_comparable, plain, results_of
from paragone_evaluation.results_report import page_of_results
from paragone_evaluation.routing import Member
from paragone_evaluation.scorers import Scorer, ServiceScorer
from paragone_models.progress import shown_work

__all__ = ["Evaluation", "default_folder", "evaluate_models"]


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, as in ``results.json``, and the files that were written, the report first."""

    results: dict[str, Any]
    files: tuple[Path, ...]


def default_folder(data: EvaluationSet, name: str) -> Path:
    """Return the folder for answers and results of the model ``name``, where the user names none."""
    stem = Path(data.path).name.split(".")[0]
    part = f"held-out-{data.holdout:g}" if data.holdout else data.split
    parts = [stem, part, name] if part else [stem, name]
    return Path("evaluations") / re.sub(r"[^\w.-]+", "-", "-".join(map(str, parts)))


def evaluate_models(
    data: EvaluationSet,
    scorer: Scorer,
    folder: Path,
    settings: MeasureSettings,
    *,
    against: Scorer | None = None,
    members: Sequence[ServiceScorer] = (),
    command: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Ask one model or two, compute all measures, and write answers, results and report into a folder.

    Answers that are in the folder already are not asked for again.

    Args:
        folder: gets ``answers.jsonl``, ``results.json``, ``report.html`` and, for RewardBench, its two files.
        against: asks another model, for a paired comparison.
        members: ask those of the ensemble that ``scorer`` asks, for accuracy against cost.
        command: what was typed, for the report.
        console: shows progress; nothing is shown if None.

    Raises:
        EvaluationError: if the folder holds another model's answers or cannot be written, nothing of the file can be
            asked, a model answered nothing, or nothing that was answered is decided.
        ParagoneError: if a service does not answer; what was answered is kept.
        ModelError: if a local model fails; what was answered is kept.
    """
    check_comparable(data, scorer.card, None if against is None else against.card)  # refused before anything is asked
    # Members first: what the ensemble asked a judge would be cached, and its calls not counted.
    parts = [
        _member(data, member, folder / f"answers-member-{place}.jsonl", console)
        for place, member in enumerate(members, start=1)
    ]
    answers = _answers(data, scorer, folder / "answers.jsonl", console)
    other = None if against is None else _answers(data, against, folder / "answers-against.jsonl", console)
    summary = results_of(data, answers, settings, against=other, members=parts)
    origin = {
        "paragone": version("paragone"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    results: dict[str, Any] = plain({**origin, **summary})
    # The numbers first: if the page cannot be drawn, they are there.
    report, numbers = folder / "report.html", folder / "results.json"
    try:
        numbers.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        report.write_text(page_of_results(results), encoding="utf-8")
        extra = []
        if data.layout in ("rewardbench", "rewardbench2"):
            extra = write_rewardbench_files(folder, data, answers, summary["measures"]["benchmark"])
    except OSError as error:
        raise EvaluationError(f"cannot write into {folder}: {error.strerror or error}") from error
    return Evaluation(results, (report, numbers, *extra))


def _member(data: EvaluationSet, scorer: ServiceScorer, path: Path, console: Console | None) -> Member:
    known = path.exists()
    answers = _answers(data, scorer, path, console)
    if scorer.card.kind != "judge":
        return Member(answers, 0.0)
    # What was kept from an earlier run, or cached by the server, has cost something of which nothing is known here.
    return Member(answers, scorer.judge_calls / questions(data) if scorer.judge_calls and not known else None)


def _answers(data: EvaluationSet, scorer: Scorer, path: Path, console: Console | None) -> Answers:
    # The store checks the folder's fingerprint before the first question.
    with AnswerStore(path, scorer.card) as store:
        if console is None:
            return ask_model(data, scorer, store)
        try:
            with shown_work(f"asking {scorer.card.name}", console=console) as work:
                return ask_model(data, scorer, store, progress=work.at)
        # Both end the command, after minutes of work that are not lost: people must be told how to go on.
        except (KeyboardInterrupt, ParagoneError):
            kept = f"{len(store.known)} answers are kept in {path}: the same command with the same --output continues"
            console.print(kept, soft_wrap=True, markup=False, highlight=False)
            raise
