"""The prompts of a run, read and rendered in one way by the run and by its plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
        notes: what was left out because it does not fit.
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
        notes: list[str] | None = [] if recipe.data.reading.leaves_out and not self.stored else None
        prompts = render(self.prompts, tokenizer, longest=context - 1 if self.stored else longest, notes=notes)
        held_out = render(self.held_out, tokenizer, longest=longest, notes=notes)
        return replace(self, prompts=prompts, held_out=held_out, notes=tuple(notes or ()))


def read_run_prompts(recipe: PolicyRecipe) -> RunPrompts:
    """Return the prompts of a recipe's files, without token ids.

    Raises:
        DataError: if files cannot be read.
    """
    data, evaluation = recipe.data, recipe.evaluation
    stored = stored_groups(recipe) if data.pairs else []
    prompts = prompts_of_groups(stored) if stored else _read(data.prompts, data.split, recipe)
    held_out: list[Prompt] = []
    if evaluation.prompts:
        held_out = _read(evaluation.prompts, evaluation.split, recipe)[: evaluation.limit or None]
    return RunPrompts(prompts, stored, held_out)


def _read(files: Sequence[str], split: str, recipe: PolicyRecipe) -> list[Prompt]:
    return read_prompts(files, split=split, options=recipe.data.reading)


def render(prompts: Sequence[Prompt], tokenizer: Any, *, longest: int, notes: list[str] | None = None) -> list[Prompt]:
    """Return the prompts with their token ids.

    Args:
        notes: get how many prompts did not fit and were left out; without them such a prompt is refused.

    Raises:
        RecipeError: if the tokenizer has no chat template, a prompt does not fit, or none does.
    """
    # Without a template the policy would be shown bare text, which it was not tuned on.
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "the policy's tokenizer has no chat template: choose an instruction-tuned model, or set "
            "tokenizer.chat_template and save the tokenizer beside the model"
        )
    rendered, left_out = [], list[str]()
    for prompt in prompts:
        messages = as_messages(prompt.content)
        tokens = tokenizer.apply_chat_template(
            messages, tools=prompt.tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        # Nothing is cut: a prompt that lost its beginning is another prompt.
        if len(tokens) > longest and notes is None:
            raise RecipeError(
                f"prompt {prompt.id!r} has {len(tokens)} tokens; the context leaves {longest} beside "
                "sampling.max_new_tokens: shorten it, lower max_new_tokens, or leave such prompts out with "
                'data.bad_rows = "leave-out"'
            )
        if len(tokens) > longest:
            left_out.append(prompt.id)
        else:
            rendered.append(replace(prompt, token_ids=tuple(tokens)))
    if left_out and notes is not None:
        ids = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
        notes.append(f"{len(left_out)} of {len(prompts)} prompts have more than {longest} tokens, left out: {ids}")
    if prompts and not rendered:
        raise RecipeError(f"no prompt fits the {longest} tokens that are left beside sampling.max_new_tokens: lower it")
    return rendered
