"""From a text that a trainer's own chat template has rendered back to its messages.

The families are those whose marks tell the turns apart: ChatML (Qwen, Yi, …), Llama 3, Gemma, Phi and Zephyr, Mistral
and Llama 2, DeepSeek. What is not plainly of one of them is no conversation here: a guess would be scored.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["looks_rendered", "turns", "without_end"]

_ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
}
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<|finetune_right_pad_id|>",
    "<pad>",
)
_BEGINNING = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|<pad>|\s)*")
_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^<>\s]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]")


@dataclass(frozen=True)
class _Family:
    """How one family of templates writes a turn.

    Attributes:
        mark: what stands before it, the role in group ``role``.
        trims: whether the template trims what is said.
    """

    mark: re.Pattern[str]
    trims: bool = False


_FAMILIES = (
    _Family(re.compile(r"<\|im_start\|>(?P<role>\w+)\n")),
    _Family(re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n"), trims=True),
    _Family(re.compile(r"<start_of_turn>(?P<role>\w+)\n"), trims=True),
    _Family(re.compile(r"<\|(?P<role>system|user|assistant)\|>\n?")),
    _Family(re.compile(r"<｜(?P<role>User|Assistant)｜>")),
)
_INSTRUCTION = re.compile(r"\[INST\] ?(?:<<SYS>>\n(?P<system>.*?)\n<</SYS>>\n\n)?(?P<user>.*?) ?\[/INST\] ?", re.DOTALL)


def looks_rendered(text: str) -> bool:
    """Return whether a text has marks of a chat template, known or not."""
    return _MARK.search(text) is not None


def without_end(text: str) -> str:
    """Return a text without the end-of-turn and padding tokens at its end."""
    while True:
        bare = text.rstrip("\n")
        ending = next((end for end in _ENDS if bare.endswith(end)), None)
        if ending is None:
            return text
        text = bare.removesuffix(ending)


def turns(text: str) -> list[dict[str, str]] | None:
    """Return the messages of a rendered text, None if its template is not known.

    A header with nothing behind it, which asks for a response, is an empty message of the assistant.
    """
    start = _beginning(text)
    for family in _FAMILIES:
        marks = list(family.mark.finditer(text))
        if marks and marks[0].start() == start:
            return _between(text, marks, family)
    first = _INSTRUCTION.match(text, start)
    return None if first is None else _instructions(text, first)


def _beginning(text: str) -> int:
    match = _BEGINNING.match(text)
    return match.end() if match else 0


def _between(text: str, marks: list[re.Match[str]], family: _Family) -> list[dict[str, str]] | None:
    found = []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        role = _ROLES.get(mark["role"].lower())
        if role is None:
            return None
        content = without_end(text[mark.end() : end])
        found.append({"role": role, "content": content.strip() if family.trims else content})
    return found


def _instructions(text: str, match: re.Match[str] | None) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    while match is not None:
        if match["system"] is not None:
            found.append({"role": "system", "content": match["system"]})
        found.append({"role": "user", "content": match["user"]})
        following = _INSTRUCTION.search(text, match.end())
        said = without_end(text[match.end() : following.start() if following else len(text)])
        found.append({"role": "assistant", "content": said.removeprefix("<s>")})
        match = following
    return found
