"""One pass over files, row by row, and what training takes of it: pairs, ratings and prompts.

Every command reads through ``FilePass``, so all of them see the same rows. Nothing is left out in silence: a row that
cannot be read refuses the file or is counted by its reason, as the options say, and so is a row of no use.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.accounts import RowAccount
from paragone_evaluation.readers.holdout import HELD_OUT, is_held_out
from paragone_evaluation.readers.layouts import (
    UNJUDGED_NAME,
    FileLayout,
    prompt_row,
    split_name,
    split_of,
    value_of,
)
from paragone_evaluation.readers.layouts.reading import HEAD, LAYOUTS, LayoutReader
from paragone_evaluation.readers.mapping import ColumnMap
from paragone_evaluation.readers.options import ReadOptions
from paragone_evaluation.readers.rated import RatedPairs
from paragone_evaluation.readers.rows import (
    BadRowError,
    DataRow,
    Fields,
    LeftOutError,
    Pair,
    Prompt,
    Rating,
    text_key,
)
from paragone_evaluation.readers.sources import Part, parts_of

__all__ = ["SAME_RESPONSES", "FilePass", "read_fields", "read_pairs", "read_prompts", "read_ratings"]

logger = logging.getLogger(__name__)

SAME_RESPONSES = "the two responses that are compared are the same"
"""Why a row of one text twice is left out."""

_AS_READ = ReadOptions()
_TRAINING = "train"


class FilePass:
    """The rows of files, read once.

    Args:
        sources: files, globs, folders or data sets of the Hub.
        split: the only split that is read; all of them if None.
        unmarked: rows without a split are of the one that is asked for; otherwise they are bad rows.
        prompts: read nothing of a row but its prompt; rows need no layout then.
        unjudged: rows need no judgement (``layouts.unjudged``), and every one that can be read is kept: also one whose
            responses are alike, or whose id was met before.

    Attributes:
        part: the file that the last row is of.
        layout: that of the part, None before its first row.
        layouts: those of all parts so far.
        passed_over: how many rows are of splits that are not read, or not of the held-out share.
        splits: names that were met.

    Raises:
        DataError: if there is no such layout or source, or the map makes no row.
    """

    def __init__(
        self,
        *sources: str | Path,
        options: ReadOptions = _AS_READ,
        split: str | None = None,
        exclude_split: str | None = None,
        unmarked: bool = False,
        prompts: bool = False,
        unjudged: bool = False,
    ) -> None:
        layout, known = options.layout, (*LAYOUTS, *([UNJUDGED_NAME] if unjudged else []))
        if layout not in ("auto", *known):
            raise DataError(f"layout is {layout!r}; it must be auto or one of {', '.join(known)}")
        self.options, self.account = options, RowAccount()
        self.parts = parts_of(sources)
        self.split, self.exclude_split = split_name(split), split_name(exclude_split)
        # Training takes rows without a split for training rows. For a measure nobody can tell that they belong to it.
        self._needs_split = self.split is not None and not (unmarked or options.holdout)
        self._map = ColumnMap(options.map, unjudged=unjudged) if options.map else None
        self._prompts, self._unjudged = prompts, unjudged
        self._reader = LayoutReader((), options)
        self.part: Part = self.parts[0]
        self.layout: FileLayout | None = None
        self.layouts: dict[str, FileLayout] = {}
        self.passed_over = 0
        self.splits: set[str] = set()
        self._lines: dict[str, int] = {}
        self._split_of_part: str | None = None

    def __iter__(self) -> Iterator[DataRow]:
        for part in self.parts:
            # Files are read one by one: each has a layout and ids of its own.
            self.part, self.layout, self._lines = part, None, {}
            self._split_of_part = self.part.split or (self.part.named if self._needs_split else None)
            self.account.files.append(self.part.name)
            yield from self._rows_of_part()

    def _rows_of_part(self) -> Iterator[DataRow]:
        account, name = self.account, self.part.name
        rows = self.part.rows()
        head = list(itertools.islice(rows, HEAD))
        shown = [told for _, fields in head if (told := self._told(fields))]
        self._reader = LayoutReader(shown, self.options, unjudged=self._unjudged)
        for line, fields in itertools.chain(head, rows):
            account.count += 1
            try:
                row = self._row(line, fields)
            except LeftOutError as error:
                account.leave_out(name, line, str(error))
            except BadRowError as error:
                account.refuse(name, line, str(error))
            else:
                if row is not None:
                    yield row
        if (alone := self._reader.waiting()) is not None:
            account.leave_out(name, *alone)
        self._lines = {}  # a line for each row, which nobody asks for any more

    def _told(self, fields: Fields | str) -> Fields:
        """Return the fields by which a row tells its layout; none where it cannot be read."""
        try:
            return {} if isinstance(fields, str) else self._map.apply(fields) if self._map is not None else fields
        except BadRowError:
            return {}

    def check(self, *, remedy: str = "") -> None:
        """Refuse the files if a row cannot be read, unless such rows are to be left out.

        Raises:
            DataError: as described.
        """
        if not self.options.leaves_out:
            self.account.check(**({"remedy": remedy} if remedy else {}))

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes; of several files, that of all of theirs."""
        digests = [part.sha256() for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def why(self) -> str:
        """Return what tells the layout of the part, and what its strengths are."""
        if self.layout is None:
            return "only prompts are read"
        told = "named by --layout" if self.options.layout != "auto" else "told by what its columns hold"
        strengths = "" if self.layout.rates else f"; strengths: {self.layout.strengths}"
        return f"{told}: {', '.join(self.layout.columns)}{strengths}"

    def splits_in_words(self) -> str:
        """Return the names of the splits that were met."""
        return ", ".join(sorted(self.splits)) or "none"

    def _row(self, line: int, fields: Fields | str) -> DataRow | None:
        if isinstance(fields, str):
            raise BadRowError(fields)
        if self._map is not None:
            fields = self._map.apply(fields)
        split, share = self._split(line, fields), self.options.holdout
        # Where a share is held out the prompt says which side a row is on, and it has to be read first.
        by_prompt = bool(share) and split in (None, _TRAINING)
        # A row of another split is not read any further: what is wrong with it stops nobody who does not use it.
        if not by_prompt and self._passes_over(split):
            return None
        if self._prompts:
            return prompt_row(fields, line, self._reader.layout)
        row = self._reader.row(fields, line)
        if self.layout is None and (layout := self._reader.layout) is not None:
            self.layout = layout
            self.layouts.setdefault(layout.name, layout)
        if row is not None and by_prompt:
            row = replace(row, split=HELD_OUT) if is_held_out(row.question or row.prompt, share) else row
            if self._passes_over(row.split or _TRAINING):
                return None
        return row if row is None or self._unjudged else self._telling(row, line)

    def _split(self, line: int, fields: Fields) -> str | None:
        """Return the split of a row, that of its part where it names none."""
        split = split_of(fields)
        if split is None and self._split_of_part is not None:
            split = fields["split"] = self._split_of_part
        if split is not None:
            self.splits.add(split)
        elif self._needs_split:
            raise BadRowError(
                f"field 'split' is missing, and --split {self.split} asks for it: for all rows leave --split out, for "
                "those that a recipe's holdout kept back take --holdout"
            )
        if self.options.holdout and split == HELD_OUT:
            raise DataError(
                f"{self.part.name}, line {line}: the row is marked {HELD_OUT!r}, so the file itself says what is held "
                "out: leave holdout out"
            )
        return split

    def _passes_over(self, split: str | None) -> bool:
        """Return whether rows of a split are not read, and count one that is not."""
        other = split is not None and (split == self.exclude_split if self.split is None else split != self.split)
        self.passed_over += other
        return other

    def _telling(self, row: DataRow, line: int) -> DataRow | None:
        """Return the row with the labels that say something; None without any."""
        # Rows without an id may well be alike. An id that stands for two rows is a mistake in the file.
        if row.id is not None and (before := self._lines.setdefault(row.id, line)) != line:
            raise BadRowError(f"id {row.id.removeprefix(f'{row.subset}/')[:60]!r} is on line {before} already")
        telling = row.telling_labels()
        if len(telling) == len(row.labels):
            return row
        self.account.leave_out(self.part.name, line, SAME_RESPONSES)
        return replace(row, labels=telling) if telling else None


def read_pairs(*sources: str | Path, options: ReadOptions = _AS_READ, account: RowAccount | None = None) -> list[Pair]:
    """Return the pairs of files in any layout, in order; of rated responses, every two to a prompt.

    Pairs of two identical responses, and rows that annotators found invalid, are left out and counted in the log.

    Args:
        account: gets what was left out.

    Raises:
        DataError: if a file cannot be read, has bad rows that are not to be left out (they are named), or has no pair.
    """
    if options.map and options.maps_ratings:
        options = replace(options, map={})  # a recipe has one map, and may name files of both kinds
    pairs: list[Pair] = []
    # Each source is read, and complained about, on its own: whoever mends a file wants all of its faults at once.
    for source in sources:
        reading = FilePass(source, options=options)
        made = _pairs_of(reading)
        _close(reading, account, f"{source}" if not made else "")
        pairs += made
    return pairs


def _pairs_of(reading: FilePass) -> list[Pair]:
    rated, pairs = RatedPairs(reading.options), list[Pair]()
    for row in reading:
        if not row.ratings:
            pairs += row.pairs(reading.part.name)
            if row.strength_of:
                reading.account.strengths[row.strength_of] += len(row.labels)
        elif unused := rated.add(row, reading.part.name):
            reading.account.leave_out(reading.part.name, row.line, unused)
    pairs += rated.pairs()
    for path, line, why in rated.alone():
        reading.account.leave_out(path, line, why)
    if rated.attribute is not None:
        reading.account.strengths[f"ratings of {rated.attribute}"] += len(pairs)
    return pairs


def read_ratings(
    *sources: str | Path, options: ReadOptions = _AS_READ, account: RowAccount | None = None
) -> list[Rating]:
    """Return the ratings of files in any layout that rates single responses, in order.

    Args:
        account: gets what was left out.

    Raises:
        DataError: if a file cannot be read, has bad rows that are not to be left out (they are named), or has no
            rating.
    """
    if options.map and not options.maps_ratings:
        options = replace(options, map={})
    ratings: list[Rating] = []
    for source in sources:
        reading, before = FilePass(source, options=options), len(ratings)
        for row in reading:
            if not row.ratings:
                raise DataError(
                    f"{reading.part.name}: it has responses that people compared (layout "
                    f"{reading.layout.name if reading.layout else 'unknown'}); responses that people rated are needed "
                    "here"
                )
            ratings += row.rated(reading.part.name)
        _close(reading, account, f"{source}" if len(ratings) == before else "")
    return ratings


def read_prompts(
    sources: Sequence[str | Path],
    *,
    split: str,
    options: ReadOptions = _AS_READ,
    account: RowAccount | None = None,
) -> list[Prompt]:
    """Return the prompts of files in any layout, each once, in their order.

    Rows of the split are read, and rows without one. A prompt without an id is called by its place among them.

    Args:
        account: gets what was left out.

    Raises:
        DataError: if a file cannot be read, has bad rows that are not to be left out, two prompts share an id, or
            nothing is left.
    """
    prompts: dict[str, Prompt] = {}
    texts: set[str] = set()
    reading = FilePass(*sources, split=split, unmarked=True, prompts=True, options=options)
    for row in reading:
        prompt = Prompt(str(len(prompts)) if row.id is None else row.id, row.prompt, tools=row.tools)
        # The same text with other tools is another question to the policy.
        text = prompt.text if not row.tools else f"{prompt.text}\n{text_key(row.tools)}"
        # Files of pairs repeat a prompt in every row; a policy meets it once, whatever the rows are called.
        if text in texts:
            continue
        if prompt.id in prompts:
            reading.account.refuse(reading.part.name, row.line, f"id {prompt.id!r} belongs to another prompt already")
            continue
        texts.add(text)
        prompts[prompt.id] = prompt
    _close(reading, account)
    if not prompts:
        words = f"no prompt whose split is {split!r}; the splits are: {reading.splits_in_words()}"
        raise DataError(f"{', '.join(map(str, sources))}: {words}")
    return list(prompts.values())


def read_fields(path: str | Path, *names: str) -> list[Fields]:
    """Return the rows of a file as they are, for whoever needs neither layouts nor labels.

    Raises:
        DataError: if the file cannot be read, or a row lacks one of the fields named.
    """
    account, rows = RowAccount(), []
    for part in parts_of([path]):
        account.files.append(part.name)
        for line, fields in part.rows():
            account.count += 1
            try:
                if isinstance(fields, str):
                    raise BadRowError(fields)
                for name in names:
                    value_of(fields, name)
                rows.append(fields)
            except BadRowError as error:
                account.refuse(part.name, line, str(error))
    account.check(remedy="Mend the file, or take these rows out of it.")
    return rows


def _close(reading: FilePass, account: RowAccount | None, empty: str = "") -> None:
    """Refuse bad rows if they are to refuse, and hand on and log what was left out otherwise.

    Args:
        empty: name of a source of which nothing was made.
    """
    reading.check()
    reading.account.log(logger)
    if account is not None:
        account.add(reading.account)
    if empty:
        why = "".join(f"; {left.count} left out: {left.reason}" for left in reading.account.left_out())
        raise DataError(f"{empty} has no rows to learn from: {reading.account.count} were read{why}")
