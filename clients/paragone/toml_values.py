"""How a text, a number or a truth value is written in TOML."""

import json

__all__ = ["toml_value"]


def toml_value(value: str | float | bool) -> str:
    r"""Return a value as TOML has it.

    >>> print(toml_value('say "tea"'), toml_value(False))
    "say \"tea\"" false
    """
    # Texts, numbers and truth values of JSON are those of TOML, but for this character and for escapes of surrogates.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
