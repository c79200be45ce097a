"""Texts and conversations to fuzz with: whatever a tokenizer, a template or a text reader may stumble over.

A conversation is made with two marks in it, and the marks are replaced afterwards: by the two halves of a special
token's string, or by two harmless words. So each conversation has a twin that differs from it in nothing else.
"""

import json
import random
from typing import Any

__all__ = ["BODY_ROUTES", "LEFT", "RIGHT", "conversation", "item_of", "request_body", "special_halves", "strange_text"]

LEFT, RIGHT = "@@left@@", "@@right@@"
"""The marks: where the halves of a string go. Halves in two parts of one content meet when the parts are joined."""
BODY_ROUTES = {
    "/v1/preferences": "pairs",
    "/v1/rewards": "items",
    "/v1/tournaments": "groups",
    "/v1/tokens": "items",
}
"""The POST routes and the names of their lists."""

_WORDS = ("street", "shops", "garden", "children", "work", "bus", "loud", "why", "because", "0", "17", "Yes.", "No!")
_ZERO_WIDTH = ("\u200b", "\u200d", "\ufeff", "\u00ad")
_BIDI = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u202c\u2069"
_STRANGE = (
    "",
    " ",
    "\n\t\r ",
    "\u0000",
    "a\u0000b",
    "\x01\x02\x1b[31m\x7f\x80\x9f",
    "\ufffe\uffff",
    "\U0010ffff\U000e0001",
    "{{ 7 * 7 }}{% for x in range(10 ** 9) %}{{ x }}{% endfor %}",
    "{# comment #}{% raw %}",
    "${jndi:ldap://127.0.0.1/}",
    "<think>",
    "</think>a</think>",
    "<tool_call>{}</tool_call>",
    "\u2028\u2029\u0085",
    "ﷺ" * 30,
    "İıſK",
    "👩‍👩‍👧‍👦🏳️‍🌈" * 5,
    "null",
    '"}]}',
    "\\ud800",
    "%s%n%00",
)


def strange_text(generator: random.Random) -> str:
    """Return one text that somebody may send, sane or not."""
    kind = generator.randrange(9)
    if kind == 0:
        return generator.choice(_STRANGE)
    if kind == 1:
        return "".join(generator.choice(_STRANGE) for _ in range(generator.randrange(1, 6)))
    if kind == 2:  # one letter with many marks on it
        return "e" + "".join(chr(generator.randrange(0x300, 0x370)) for _ in range(generator.choice((1, 50, 3000))))
    if kind == 3:  # one word that no tokenizer knows
        return generator.choice("aZ一ا\u0301") * generator.choice((100, 1_000, 20_000))
    if kind == 4:
        return "".join(generator.choice(_BIDI) + generator.choice(_WORDS) for _ in range(20))
    if kind == 5:  # any characters at all
        return "".join(_any_character(generator) for _ in range(generator.choice((1, 20, 400))))
    if kind == 6:
        return " " * generator.choice((1, 1_000, 60_000)) + "x"
    return plain_text(generator)


def plain_text(generator: random.Random) -> str:
    """Return a few words."""
    return " ".join(generator.choice(_WORDS) for _ in range(generator.randrange(1, 12)))


def _any_character(generator: random.Random) -> str:
    code = generator.choice((generator.randrange(0x80), generator.randrange(0x3000), generator.randrange(0x110000)))
    return chr(code) if not 0xD800 <= code < 0xE000 else "\ud800"  # alone: no text of Unicode has one


def special_halves(generator: random.Random, specials: list[str]) -> tuple[str, str]:
    """Return a special token's string in two halves, as it is or disguised as a reader may undo it."""
    text = generator.choice(specials)
    kind = generator.randrange(10)
    if kind == 0:  # letters of full width, which NFKC folds into ASCII
        text = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)
    elif kind == 1:
        cut = generator.randrange(len(text) + 1)
        text = text[:cut] + generator.choice(_ZERO_WIDTH) + text[cut:]
    elif kind == 2:
        text = text.upper() if generator.random() < 0.5 else text.replace("|", "｜")
    elif kind == 3:
        text = text.replace("<", "&lt;").replace(">", "&gt;")
    elif kind == 4:
        text = f" {text} "
    elif kind == 5:
        text *= generator.randrange(2, 5)
    elif kind == 6:  # one inside the other: what is taken out once may leave one behind
        cut = generator.randrange(1, len(text))
        text = text[:cut] + generator.choice(specials) + text[cut:]
    cut = generator.randrange(len(text) + 1)
    return text[:cut], text[cut:]


def conversation(generator: random.Random, *, marked: bool) -> tuple[Any, Any, list[Any] | None]:
    """Return prompt, response and tools in any of their shapes; with ``marked`` the marks stand somewhere in them."""
    prompt, response = _turns(generator, "user"), _turns(generator, "assistant")
    tools: list[Any] | None = None
    if generator.random() < 0.15:
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}]
    if not marked:
        return prompt, response, tools
    place = generator.randrange(6)
    if place == 5:
        marked_key = {"name": "weather", "parameters": {f"a{LEFT}{RIGHT}": "string"}}
        marked_text = {"name": "weather", "description": f"a {LEFT}{RIGHT}"}
        tools = [{"type": "function", "function": generator.choice((marked_key, marked_text))}]
    elif place in (3, 4):
        response = _marked_message(generator, place == 4)
    elif place == 2:
        prompt = f"{LEFT}{RIGHT} {plain_text(generator)}"
    elif place == 1:
        response = f"{plain_text(generator)} {LEFT}{RIGHT}"
    else:
        parts = [{"type": "text", "text": f"a {LEFT}"}, {"type": "text", "text": f"{RIGHT} b"}]
        prompt = [{"role": generator.choice(("user", "system", "developer")), "content": parts}]
        prompt += [{"role": "user", "content": "why"}]
    return prompt, response, tools


def _marked_message(generator: random.Random, call: bool) -> dict[str, Any]:
    if call:
        arguments = generator.choice(({"city": f"a{LEFT}{RIGHT}"}, {f"a{LEFT}{RIGHT}": "city"}))
        # OpenAI's form has the arguments as JSON text; others send the object.
        written = json.dumps(arguments) if generator.random() < 0.5 else arguments
        function = {"name": generator.choice(("weather", f"{LEFT}{RIGHT}")), "arguments": written}
        return {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }
    field = generator.choice(("content", "reasoning_content", "name"))
    return {"role": "assistant", "content": "yes", field: f"so{LEFT}{RIGHT} it is"}


def _turns(generator: random.Random, role: str) -> Any:
    kind = generator.randrange(8)
    if kind < 4:
        return strange_text(generator) if generator.random() < 0.6 else plain_text(generator)
    if kind == 4:
        return [_message(generator, role) for _ in range(generator.choice((0, 1, 2, 60)))]
    if kind == 5:
        return [{"role": role, "content": [{"type": "text", "text": strange_text(generator)} for _ in range(3)]}]
    if kind == 6 and role == "assistant":
        return _message(generator, role)
    turns = (_message(generator, ("system", "user", "assistant", "user")[turn % 4]) for turn in range(4))
    return [*turns][: generator.randrange(1, 5)]


def _message(generator: random.Random, role: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": strange_text(generator)}
    if generator.random() < 0.2:
        message |= generator.choice(
            (
                {"name": strange_text(generator)},
                {"content": None},
                {"reasoning_content": strange_text(generator)},
                {"tool_call_id": "1"},
                {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool"},
                {"refusal": None, "audio": None, "tool_calls": [], "annotations": []},
            )
        )
    return message


def item_of(route: str, generator: random.Random, made: tuple[Any, Any, list[Any] | None]) -> dict[str, Any]:
    """Return the item of a route that asks about one conversation."""
    prompt, response, tools = made
    item: dict[str, Any] = {"prompt": prompt}
    if tools is not None:
        item["tools"] = tools
    other = _turns(generator, "assistant")
    if route == "/v1/preferences":
        return {**item, "first": response, "second": other}
    if route == "/v1/tournaments":
        return {**item, "responses": [response, other, "No."][: generator.randrange(1, 4)]}
    if route == "/v1/rewards" and generator.random() < 0.2:
        item["references"] = [other]
    return {**item, "response": response}


def request_body(route: str, generator: random.Random, models: list[str]) -> dict[str, Any]:
    """Return a body that is sound but for its texts."""
    items = [item_of(route, generator, conversation(generator, marked=False)) for _ in range(generator.randrange(1, 4))]
    body: dict[str, Any] = {"model": generator.choice(models), BODY_ROUTES[route]: items}
    if generator.random() < 0.3:
        body["on_error"] = "report"
    if generator.random() < 0.2:
        body["truncation"] = generator.choice(("prompt", "error"))
    additions = {
        "/v1/preferences": ["ids"],
        "/v1/rewards": ["ids", "representation", "blocks", "gate_scales"],
        "/v1/tournaments": ["ids", "matrix"],
    }
    if route in additions and generator.random() < 0.3:
        body["return"] = generator.sample(additions[route], k=1)
    if route == "/v1/tournaments" and generator.random() < 0.3:
        body["signal"] = generator.choice(("win_rate", "rank", "nash", "elimination", "acyclic"))
        if generator.random() < 0.5:
            body["shaping"] = {"answer_length_penalty": 0.1, "style_penalty": 0.1, "reasoning_bonus": 0.1}
    return body
