"""Log-probabilities of whole responses, without ever holding the logits of a whole batch; passes padded or packed.

    STEP/logprobs.parquet     one row per response that is in a pair: its log-probability under base and reference

N sequences as they were given, T padded length or rows, M response tokens, H hidden size, V vocabulary. A sequence is
the prompt's token ids and the response's, as they were sampled; nothing is tokenised again.

A packed pass is one row of tokens without padding, in which what several sequences begin with is computed once. The
prefix tree and the attention are those of the engine (``paragone_models.packing``), here with gradients. A pair's two
responses share their prompt, as do several pairs of one prompt in a pass; a response that several pairs have is
computed once. Only backbones that packing was proven for are packed; and whatever a configuration promises, states and
gradients of a few sequences are computed both ways before it is believed.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paragone_models.network import output_width
from paragone_models.packing.attention import NAME, Attend, Run, packed
from paragone_models.packing.backend import failure_of, refusal, through_model, tolerance
from paragone_models.packing.gpu import flex_attention
from paragone_models.packing.segments import segments_attention
from paragone_models.packing.tree import MIN_SHARED, Layout, Tokens, grow, lay_out
from paragone_models.rotary import hidden_by_angles
from paragone_training.errors import RunError
from paragone_training.policy.model.weights import Policy, output_logits
from paragone_training.policy.recipe import Batching, PolicyTrainingSection
from paragone_training.policy.rows import LabelledPair, Response, TrainingPair, read_table, write_table

__all__ = [
    "Item",
    "PackedRow",
    "ResponseLogprobs",
    "Sequences",
    "check_sampler",
    "collated",
    "freeze_columns",
    "frozen_columns",
    "frozen_logprobs",
    "join_columns",
    "longest_of_prompts",
    "on_device",
    "packed_row",
    "packed_states",
    "padded_sequences",
    "policy_logprobs",
    "response_logprobs",
    "rows_of_pairs",
    "unpacked",
    "with_logprobs",
]

logger = logging.getLogger(__name__)

# Token ids of a prompt and of a response.
Item = tuple[Sequence[int], Sequence[int]]

_TRIAL_PROMPTS, _TRIAL_RESPONSES = (24, 7), (3, 9)
_CHECKED_RESPONSES = 8

# Which response a row is of; a column of log-probabilities for each policy follows.
_OF_THE_RESPONSE = [("prompt_id", pa.string()), ("number", pa.int32())]
_BASE_AND_REFERENCE = ("base_logprob", "reference_logprob")


class Sequences(NamedTuple):
    """Prompts and responses, padded on the right.

    Attributes:
        input_ids: prompt, response, padding. [N, T]
        attention_mask: 1 at prompt and response. [N, T]
        answered: True at the response's tokens. [N, T]
    """

    input_ids: Tensor
    attention_mask: Tensor
    answered: Tensor


def padded_sequences(items: Sequence[Item], pad_id: int) -> Sequences:
    """Return N prompts and responses as tensors; ``pad_id`` fills up."""
    longest = max(len(prompt) + len(response) for prompt, response in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(items), longest), dtype=torch.long)
    answered = torch.zeros((len(items), longest), dtype=torch.bool)
    for row, (prompt, response) in enumerate(items):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response], dtype=torch.long)
        mask[row, :end] = 1
        answered[row, len(prompt) : end] = True
    return Sequences(input_ids, mask, answered)


class PackedRow(NamedTuple):
    """Prompts and responses in one row.

    Attributes:
        layout: tokens of the rows, and who attends to whom.
        reads: the row that predicts each response token. [M]
        targets: response tokens. [M]
        owners: the distinct sequence that each of them belongs to. [M]
        places: which distinct sequence each of the given ones is. [N]
    """

    layout: Layout
    reads: Tensor
    targets: Tensor
    owners: Tensor
    places: Tensor


def packed_row(items: Sequence[Item]) -> PackedRow:
    """Return prompts and responses as one row; equal ones are in it once.

    Args:
        items: token ids of a prompt and of a response, N times; no prompt is empty.
    """
    # A response that stands in several pairs is computed once, and its gradients add up through ``places``.
    distinct: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    places = [distinct.setdefault((tuple(prompt), tuple(response)), len(distinct)) for prompt, response in items]
    sequences = [np.array([*prompt, *response], dtype=np.int64) for prompt, response in distinct]
    # Only response tokens are read, but a prompt computes states that all its responses attend to.
    starts = [len(prompt) for prompt, _ in distinct]
    layout, rows = _laid_out(sequences)
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    # The row before a token predicts it: the last row of the prompt predicts the first token of the response.
    reads = [own[start - 1 : -1] for own, start in zip(rows, starts, strict=True)]
    targets = [sequence[start:] for sequence, start in zip(sequences, starts, strict=True)]
    owners = np.repeat(np.arange(len(sequences)), counts)
    columns = (np.concatenate(reads), np.concatenate(targets), owners, np.array(places))
    return PackedRow(layout, *(torch.from_numpy(column) for column in columns))


def longest_of_prompts(prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Return the length of each prompt's longest sequence: by it prompts are ordered whose sequences stay together."""
    longest: dict[tuple[int, ...], int] = {}
    for prompt, length in zip(prompts, lengths, strict=True):
        longest[tuple(prompt)] = max(length, longest.get(tuple(prompt), 0))
    return longest


def _laid_out(sequences: Sequence[Tokens]) -> tuple[Layout, list[NDArray[np.int64]]]:
    """Return the row of some sequences, and the rows of each one's tokens."""
    # Unlike the engine, which starts behind what a cache has, a pass begins at the first token.
    forest = grow(sequences, start=0, min_shared=MIN_SHARED)
    layout = lay_out(forest, 0, len(forest.nodes))
    paths = [forest.path(end) for end in forest.ends]
    return layout, [np.concatenate([np.arange(*layout.rows[node]) for node in path]) for path in paths]


def packed_states(backbone: Any, row: PackedRow, attend: Attend) -> Tensor:
    """Return the last hidden states that predict the response tokens. [M, H].

    Raises:
        RuntimeError: if there will be a backward pass and the caller is not in a block of ``attention.packed``: layers
            that are run again in it, to save memory, would attend in another way.
    """
    # The attention is chosen by the configuration; outside of the block, layers would take another one.
    if torch.is_grad_enabled() and backbone.config._attn_implementation != NAME:  # noqa: SLF001 - it has no other name
        raise RuntimeError("a packed pass with gradients and its backward pass stand in one block of attention.packed")
    device = next(backbone.parameters()).device
    run = Run(row.layout, {}, {}, row.reads.cpu().numpy())
    tokens, positions = (torch.from_numpy(column).to(device) for column in (row.layout.tokens, row.layout.positions))
    return through_model(backbone, attend)(run, tokens, positions)


def _packed_attention(model: nn.Module, batching: Batching) -> Attend | None:
    """Return the attention of packed passes, or None where passes are padded; the log says which and why, once."""
    choice = _choose_attention(model, batching)
    _log_once(f"passes are padded: {choice}" if isinstance(choice, str) else "passes are packed")
    return None if isinstance(choice, str) else choice


@cache
def _log_once(message: str) -> None:
    logger.info(message)


def _choose_attention(model: Any, batching: Batching) -> Attend | str:
    """Return the attention of packed passes, or why passes are padded."""
    # Adapters wrap the model; attention and configuration are those of the model inside.
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(bare.parameters()).device.type
    # What the configuration rules out needs no trial.
    reason = unpacked(bare.config, batching, device)
    if reason is not None:
        return reason
    # Both have gradients; the engine's faster kernels have none.
    attend = flex_attention() if device == "cuda" else segments_attention()
    reason = failure_of(partial(_disagreement, bare.base_model, attend), verb="packing failed")
    return attend if reason is None else reason


def unpacked(config: Any, batching: Batching, device: str) -> str | None:
    """Return why a model's passes are padded, as far as its configuration says, or None."""
    # The cheap reasons first; a trial costs a few passes.
    if batching == "padded":
        return "training.batching is 'padded'"
    if device not in ("cpu", "cuda"):
        return f"there is no packed attention for {device}"
    if device == "cuda" and batching == "auto":
        return "packing was not measured on a GPU; training.batching = 'packed' asks for it"
    return refusal(config)


def _disagreement(backbone: Any, attend: Attend) -> str | None:
    """Return how packed passes differ from sequences one by one, in states or in gradients, or None if they agree."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return [int(token) for token in generator.integers(0, backbone.config.vocab_size, count)]

    # Prompts that are shared and responses of different lengths: what a layout can get wrong.
    items = [(prompt, draw(count)) for prompt in map(draw, _TRIAL_PROMPTS) for count in _TRIAL_RESPONSES]
    row = packed_row(items)
    _, rows = _laid_out([np.array([*prompt, *response]) for prompt, response in items])
    parameter = next(backbone.parameters())
    weights = torch.from_numpy(generator.standard_normal((len(row.reads), output_width(backbone.config))))
    weights = weights.to(parameter.device, parameter.dtype)
    # Dropout would differ between the two ways, and a trial must not change the model.
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.enable_grad(), _leaves(backbone) as leaves:
            with packed(backbone.config):
                states = packed_states(backbone, row, attend)
            (gradient,) = torch.autograd.grad((states * weights).sum(), leaves)
            # The same sequences one by one; a prompt's gradient is the sum over the sequences that share it.
            alone, expected = [], torch.zeros_like(gradient)
            parts = weights.split([len(response) for _, response in items])
            for (prompt, response), own, part in zip(items, rows, parts, strict=True):
                leaves.clear()
                tokens = torch.tensor([[*prompt, *response]], device=parameter.device)
                hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
                (own_gradient,) = torch.autograd.grad((hidden * part).sum(), leaves)
                expected[0].index_add_(0, torch.from_numpy(own).to(parameter.device), own_gradient[0])
                alone.append(hidden.detach())
    finally:
        backbone.train(was_training)
    most = tolerance(parameter.dtype)
    for name, mine, theirs in (("states", states.detach(), torch.cat(alone)), ("gradients", gradient, expected)):
        error = float((mine - theirs).norm() / theirs.norm())
        if not error <= most:
            return f"its packed {name} are off by {error:.1e} of their size"
    return None


@contextmanager
def _leaves(backbone: Any) -> Iterator[list[Tensor]]:
    """Collect the embeddings of every pass inside the block as tensors that gradients are asked for."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    # Gradients with respect to embeddings, not weights: small tensors that every layer has a part in.
    hook = backbone.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


def collated(items: Sequence[Item], pad_id: int, *, packed: bool) -> Sequences | PackedRow:
    """Return N prompts and responses as one pass: one row, or padded with ``pad_id``."""
    return packed_row(items) if packed else padded_sequences(items, pad_id)


class ResponseLogprobs(nn.Module):
    """A causal language model that returns one number per response: the sum of its tokens' log-probabilities.

    Args:
        chunk_tokens: response tokens whose logits exist at once.
        attend: the attention of packed passes, or None: it takes padded ones alone.
    """

    def __init__(self, model: Any, *, chunk_tokens: int, attend: Attend | None = None) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self._attend = attend
        # FSDP asks what it wraps for the names of its layers
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    @property
    def packs(self) -> bool:
        """Whether its passes are packed rows."""
        return self._attend is not None

    def packing(self) -> AbstractContextManager[None]:
        """Return a block that a packed pass with gradients and its backward pass stand in together."""
        return packed(self._bare.base_model.config) if self.packs else nullcontext()

    @property
    def _bare(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: Sequences | PackedRow) -> Tensor:
        """Return the log-probability of each response, in nats, float32. [N].

        Raises:
            ValueError: if the pass is packed and the network has no attention for it.
        """
        bare = self._bare
        # Equal sequences were computed once; places give every pair its own again.
        if isinstance(batch, PackedRow):
            if self._attend is None:
                raise ValueError("a network without packed attention takes padded passes")
            states, targets, owners = packed_states(bare.base_model, batch, self._attend), batch.targets, batch.owners
            return self._summed(bare, states, targets, owners, len(batch.places))[batch.places]
        return self._summed(bare, *_padded_states(bare.base_model, batch), len(batch.input_ids))

    def _summed(self, bare: Any, states: Tensor, targets: Tensor, owners: Tensor, count: int) -> Tensor:
        """Return sums of the targets' log-probabilities by owner, some tokens after the other. [count].

        Args:
            states: that predict the targets. [M, H]
            targets: response tokens. [M]
            owners: whose each of them is. [M]
        """
        # Sums of hundreds of nats need float32, whatever the model computes in.
        total = torch.zeros(count, dtype=torch.float32, device=states.device)
        for start in range(0, len(states), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            if torch.is_grad_enabled():
                # Recomputed in the backward pass: logits are the largest tensor of a small model by far.
                values = checkpoint(_token_logprobs, bare, states[part], targets[part], use_reentrant=False)
            else:
                values = _token_logprobs(bare, states[part], targets[part])
            total = total.index_add(0, owners[part], values)
        return total


def response_logprobs(model: Any, training: PolicyTrainingSection) -> ResponseLogprobs:
    """Return the network of a model as a recipe wants it: packed where it can be, with its chunks of logits."""
    attend = _packed_attention(model, training.batching)
    return ResponseLogprobs(model, chunk_tokens=training.chunk_tokens, attend=attend)


def _padded_states(backbone: Any, batch: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states that predict response tokens, the tokens, and whose they are: [M, H], [M], [M]."""
    input_ids, attention_mask, answered = batch
    # The state at a token predicts the next one: response tokens are read one place to the left.
    hidden = hidden_by_angles(
        backbone,
        lambda ids, mask: backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state,
        input_ids,
        attention_mask,
    )
    here = answered[:, 1:]
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(here)[here]
    return hidden[:, :-1][here], input_ids[:, 1:][here], rows


def _token_logprobs(model: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits = output_logits(model, states)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


@torch.no_grad()
def frozen_logprobs(
    network: ResponseLogprobs,
    items: Sequence[Item],
    *,
    pad_id: int,
    batch: int,
    bf16: bool = False,
) -> list[float]:
    """Return the log-probability of every response, in nats, in their order. [N].

    Args:
        items: token ids of a prompt and of a response, N times.
        batch: sequences in a forward pass; those of like length together, and packed those of one prompt.
    """
    device = next(network.parameters()).device
    network.eval()
    logprobs = [0.0] * len(items)
    # The same precision as in training: what is frozen is compared with what is trained.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for places in _by_length(items, batch, by_prompt=network.packs):
            part = collated([items[place] for place in places], pad_id, packed=network.packs)
            values = network(on_device(part, device))
            for place, value in zip(places, values.tolist(), strict=True):
                logprobs[place] = value
    return logprobs


def policy_logprobs(policy: Policy, items: Sequence[Item], training: PolicyTrainingSection) -> list[float]:
    """Return a policy's log-probability of every response, in nats, in passes as large as those of training. [N]."""
    return frozen_logprobs(
        response_logprobs(policy.model, training),
        items,
        pad_id=policy.tokenizer.pad_token_id,
        batch=2 * training.pairs_per_pass,
        bf16=training.bf16,
    )


def on_device(batch: Sequences | PackedRow, device: torch.device) -> Sequences | PackedRow:
    """Return a pass with its tensors on a device."""
    if isinstance(batch, PackedRow):
        return PackedRow(batch.layout, *(part.to(device) for part in batch[1:]))
    return Sequences(*(part.to(device) for part in batch))


def _by_length(items: Sequence[Item], batch: int, *, by_prompt: bool) -> Iterator[list[int]]:
    lengths = [len(prompt) + len(response) for prompt, response in items]
    # Prompts stay whole in packed passes, ordered by their longest sequence; padded passes look at lengths alone.
    longest = longest_of_prompts([prompt for prompt, _ in items], lengths) if by_prompt else {}

    def rank(place: int) -> tuple[Any, ...]:
        prompt = tuple(items[place][0])
        return (longest[prompt], prompt, lengths[place]) if by_prompt else (lengths[place],)

    # Sequences of like length share a pass, so that little is padded; packed, those of one prompt do.
    order = sorted(range(len(items)), key=rank)
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def rows_of_pairs(responses: Sequence[Response], pairs: Sequence[LabelledPair]) -> list[Response]:
    """Return the responses that stand in a pair; tied or dropped ones need no log-probabilities."""
    used = {(pair.prompt_id, number) for pair in pairs for number in (pair.chosen, pair.rejected)}
    return [response for response in responses if (response.prompt_id, response.number) in used]


def freeze_columns(
    path: Path,
    policy: Policy,
    rows: Sequence[Response],
    sources: Mapping[str, str],
    *,
    training: PolicyTrainingSection,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write the log-probabilities of responses, or of a share of them, under policies: a column each.

    Args:
        policy: takes the weights of each source, one after the other; has those of the first column at the end.
        sources: whose weights, by the name of the column.
        share: of the processes that share the work, this one's number and how many there are.

    Raises:
        DiskFullError: if there is no room.
    """
    # Neighbours, so that responses to one prompt stay together: packed, it is computed once.
    index, count = share
    rows = rows[len(rows) * index // count : len(rows) * (index + 1) // count]
    items = [(response.prompt_ids, response.token_ids) for response in rows]
    columns: dict[str, list[float]] = {}
    # The first one last, because training goes on from it; sources that are one policy are asked once.
    for source in dict.fromkeys(reversed(list(sources.values()))):
        policy.become(source)
        columns[source] = policy_logprobs(policy, items, training)
    table: dict[str, list[Any]] = {
        "prompt_id": [response.prompt_id for response in rows],
        "number": [response.number for response in rows],
        **{name: columns[source] for name, source in sources.items()},
    }
    write_table(path, table, _schema(*sources))


def join_columns(path: Path, parts: Sequence[Path], names: Sequence[str]) -> None:
    """Write the file of all shares, in their order.

    Args:
        names: of the columns of log-probabilities.

    Raises:
        RunError: if one cannot be read.
        DiskFullError: if there is no room.
    """
    schema = _schema(*names)
    rows = [row for part in parts for row in read_table(part, schema)]
    write_table(path, {name: [row[place] for row in rows] for place, name in enumerate(schema.names)}, schema)


def frozen_columns(path: Path, *names: str) -> dict[tuple[str, int], tuple[float, ...]]:
    """Return columns of log-probabilities, by prompt id and number of the response.

    Raises:
        RunError: if the file cannot be read.
    """
    return {(prompt_id, number): tuple(values) for prompt_id, number, *values in read_table(path, _schema(*names))}


def _schema(*names: str) -> pa.Schema:
    return pa.schema([*_OF_THE_RESPONSE, *((name, pa.float64()) for name in names)])


def with_logprobs(path: Path, responses: Sequence[Response], pairs: Sequence[LabelledPair]) -> list[TrainingPair]:
    """Return the pairs with their tokens and frozen columns.

    Raises:
        RunError: if the file cannot be read.
    """
    frozen = frozen_columns(path, *_BASE_AND_REFERENCE)
    # Numbers and not places: groups that were left out have no rows.
    known = {(response.prompt_id, response.number): response for response in responses}
    rows = []
    for pair in pairs:
        won, lost = known[pair.prompt_id, pair.chosen], known[pair.prompt_id, pair.rejected]
        base_won, reference_won = frozen[pair.prompt_id, pair.chosen]
        base_lost, reference_lost = frozen[pair.prompt_id, pair.rejected]
        own = (pair.preference, pair.chosen_target, pair.rejected_target)
        rows.append(
            TrainingPair(
                tuple(won.prompt_ids),
                tuple(won.token_ids),
                tuple(lost.token_ids),
                (*own, base_won, base_lost, reference_won, reference_lost),
            )
        )
    return rows


def check_sampler(path: Path, responses: Sequence[Response], *, tolerance: float) -> float | None:
    """Return how far a sampler's log-probabilities are from the trainer's, in nats a token; refuse another policy.

    Args:
        path: of logprobs.parquet, whose base is the policy that was sampled from.

    Raises:
        RunError: if eight responses are farther from each other: the sampler is not the policy.
    """
    frozen = frozen_columns(path, "base_logprob")
    # A few responses tell: other weights are off everywhere, by far more than rounding.
    known = [row for row in responses if row.sampler_logprob is not None and (row.prompt_id, row.number) in frozen]
    distances = [
        abs(row.sampler_logprob - frozen[row.prompt_id, row.number][0]) / max(len(row.token_ids), 1)
        for row in known[:_CHECKED_RESPONSES]
        if row.sampler_logprob is not None
    ]
    if not distances:
        return None
    if max(distances) > tolerance:
        raise RunError(
            f"the sampler's log-probabilities differ from the trainer's by {max(distances):.3g} nats a token, and "
            f"sampling.tolerance is {tolerance:g}: it has other weights, or another dtype"
        )
    return float(max(distances))
