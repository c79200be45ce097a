"""What may be trained on: responses by prompt with their labels and ratings, and the batches of an epoch.

A batch holds a budget of responses from as few prompts as fit, each distinct response once. A group larger than the
budget is cut into parts of nearly equal size. Only pairs inside a part count, so the parts are drawn anew every epoch.
The *shape* of a plan (how many parts of which size share a batch) depends on the group sizes alone: every epoch has the
same number of steps, and what fills the shape is random.

Shapes: n responses, T padded length, R reads, P labelled pairs, A attributes.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paragone_evaluation.readers import Content, Label, Pair, Rating, RowAccount, Turns, split_name
from paragone_models.errors import TextError
from paragone_models.text.pairs import PairText
from paragone_models.text.reader import Readable, Reading, TextReader, conversation
from paragone_training.errors import DataError

__all__ = [
    "Batch",
    "PairBatches",
    "PromptGroup",
    "TokenNoise",
    "assemble",
    "batches_of_epoch",
    "group_pairs",
    "read_fitting_groups",
    "read_groups",
    "splits_of",
    "training_pairs",
    "training_ratings",
]

_Row = TypeVar("_Row", Pair, Rating)
_GroupKey = tuple[str, ...]
_GROUPS_READ = 256
# As when it is hosted: what was on offer would be left out of what is judged, in silence.
_NO_TOOLS = TextError("unsupported_content", "a model that reads both responses reads no tools: leave them out")


def training_pairs(pairs: Sequence[Pair], *, split: str, allow_test_rows: bool = False) -> list[Pair]:
    """Return the pairs that may be trained on: those of the split, and those without one.

    Args:
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or no preference is left.
    """
    chosen = _of_split(pairs, split, allow_test_rows=allow_test_rows)
    if not chosen:
        raise DataError(f"no row is marked {split!r}; the splits are: {splits_of(pairs)}: set data.train_split")
    if all(pair.strength == 0 for pair in chosen):
        span = f"{chosen[0].where} to {chosen[-1].where}"
        raise DataError(f"all {len(chosen)} rows are ties ({span}): there is no preference to learn from")
    return _evened(chosen)


def _evened(pairs: list[Pair]) -> list[Pair]:
    """Return pairs with weights that are 1 on average, so that a learning rate means what it means without any."""
    mean = sum(pair.weight for pair in pairs) / len(pairs)
    return pairs if mean == 1.0 else [replace(pair, weight=pair.weight / mean) for pair in pairs]


def training_ratings(
    ratings: Sequence[Rating], attributes: Sequence[str], *, split: str, allow_test_rows: bool = False
) -> list[Rating]:
    """Return the ratings that may be trained on: of the split or without one, and of an attribute that is learned.

    Args:
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or nobody rated an attribute.
    """
    chosen = _of_split(ratings, split, allow_test_rows=allow_test_rows)
    if not chosen:
        raise DataError(
            f"no row of data.ratings is marked {split!r}; the splits are: {splits_of(ratings)}: set data.train_split"
        )
    rated = {name for rating in chosen for name in rating.ratings}
    if missing := [name for name in attributes if name not in rated]:
        raise DataError(
            f"no row of data.ratings rates {', '.join(missing)}; rated are {', '.join(sorted(rated)) or 'none'}: "
            "set model.attributes"
        )
    # A response without a rating that is learned would be read in every epoch and give no gradient.
    return [rating for rating in chosen if any(name in rating.ratings for name in attributes)]


def splits_of(rows: Iterable[Pair | Rating]) -> str:
    """Return the names of the rows' splits, for messages."""
    return ", ".join(sorted({row.split for row in rows if row.split})) or "none"


def _of_split(rows: Iterable[_Row], split: str, *, allow_test_rows: bool) -> list[_Row]:
    chosen = [row for row in rows if row.split in (None, split_name(split))]
    # A split asked for by name may still be a mistake: a model that saw test rows cannot be measured any more.
    forbidden = next((row for row in chosen if row.split == "test"), None)
    if forbidden and not allow_test_rows:
        raise DataError(
            f"{forbidden.where}: this row is marked 'test' and would be trained on; choose another data.train_split, "
            "or force it with data.allow_test_rows = true"
        )
    return chosen


@dataclass
class PromptGroup:
    """A prompt, its distinct responses, every judgement between them, and how they were rated.

    Attributes:
        pair: the first row of the group, for its prompt and names.
        responses: distinct texts, in order of appearance.
        rows: file and line where each response appears first.
        labels: by index into ``responses``; there may be none where there are ratings.
        ratings: of each response, NaN where nobody rated an attribute. [n, A]
    """

    pair: Pair
    responses: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    ratings: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def rated(self) -> int:
        """How many responses have at least one rating."""
        return sum(not all(map(math.isnan, row)) for row in self.ratings)


def group_pairs(
    pairs: Iterable[Pair],
    ratings: Iterable[Rating] = (),
    attributes: Sequence[str] = (),
    *,
    ties: bool = False,
    apart: bool = False,
) -> list[PromptGroup]:
    """Return pairs and ratings by prompt, each distinct response once.

    Args:
        ratings: a response that was rated several times has the mean.
        ties: keep judgements of strength 0.
        apart: make a group of every two responses that were compared, for models that read both at once.

    Returns:
        Groups in order of appearance; none without a label or a rated response.
    """
    groups: dict[_GroupKey, PromptGroup] = {}
    indices: dict[_GroupKey, dict[str, int]] = {}
    rows: dict[tuple[_GroupKey, str], list[Rating]] = {}

    def index(key: _GroupKey, response: str, where: str) -> int:
        known = indices.setdefault(key, {})
        if response not in known:
            known[response] = len(known)
            groups[key].responses.append(response)
            groups[key].rows.append(where)
        return known[response]

    for pair in pairs:
        # Files are read without pairs of one text. Pairs that a policy run makes of its samples may hold some.
        if (not pair.strength and not ties) or pair.first == pair.second:
            continue
        key = _group_key(pair, *(sorted((pair.first, pair.second)) if apart else ()))
        group = groups.setdefault(key, PromptGroup(pair))
        first, second = (index(key, response, pair.where) for response in (pair.first, pair.second))
        group.labels.append(Label(first, second, pair.strength, pair.weight))
    for rating in ratings:
        key = _group_key(rating)
        # A group is named by a row. One that was only rated gets a pair of nothing, which never becomes a label.
        blank = Pair(rating.prompt, "", "", 0.0, messages=rating.messages, group=rating.group, file=rating.file,
                     line=rating.line, tools=rating.tools)  # fmt: skip
        groups.setdefault(key, PromptGroup(blank))
        index(key, rating.response, rating.where)
        rows.setdefault((key, rating.response), []).append(rating)
    for key, group in groups.items():
        group.ratings += [_means(rows.get((key, response), ()), attributes) for response in group.responses]
    return list(groups.values())


def _group_key(row: Pair | Rating, *responses: str) -> _GroupKey:
    # A text and messages whose JSON is that text are two prompts, hence the flag. So are those with other tools.
    return (row.prompt, "messages" if row.messages else "", row.tools, *responses)


def _means(ratings: Sequence[Rating], attributes: Sequence[str]) -> tuple[float, ...]:
    # Several people may have rated one response: they count as one answer, not as so many examples.
    values = [[rating.ratings[name] for rating in ratings if name in rating.ratings] for name in attributes]
    return tuple(sum(column) / len(column) if column else math.nan for column in values)


class Batch(TypedDict):
    """What the trainer gets.

    ``input_ids`` [n, T] and ``attention_mask`` [n, T] are padded on the right, ``reads`` is [n, R, 2], ``pairs`` [P, 2]
    are row numbers (the first's win is measured), ``strength`` [P] is signed, ``weight`` [P] says how much
    each counts, ``ratings`` [n, A] are NaN where nobody rated. ``rows`` says of each response in which file and line
    it stands.
    """

    input_ids: Tensor
    attention_mask: Tensor
    reads: Tensor
    pairs: Tensor
    strength: Tensor
    weight: Tensor
    ratings: Tensor
    rows: NotRequired[list[str]]


@dataclass(frozen=True)
class TokenNoise:
    """Replace a share of a sequence's tokens by random ones, so that no single word can be learned by heart.

    Attributes:
        kept: tokens that are never replaced, such as those that mark turns.
    """

    share: float
    vocabulary: Sequence[int]
    kept: frozenset[int]

    def apply(self, token_ids: Sequence[int], draw: random.Random) -> list[int]:
        """Return the tokens with some replaced."""
        return [
            draw.choice(self.vocabulary) if draw.random() < self.share and token not in self.kept else token
            for token in token_ids
        ]


class _Part(NamedTuple):
    """Some responses of one group, by their indices."""

    group: int
    responses: tuple[int, ...]


def batches_of_epoch(sizes: Sequence[int], budget: int) -> int:
    """Return the number of batches of an epoch over groups of so many distinct responses."""
    return len(_plan_shape(sizes, budget))


def _plan_shape(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Return the part sizes of every batch."""
    if budget < 2:
        raise ValueError(f"budget is {budget}; a batch must hold at least the 2 responses of a pair")
    batches: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)
    # Best fit, the largest part first: large parts stay alone, and small ones fill the room that is left.
    for part in sorted((part for size in sizes for part in _part_sizes(size, budget)), reverse=True):
        room = next((left for left in range(part, budget + 1) if with_room[left]), None)
        if room is None:
            batches.append([part])
            with_room[budget - part].append(len(batches) - 1)
        else:
            index = with_room[room].pop()
            batches[index].append(part)
            with_room[room - part].append(index)
    return batches


def _plan_epoch(sizes: Sequence[int], budget: int, *, seed: int, epoch: int) -> list[list[_Part]]:
    """Return the batches of one epoch: every response of every group once.

    The same seed and epoch give the same plan, so that a resumed run goes on where it was.
    """
    draw = random.Random(f"{seed}/{epoch}")  # noqa: S311 - shuffling, not secrets
    by_size: dict[int, list[_Part]] = defaultdict(list)
    for group, size in enumerate(sizes):
        order = list(range(size))
        draw.shuffle(order)
        start = 0
        for length in _part_sizes(size, budget):
            by_size[length].append(_Part(group, tuple(order[start : start + length])))
            start += length
    for parts in by_size.values():
        draw.shuffle(parts)
    # The shape is the same every epoch; which part of the right size stands where is drawn.
    batches = [[by_size[length].pop() for length in shape] for shape in _plan_shape(sizes, budget)]
    draw.shuffle(batches)
    return batches


def _part_sizes(size: int, budget: int) -> list[int]:
    # Parts of nearly one size: a remainder of one response would be in no pair at all.
    count = -(-size // budget)
    return [size // count + (index < size % count) for index in range(count)]


def read_groups(groups: Sequence[PromptGroup], reader: TextReader) -> list[list[Reading]]:
    """Return what the model sees of every response of every group.

    Raises:
        DataError: if a response does not fit the model; file and line are named.
    """
    return [_readings(group, results) for group, results in _results(groups, reader)]


def read_fitting_groups(
    groups: Sequence[PromptGroup], reader: TextReader, account: RowAccount, *, leave_out: bool, use: str
) -> tuple[list[PromptGroup], list[list[Reading]]]:
    """Return the groups without the responses that do not fit the model, and what it sees of the others.

    Args:
        account: gets what was left out, and how many prompts were cut.
        leave_out: leave such responses out instead of refusing them.
        use: what the groups are for, in words.

    Raises:
        DataError: if a response does not fit and is not to be left out; file and line are named.
    """
    kept: list[PromptGroup] = []
    readings: list[list[Reading]] = []
    cut = 0
    for group, results in _results(groups, reader):
        errors = {at: result for at, result in enumerate(results) if isinstance(result, TextError)}
        if errors and leave_out:
            for at, error in errors.items():
                file, _, line = group.rows[at].rpartition(":")
                account.leave_out(file, int(line), f"the model refuses a response of it ({error.code})")
            group, results = _without(group, errors.keys()), [one for one in results if isinstance(one, Reading)]
        if group.labels or group.rated:
            kept.append(group)
            readings.append(_readings(group, results))
            cut += any(reading.dropped_tokens for reading in readings[-1])
    if cut:
        limit = reader.spec.max_length
        account.notes.append(f"{cut} of {len(kept)} prompts {use} are cut from the left to fit {limit} tokens")
    return kept, readings


def _without(group: PromptGroup, left_out: Collection[int]) -> PromptGroup:
    """Return a group without some of its responses, and without the labels that are of them."""
    places = [at for at in range(len(group.responses)) if at not in left_out]
    at = {old: new for new, old in enumerate(places)}
    labels = [
        Label(at[label.first], at[label.second], label.strength, label.weight)
        for label in group.labels
        if label.first in at and label.second in at
    ]
    columns = {name: [getattr(group, name)[old] for old in places] for name in ("responses", "rows", "ratings")}
    return PromptGroup(group.pair, labels=labels, **columns)


def _results(
    groups: Sequence[PromptGroup], reader: TextReader
) -> Iterator[tuple[PromptGroup, list[Reading | TextError]]]:
    """Yield each group with what the model sees of its responses, or why it sees nothing."""
    pairs = reader.spec.rules.reads_pairs
    # Many groups in one call: each call is an exchange with the template's process, and one with the tokenizer's
    # threads. Not all in one, since texts on their way take several times the memory of what is kept.
    for start in range(0, len(groups), _GROUPS_READ):
        some = groups[start : start + _GROUPS_READ]
        prompts = [(group.pair.prompt_messages, _tools(group.pair)) for group in some]
        results = iter(
            reader.read(
                [
                    _readable(group, at, prompt, tools, pairs=pairs)
                    for group, (prompt, tools) in zip(some, prompts, strict=True)
                    for at in range(len(group.responses))
                ]
            )
        )
        for group, (_, tools) in zip(some, prompts, strict=True):
            own = list(islice(results, len(group.responses)))
            yield group, [_NO_TOOLS for _ in own] if pairs and tools else own


def _readable(
    group: PromptGroup, at: int, prompt: Content, tools: Sequence[dict[str, Any]] | None, *, pairs: bool
) -> Readable:
    """Return what is read for one response of a group: itself, or for ``pairs`` both, this one first."""
    alone = conversation(prompt, _spoken(group.responses[at]), tools)
    if not pairs:
        return alone
    (other,) = (one for place, one in enumerate(group.responses) if place != at)
    return PairText(alone.prompt, alone.response, conversation(prompt, _spoken(other)).response)


def _readings(group: PromptGroup, results: Iterable[Reading | TextError]) -> list[Reading]:
    readings = []
    for result in results:
        if isinstance(result, TextError):
            raise DataError(f"{group.pair.where} or a row with its prompt: {result}")
        readings.append(result)
    return readings


def _tools(pair: Pair) -> Sequence[dict[str, Any]] | None:
    return json.loads(pair.tools) if pair.tools else None


def _spoken(response: str) -> str | list[dict[str, Any]]:
    return response.messages if isinstance(response, Turns) else response


def assemble(
    token_ids: Sequence[Sequence[int]],
    reads: Sequence[Sequence[tuple[int, int]]],
    labels: Sequence[Label],
    ratings: Sequence[Sequence[float]] = (),
    *,
    pad_id: int,
) -> Batch:
    """Return one padded batch of a sequence per distinct response.

    Args:
        ratings: of each response, or nothing.
    """
    longest = max(map(len, token_ids))
    # Padded on the right: no real token of a causal backbone sees the padding.
    input_ids = torch.full((len(token_ids), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(token_ids):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        reads=torch.tensor([list(plan) for plan in reads], dtype=torch.long),
        pairs=torch.tensor([(label.first, label.second) for label in labels], dtype=torch.long).reshape(-1, 2),
        strength=torch.tensor([label.strength for label in labels], dtype=torch.float32),
        weight=torch.tensor([label.weight for label in labels], dtype=torch.float32),
        # One empty row per response where nothing is rated: [n, 0] and not [0].
        ratings=torch.tensor([list(row) for row in ratings or [()] * len(token_ids)], dtype=torch.float32),
    )


class PairBatches(Dataset[Batch]):
    """The batches of an epoch, each one item, drawn anew by ``set_epoch``."""

    def __init__(
        self,
        groups: Sequence[PromptGroup],
        readings: Sequence[Sequence[Reading]],
        *,
        budget: int,
        pad_id: int,
        seed: int = 0,
        noise: TokenNoise | None = None,
    ) -> None:
        self._groups, self._readings = groups, readings
        self._budget, self._pad_id, self._seed, self._noise = budget, pad_id, seed, noise
        self._sizes = [len(group.responses) for group in groups]
        self._length = batches_of_epoch(self._sizes, budget)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the parts and their order anew."""
        self.epoch = epoch
        self._plan = _plan_epoch(self._sizes, self._budget, seed=self._seed, epoch=epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        # Built on demand: an epoch of padded tensors would not fit where its texts do.
        sequences: list[Sequence[int]] = []
        reads: list[Sequence[tuple[int, int]]] = []
        labels: list[Label] = []
        ratings: list[Sequence[float]] = []
        rows: list[str] = []
        # Noise hangs on seed, epoch and batch alone: a resumed run skips batches and still draws what it would have.
        draw = random.Random(f"{self._seed}/{self.epoch}/{index}")  # noqa: S311 - noise, not secrets
        for part in self._plan[index]:
            labels.extend(self._labels(part, len(sequences)))
            group = self._groups[part.group]
            for response in part.responses:
                ratings.append(group.ratings[response] if group.ratings else ())
                reading = self._readings[part.group][response]
                sequences.append(self._noise.apply(reading.token_ids, draw) if self._noise else reading.token_ids)
                reads.append(reading.reads)
                rows.append(group.rows[response])
        batch = assemble(sequences, reads, labels, ratings, pad_id=self._pad_id)
        batch["rows"] = rows
        return batch

    def _labels(self, part: _Part, offset: int) -> list[Label]:
        # A label whose other response is in another part waits for an epoch in which they meet.
        rows = {response: offset + row for row, response in enumerate(part.responses)}
        return [
            Label(rows[label.first], rows[label.second], label.strength, label.weight)
            for label in self._groups[part.group].labels
            if label.first in rows and label.second in rows
        ]
