"""A loaded model: text or tokens in, representations and comparisons out.

Shapes: n sequences, R reads, H hidden size, d length of a representation, K responses to one prompt, A attributes.
"""

import logging
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_models.comparator import Comparator, probability
from paragone_models.errors import NonFiniteError, TextError
from paragone_models.forward import LocalForward
from paragone_models.machine import Budget
from paragone_models.network import (
    AnyHead,
    PreferenceNetwork,
)
from paragone_models.spec import ModelSpec
from paragone_models.steps import rewards_of_steps
from paragone_models.text.reader import EncodeItem, TextReader, Truncation, conversation, evened, read_plan
from paragone_models.text.stepping import step_reads
from paragone_models.text.template import Message

__all__ = ["PreferenceModel", "Provenance", "Scores"]

logger = logging.getLogger(__name__)


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
