"""Runs of training and annotating, as whoever watches one tells a server, for its page to show."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from paragone.wire.answers import AnswerModel, Finite
from paragone.wire.conversations import Few, RequestModel, SetName, Text

__all__ = ["RunAnswer", "RunReport", "RunSummary", "RunsAnswer"]

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Name = Annotated[Text, Field(min_length=1, max_length=64)]
_Word = Annotated[Text, Field(max_length=32)]
_Sentence = Annotated[Text, Field(max_length=500)]
_Numbers = Annotated[dict[_Name, Finite], Field(max_length=64)]
_State = Literal["running", "done", "stopped", "silent"]
_Point = Annotated[list[Finite], Field(min_length=2, max_length=2)]

_NAME = "What the run is called: what comes later under the same name takes its place."
_KIND = "What runs: `policy`, `model`, `head` or `annotate`; shown as it is."
_STATE = "`stopped`: nobody runs it any more, and it is not done; `silent`: it has written nothing for long."
_STAGE = "What it does now, in words."
_UNIT = "What is counted: steps, iterations, rows, responses."
_DONE = "How many are done. [unit]"
_TOTAL = "Of how many; null where nobody knows. [unit]"
_RATE = "Units a second; null where it is not known."
_LEFT_S = "Time to the end at that rate; null where it is not known. [seconds]"
_LINES = "What it said last, the latest at the end."
_SERIES = (
    "Numbers over the run, by name, in the order in which they are shown: `[how far the run was, in its unit; the "
    "number]`, from the earliest on."
)
_NUMBERS = "The latest loss, agreement, win rate and others, by name."


class RunReport(RequestModel):
    """How far a run is, and how it came there."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "judge",
                    "kind": "model",
                    "state": "running",
                    "stage": "step 20 of 120",
                    "unit": "steps",
                    "done": 20,
                    "total": 120,
                    "rate": 0.5,
                    "left_s": 200,
                    "numbers": {"loss": 0.41},
                    "lines": ["12:03:20 step 20 of 120: loss 0.41"],
                    "series": {"loss": [[10, 0.62], [20, 0.41]]},
                }
            ]
        }
    )
    name: SetName = Field(description=_NAME)
    kind: _Word = Field(description=_KIND)
    state: _State = Field(description=_STATE)
    stage: _Sentence = Field(description=_STAGE)
    unit: _Word = Field(description=_UNIT)
    done: _Amount = Field(description=_DONE)
    total: _Amount | None = Field(default=None, description=_TOTAL)
    rate: _Amount | None = Field(default=None, description=_RATE)
    left_s: _Amount | None = Field(default=None, description=_LEFT_S)
    numbers: _Numbers = Field(default={}, description=_NUMBERS)
    lines: Annotated[Few[_Sentence], Field(max_length=20)] = Field(default=[], description=_LINES)
    series: Annotated[dict[_Name, Annotated[Few[_Point], Field(max_length=500)]], Field(max_length=24)] = Field(
        default={}, description=_SERIES
    )


class RunSummary(AnswerModel):
    """How far a run is, as the server was told."""

    name: str = Field(description=_NAME)
    kind: str = Field(description=_KIND)
    state: str = Field(description=_STATE)
    stage: str = Field(description=_STAGE)
    unit: str = Field(description=_UNIT)
    done: Finite = Field(description=_DONE)
    total: Finite | None = Field(default=None, description=_TOTAL)
    rate: Finite | None = Field(default=None, description=_RATE)
    left_s: Finite | None = Field(default=None, description=_LEFT_S)
    heard: float = Field(description="When the server was told. [seconds since 1970]")
    since_s: _Amount = Field(description="How long ago that was, by the server's clock. [seconds]")


class RunAnswer(RunSummary):
    """All that the server was told of a run."""

    numbers: dict[str, Finite] = Field(default={}, description=_NUMBERS)
    lines: list[str] = Field(default=[], description=_LINES)
    series: dict[str, list[list[Finite]]] = Field(default={}, description=_SERIES)


class RunsAnswer(AnswerModel):
    """The runs that the server was told of, the newest first."""

    runs: list[RunSummary] = Field(description="Without their numbers, which each run's own address has.")
