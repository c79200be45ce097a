"""Which chat template a model has: its tokenizer's own, one of several by name, or one that was set; dates frozen."""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone_models.errors import ModelLoadError

__all__ = ["FROZEN_DATE", "Sources", "freeze_date", "sources_of"]

# The day every template is told it is: Llama 3.1's own default, so that scores do not change overnight.
FROZEN_DATE = datetime.date(2024, 7, 26)

_DATE_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_DATE_DEFINED = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")


@dataclass(frozen=True)
class Sources:
    """The templates of a model.

    Attributes:
        default: for conversations without tools; empty where the model has no template.
        with_tools: for conversations with tools; the same one unless the tokenizer has one for them.
    """

    default: str
    with_tools: str

    @property
    def both(self) -> tuple[str, ...]:
        """The templates without repetition, the default one first."""
        return tuple(dict.fromkeys((self.default, self.with_tools)))


def sources_of(tokenizer: Any, chosen: str | None = None) -> Sources:
    """Return a tokenizer's templates, or the one that was chosen in their place.

    Args:
        chosen: the name of one of the tokenizer's templates, or a file that holds one.

    Raises:
        ModelLoadError: if nothing has the chosen name, there are several templates and none is the default, or a
            template formats the date in a way that cannot be fixed beforehand.
    """
    own = tokenizer.chat_template
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {"default": own} if own else {}
    if chosen is not None:
        source = freeze_date(named[chosen] if chosen in named else _file(chosen, named))
        return Sources(source, source)
    if not named:
        return Sources("", "")
    if "default" not in named:
        raise ModelLoadError(
            f"the tokenizer has the chat templates {', '.join(sorted(named))} and no default: choose one with "
            "chat_template (its name, or a file)"
        )
    # As transformers chooses: a template of its own for tools, which its default may not show.
    return Sources(freeze_date(named["default"]), freeze_date(named.get("tool_use", named["default"])))


def freeze_date(template: str) -> str:
    """Return the template with every call for today's date replaced by a fixed one.

    Raises:
        ModelLoadError: if it formats the date in a way that cannot be fixed beforehand.
    """
    # As a literal in the template, so that no clock is read while rendering.
    frozen = _DATE_CALL.sub(lambda call: json.dumps(FROZEN_DATE.strftime(call.group(2))), template)
    if "strftime_now" in _DATE_DEFINED.sub("", frozen):
        raise ModelLoadError("the chat template asks for today's date in a computed format: its scores would drift")
    return frozen


def _file(chosen: str, named: Mapping[str, str]) -> str:
    try:
        return Path(chosen).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        known = f"the tokenizer's are {', '.join(sorted(named))}" if named else "the tokenizer has none"
        raise ModelLoadError(
            f"chat_template is {chosen!r}: neither a template's name ({known}) nor a file that can be read ({error})"
        ) from error
