"""What recipes of kinds that rate attributes say beyond the others."""

from dataclasses import dataclass, field

from paragone_training.preference.sections import DataSection, LossSection, ModelSection

__all__ = ["RATED_KINDS", "RatedDataSection", "RatedLossSection", "RatedModelSection"]

RATED_KINDS = ("regression", "helpsteer")
"""Kinds that learn from ratings."""


@dataclass(frozen=True)
class RatedModelSection(ModelSection):
    """What is trained.

    Attributes:
        attributes: names of the ratings, in the order of the head's rows.
        start: a model to go on from, as ``paragone serve --model`` takes it. ``helpsteer`` needs a ``regression`` model
            of the same attributes and takes backbone, tokenizer and head; ``regression`` takes backbone and tokenizer,
            and the head where the attributes are the same. None starts from ``[backbone]``.
    """

    attributes: tuple[str, ...] = ()
    start: str | None = None


@dataclass(frozen=True)
class RatedDataSection(DataSection):
    """Which rows.

    Attributes:
        train: pair files. A regression learns nothing from them, but its attributes are merged as they say; without
            any it rates and does not compare.
        ratings: rating files, relative to the recipe; rows are chosen by the same splits as pairs.
        evaluate_ratings: rating files for the held-out rows; the files of ``ratings`` unless given.
    """

    train: tuple[str, ...] = ()
    ratings: tuple[str, ...] = ()
    evaluate_ratings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RatedLossSection(LossSection):
    """What is minimised.

    Attributes:
        ratings: weight of the regression loss beside the loss of the pairs, for ``helpsteer``; it keeps the attributes
            true.
    """

    ratings: float = field(default=1.0)
