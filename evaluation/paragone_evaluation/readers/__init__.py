"""The one reader of data files, for training, evaluation, calibration and the benchmarks.

containers.py has the bytes of a file and its rows, layouts.py the columns of each layout and what they mean, rows.py
what every layout becomes, files.py one pass over a file and the doors of training, evaluation_sets.py that of
evaluation. docs/data-files.md says what is read. Left out: torch, and everything that needs a model.
"""

from paragone_evaluation.readers.evaluation_sets import read_evaluation_set
from paragone_evaluation.readers.files import LAYOUTS, read_fields, read_pairs, read_prompts, read_ratings
from paragone_evaluation.readers.rows import STRONGEST, Content, Label, Pair, Prompt, Rating, split_name

__all__ = [
    "LAYOUTS",
    "STRONGEST",
    "Content",
    "Label",
    "Pair",
    "Prompt",
    "Rating",
    "read_evaluation_set",
    "read_fields",
    "read_pairs",
    "read_prompts",
    "read_ratings",
    "split_name",
]
