"""The sections of a policy recipe: every setting, its meaning and its default. docs/policies.md has the table."""

from dataclasses import dataclass
from typing import Literal

from paragone_training.policy.targets.estimators import Labels, Rule, Selection, Ties

__all__ = [
    "Batching",
    "EvaluationSection",
    "MethodName",
    "OracleSection",
    "PolicyDataSection",
    "PolicyLossSection",
    "PolicyOutputSection",
    "PolicySection",
    "PolicyTrainingSection",
    "ReferenceSection",
    "SamplingSection",
    "ServersSection",
    "TargetSection",
]

MethodName = Literal["sppo", "gpo", "inpo", "egpo", "omwu", "dpo", "ipo"]
Batching = Literal["auto", "packed", "padded"]
Unfinished = Literal["drop", "penalise", "keep"]


@dataclass(frozen=True)
class PolicySection:
    """What is trained.

    Attributes:
        source: ``builtin:mini-policy``, a folder, or a Hugging Face id of a causal language model.
        revision: branch, tag or commit of an id.
        dtype: of the weights while they are trained and asked for log-probabilities.
        attention: transformers' attention implementation.
        max_length: longest prompt and response together, in tokens; 0 takes the model's context.
    """

    source: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str = "sdpa"
    max_length: int = 0


@dataclass(frozen=True)
class PolicyDataSection:
    """Which prompts.

    Attributes:
        prompts: .jsonl or .jsonl.gz files of rows with ``prompt`` (text or messages), relative to the recipe.
        split: rows whose ``split`` is this are trained on, and rows without one.
        per_iteration: prompts of an iteration: disjoint parts of a shuffled order, which starts again when it is used
            up; 0 takes all of them every time.
    """

    prompts: tuple[str, ...]
    split: str = "train"
    per_iteration: int = 0


@dataclass(frozen=True)
class SamplingSection:
    """How responses are drawn.

    Attributes:
        responses: K, to each prompt.
        temperature: what logits are divided by; the theorems need 1.
        top_p: smallest share of probability to draw from; the theorems need 1.
        top_k: most tokens to draw from; 0 is all of them, as the theorems need.
        max_new_tokens: longest response.
        batch: responses generated together; a multiple of K is used.
        unfinished: what becomes of a response without an end: ``drop`` it, ``penalise`` it, or ``keep`` it.
        penalty: logits that a penalised response loses against every finished one.
        tolerance: nats a token that the sampler's log-probabilities may be from the trainer's.
    """

    responses: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    batch: int = 32
    unfinished: Unfinished = "drop"
    penalty: float = 2.0
    tolerance: float = 0.05


@dataclass(frozen=True)
class ServersSection:
    """Completions servers that draw the responses; without this section the run draws them in its own process.

    Attributes:
        kind: whose routes the servers have: ``vllm`` or ``sglang``.
        urls: of servers that run already; with ``reload = "restart"`` none, the run starts its own.
        model: the policy's name at the servers; the only one they know unless given.
        api_key_file: file that holds the bearer key, relative to the recipe.
        reload: how servers get the weights of an iterate: the run starts them anew on its folder (``restart``), asks
            them to read it (``update``), or runs a command of yours (``command``).
        command: restart: what starts a server, with {model}, {port} and {index}; command: what is run, with {model}.
        count: restart: servers that are started, on ports of this host.
        phases: ``colocated``: servers are stopped (restart) or asleep (update) while the run computes itself;
            ``disaggregated``: they stay up.
        concurrency: most requests in flight at one server.
        request_timeout_s: a response that takes longer is asked of another server.
        round_timeout_s: groups that are not complete so long after a round began are left out; 0 waits for all.
        tries: of a response, before its group is left out.
        patience_s: how long all servers may be gone before the run stops.
        start_timeout_s: how long a server may take to be ready, or to read new weights.
    """

    kind: Literal["vllm", "sglang"] = "vllm"
    urls: tuple[str, ...] = ()
    model: str | None = None
    api_key_file: str | None = None
    reload: Literal["restart", "update", "command"] = "restart"
    command: str | None = None
    count: int = 1
    phases: Literal["colocated", "disaggregated"] = "disaggregated"
    concurrency: int = 64
    request_timeout_s: float = 600.0
    round_timeout_s: float = 0.0
    tries: int = 3
    patience_s: float = 600.0
    start_timeout_s: float = 900.0


@dataclass(frozen=True)
class OracleSection:
    """Who is asked.

    Attributes:
        url: of a running service.
        serve: or the models that a service of this run's own hosts, as ``paragone serve --model``.
        model: id of the model that is asked; the service's default unless given.
        api_key_file: file that holds the bearer key, relative to the recipe.
        concurrency: most requests in flight.
        patience_s: how long an oracle may be gone before the run stops.
        timeout_s: deadline of one request.
        rule: how the answers to both orders of a pair are combined.
    """

    url: str | None = None
    serve: str | None = None
    model: str | None = None
    api_key_file: str | None = None
    concurrency: int = 4
    patience_s: float = 600.0
    timeout_s: float = 120.0
    rule: Rule = "mean-probability"


@dataclass(frozen=True)
class TargetSection:
    """What is made of the K×K tables.

    Attributes:
        pairs: which pairs are trained on: ``all``, ``disjoint`` ones, or ``best-versus-worst``.
        labels: of the pairwise methods: the oracle's probability (``soft``), drawn from it (``sampled``), or the
            majority's (``hard``).
        win_rates: of sppo and gpo: ``with-self``, as published, or ``without-self``, unbiased.
        ties: pairs of probability ½ are dropped or kept.
    """

    pairs: Selection = "all"
    labels: Labels = "soft"
    win_rates: Literal["with-self", "without-self"] = "with-self"
    ties: Ties = "drop"


@dataclass(frozen=True)
class PolicyLossSection:
    """The method's own numbers; those of other methods are refused.

    Attributes:
        eta: sppo: the step, in nats per unit of win rate; inpo: the inverse of the step.
        tau: inpo, egpo, omwu, ipo: weight of the KL to the reference.
        step: egpo, omwu: nats per unit of win rate.
        beta: gpo: units of score per nat; dpo: weight of the KL to the reference.
        label_smoothing: dpo: assumed share of wrong labels.
        gradient: of the ``scaled`` loss, or of the ``raw`` one; they differ where gradients are clipped.
    """

    eta: float | None = None
    tau: float | None = None
    step: float | None = None
    beta: float | None = None
    label_smoothing: float = 0.0
    gradient: Literal["scaled", "raw"] = "scaled"


@dataclass(frozen=True)
class ReferenceSection:
    """Which policy the KL is to.

    Attributes:
        policy: the ``initial`` one, the ``previous`` iterate, or ``every-n``: reset to the iterate every n iterations.
        every: n.
    """

    policy: Literal["initial", "previous", "every-n"] = "initial"
    every: int = 0


@dataclass(frozen=True)
class PolicyTrainingSection:
    """How gradient steps are taken.

    Attributes:
        iterations: of the whole loop.
        epochs: passes over an iteration's pairs before training stops.
        schedule_epochs: passes that the learning-rate schedule is laid out for; 0 is the same as ``epochs``.
        pairs_per_step: of an optimiser step, over all processes.
        pairs_per_pass: of one forward pass of one process.
        batching: of a pass: ``packed``, one row without padding in which a prompt is computed once; ``padded``; or
            ``auto``, packed on a CPU. Where packing was not proven exact, passes are padded, and the log says why.
        learning_rate: peak.
        schedule: transformers' name of its shape.
        warmup: share of the schedule, or steps.
        optimiser: transformers' name: adamw_torch, rmsprop, …
        weight_decay: of the optimiser.
        betas: of Adam.
        max_gradient_norm: gradients are clipped to this; 0 does not clip.
        bf16: mixed precision.
        gradient_checkpointing: recompute activations in the backward pass.
        chunk_tokens: response tokens whose logits exist at once.
        noise_limit: largest share of the targets' scale that noise of the log-probabilities may have.
        save_steps: optimiser steps between checkpoints; 0: an interrupted training starts again.
        log_steps: optimiser steps between log lines.
        collective_timeout_s: how long processes wait for each other in gradient steps before the run stops; sampling
            by the main process may take longer.
        seed: of everything.
    """

    iterations: int = 3
    epochs: float = 1.0
    schedule_epochs: float = 0.0
    pairs_per_step: int = 64
    pairs_per_pass: int = 8
    batching: Batching = "auto"
    learning_rate: float = 5e-7
    schedule: str = "linear"
    warmup: float = 0.1
    optimiser: str = "adamw_torch"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_gradient_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    chunk_tokens: int = 1024
    noise_limit: float = 0.05
    save_steps: int = 0
    log_steps: int = 5
    collective_timeout_s: float = 1800.0
    seed: int = 0


@dataclass(frozen=True)
class EvaluationSection:
    """How an iterate is compared with the initial policy.

    Attributes:
        prompts: files of prompts that are not trained on.
        split: rows whose ``split`` is this.
        limit: only the first so many; 0 is all of them.
        responses: of each policy to each prompt.
        judge_url: a second judge, of another kind than the oracle.
        judge_serve: or the model that this run's own service hosts as the second judge.
        judge_model: its id.
    """

    prompts: tuple[str, ...] = ()
    split: str = "test"
    limit: int = 0
    responses: int = 1
    judge_url: str | None = None
    judge_serve: str | None = None
    judge_model: str | None = None


@dataclass(frozen=True)
class PolicyOutputSection:
    """Where to.

    Attributes:
        folder: of the run; runs/NAME unless given.
        dtype: storage type of the iterates' weights; anything but the policy's own dtype rounds them.
        trackers: who else is told the numbers, by accelerate's names: ``tensorboard``, ``wandb``, ``mlflow``, ….
    """

    folder: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trackers: tuple[str, ...] = ()
