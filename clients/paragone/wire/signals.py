"""What a group's comparisons are turned into for a trainer: the names of the signals, and the shaping of one.

Shared by every route that compares a group. The formulas are in the documentation, ``docs/cohorts.md``.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from paragone.wire.conversations import RequestModel

__all__ = ["Shaping", "Signal"]

# A literal, because pydantic names the known values where it refuses an unknown one.
Signal = Literal["win_rate", "rank", "anchor", "nash", "elimination", "acyclic", "reward"]

# Far over any use, and far from what would overflow in a sum of them.
Weight = Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False)]


class Shaping(RequestModel):
    """What is added to a signal for length and style: nothing by default, and 0 in sum over the group's members."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"answer_length_penalty": 0.1, "style_penalty": 0.05}]})

    reasoning_bonus: Weight = Field(
        default=0.0, description="For the shortest reasoning among the best members, at the others' expense."
    )
    answer_bonus: Weight = Field(
        default=0.0, description="For the shortest answer among the best members, at the others' expense."
    )
    top_percentile: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.2, description="Which share of the members, by signal, are the best ones. [share]"
    )
    reasoning_length_penalty: Weight = Field(
        default=0.0, description="How far apart the group's longest and its shortest reasoning are put."
    )
    answer_length_penalty: Weight = Field(
        default=0.0, description="How far apart the group's longest and its shortest answer are put."
    )
    style_penalty: Weight = Field(
        default=0.0,
        description="How far apart the answers with the most and the fewest headers, list items, bold words and emoji "
        "for their length are put.",
    )
