"""The prompts of a run, read and rendered in one way by the run and by its plan."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from paragone_evaluation.readers import Prompt, as_messages, read_prompts
from paragone_training.data import PromptGroup
from paragone_training.errors import RecipeError
from paragone_training.policy.recipe import PolicyRecipe
from paragone_training.policy.sampling.stopping import Stops
from paragone_training.policy.stored_pairs import prompts_of_groups, stored_groups

__all__ = ["RunPrompts", "read_run_prompts", "render"]


@dataclass(frozen=True)
class RunPrompts:
    """What a run is trained on and evaluated with.

    Attributes:
        stored: groups of stored responses, one for each of ``prompts``; empty where responses are sampled.
        held_out: of the evaluation.
        notes: what was left out, or cut, because it does not fit.
    """

    prompts: list[Prompt]
    stored: list[PromptGroup] = field(default_factory=list)
    held_out: list[Prompt] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def rendered(self, recipe: PolicyRecipe, tokenizer: Any, context: int) -> "RunPrompts":
        """Return the prompts with their token ids.

        Args:
            context: tokens that a prompt and a response may have together.

        Raises:
            RecipeError: if a prompt does not fit and must not be left out, or none does, or no response contains a
                text of ``sampling.stop``.
        """
        Stops(tokenizer, recipe.sampling.stop)  # a dry run refuses what no response contains
        # A prompt has to leave room for the longest response, or responses would be cut at different lengths.
        longest = context - recipe.sampling.max_new_tokens
        # Stored responses belong to their prompts: none of them can be left out here.
        way = "refuse" if self.stored else recipe.data.long_prompts or recipe.data.bad_rows
        notes: list[str] | None = None if way == "refuse" else []
        limit = context - 1 if self.stored else longest
        prompts = render(self.prompts, tokenizer, longest=limit, notes=notes, cut=way == "cut")
        held_out = render(self.held_out, tokenizer, longest=longest, notes=notes, cut=way == "cut")
        return replace(self, prompts=prompts, held_out=held_out, notes=tuple(notes or ()))


def read_run_prompts(recipe: PolicyRecipe) -> RunPrompts:
    """Return the prompts of a recipe's files, without token ids.

    Raises:
        DataError: if files cannot be read.
        RecipeError: if prompts of the evaluation are trained on.
    """
    data, evaluation = recipe.data, recipe.evaluation
    stored = stored_groups(recipe) if data.pairs else []
    prompts = prompts_of_groups(stored) if stored else _read(data.prompts, data.split, recipe)
    held_out: list[Prompt] = []
    if evaluation.prompts:
        held_out = _read(evaluation.prompts, evaluation.split, recipe)[: evaluation.limit or None]
    # By text and not by id: two files may number the same prompt differently.
    trained = {prompt.text for prompt in prompts}
    both = [prompt.id for prompt in held_out if prompt.text in trained]
    if both:
        raise RecipeError(
            f"{len(both)} of {len(held_out)} prompts of [evaluation] are trained on ({_listed(both)}): keep them apart "
            "with split"
        )
    return RunPrompts(prompts, stored, held_out)


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")


def _read(files: Sequence[str], split: str, recipe: PolicyRecipe) -> list[Prompt]:
    return read_prompts(files, split=split, options=recipe.data.reading)


def render(
    prompts: Sequence[Prompt], tokenizer: Any, *, longest: int, notes: list[str] | None = None, cut: bool = False
) -> list[Prompt]:
    """Return the prompts with their token ids.

    Args:
        notes: get how many prompts did not fit and were left out, or cut; without them such a prompt is refused.
        cut: what does not fit loses its beginning, as ``_shortened`` says, and is not left out.

    Raises:
        RecipeError: if the tokenizer has no chat template, a prompt does not fit, or none does.
    """
    # Without a template the policy would be shown bare text, which it was not tuned on.
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "the policy's tokenizer has no chat template: choose an instruction-tuned model, or set "
            "tokenizer.chat_template and save the tokenizer beside the model"
        )

    def tokens_of(messages: Sequence[Mapping[str, Any]], tools: Any) -> list[int]:
        tokens: list[int] = tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return tokens

    rendered, too_long = [], list[str]()
    for prompt in prompts:
        tokens, fitting = tokens_of(as_messages(prompt.content), prompt.tools), prompt
        if len(tokens) > longest:
            too_long.append(prompt.id)
            shorter = _shortened(prompt, tokens_of, longest) if cut else None
            if shorter is None and (cut or notes is None):
                raise RecipeError(_too_long(prompt, len(tokens), longest, cut=cut))
            if shorter is None:
                continue
            tokens, fitting = tokens_of(as_messages(shorter.content), shorter.tools), shorter
        rendered.append(replace(fitting, token_ids=tuple(tokens)))
    if too_long and notes is not None:
        what = "cut from the left" if cut else "left out"
        notes.append(
            f"{len(too_long)} of {len(prompts)} prompts have more than {longest} tokens, {what}: {_listed(too_long)}"
        )
    if prompts and not rendered:
        raise RecipeError(f"no prompt fits the {longest} tokens that are left beside sampling.max_new_tokens: lower it")
    return rendered


def _too_long(prompt: Prompt, tokens: int, longest: int, *, cut: bool) -> str:
    if cut:
        return (
            f"prompt {prompt.id!r} has {tokens} tokens, and what cannot be cut has more than the {longest} that "
            "sampling.max_new_tokens leaves: lower it, or remove the prompt"
        )
    return (
        f"prompt {prompt.id!r} has {tokens} tokens; the context leaves {longest} beside sampling.max_new_tokens: "
        "shorten it, lower max_new_tokens, or set data.long_prompts to 'leave-out' or 'cut'"
    )


def _shortened(
    prompt: Prompt, tokens_of: Callable[[Sequence[Mapping[str, Any]], Any], list[int]], longest: int
) -> Prompt | None:
    """Return a prompt cut from its left until it fits, or None.

    Whole turns go first, but neither system messages nor what stands from the last user message on. Then these lose
    text from their left, system messages first; of the user's something has to be left.
    """
    messages = [dict(message) for message in as_messages(prompt.content)]

    def fits(shorter: Sequence[Mapping[str, Any]]) -> bool:
        try:
            return len(tokens_of(shorter, prompt.tools)) <= longest
        except TemplateError:
            return False  # a template that wants other turns: more has to go

    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        return None
    system = [place for place in range(users[-1]) if messages[place]["role"] in ("system", "developer")]
    free = [place for place in range(users[-1]) if place not in system]

    def without(count: int) -> list[dict[str, Any]]:
        gone = set(free[:count])
        return [message for place, message in enumerate(messages) if place not in gone]

    # Turns begin with a user message: calls and their results stay together.
    counts = [count for count in range(1, len(free)) if messages[free[count]]["role"] == "user"] + [len(free)]
    best = bisect.bisect_left(counts, True, key=lambda count: fits(without(count)))
    kept = without(counts[min(best, len(counts) - 1)])
    if best == len(counts):
        # Of what is kept, the system messages come first, and the user's is next.
        for place in range(len(system) + 1):
            kept = _with_less_text(kept, place, fits, at_least=int(place == len(system)))
    content = kept[0]["content"] if isinstance(prompt.content, str) else kept
    return replace(prompt, content=content) if fits(kept) else None


def _with_less_text(
    messages: list[dict[str, Any]], place: int, fits: Callable[[list[dict[str, Any]]], bool], *, at_least: int
) -> list[dict[str, Any]]:
    """Return messages of which one lost as few characters from its left as make all fit, or all but some."""
    text = messages[place]["content"]
    if fits(messages) or not isinstance(text, str) or len(text) <= at_least:
        return messages

    def without(count: int) -> list[dict[str, Any]]:
        return [*messages[:place], {**messages[place], "content": text[count:]}, *messages[place + 1 :]]

    most = len(text) - at_least
    return without(min(1 + bisect.bisect_left(range(1, most + 1), True, key=lambda count: fits(without(count))), most))
