"""HelpSteer2's and UltraFeedback's own columns, translated into our rows as training files are (``data/layouts``).

These files have no ids: a row is called by its line, and a completion by its place in it. What people did not rate, or
found invalid on both sides, is no error of the file: it is left out and counted.
"""

from collections.abc import Iterator

from paragone_evaluation.dataset import SetBuilder
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.files import Row
from paragone_evaluation.readers.layouts import own_pairs, own_ratings
from paragone_evaluation.readers.own import PairsReader, RatingsReader, UnratedRowError
from paragone_evaluation.readers.rows import BadRowError

__all__ = ["HelpSteer2PreferencesReader", "HelpSteer2Reader", "UltraFeedbackReader"]


class _TranslatedRatingsReader:
    """Rows of ratings in other people's columns, one response a row or several.

    Args:
        rated: the attribute that people's scores are taken from; the first one of the file if None.
    """

    layout: str

    def __init__(self, rated: str | None = None) -> None:
        self.left_out: list[tuple[int, str]] = []
        self._ratings = RatingsReader(rated)

    @property
    def rated(self) -> str | None:
        """The attribute that people's scores are taken from."""
        return self._ratings.rated

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Keep the ratings of one row.

        Raises:
            BadRowError: if the row is none.
        """
        parsed = []
        translated = list(_translated(self.layout, line, row))
        if not translated:
            self.left_out.append((line, "it has no completions"))
        for own in translated:
            self._ratings.rated = self._ratings.rated or next(iter(own["ratings"]), None)
            try:
                parsed.append(self._ratings.parsed(own))
            except UnratedRowError as error:
                self.left_out.append((line, str(error)))
        for one in parsed:
            self._ratings.keep(line, one, to)

    def finish(self, to: SetBuilder) -> None:
        """Add a case per prompt, and a judgement for every two of its responses."""
        self._ratings.finish(to)


class HelpSteer2Reader(_TranslatedRatingsReader):
    """HelpSteer2's ratings: ``prompt, response`` and a column for each attribute, −100 where there is no rating."""

    layout = "helpsteer2"


class UltraFeedbackReader(_TranslatedRatingsReader):
    """UltraFeedback: ``instruction, completions [{response, annotations {name: {Rating}}}]``, N/A where not rated."""

    layout = "ultrafeedback"


class HelpSteer2PreferencesReader:
    """HelpSteer2-Preference: ``prompt, response_1, response_2, preference_strength``, negative for response 1."""

    rated: str | None = None

    def __init__(self) -> None:
        self.left_out: list[tuple[int, str]] = []
        self._pairs = PairsReader()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one pair; none where annotators found neither response valid.

        Raises:
            BadRowError: if the row is none.
        """
        own = list(_translated("helpsteer2-preferences", line, row))
        if not own:
            self.left_out.append((line, "annotators found neither response valid (preference_strength -100)"))
        for pair in own:
            self._pairs.read(line, pair, to)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every pair is complete."""


def _translated(layout: str, line: int, row: Row) -> Iterator[Row]:
    """Yield our own rows of one of theirs, each with an id.

    Raises:
        BadRowError: if the row is none.
    """
    where = f"line {line}"
    try:
        own = (
            own_pairs(row, where, "helpsteer2")
            if layout == "helpsteer2-preferences"
            else own_ratings(row, where, layout)
        )
        for place, translated in enumerate(own):
            yield {"id": f"{line}/{place}", **translated}
    except DataError as error:
        raise BadRowError(str(error).removeprefix(f"{where}: ")) from error
