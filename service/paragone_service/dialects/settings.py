"""The settings of dialects: which are answered, and what is to be done where a client leaves something open."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["BY_REFERENCES", "DIALECT_NAMES", "DialectSettings", "as_table"]

DIALECT_NAMES = (
    "openrlhf",
    "slime",
    "vllm",
    "sglang",
    "infinity",
    "chat-rewards",
    "rerank",
    "nvidia-ranking",
    "huggingface",
    "kserve",
)
"""Every dialect, as ``--dialects`` calls it."""

BY_REFERENCES = "references:"
"""What stands before the name of a reference set in the setting ``scalar``."""

OpenRlhfText = Literal["auto", "raw", "raw+eos", "retemplate"]


class DialectSettings(BaseModel):
    """What ``[dialects]`` holds; a text in its place says which are on."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    on: tuple[str, ...] = Field(default=DIALECT_NAMES, validate_default=False)
    """Which dialects are answered: all, none, or names with commas between."""
    truncation: Literal["error", "prompt"] = "error"
    """What happens to a text over the model's limit: ``error`` refuses it, ``prompt`` cuts it from the left."""
    scalar: (
        Literal["group"] | Annotated[str, Field(pattern=rf"^{BY_REFERENCES}[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}$")] | None
    ) = None
    """What a model without a scalar answers: ``group``, its mean log-odds against the other responses to the prompt in
    the request; ``references:NAME``, against those of a stored reference set. Without it such a request is refused."""
    rerank_document: Literal["object", "text"] = "object"
    """What ``document`` is in answers of ``/rerank``: ``object`` as vLLM's clients read it, ``text`` as infinity's do,
    of which some ask in the same words."""
    openrlhf: OpenRlhfText = "auto"
    """How OpenRLHF's texts are read: ``raw`` as they are, ``raw+eos`` with an end of sequence, ``retemplate`` in the
    model's own chat template, by the prompts that come with them; ``auto`` retemplates where prompts come."""

    @field_validator("on", mode="before")
    @classmethod
    def _names_may_be_written_with_commas(cls, value: Any) -> Any:
        names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return value
        if list(names) in (["all"], ["none"]):
            return DIALECT_NAMES if names[0] == "all" else ()
        for name in names:
            if name not in DIALECT_NAMES:
                nearest = difflib.get_close_matches(name, DIALECT_NAMES, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(DIALECT_NAMES)}"
                raise ValueError(f"no dialect is called {name!r}: {hint} (or all, or none)")
        return tuple(dict.fromkeys(names))


def as_table(value: Any) -> Any:
    """Return the table that a value of ``dialects`` stands for: a text or a list says which are on."""
    return {"on": value} if isinstance(value, str | list | tuple) else value
