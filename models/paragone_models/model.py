"""A loaded model: text or tokens in, representations and comparisons out; and the local engine that runs its backbone.

The engine packs sequences where that is exact, and else runs batches of similar length, padded on the right.

Shapes: n sequences, R reads, H hidden size, d length of a representation, K responses to one prompt, A attributes.
"""

import logging
from array import array
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.comparator import Comparator, probability
from paragone_models.errors import ModelLoadError, NonFiniteError, TextError
from paragone_models.machine import CANDIDATES, Budget, best_budget
from paragone_models.network import (
    AbsentBackbone,
    AnyHead,
    PreferenceNetwork,
    gather_reads,
    output_width,
)
from paragone_models.packing.backend import choose, mixing
from paragone_models.packing.packer import Forward, Packer, PromptStore
from paragone_models.rotary import depending_on_length
from paragone_models.spec import ModelSpec
from paragone_models.steps import rewards_of_steps
from paragone_models.text.reader import EncodeItem, TextReader, Truncation, conversation, evened, read_plan
from paragone_models.text.stepping import step_reads
from paragone_models.text.template import Message

__all__ = ["LocalForward", "PreferenceModel", "Provenance", "Scores", "batches", "by_prompt"]

logger = logging.getLogger(__name__)

# Memory for keys and values of prompts: on a CPU, and as a share of what is free on a GPU.
_PROMPT_BYTES = 256 << 20
_GPU_SHARE = 0.1
_PACKED = "packed "


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of sequences that run together, longest first.

    Args:
        max_batch_tokens: padded tokens a batch may have; a longer sequence runs alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        count = max(1, max_batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


def by_prompt(items: Sequence[EncodeItem]) -> dict[bytes, list[int]]:
    """Return the numbers of the items that share a prompt, by the prompt's tokens in 32 bits, in their order."""
    families: dict[bytes, list[int]] = {}
    for number, item in enumerate(items):
        prompt = array("i", item.token_ids[: item.prompt_length]).tobytes()
        families.setdefault(prompt, []).append(number)
    return families


class LocalForward:
    """Choose how a backbone is run, and run it.

    Args:
        max_batch_tokens: most tokens of one forward pass.
        deterministic: make the hidden states of an item a function of that item alone, bit for bit, on one machine and
            with one number of threads. Costs speed.
        prompt_cache_bytes: memory for keys and values of prompts; 0 keeps none. 256 MB on a CPU and a tenth of the
            free memory on a GPU unless given.
        attention: what has to attend, as another one's attribute says it; else what is fastest here.
        proven: the way in which this very backbone was packed before: it is not tried again.

    Attributes:
        batching: ``packed``, or ``padded: `` and why, or ``elsewhere``.
        attention: what attends, for ``numerics``.
        packer: the packed engine, or None.
        way: the name of how it packs, or None.
    """

    def __init__(
        self,
        network: PreferenceNetwork,
        *,
        max_batch_tokens: int,
        deterministic: bool = False,
        prompt_cache_bytes: int | None = None,
        attention: str | None = None,
        proven: str | None = None,
    ) -> None:
        self.deterministic = self._apart = deterministic
        self.max_batch_tokens = max_batch_tokens
        self._prompt_cache_bytes = prompt_cache_bytes
        self.packer: Packer | None = None
        self.way: str | None = None
        self._network = network
        if isinstance(network.backbone, AbsentBackbone):
            self.batching = self.attention = "elsewhere"
            return
        only = None if attention is None else attention.removeprefix(_PACKED)
        way = choose(network.backbone, only, proven=proven)
        if isinstance(way, str):
            self.attention = str(getattr(network.config, "_attn_implementation", None))
            mixed = mixing(network.backbone, causal=network.causal)
            self._apart = self._apart or mixed is not None
            self.batching = f"padded: {way}" if mixed is None else f"padded: one sequence at a time, because {mixed}"
        else:
            name, run = way
            self.way = name
            self.batching, self.attention = "packed", f"{_PACKED}{name}"
            self.packer = self._packer(run, prompt_cache_bytes)

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads, in the order of the items.

        Args:
            items: sequences, all with the same number of reads.

        Returns:
            Hidden states, float32, on the backbone's device. [n, R, H]

        Raises:
            ValueError: if the items differ in their number of reads, the backbone runs elsewhere, or it reads no
                images and an item has some.
        """
        if isinstance(self._network.backbone, AbsentBackbone):
            raise ValueError("the backbone of this model was not loaded: the engine that it was loaded for runs it")
        if self._network.images is None and any(item.images for item in items):
            name = self._network.config.model_type
            raise ValueError(f"a {name} backbone that was loaded without images cannot read any")
        if self.packer is None or not items:
            # Of one token: every sequence runs alone, so that no neighbour can change its bits.
            budget = 1 if self._apart else self.max_batch_tokens
            return _encode_padded(self._network, items, max_batch_tokens=budget)
        if len({len(item.reads) for item in items}) > 1:
            raise ValueError("items of one call must have the same number of reads")
        return self.packer.encode(items)

    def again(self, network: PreferenceNetwork) -> "LocalForward":
        """Return what runs a copy of the backbone, on whatever device, in the same way.

        Raises:
            ModelLoadError: if it cannot be run so there.
        """
        local = LocalForward(
            network,
            max_batch_tokens=self.max_batch_tokens,
            deterministic=self.deterministic,
            prompt_cache_bytes=self._prompt_cache_bytes,
            attention=self.attention,
        )
        if (local.batching, local.attention) != (self.batching, self.attention):
            raise ModelLoadError(
                f"on {next(network.parameters()).device} its batches are {local.batching} with {local.attention} "
                f"attention, and {self.batching} with {self.attention} on the first device: their numbers would differ"
            )
        return local

    def warm_up(self, *, max_length: int, limit_s: float = 10.0) -> Budget:
        """Find the fastest budget by trying, keep it, and return it.

        Args:
            max_length: longest sequence that the backbone reads.
            limit_s: no larger budget is tried once this much time has passed.
        """
        device = next(self._network.backbone.parameters()).device
        if self._apart:
            budget = Budget(self.max_batch_tokens, "sequences run apart, so there is nothing to try")
        else:
            budget = best_budget(
                self._padded_trial if self.packer is None else self.packer.trial,
                CANDIDATES.get(device.type, CANDIDATES["cpu"]),
                vocabulary=self._network.config.get_text_config().vocab_size,
                max_length=max_length,
                limit_s=limit_s,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the largest trial is not what batches will need
        self.max_batch_tokens = budget.tokens
        if self.packer is not None:
            self.packer.max_tokens = budget.tokens
        return budget

    def _padded_trial(self, max_tokens: int, items: Sequence[EncodeItem]) -> int:
        _encode_padded(self._network, items, max_batch_tokens=max_tokens)
        return sum(len(item.token_ids) for item in items)

    def _packer(self, run: Forward, prompt_cache_bytes: int | None) -> Packer:
        backbone = self._network.backbone
        device = next(backbone.parameters()).device
        if prompt_cache_bytes is None:
            # What is free now: weights are loaded, batches come later and take most of the rest.
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            prompt_cache_bytes = int(free * _GPU_SHARE) if free else _PROMPT_BYTES
        return Packer(
            run,
            device,
            output_width(self._network.config),
            store=PromptStore(prompt_cache_bytes),
            max_tokens=self.max_batch_tokens,
            deterministic=self.deterministic,
        )


@torch.inference_mode()
def _encode_padded(network: PreferenceNetwork, items: Sequence[EncodeItem], *, max_batch_tokens: int) -> Tensor:
    """Return the hidden states at each item's reads, in the order of the items, from padded batches.

    Returns:
        Hidden states, float32, on the backbone's device. [n, R, H]

    Raises:
        ValueError: if the items differ in their number of reads, or max_batch_tokens is below 1.
    """
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1")
    device = next(network.backbone.parameters()).device
    hidden_size = output_width(network.config)
    if not items:
        return torch.empty(0, network.head.reads, hidden_size, device=device)
    if len({len(item.reads) for item in items}) > 1:
        raise ValueError("items of one call must have the same number of reads")
    lengths = [len(item.token_ids) for item in items]
    by_length = bool(depending_on_length(network.config))
    states = torch.empty(len(items), len(items[0].reads), hidden_size, device=device)
    for indices in batches(lengths, max_batch_tokens):
        # Sorted by falling length, so a batch's first one is its longest.
        longest = lengths[indices[0]]
        input_ids = torch.zeros(len(indices), longest, dtype=torch.long)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[index]] = torch.as_tensor(items[index].token_ids, dtype=torch.long)
        mask = None
        if not network.causal or by_length:
            real = torch.arange(longest) < torch.tensor([lengths[index] for index in indices])[:, None]
            mask = real.long().to(device)
        images = [items[index].images for index in indices]
        if any(images):
            hidden = network.last_hidden_of(input_ids.to(device), mask, images)
        else:
            hidden = network.last_hidden(input_ids.to(device), mask)
        # On the CPU: ``gather_reads`` asks them before it moves them.
        reads = torch.tensor([items[index].reads for index in indices])
        states[torch.tensor(indices, device=device)] = gather_reads(hidden, reads)
    return states


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes:
        name: short name, the last part of the source unless given.
        source: what was given to ``load_model``.
        revision: hub commit or the revision asked for, or None.
        identity: 64 hexadecimal digits, see ``ModelSpec.identity``.
        numerics: dtype, kernels and library versions.
    """

    name: str
    source: str
    revision: str | None
    identity: str
    numerics: dict[str, str]


@dataclass(frozen=True)
class Scores:
    """What a model says about K responses to one prompt.

    Attributes:
        representations: float32. [K, d]
        rewards: one scalar per response, or None where the kind has none. [K]
        attributes: rated attributes by name, each [K].
        probabilities: P(row preferred to column), or None where the model cannot compare. [K, K]
        dropped_tokens: tokens cut from each prompt. [K]
        shown: whether the model saw all words of each conversation that were not cut; see ``Reading``. [K]
        steps: of a process model, how probable it is that each step is right, response by response; else None.
    """

    representations: Tensor
    rewards: NDArray[np.float64] | None
    attributes: dict[str, NDArray[np.float64]]
    probabilities: NDArray[np.float64] | None
    dropped_tokens: list[int]
    shown: list[bool]
    steps: list[NDArray[np.float64]] | None = None


class PreferenceModel:
    """A pointwise preference model: backbone, read plan, head and comparator.

    Args:
        network: backbone and head, in evaluation mode, on their device.
        reader: turns text into tokens, or None where the source had no tokenizer.
        max_batch_tokens: most tokens of one forward pass, and perhaps why.
        first_token: True for encoders that are read at their first token.
        local: runs the backbone; chosen by what the backbone is unless given.
    """

    def __init__(
        self,
        network: PreferenceNetwork,
        spec: ModelSpec,
        reader: TextReader | None,
        provenance: Provenance,
        *,
        max_batch_tokens: int | Budget,
        first_token: bool = False,
        local: LocalForward | None = None,
    ) -> None:
        self.network = network
        self.spec = spec
        self.reader = reader
        self.provenance = provenance
        self.budget = max_batch_tokens if isinstance(max_batch_tokens, Budget) else Budget(max_batch_tokens, "given")
        self.local = local or LocalForward(network, max_batch_tokens=self.budget.tokens)
        self.first_token = first_token
        self.comparator = Comparator(
            spec.kind,
            spec.dimension,
            spec.temperature,
            spec.attributes,
            spec.weights,
            spec.skew_weight,
            spec.aggregation,
        )
        # Once: the spec of a loaded model does not change.
        self.fingerprint = spec.fingerprint(provenance.identity, provenance.numerics)

    def replica(self, device: str, moved: MutableMapping[int, Tensor] | None = None) -> "PreferenceModel":
        """Return the model with its weights on another device; on the same one it shares them.

        Both can run at the same time, each in a thread of its own, and give the same numbers but for rounding. Nobody
        may run the model meanwhile: the trial of the copy changes shared weights and puts them back.

        Args:
            moved: see ``PreferenceNetwork.on``; models that share a backbone share its copies.

        Raises:
            ModelLoadError: if it cannot be run there in the same way.
        """
        network = self.network.on(device, moved)
        return PreferenceModel(
            network,
            self.spec,
            self.reader,
            self.provenance,
            max_batch_tokens=self.budget,
            first_token=self.first_token,
            local=self.local.again(network),
        )

    def with_head(
        self, head: AnyHead, spec: ModelSpec, reader: TextReader, provenance: Provenance
    ) -> "PreferenceModel":
        """Return a model of another head on this one's backbone: weights and stored prompts are the very same.

        The two must not run at the same time.

        Args:
            head: on the backbone's device, in evaluation mode.
            reader: of its own, since a tokenizer has state.
        """
        network = PreferenceNetwork(self.network.backbone, head)
        network.separator, network.images = self.network.separator, self.network.images
        return PreferenceModel(
            network,
            spec,
            reader,
            provenance,
            max_batch_tokens=self.budget,
            first_token=self.first_token,
            local=self.local,
        )

    @property
    def name(self) -> str:
        """Short name."""
        return self.provenance.name

    @property
    def kind(self) -> str:
        """The name of its kind, one of ``paragone_models.kinds.KINDS``."""
        return self.spec.kind

    @property
    def identity(self) -> str:
        """64 hexadecimal digits that change with anything that changes a representation."""
        return self.provenance.identity

    def encode(self, items: Sequence[EncodeItem]) -> Tensor:
        """Return the hidden states at each item's reads: what the local engine runs.

        Args:
            items: sequences, in any order of length.

        Returns:
            Hidden states, float32. [n, R, H]
        """
        return self.local.encode(items)

    @torch.inference_mode()
    def represent(self, hidden: Tensor) -> Tensor:
        """Return representations from hidden states: the head.

        Args:
            hidden: from any engine. [n, R, H]

        Returns:
            Representations, float32. [n, d]
        """
        # Engines elsewhere return states in this process's memory.
        head = self.network.head
        device = next(head.parameters()).device
        representations: Tensor = head(hidden.to(device))
        return representations

    def embed(self, token_ids: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> Tensor:
        """Return the representations of tokenised conversations.

        Args:
            token_ids: whole conversations, no padding. n lists
            prompt_lengths: tokens of the chat template applied to each prompt, without a generation prompt. A gate is
                read at ``prompt_length - 1``; mean pooling averages the tokens after the prompt. [n]

        Returns:
            Representations, float32, on the model's device. [n, d] Of a process model the log-odds of each step, and
            NaN behind the last one. [n, most steps]

        Raises:
            ValueError: if the two lists differ in length, a sequence is empty, has an id outside the vocabulary, or is
                longer than ``max_length``, or a prompt length does not fit its sequence.
            NonFiniteError: if a representation has NaN or infinity in it.
        """
        if len(token_ids) != len(prompt_lengths):
            raise ValueError(f"{len(token_ids)} sequences and {len(prompt_lengths)} prompt lengths: give one each")
        vocabulary = self.network.config.get_text_config().vocab_size
        items = []
        for sequence, prompt_length in zip(token_ids, prompt_lengths, strict=True):
            if len(sequence) > self.spec.max_length:
                raise ValueError(f"a sequence has {len(sequence)} tokens; the limit is {self.spec.max_length}")
            if sequence and not 0 <= min(sequence) <= max(sequence) < vocabulary:
                raise ValueError(f"token ids must lie in [0, {vocabulary})")
            if self.network.images is not None and self.network.images.token in sequence:
                raise ValueError(f"token {self.network.images.token} stands for an image: send images in messages")
            reads = read_plan(self.spec, prompt_length, len(sequence), first_token=self.first_token) if sequence else ()
            if sequence and self.spec.step_token is not None:
                reads = step_reads(sequence, self.spec.step_token, f"token {self.spec.step_token}")
            items.append(EncodeItem(sequence, reads, prompt_length))
        return self._represented(items)

    def logit(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the log-odds that ``first`` is preferred, with the model's temperature and weights.

        Args:
            first: representations whose win is measured. [..., d]
            second: representations of the opponents, of the same prompts. [..., d]

        Returns:
            Log-odds, float32. [...]

        Raises:
            ValueError: if the shapes differ or do not end in d.
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        self._check_shapes(first, second)
        return self.comparator.log_odds(first.float(), second.float())

    def blocks(self, first: Tensor, second: Tensor) -> Tensor:
        """Return what each 2-block adds to the log-odds that ``first`` is preferred.

        Args:
            first: representations whose win is measured. [..., d]
            second: representations of the opponents, of the same prompts. [..., d]

        Returns:
            Log-odds per block, gate and temperature applied; without a hybrid model's reward. [..., k]

        Raises:
            ValueError: if the model has no 2-blocks, or the shapes differ or do not end in d.
        """
        self._check_shapes(first, second)
        return self.spec.rules.block_logits(
            first.float(), second.float(), temperature=self.spec.temperature, skew_weight=self.spec.skew_weight
        )

    @torch.inference_mode()
    def gate_scales(self, hidden: Tensor) -> Tensor:
        """Return the gate's weight of each 2-block, which sum to 1; they depend on the prompt alone.

        Args:
            hidden: from ``encode``. [n, R, H]

        Returns:
            Weights, float32. [n, k]

        Raises:
            ValueError: if the model has no gate, or the number of reads is not its own.
        """
        head = self.network.head
        return head.gate_scales(hidden.to(next(head.parameters()).device))

    def score(
        self,
        prompt: str | Sequence[Message],
        responses: Sequence[str | Message | Sequence[Message]],
        *,
        tools: Sequence[Message] | None = None,
        truncation: Truncation = "prompt",
        principle: str | None = None,
    ) -> Scores:
        """Return what the model says about K responses to one prompt, in K forward passes.

        Args:
            prompt: one user message as text, or messages.
            tools: JSON schemas of tools, or None.
            truncation: see ``TextReader.read``.
            principle: what a model judges by that follows one.

        Raises:
            TextError: if the model has no tokenizer (``text_unavailable``) or cannot read one of the conversations.
            NonFiniteError: if a representation has NaN or infinity in it.

        >>> from paragone_models import load_model
        >>> model = load_model("builtin:mini-general-preference")
        >>> answers = ["They fill landfills and oceans for centuries.", "idk lol"]
        >>> scores = model.score("Should the main street be closed to cars?", answers)
        >>> bool(scores.probabilities[0, 1] > 0.5)
        True
        """
        if self.reader is None:
            raise TextError(
                "text_unavailable", f"{self.provenance.source} has no tokenizer files: it can embed tokens, not text"
            )
        readings = self.reader.read(
            [replace(conversation(prompt, response, tools), principle=principle) for response in responses],
            truncation=truncation,
        )
        items, dropped, shown = [], [], []
        for reading in readings:
            # All or nothing: a tournament with a response missing is another tournament.
            if isinstance(reading, TextError):
                raise reading
            items.append(reading.item)
            dropped.append(reading.dropped_tokens)
            shown.append(reading.shown)
        representations = self._represented(items)
        values, steps = representations.cpu().numpy(), None
        if self.spec.rules.has_steps:
            steps = [probability(row[: len(item.reads)]) for row, item in zip(values, items, strict=True)]
            values = rewards_of_steps(values, self.spec.aggregation)
        rated = self.comparator.attribute_values(values)
        return Scores(
            representations=representations,
            rewards=self.comparator.rewards(values),
            attributes={name: rated[:, column] for column, name in enumerate(self.spec.attributes)},
            probabilities=self.comparator.matrix(values) if self.comparator.compares else None,
            dropped_tokens=dropped,
            shown=shown,
            steps=steps,
        )

    def _represented(self, items: Sequence[EncodeItem]) -> Tensor:
        representations = self._finite(self.represent(self.encode(evened(items))))
        if not self.spec.rules.has_steps:
            return representations
        counts = torch.tensor([len(item.reads) for item in items], device=representations.device)
        behind = torch.arange(representations.shape[1], device=representations.device) >= counts[:, None]
        return representations.masked_fill(behind, torch.nan)

    def _check_shapes(self, first: Tensor, second: Tensor) -> None:
        dimension = self.spec.dimension
        if first.shape != second.shape or first.shape[-1:] != (dimension,):
            raise ValueError(
                f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}: they must be equal and end in "
                f"dimension {dimension}"
            )

    def _finite(self, representations: Tensor) -> Tensor:
        if not bool(torch.isfinite(representations).all()):
            raise NonFiniteError("a representation has NaN or infinity in it: check the weights and the dtype")
        return representations
