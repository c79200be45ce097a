"""All families, in the order in which they are tried: the first that finds a checkpoint reads it."""

from paragone_models.errors import ModelLoadError
from paragone_models.files.families.backbone import config_of, without_place
from paragone_models.files.families.bins import BINS
from paragone_models.files.families.classifiers import ENCODERS, ONE_LABEL, SEVERAL_LABELS
from paragone_models.files.families.family import Checkpoint, Family, Loaded
from paragone_models.files.families.gating import GATED
from paragone_models.files.families.internlm2 import INTERNLM2
from paragone_models.files.families.normal import NORMAL
from paragone_models.files.families.output_rows import OUTPUT_ROWS, PRINCIPLES, may_have_a_row
from paragone_models.files.families.own import OWN
from paragone_models.files.families.pairs import LETTER_MODELS, PAIRRM
from paragone_models.files.families.process import PROCESS
from paragone_models.files.families.stored import DEEP_HEADS, GENERAL_PREFERENCE, LINEAR_HEADS

__all__ = ["FAMILIES", "family_of", "read_checkpoint"]

FAMILIES: tuple[Family, ...] = (
    OWN,
    LETTER_MODELS,
    PAIRRM,
    OUTPUT_ROWS,
    PRINCIPLES,
    GATED,
    NORMAL,
    BINS,
    INTERNLM2,
    PROCESS,
    GENERAL_PREFERENCE,
    DEEP_HEADS,
    LINEAR_HEADS,
    ENCODERS,
    ONE_LABEL,
    SEVERAL_LABELS,
)
"""Every family; docs/models.md has a row for each."""


def family_of(place: Checkpoint) -> Family | None:
    """Return the family of a checkpoint, or None.

    Raises:
        ModelLoadError: if it has several heads, or one of a form that its tensors do not tell.
    """
    return next((family for family in FAMILIES if family.finds(place)), None)


def read_checkpoint(place: Checkpoint) -> Loaded:
    """Read a checkpoint of any family.

    Raises:
        ModelLoadError: if it is of none, or not whole.
    """
    family = family_of(place)
    if family is None:
        raise ModelLoadError(headless(place))
    return family.reads(place)


def headless(place: Checkpoint) -> str:
    """Return why a folder of none of the layouts is not served, and what to do."""
    folder, options, architecture = place.folder, place.options, place.architecture
    config = config_of(folder, options)
    names = without_place(folder, config, (), options)
    if names:
        return (
            f"{folder} holds {architecture} with tensors that are no part of its backbone ({', '.join(names[:3])}), "
            "and whose use nothing here knows. If one is a linear layer on the last token's state, call it "
            "score.weight [rows, hidden size] and score.bias; of several, with a ReLU between them, score.0.weight, "
            "score.2.weight"
        )
    finding = (
        f"{folder} holds {architecture} without a value head: neither a sequence classifier, nor a general preference "
        "model, nor a folder of this project. A head that is not there would be random numbers, so it is not served"
    )
    if not may_have_a_row(place, config):
        return f"{finding}: give the reward model that was trained from it"
    return (
        f"{finding}: give the reward model that was trained from it. Only if its model card says that the reward is "
        "row 0 of the output embedding, as Llama-3.1-Nemotron-70B-Reward-HF's does, load it with head='lm-head-row-0'"
    )
