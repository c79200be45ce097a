"""The first sentence of a report on agreement: how often, how sure that is, and whether it is any good."""

from collections.abc import Mapping
from typing import Any

from paragone_evaluation.report.words import counted, interval, percent

__all__ = ["agreement_verdict"]

_Estimate = Mapping[str, Any]


def agreement_verdict(
    accuracy: _Estimate,
    gain: _Estimate | None,
    *,
    pairs: int,
    longer: float | None,
    few: bool,
    whom: str = "people",
) -> str:
    """Return a sentence without its subject, the model.

    Args:
        accuracy: share of the decided pairs with ``value``, ``low`` and ``high``, None where there is no interval.
        gain: accuracy minus that of "prefer the longer response" on the same pairs, in the same form.
        longer: accuracy of that rule.
        few: the intervals are from so few questions that they tell little.
        whom: who judged the pairs.
    """
    ends = interval(accuracy, scale="percent")
    shown = f" (95 % interval {ends})" if ends else ""
    meant = "from so few questions a hint, and no verdict." if few and ends else _meant(accuracy, gain, longer)
    return f"agrees with {whom} on {percent(accuracy['value'])} of {counted(pairs, 'decided pair')}{shown}: {meant}"


def _meant(accuracy: _Estimate, gain: _Estimate | None, longer: float | None) -> str:
    if accuracy["low"] is None:
        return "there are too few questions to say how sure that is."
    if accuracy["high"] < 0.5:
        return "less often than a coin would. Look whether the labels are the right way round."
    if accuracy["low"] <= 0.5:
        return "these pairs do not show that it is better than a coin."
    rule = f"choosing the longer response ({percent(longer)})"
    if gain is None or gain["low"] is None or longer is None:
        return "better than a coin."
    if gain["low"] > 0:
        return f"better than a coin, and better than {rule}."
    if gain["high"] < 0:
        return f"better than a coin, and worse than {rule}."
    return f"better than a coin. These pairs do not show that it is better than {rule}."
