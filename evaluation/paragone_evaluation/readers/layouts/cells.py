"""What the cells of a CSV file hold: text, but for the columns in which layouts have numbers, lists or objects."""

import json
from typing import Any

__all__ = ["cell_of"]

# By name, as the values tell nothing: a response "42" or "[1, 2]" is a text.
_NUMBERS = frozenset({
    "strength", "preference_strength", "overall_preference", "margin", "num_correct", "labels", "choice", "turn",
    "better_response_id", "safer_response_id", "score_A", "score_B",
    "helpfulness", "correctness", "coherence", "complexity", "verbosity", "probability",
})  # fmt: skip
_OBJECTS = frozenset({
    "ratings", "responses", "comparisons", "completions", "completion", "tools", "context", "messages", "conversations",
    "conversation_a", "conversation_b", "full_conversation", "answers", "info", "summaries", "summary", "input",
    "output", "preferred_output", "non_preferred_output", "preference_graph", "scores", "sampled_conflict_pairs",
    "history", "matrix", "interval",
})  # fmt: skip


def cell_of(name: str, text: str | None) -> Any:
    """Return what a cell of the column holds."""
    if text is None or (not text and name in _NUMBERS | _OBJECTS):
        return None
    if name in _NUMBERS or (name in _OBJECTS and text.lstrip()[:1] in ("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # what the column may hold is the layout's to say
    return text
