"""What a signal gains or loses by length and style within its group: in sum 0, and nothing by default. No torch.

K is the number of responses of a group. The terms are those of NVIDIA NeMo Gym's ``genrm_compare``; their formulas here
are this project's reading of its description, and not taken from its code.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_models.text.messages import split_reasoning

__all__ = ["Measures", "measure", "shaped"]

Float64s = NDArray[np.float64]

# A fence that is never closed is code to the end.
_CODE = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_STYLE = re.compile(
    r"^[ \t]*\#{1,6}[ \t]"  # headers
    r"|^[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]"  # list items
    r"|\*\*[^*\n]+\*\*|__[^_\n]+__"  # bold
    r"|[\U0001F1E6-\U0001F1FF\U0001F300-\U0001FAFF\u2600-\u27BF]",  # emoji
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Measures:
    """What shaping needs to know of a response.

    Attributes:
        reasoning_length: of its thoughts. [characters]
        answer_length: of all that it says besides. [characters]
        style_density: headers, list items, bold passages and emoji outside code blocks. [per word]
    """

    reasoning_length: int
    answer_length: int
    style_density: float


def measure(response: Sequence[Mapping[str, Any]]) -> Measures:
    """Return the measures of a response, of its assistant's messages alone.

    Thoughts are ``reasoning_content``, and what a content has up to ``</think>``.

    Args:
        response: messages; a content is a text, a list of parts, of which texts count, or None.
    """
    thoughts, answers = [], []
    for message in response:
        if message.get("role") != "assistant":
            continue
        reasoning, answer = split_reasoning(_text_of(message.get("content")))
        # The tags are the template's, and no words.
        inner = reasoning.replace("<think>", "", 1).replace("</think>", "", 1)
        thoughts += [(message.get("reasoning_content") or "").strip(), inner.strip()]
        answers.append(answer.strip())
    prose = _CODE.sub("", "\n".join(answers))
    words = len(prose.split())
    return Measures(
        reasoning_length=sum(map(len, thoughts)),
        answer_length=sum(map(len, answers)),
        style_density=len(_STYLE.findall(prose)) / words if words else 0.0,
    )


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    return "".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("type") == "text")


def shaped(
    signal: ArrayLike,
    measures: Sequence[Measures],
    *,
    reasoning_bonus: float = 0.0,
    answer_bonus: float = 0.0,
    top_percentile: float = 0.2,
    reasoning_length_penalty: float = 0.0,
    answer_length_penalty: float = 0.0,
    style_penalty: float = 0.0,
) -> Float64s:
    """Return the signal with its bonuses and penalties.

        shaped_i = s_i + Σ penalty (w_i − mean w) + Σ bonus (e_i − 1/K)
        w_i = (max x − x_i) / (max x − min x), 0 where all x are equal
        e_i = 1/m for the m shortest of the best, 0 for the others

    x is a length, or the density of style. The best are those with the ⌈top_percentile · K⌉-th highest signal or more.

    Source: ``genrm_compare`` of NVIDIA NeMo Gym (group-relative length control), as read by this project.

    Args:
        signal: one number per response. [K]
        measures: of each response. [K]
        reasoning_bonus: for the shortest thoughts among the best.
        answer_bonus: for the shortest answer among the best.
        top_percentile: share of the group that is the best, in (0, 1].
        reasoning_length_penalty: how far apart the longest and the shortest thoughts are put.
        answer_length_penalty: the same for answers.
        style_penalty: the same for the density of style.

    Returns:
        The shaped signal, of the same sum, float64. [K]

    Raises:
        ValueError: if there is not one finite number and one measure per response, or ``top_percentile`` is not in
            (0, 1].
    """
    values = np.asarray(signal, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(measures) or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"a signal of shape {values.shape} and {len(measures)} measures: give one finite number and one measure "
            "per response"
        )
    if not 0 < top_percentile <= 1:
        raise ValueError(f"top_percentile is a share of the group in (0, 1], not {top_percentile}")
    reasoning = np.array([measure.reasoning_length for measure in measures], dtype=np.float64)
    answer = np.array([measure.answer_length for measure in measures], dtype=np.float64)
    style = np.array([measure.style_density for measure in measures])
    best = _best(values, top_percentile)
    terms = (
        (reasoning_length_penalty, _low(reasoning)),
        (answer_length_penalty, _low(answer)),
        (style_penalty, _low(style)),
        (reasoning_bonus, _shortest(reasoning, best)),
        (answer_bonus, _shortest(answer, best)),
    )
    # One after the other, and none that is off: so a signal that nothing shapes keeps its bits.
    for weight, share in terms:
        if weight:
            values = values + weight * (share - share.mean())
    return values


def _best(signal: Float64s, share: float) -> NDArray[np.bool_]:
    # Rounding of a product must not add a place: 0.1 · 30 is a little more than 3.
    places = max(1, math.ceil(share * len(signal) - 1e-9))
    return np.asarray(signal >= np.sort(signal)[-places])


def _low(x: Float64s) -> Float64s:
    spread = x.max() - x.min()
    return (x.max() - x) / spread if spread else np.zeros_like(x)


def _shortest(length: Float64s, best: NDArray[np.bool_]) -> Float64s:
    chosen = best & (length == length[best].min())
    return np.asarray(chosen / chosen.sum())
