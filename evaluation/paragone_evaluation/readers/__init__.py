"""The one reader of data files, for every command and the benchmarks.

sources.py has what people name and its parts, containers.py the rows that a file holds, mapping.py columns with names
of their own, options.py how files are read, accounts.py what is left out and why, holdout.py which rows
of a file without splits are held out. files.py has one pass over the rows
and what training reads, layouts/ the columns of each layout and what they mean, rows.py what every layout becomes,
evaluation_sets.py what evaluation reads. docs/data-files.md says what is read. Left out: torch, and everything that
needs a model.
"""

from paragone_evaluation.readers.accounts import RowAccount
from paragone_evaluation.readers.evaluation_sets import read_evaluation_set
from paragone_evaluation.readers.files import read_fields, read_pairs, read_prompts, read_ratings
from paragone_evaluation.readers.holdout import FEWEST_PROMPTS, HELD_OUT, check_holdout, is_held_out
from paragone_evaluation.readers.layouts import split_name
from paragone_evaluation.readers.layouts.reading import LAYOUTS
from paragone_evaluation.readers.mapping import parse_map
from paragone_evaluation.readers.options import BadRowsPolicy, Rankings, ReadOptions
from paragone_evaluation.readers.rows import (
    PROBABILITY,
    STRONGEST,
    Content,
    Label,
    Pair,
    Prompt,
    Rating,
    Turns,
    as_messages,
    prompt_name,
)
from paragone_evaluation.readers.sources import HUB, file_order

__all__ = [
    "FEWEST_PROMPTS",
    "HELD_OUT",
    "HUB",
    "LAYOUTS",
    "PROBABILITY",
    "STRONGEST",
    "BadRowsPolicy",
    "Content",
    "Label",
    "Pair",
    "Prompt",
    "Rankings",
    "Rating",
    "ReadOptions",
    "RowAccount",
    "Turns",
    "as_messages",
    "check_holdout",
    "file_order",
    "is_held_out",
    "parse_map",
    "prompt_name",
    "read_evaluation_set",
    "read_fields",
    "read_pairs",
    "read_prompts",
    "read_ratings",
    "split_name",
]
