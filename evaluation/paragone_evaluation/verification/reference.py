"""A reward model in plain transformers: read rightly, and in each of the ways in which servers read wrongly.

One text at a time, in float32 unless asked otherwise, with nothing of ours between the tokenizer and the logit. This
module and ``local_model`` are the only ones of this package that need torch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.verification.golden import Text

__all__ = ["PlainModel", "Reading", "Readings"]

Floats = NDArray[np.float64]

_JOINTS = {"nothing": "", "a space": " ", "a newline": "\n", "an empty line": "\n\n"}
_STARTS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Lengths to which servers cut texts from the left."""


@dataclass(frozen=True)
class Reading:
    """One way to read a text: what is wrong with it (nothing, if empty), and its logits.

    Attributes:
        last: read where the model reads. [logit]
        positions: read at every token instead, where the model is causal. [T]
    """

    fault: str
    last: float
    positions: Floats | None = None


@dataclass(frozen=True)
class Readings:
    """All readings of one text.

    Attributes:
        ways: the right one first.
        half: read rightly in bfloat16.
        tokens: of the right one.
    """

    text: Text
    ways: tuple[Reading, ...]
    half: float
    tokens: int
    by_fault: dict[str, Reading] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_fault", {way.fault: way for way in self.ways})


class PlainModel:
    """A sequence classifier with one logit, and its tokenizer, as transformers loads them.

    Raises:
        EvaluationError: if transformers cannot load it as such, or it has no chat template.
    """

    def __init__(self, source: str, *, device: str = "auto", trust_remote_code: bool = False) -> None:
        self.source = source
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise EvaluationError(
                f"transformers cannot load {source} as a sequence classifier: {' '.join(str(error).split())[:300]}"
            ) from error
        if self.model.config.num_labels != 1:
            raise EvaluationError(
                f"{source} has {self.model.config.num_labels} labels: verify compares models with one reward"
            )
        if not self.tokenizer.chat_template:
            raise EvaluationError(f"{source} has no chat template, so nothing says how it reads a conversation")
        self._device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.model.eval().to(self._device)
        bos = self.tokenizer.bos_token_id
        self._bos = bos if bos is not None and self.tokenizer("a").input_ids[:1] == [bos] else None
        self.most = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)
        self._half: Any = None

    def render(self, text: Text, **more: Any) -> str:
        """Return a conversation as the chat template writes it."""
        tools = [dict(tool) for tool in text.tools] if text.tools else None
        return str(self.tokenizer.apply_chat_template(text.messages, tools=tools, tokenize=False, **more))

    def without_bos(self, rendered: str) -> str:
        """Return a rendered text without its beginning-of-sequence token, as some trainers send it."""
        return rendered.removeprefix(self.tokenizer.bos_token or "") if self.tokenizer.bos_token else rendered

    def ids(self, rendered: str) -> list[int]:
        """Return the tokens of a rendered text, with exactly one beginning-of-sequence token where there is one."""
        tokens = list(self.tokenizer(rendered, add_special_tokens=False).input_ids)
        return [self._bos, *tokens] if self._bos is not None and tokens[:1] != [self._bos] else tokens

    @torch.inference_mode()
    def logit(self, ids: Sequence[int], *, half: bool = False) -> float:
        """Return the model's logit of a text by itself."""
        if half and self._half is None:
            self._half = copy.deepcopy(self.model).to(torch.bfloat16)
        model = self._half if half else self.model
        return float(model(input_ids=self._batch(ids)).logits[0, 0])

    @torch.inference_mode()
    def positions(self, ids: Sequence[int]) -> Floats | None:
        """Return the head's value at every token, None for models that are not read at a token of the text. [T]."""
        head = getattr(self.model, "score", None)
        if head is None or getattr(self.model, "base_model", None) is self.model:
            return None
        hidden = self.model.base_model(input_ids=self._batch(ids)).last_hidden_state
        values: Floats = head(hidden)[0, :, 0].float().cpu().numpy().astype(np.float64)
        return values

    def _batch(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._device)

    def readings(self, text: Text) -> Readings:
        """Return a text read rightly, and in every way in which servers go wrong.

        Raises:
            EvaluationError: if it is longer than the model can read.
        """
        right = self.ids(self.render(text))
        if len(right) > self.most:
            raise EvaluationError(f"{text.name} has {len(right)} tokens, and {self.source} reads {self.most}")
        ways = [self._way(fault, ids) for fault, ids in self._faulty(text, right).items() if len(ids) <= self.most]
        return Readings(text, tuple(ways), self.logit(right, half=True), len(right))

    def _way(self, fault: str, ids: list[int]) -> Reading:
        positions = self.positions(ids)
        # The wrong ways are read at their last token; what transformers itself makes of the right one is the reference.
        last = self.logit(ids) if not fault or positions is None else float(positions[-1])
        # A text cut from the left is read at its end alone: no server cuts it twice.
        return Reading(fault, last, None if fault.startswith("cut at the start") else positions)

    def _faulty(self, text: Text, right: list[int]) -> dict[str, list[int]]:
        """Return the tokens of each way to read a text, those that read wrongly named by their fault."""
        ways = {"": right}
        if self._bos is not None:
            ways["double BOS"] = [self._bos, *right]
            ways["no BOS"] = right[1:]
        elif self.tokenizer.bos_token_id is not None and right[0] != self.tokenizer.bos_token_id:
            ways["a BOS that this model does not have"] = [self.tokenizer.bos_token_id, *right]
        eos = self.tokenizer.eos_token_id
        if eos is not None and right[-1] != eos:
            ways["an EOS appended"] = [*right, eos]
        if eos is not None and right[-1] == eos:
            ways["the EOS at the end is missing"] = right[:-1]
        stripped = self.ids(self.render(text).rstrip())
        if stripped != right:
            ways["white space at the end stripped"] = stripped
        prompted = self._prompted(text)
        if prompted is not None and prompted != right:
            ways["a generation prompt appended"] = prompted
        contents = [str(message.get("content") or "") for message in text.messages]
        bare = {f"texts joined by {name}": joint.join(contents) for name, joint in _JOINTS.items()}
        for how, joined in {**bare, "the response alone": contents[-1]}.items():
            ways[f"no template ({how})"] = ids = self.ids(joined)
            if self._bos is not None:
                ways[f"no template ({how}), and no BOS"] = ids[1:]
        for length in _STARTS:
            ways[f"cut at the start, to {length} tokens"] = right[-length:]
        return ways

    def _prompted(self, text: Text) -> list[int] | None:
        try:
            return self.ids(self.render(text, add_generation_prompt=True))
        except Exception:  # noqa: BLE001 (a template may raise anything, and this is a guess)
            return None
