"""The answers of a run on disk, one line each as they come, so that an interrupted evaluation asks nothing twice."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.scorers import Comparison, ModelCard, Rating, Refusal

__all__ = ["Answer", "AnswerStore"]

Answer = Rating | Comparison | Refusal

_FORMAT = 1


class AnswerStore:
    """Appends answers to a JSONL file whose first line says which model gave them.

    Args:
        path: of the file; created where needed, its folder too.
        card: of the model that is asked.

    Raises:
        EvaluationError: if the file holds another model's answers, is no such file, or cannot be written.
    """

    def __init__(self, path: Path, card: ModelCard) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        header = {"format": _FORMAT, "fingerprint": card.fingerprint, "model": card.name, "source": card.source}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            # A line without its end was being written when the run stopped.
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._read(whole, header)
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write([header])
        except OSError as error:
            raise EvaluationError(f"cannot keep answers in {path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Keep answers by their keys.

        Args:
            answers: new ones.
        """
        self.known.update(answers)
        self._write([{"key": key, **_written(answer)} for key, answer in answers.items()])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._file.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        self._file.flush()

    def _read(self, content: bytes, expected: dict[str, Any]) -> None:
        lines = content.splitlines()
        try:
            header = json.loads(lines[0])
            found = header.get("format"), header.get("fingerprint")
            for line in lines[1:]:
                row = json.loads(line)
                self.known[row.pop("key")] = _answer(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{self.path} is no file of answers: remove it, or choose another --output"
            ) from error
        if found != (_FORMAT, expected["fingerprint"]):
            raise EvaluationError(
                f"{self.path} holds the answers of {header.get('model')} (fingerprint {str(found[1])[:12]}…), and "
                f"{expected['model']} (fingerprint {expected['fingerprint'][:12]}…) is asked now: weights, settings, "
                "device or library versions differ. Choose another --output, or remove the folder"
            )


def _written(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"refused": answer.code, "message": answer.message}
    if isinstance(answer, Comparison):
        return {"logit": answer.logit}
    return {"reward": answer.reward, **({"attributes": dict(answer.attributes)} if answer.attributes else {})}


def _answer(row: dict[str, Any]) -> Answer:
    if "refused" in row:
        return Refusal(row["refused"], row["message"])
    if "logit" in row:
        return Comparison(float(row["logit"]))
    reward = row["reward"]
    return Rating(
        None if reward is None else float(reward),
        {name: float(value) for name, value in row.get("attributes", {}).items()},
    )
