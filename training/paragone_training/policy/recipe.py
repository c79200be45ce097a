"""The recipe of a policy: every setting with its meaning and default, and which of them fit each other.

docs/policies.md has a table that is written from here.
"""

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    ValidationInfo,
    create_model,
    model_validator,
)

from paragone_training.errors import RecipeError
from paragone_training.policy.functions import name_of
from paragone_training.policy.methods.method import Method
from paragone_training.policy.methods.registry import METHODS, check_needs, knobs, method_of
from paragone_training.policy.targets import Labels, Rule, Selection, Ties, Unfinished, WinRates
from paragone_training.settings import DataFiles, DataSection, LoraSection, Names, RecipeFile, Section, beside, load

__all__ = [
    "Batching",
    "OracleSection",
    "PolicyRecipe",
    "PolicyTrainingSection",
    "ServersSection",
    "command_line",
    "load_policy_recipe",
]

Batching = Literal["auto", "packed", "padded"]


class _PolicySection(Section):
    """What is trained."""

    source: str
    """`builtin:mini-policy`, a folder, or a Hugging Face id of a causal language model."""
    revision: str | None = None
    """Branch, tag or commit of an id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What passes compute in, sampling included. Weights and optimiser are float32 in either case: steps of 5e-7 vanish
    in bfloat16 weights."""
    attention: str = "sdpa"
    """transformers' attention implementation."""
    max_length: NonNegativeInt = 0
    """Longest prompt and response together, in tokens; 0 takes the model's context."""


class _PolicyDataSection(DataSection):
    """Which prompts, or which stored preferences."""

    prompts: DataFiles = ()
    """Files of rows with `prompt` (text or messages), and optionally `id` and `split`; relative to the recipe."""
    pairs: DataFiles = ()
    """In place of `prompts`: files that compare responses. They are trained on offline, in one iteration: nothing is
    sampled, and an oracle is asked for the evaluation alone."""
    long_prompts: Literal["refuse", "leave-out", "cut"] | None = None
    """What prompts do that leave no room for `sampling.max_new_tokens`: as `bad_rows` unless given; `cut` takes whole
    turns from their left, and then text, of system messages before the last user message. The log and the plan count
    them."""
    split: str = "train"
    """Rows of this `split` are trained on, and rows without one."""
    max_missing_groups: float = Field(default=0.05, ge=0, le=1)
    """Largest share of an iteration's prompts that may end without a comparison, because the oracle refuses them or
    servers did not answer in time; more of them stop the run."""
    per_iteration: NonNegativeInt = 0
    """Prompts of an iteration: disjoint parts of a shuffled order, which starts again when it is used up. 0 takes all
    of them every time."""


class _SamplingSection(Section):
    """How responses are sampled."""

    responses: int = 5
    """K, to each prompt; at least 2."""
    temperature: PositiveFloat = 1.0
    """What logits are divided by; the theorems need 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest share of probability to draw from; the theorems need 1."""
    top_k: NonNegativeInt = 0
    """Most tokens to draw from; 0 is all of them, as the theorems need."""
    max_new_tokens: PositiveInt = 512
    """Longest response."""
    stop: Names = ()
    """Texts that end a response, as the end token does. The tokens of the text are trained on; judges read what stands
    before it."""
    batch: PositiveInt = 32
    """Responses that are sampled and asked for together; a multiple of K is used."""
    unfinished: Unfinished = "drop"
    """A response without an end is dropped, penalised, or kept."""
    penalty: NonNegativeFloat = 2.0
    """Logits that a penalised response loses against every finished one."""
    tolerance: float = 0.05
    """Nats a token that the sampler's log-probabilities may be from the trainer's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A response is compared with others to the same prompt.
        if self.responses < 2:
            raise RecipeError(
                f"sampling.responses is {self.responses}; a preference needs at least 2 responses to a prompt"
            )
        return self


class ServersSection(Section):
    """Completions servers that sample the responses; without this section the run samples in its own process."""

    kind: Literal["vllm", "sglang"] = "vllm"
    """Whose routes the servers have."""
    urls: Names = ()
    """Servers that run already; none with `reload = "restart"`, where the run starts its own."""
    model: str | None = None
    """The policy's name at the servers; the only one they know unless given."""
    api_key_file: RecipeFile | None = None
    """File that holds the bearer key, relative to the recipe."""
    reload: Literal["restart", "update", "command"] = "restart"
    """How servers get the weights of an iterate: the run starts them anew on its folder (`restart`), asks them to read
    it (`update`), or runs a command of yours (`command`)."""
    command: str | None = None
    """restart: what starts a server, with `{model}`, `{port}` and `{index}`; command: what is run, with `{model}`."""
    count: PositiveInt = 1
    """restart: servers that are started, on ports of this host."""
    phases: Literal["colocated", "disaggregated"] = "disaggregated"
    """`colocated`: while the run computes, servers are stopped (restart) or asleep (update), and while they sample the
    run's weights are in main memory. `disaggregated`: they stay up."""
    concurrency: PositiveInt = 64
    """Most requests in flight at one server."""
    request_timeout_s: PositiveFloat = 600.0
    """A response that takes longer is asked of another server."""
    round_timeout_s: NonNegativeFloat = 0.0
    """Groups that are not complete so long after a round began are left out; 0 waits for all."""
    tries: PositiveInt = 3
    """Of a response, before its group is left out."""
    patience_s: NonNegativeFloat = 600.0
    """How long all servers may be gone before the run stops."""
    start_timeout_s: PositiveFloat = 900.0
    """How long a server may take to be ready, or to read new weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A server that the run starts anew has a port and a command; one that runs already has an address.
        if self.reload == "restart":
            self._check_restart()
            return self
        if not self.urls:
            raise RecipeError(f"servers.reload is {self.reload!r}: servers.urls has to name servers that run")
        # Left in from a recipe of the other kind, it would be ignored in silence.
        if self.count != 1:
            raise RecipeError("servers.count is for reload = 'restart'; servers that run already are counted by urls")
        if self.reload == "update" and self.command is not None:
            raise RecipeError(
                "servers.command is not run with reload = 'update': remove it, or set reload to 'command'"
            )
        if self.reload == "command":
            self._filled(model="MODEL")
            # The run knows no way to take the device from a server that a command of the user's looks after.
            if self.phases == "colocated":
                raise RecipeError(
                    "servers.phases = 'colocated' needs servers that this run can stop or put to sleep: set reload to "
                    "'restart' or 'update', or phases to 'disaggregated'"
                )
        return self

    def _check_restart(self) -> None:
        if self.urls:
            raise RecipeError("servers.urls are not this run's to restart: remove them, or set reload to 'update'")
        # Tried with made-up values, so that a template that cannot work is refused before anything is sampled.
        words = self._filled(model="MODEL", port=1, index=0)
        if not (any("MODEL" in word for word in words) and any("1" in word for word in words)):
            raise RecipeError("servers.command needs {model} and {port}: vllm serve {model} --port {port}")

    def _filled(self, **values: object) -> list[str]:
        words = command_line(self.command or "", **values)
        if not words:
            raise RecipeError(f"servers.reload is {self.reload!r}: servers.command has to say what is run")
        return words


def command_line(template: str, **values: object) -> list[str]:
    """Return the program and the arguments of a command template; no shell is asked.

    Args:
        template: with ``{name}`` where a value goes.
        values: by name; a space in a value does not cut an argument in two.

    Raises:
        RecipeError: if the template names a value that there is not, or its quotes do not close.
    """
    try:
        # Cut into words first, then filled in: a path with a space stays one argument.
        return [word.format(**values) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as error:
        raise RecipeError(
            f"servers.command {template!r}: {error!r}; known are {', '.join('{' + name + '}' for name in values)}, and "
            "a brace of its own is written twice"
        ) from error


def _beside_recipe(name: str, info: ValidationInfo) -> str:
    """Return a function's name with the path of its file, where it has one, relative to the recipe."""
    place, _, function = name.rpartition(":")
    return f"{beside(place, info)}:{function}" if place.endswith(".py") else name


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or callable(value)


class OracleSection(Section):
    """The preference oracle; `oracle = "module:function"` is one that is a function."""

    url: str | None = None
    """Of a running service."""
    serve: str | None = None
    """Or the model that a service of this run's own hosts, as `paragone serve --model` takes it."""
    function: Annotated[str, AfterValidator(_beside_recipe)] | None = None
    """Or a Python function of a prompt and K responses, `module:function` or `file.py:function` (relative to the
    recipe): it returns K rewards, or K×K probabilities that the row is preferred to the column."""
    model: str | None = None
    """Id of the model that is asked; the service's default unless given."""
    api_key_file: RecipeFile | None = None
    """File that holds the bearer key, relative to the recipe."""
    concurrency: PositiveInt = 4
    """Most requests in flight."""
    patience_s: NonNegativeFloat = 600.0
    """How long an oracle may be gone before the run stops."""
    wait_s: NonNegativeFloat = 0.0
    """How long an oracle that has not answered this run yet may take to start."""
    timeout_s: PositiveFloat = 120.0
    """Deadline of one request."""
    rule: Rule = "mean-probability"
    """How the answers to both orders of a pair are combined."""
    skew_weights: Annotated[tuple[NonNegativeFloat, ...], Strict(False)] = ()
    """Of a `hybrid` model: how much its cyclic part counts beside its reward, iteration by iteration, as in `[0, 0.5,
    1]`; the last goes on. Evaluations ask with the model's own weight, as does a run without these."""

    def skew_weight(self, iteration: int) -> float | None:
        """Return the weight of an iteration, from 1; None is the model's own."""
        return self.skew_weights[min(iteration, len(self.skew_weights)) - 1] if self.skew_weights else None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, tables: Any) -> Any:
        """Take a function, or the name of one, for the whole section."""
        return {"function": name_of(tables) if callable(tables) else tables} if _is_name(tables) else tables

    @model_validator(mode="after")
    def _check(self) -> Self:
        # With two it would be open who answers; with none nobody does.
        if [self.url, self.serve, self.function].count(None) != 2:
            raise RecipeError(
                "[oracle] needs either url (a running service), serve (a model that this run hosts) or function"
            )
        if self.function is not None and (self.model or self.api_key_file or self.skew_weights):
            raise RecipeError(
                "[oracle] model, api_key_file and skew_weights are those of a service: remove them beside function"
            )
        return self


class _TargetSection(Section):
    """What is made of the K×K tables."""

    pairs: Selection = "all"
    """Which pairs are trained on."""
    labels: Labels = "soft"
    """Of methods of labelled pairs: the oracle's probability (`soft`), drawn from it (`sampled`), or the majority's
    (`hard`)."""
    win_rates: WinRates = "with-self"
    """Of the other methods: `with-self`, as published, or `without-self`, unbiased."""
    length_penalty: NonNegativeFloat = 0.0
    """Logits that a response loses for every 100 characters that it is longer than the other one of a pair."""
    ties: Ties | None = None
    """Pairs of probability ½, identical responses too, are kept or dropped. Kept unless given: without them the
    fit of soft labels is biased. Only `dpo`, which has no label for them, drops them."""


class _LossSection(Section):
    """The method's own numbers; those of other methods are refused."""

    gradient: Literal["scaled", "raw"] = "scaled"
    """Of the scaled loss, or of the raw one; they differ where gradients are clipped."""
    sft: NonNegativeFloat = 0.0
    """Weight of the negative log-likelihood of the chosen response, in nats a token, beside that loss (ties have none).
    DPO alone lowers the likelihood of chosen responses too."""


if TYPE_CHECKING:
    _PolicyLossSection = _LossSection
else:
    # From the methods' fields, so that a number that a new method brings is a setting without a change here.
    _PolicyLossSection = create_model(
        "_PolicyLossSection",
        __base__=_LossSection,
        __doc__=_LossSection.__doc__,
        **{
            name: (float if default is not None else float | None, Field(default=default, description=text))
            for name, (text, default) in knobs().items()
        },
    )


class _ReferenceSection(Section):
    """Which policy the KL is to."""

    policy: Literal["initial", "previous", "every-n"] = "initial"
    """The initial one, the previous iterate, or every n iterations the iterate at hand."""
    every: NonNegativeInt = 0
    """n."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Neither alone says anything: a distance without resets, or resets without a distance.
        if (self.policy == "every-n") != (self.every > 0):
            raise RecipeError("reference.every says how often policy = 'every-n' resets: set both or neither")
        return self


class PolicyTrainingSection(Section):
    """How gradient steps are taken."""

    iterations: PositiveInt = 3
    """Of the whole loop."""
    epochs: PositiveFloat = 1.0
    """Passes over an iteration's pairs before training stops."""
    schedule_epochs: NonNegativeFloat = 0.0
    """Passes that the learning-rate schedule is laid out for; 0 is the same as `epochs`."""
    pairs_per_step: PositiveInt = 64
    """Of an optimiser step, over all processes."""
    pairs_per_pass: PositiveInt = 8
    """Of one forward pass of one process."""
    batching: Batching = "auto"
    """Of a pass: `packed`, one row without padding in which a prompt is computed once; `padded`; or `auto`, packed on a
    CPU. Where packing was not proven exact, passes are padded, and the log says why."""
    learning_rate: PositiveFloat = 5e-7
    """Peak."""
    schedule: str = "linear"
    """transformers' name of its shape."""
    warmup: NonNegativeFloat = 0.1
    """Share of the schedule, or steps."""
    optimiser: str = "adamw_torch"
    """transformers' name: `adamw_torch`, `rmsprop`, …"""
    weight_decay: float = 0.0
    """Of the optimiser."""
    betas: Annotated[tuple[float, float], Strict(False)] = (0.9, 0.999)
    """Of Adam."""
    max_gradient_norm: NonNegativeFloat = 1.0
    """Gradients are clipped to this; 0 does not clip."""
    bf16: bool = False
    """Gradient steps and log-probabilities in bfloat16; true unless given where `policy.dtype` is `bfloat16`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    chunk_tokens: PositiveInt = 1024
    """Response tokens whose logits exist at once."""
    noise_limit: PositiveFloat = 0.05
    """Largest share of the targets' scale that noise of the log-probabilities may have."""
    save_steps: NonNegativeInt = 0
    """Optimiser steps between checkpoints; 0: an interrupted training starts again."""
    log_steps: PositiveInt = 5
    """Optimiser steps between log lines."""
    collective_timeout_s: PositiveFloat = 1800.0
    """How long processes wait for each other in gradient steps, and the main one for the next chunk of another, before
    the run stops; a whole round may take longer."""
    seed: NonNegativeInt = 0
    """Of everything."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A step is a whole number of passes, or its last pass would weigh another number of pairs.
        if self.pairs_per_step % self.pairs_per_pass:
            raise RecipeError(
                f"training.pairs_per_step {self.pairs_per_step} is no multiple of pairs_per_pass {self.pairs_per_pass}"
            )
        # A shorter schedule would end at a rate of 0 and train on without effect.
        if self.schedule_epochs and self.schedule_epochs < self.epochs:
            raise RecipeError(
                f"training.schedule_epochs {self.schedule_epochs} is below epochs {self.epochs}: a schedule is laid out"
                " for at least as many epochs as are run"
            )
        return self


class _EvaluationSection(Section):
    """How an iterate is compared with the initial policy."""

    prompts: DataFiles = ()
    """Files of prompts that are not trained on; none: no evaluation."""
    split: str = "test"
    """Rows of this `split`, and rows without one."""
    limit: NonNegativeInt = 0
    """Only the first so many; 0 is all of them."""
    responses: PositiveInt = 1
    """Of each policy to each prompt."""
    judge_url: str | None = None
    """A second judge, of another kind than the oracle."""
    judge_serve: str | None = None
    """Or the model that this run's own service hosts as the second judge."""
    judge_model: str | None = None
    """Its id."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # One judge at most: its file and its curve have one name.
        if self.judge_url is not None and self.judge_serve is not None:
            raise RecipeError("[evaluation] takes judge_url or judge_serve, not both")
        return self


class _PolicyOutputSection(Section):
    """What is written, and where."""

    folder: str | None = None
    """Of the run; `runs/NAME-OF-THE-RECIPE` unless given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of the iterates' weights. Anything but float32 rounds them, and the next iteration starts from what
    was written: the log says how much of each update survived."""
    keep: NonNegativeInt = 0
    """Iterations whose weights are kept, the last ones; older weights go when nothing needs them any more, and so do
    checkpoints of steps that are done. 0 keeps all."""
    adapters: bool = False
    """With `[lora]`: each step also leaves what was learnt since the initial policy as one adapter of it, for peft and
    vLLM."""
    push: str | None = None
    """Repository of the Hub, `owner/name`, that gets the last iterate's folder at the end of the run; made, private, if
    it is not there. The token is that of `hf auth login`, or `HF_TOKEN`."""
    trackers: Names = ()
    """Who else is told the numbers, by accelerate's names: `tensorboard`, `wandb`, `mlflow`, …"""


class PolicyRecipe(Section):
    """The recipe of a policy."""

    method: str = Field(description=f"The algorithm: {', '.join(f'`{name}`' for name in METHODS)}.")
    policy: _PolicySection
    data: _PolicyDataSection
    oracle: OracleSection | None = None
    loss: _PolicyLossSection = _PolicyLossSection()
    sampling: _SamplingSection = _SamplingSection()
    servers: ServersSection | None = None
    targets: _TargetSection = _TargetSection()
    reference: _ReferenceSection = _ReferenceSection()
    training: PolicyTrainingSection = PolicyTrainingSection()
    lora: LoraSection | None = None
    evaluation: _EvaluationSection = _EvaluationSection()
    output: _PolicyOutputSection = _PolicyOutputSection()

    @cached_property
    def objective(self) -> Method:
        """The method with its numbers."""
        fields = type(self.loss).model_fields
        values = {name: getattr(self.loss, name) for name in knobs()}
        # A number that has its default was not chosen: it may stay in the recipe of a method that has none.
        return method_of(
            self.method, **{name: None if value == fields[name].default else value for name, value in values.items()}
        )

    @property
    def rule(self) -> Rule:
        """How answers to both orders of a pair are combined; stored ones are alike."""
        return self.oracle.rule if self.oracle else "mean-probability"

    @property
    def ties(self) -> Ties:
        """What becomes of pairs of probability ½."""
        return self.targets.ties or self.objective.needs.ties[0]

    @model_validator(mode="before")
    @classmethod
    def _one_precision(cls, tables: Any) -> Any:
        """Take the passes of gradient steps to be in the policy's dtype, unless the recipe says otherwise."""
        # Before validation, when tables may still be anything: what is wrong with them is said by the fields.
        policy, training = tables.get("policy"), tables.get("training", {})
        if not isinstance(policy, dict) or policy.get("dtype") != "bfloat16" or not isinstance(training, dict):
            return tables
        return tables | {"training": {"bf16": True, **training}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_data(self)
        if self.output.adapters and self.lora is None:
            raise RecipeError("output.adapters are those of [lora]: add that section, or remove adapters")
        # The method says what it can use; nothing here knows methods by name.
        targets = self.targets
        check_needs(
            self.objective,
            labels=targets.labels,
            ties=self.ties,
            win_rates=targets.win_rates,
            reference=self.reference.policy,
        )
        return self


def _check_data(recipe: PolicyRecipe) -> None:
    """Refuse a recipe with neither prompts and an oracle nor stored pairs, and what stored pairs cannot give."""
    data = recipe.data
    if not (data.prompts or data.pairs):
        raise RecipeError("data.prompts is empty; name at least one file of prompts, or preferences as data.pairs")
    if data.prompts and data.pairs:
        raise RecipeError("[data] takes either prompts, to be answered and judged, or pairs, which have been")
    if recipe.oracle is None and data.prompts:
        raise RecipeError("[oracle] is missing: who judges the responses to data.prompts? Set its url, or serve")
    if recipe.oracle is None and recipe.evaluation.prompts:
        raise RecipeError("[evaluation] needs an [oracle] to compare answers: set its url or serve, or remove prompts")
    judge = recipe.evaluation
    if recipe.oracle and recipe.oracle.function and judge.judge_model and not (judge.judge_url or judge.judge_serve):
        raise RecipeError(
            "evaluation.judge_model is hosted by no service: set judge_url or judge_serve, as the oracle is a function"
        )
    if not data.pairs:
        return
    steps = recipe.objective.steps(1)
    if recipe.training.iterations != 1 or len({step.round for step in steps}) != 1:
        raise RecipeError(
            f"data.pairs are of one policy, and {recipe.method} with training.iterations = "
            f"{recipe.training.iterations} asks for fresh responses: set iterations = 1, and a method of one round"
        )
    if data.long_prompts not in (None, "refuse"):
        raise RecipeError("data.long_prompts is for prompts; stored responses belong to whole ones: remove it")
    if data.per_iteration:
        raise RecipeError("data.per_iteration deals prompts; all data.pairs are taken: remove it")


def load_policy_recipe(path: Path, assignments: Sequence[str] = (), *, data: Path | None = None) -> PolicyRecipe:
    """Return the recipe of a TOML file, its paths made absolute; arguments as those of ``settings.load``.

    Raises:
        RecipeError: if it cannot be read or run.
    """
    return load(PolicyRecipe, path, assignments, data=data)
