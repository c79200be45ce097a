"""The one reader of data files, for training, evaluation, calibration and the benchmarks.

files.py has the bytes of a file, one pass over its rows and what training reads, layouts/ the columns of each layout
and what they mean, rows.py what every layout becomes, evaluation_sets.py what evaluation reads. docs/data-files.md says
what is read. Left out: torch, and everything that needs a model.
"""

from paragone_evaluation.readers.evaluation_sets import read_evaluation_set
from paragone_evaluation.readers.files import LAYOUTS, read_fields, read_pairs, read_prompts, read_ratings
from paragone_evaluation.readers.layouts import split_name
from paragone_evaluation.readers.rows import STRONGEST, Content, Label, Pair, Prompt, Rating

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
