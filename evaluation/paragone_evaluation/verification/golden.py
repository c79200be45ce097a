"""The built-in conversations, each there for something that servers get wrong. Written for this project."""

from dataclasses import dataclass
from typing import Any

from paragone_evaluation.dataset import Message, PromptText, ResponseText

__all__ = ["GOLDEN", "Text"]


@dataclass(frozen=True)
class Text:
    """A conversation with its response, and what it is called in the table."""

    name: str
    prompt: PromptText
    response: ResponseText
    tools: tuple[Message, ...] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Prompt and response, as chat templates take them."""
        return [*_turns(self.prompt, "user"), *_turns(self.response, "assistant")]


def _turns(content: PromptText | ResponseText, role: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    return [dict(content)] if isinstance(content, dict) else [dict(message) for message in content]  # type: ignore[arg-type]


def _long(sentences: int) -> str:
    """Return a text whose sentences all differ, so that no part of it is like another one."""
    things = ("the kettle", "a ladder", "the old bridge", "her bicycle", "a paper map", "the third door", "a candle")
    deeds = ("was mended", "stood in the rain", "belonged to nobody", "was painted blue", "came back in spring")
    return " ".join(
        f"In year {1900 + at} {things[at % 7]} {deeds[at % 5]}, which the town wrote down as entry {at * 37 % 1000}."
        for at in range(sentences)
    )


_TEA = "How do I make a cup of tea?"

GOLDEN: tuple[Text, ...] = (
    Text("good", _TEA, "Boil fresh water, pour it over the leaves, wait four minutes, then take the leaves out."),
    Text("bad", _TEA, "idk, ask somebody else lol"),
    Text("one-word", "Is seventeen a prime number?", "Yes."),
    Text("wrong", "What is seven times eight?", "Seven times eight is fifty-four."),
    Text("right", "What is seven times eight?", "Seven times eight is fifty-six."),
    Text(
        "turns",
        [
            {"role": "user", "content": "I lost my keys."},
            {"role": "assistant", "content": "Where did you see them last?"},
            {"role": "user", "content": "On the kitchen table, this morning."},
        ],
        "Then look under the things that came onto the table since: post, bags, a newspaper.",
    ),
    Text(
        "system",
        [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
        "Air scatters blue light more than red light.",
    ),
    Text("code", "Write a function that doubles a number.", "```python\ndef double(x):\n    return 2 * x\n```"),
    Text("scripts", "Übersetze «guten Morgen» ins Japanische.", "おはようございます。 Wörtlich: „es ist früh“ 🌅"),
    Text("spaces", "List two fruits.", "  - apple\n  - pear\n\n"),
    Text("refusal", "Tell me my neighbour's password.", "I cannot help with that, and nobody but them should know it."),
    Text("rude", "Can you check my spelling? 'Recieve'", "No. Learn it yourself."),
    Text("long", "Summarise this chronicle.\n" + _long(8), "A town wrote down many small things."),
    Text("long-response", "Write a chronicle of a town.", _long(20)),
    Text("very-long", "Go on with this chronicle.\n" + _long(24), _long(30)),
)
"""What is asked about besides the user's own file, which may be short of long texts, systems and other scripts."""
