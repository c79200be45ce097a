"""A run in other people's tools: numbers for trackers, adapters for peft and vLLM, the Hub, answers for benchmarks.

Trackers are those that accelerate knows:

    step/NAME          of gradient steps, counted over the whole run
    iteration/NAME     of metrics.json, by iteration; names of inner tables follow a slash

Files of local trackers lie in RUN/tracking, beside sent.json: how much each tracker has. It is written before a
point is sent, so that a run that is resumed, and takes steps again, sends no point twice. The tables of the run stay
the record: a tracker only shows them.

An adapter is what was learnt since the initial policy, of all steps that led there: W = W_0 + s (B_1 A_1 + … + B_t A_t)
is one adapter of t times the rank, [A_1; …; A_t] and [B_1 … B_t], with the same scale s = alpha / rank.

    alpaca_eval    one JSON list: dataset, instruction, output, generator
    arena-hard     JSON Lines: uid, ans_id, model, messages, tstamp, metadata.token_len
    mt-bench       JSON Lines: question_id, answer_id, model_id, choices[{index, turns}], tstamp
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import httpx2
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # it is documented
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from paragone.installing import pip_install
from paragone_training.errors import RecipeError, RunError
from paragone_training.policy.rows import (
    Response,
    read_json_file,
    read_rows,
    remove_folder,
    write_folder,
    write_json,
    write_text,
)

__all__ = [
    "Trackers",
    "check_push",
    "check_trackers",
    "export_answers",
    "push_policy",
    "steps_before",
    "write_adapter",
]

logger = logging.getLogger(__name__)

# The names that peft and vLLM look for.
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_Layout = Literal["alpaca_eval", "arena-hard", "mt-bench"]


class Trackers:
    """The trackers of one run; none is a valid number of them.

    Args:
        names: as accelerate calls them: ``tensorboard``, ``wandb``, ``mlflow``, ….

    Raises:
        RecipeError: as ``check_trackers``.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self._trackers: dict[str, Any] = {}
        work = folder / "tracking"
        self._record = work / "sent.json"
        check_trackers(names, work)
        for name in dict.fromkeys(names):
            tracker = LOGGER_TYPE_TO_CLASS[name]
            place = (str(work),) if tracker.requires_logging_directory else ()
            self._trackers[name] = tracker(folder.name, *place)
        known = read_json_file(self._record) if names and self._record.exists() else {}
        self._sent: dict[str, dict[str, int]] = known | {name: known.get(name, {}) for name in self._trackers}
        # Trackers take numbers and words; None and lists become words.
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in _flattened(settings)}
        for started in self._trackers.values():
            started.start()
            started.store_init_configuration(plain)

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """Show the numbers of a gradient step, counted over the run, unless they or later ones were shown."""
        self._log(number, "step", values)

    def iteration(self, number: int, values: Mapping[str, Any]) -> None:
        """Show the contents of an iteration's metrics.json, unless they or later ones were shown."""
        self._log(number, "iteration", values)

    def close(self) -> None:
        """Write what is waiting, and end."""
        for tracker in self._trackers.values():
            tracker.finish()

    def _log(self, number: int, group: str, values: Mapping[str, Any]) -> None:
        behind = [name for name in self._trackers if number > self._sent[name].get(group, 0)]
        if not behind:
            return
        for name in behind:
            # Before it is sent: a kill in between loses one point, and sends none twice.
            self._sent[name][group] = number
        write_json(self._record, self._sent)
        numbers = {
            f"{group}/{name}": float(value)
            for name, value in _flattened(values)
            # Some trackers refuse NaN, and none draws it.
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name in behind:
            self._trackers[name].log(numbers, step=number)


def check_trackers(names: Sequence[str], work: Path) -> None:
    """Refuse trackers that cannot be had.

    Raises:
        RecipeError: if a name is not known, or its package is not installed.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(
                f"output.trackers names {name!r}; accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if not filter_trackers([name], logging_dir=str(work)):
            remedy = pip_install("tracking") if name == "tensorboard" else f"pip install {name}"
            raise RecipeError(f"output.trackers names {name!r}, which is not installed: {remedy}")


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and values of nested tables: ``evaluation/oracle/win_rate``; of a list, ``…/0`` and so on."""
    for name, value in values.items():
        inner = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping):
            yield from _flattened({str(key): part for key, part in inner.items()}, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def steps_before(folder: Path, step: Path | None = None) -> int:
    """Return how many gradient steps a run took in the training steps that are done.

    Args:
        step: folder of a training step that does not count, because it is taken again.

    Raises:
        RunError: if a file cannot be read.
    """
    paths = (path for path in folder.glob("iteration-*/step-*/history.json") if path.parent != step)
    done = (read_json_file(path) for path in paths)
    return sum(max((int(line["step"]) for line in lines), default=0) for lines in done)


def write_adapter(folder: Path, adapted: Any, origin: tuple[str, str | None], *, beneath: Path | None) -> None:
    """Write what was learnt since the initial policy as one adapter of it.

    Args:
        adapted: peft's model, with the adapters of this step.
        origin: folder or id, and revision, of the initial policy.
        beneath: the adapter of the policy that the step started from; None where that is the initial one.

    Raises:
        RunError: if the adapter beneath cannot be read.
        DiskFullError: if there is no room.
    """
    from peft import get_peft_model_state_dict

    # Without embeddings: they are not trained, and peft would look for them where the base came from.
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    config = adapted.peft_config["default"]
    rank, alpha = config.r, config.lora_alpha
    if beneath is not None:
        earlier = _adapter_weights(beneath)
        weights = {name: _stacked(name, earlier[name], tensor) for name, tensor in weights.items()}
        rank = next(len(tensor) for name, tensor in weights.items() if "lora_A" in name)
    # A plain copy: the model in memory still has its own rank.
    written = type(config)(
        **{
            **{name: getattr(config, name) for name in ("lora_dropout", "bias", "target_modules", "task_type")},
            "r": rank,
            "lora_alpha": alpha * rank / config.r,
            "base_model_name_or_path": origin[0],
            "revision": origin[1],
            "inference_mode": True,
        }
    )

    def write(temporary: Path) -> None:
        save_file(weights, temporary / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
        written.save_pretrained(str(temporary))

    # That of an earlier attempt at this step.
    remove_folder(folder)
    write_folder(folder, write)


def _adapter_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / _ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the adapter in {folder} cannot be read: {error}; restore it, or remove the iteration to compute it again"
        ) from error


def _stacked(name: str, earlier: Tensor, own: Tensor) -> Tensor:
    """Return two adapters of a layer as one: the rows of both A, [r, in], or the columns of both B, [out, r]."""
    return torch.cat([earlier, own], dim=0 if "lora_A" in name else 1).contiguous()


def check_push(repository: str) -> None:
    """Refuse a repository of the Hub that nothing could be pushed to.

    Raises:
        RecipeError: if it is no ``owner/name``, the Hub is switched off or not reached, or there is no token for it.
    """
    try:
        validate_repo_id(repository)
        owner, _, name = repository.partition("/")
        if not (owner and name):
            raise HFValidationError("an owner is missing")
    except HFValidationError as error:
        raise RecipeError(f"output.push is {repository!r}; it must be owner/name: {error}") from error
    try:
        HfApi().whoami()
    except (OSError, httpx2.HTTPError) as error:  # offline, no token, a refusal, no connection
        raise RecipeError(
            f"output.push is {repository!r}, and the Hub cannot be asked who you are ({_first_line(error)}): log in "
            "with `hf auth login`, unset HF_HUB_OFFLINE, or remove output.push"
        ) from error


def push_policy(policy: Path, repository: str, record: Path) -> None:
    """Put an iterate into a repository of the Hub, unless the record says that it is there.

    Raises:
        RunError: if the Hub does not take it.
    """
    pushed = {"repository": repository, "policy": str(policy.relative_to(record.parent))}
    known = read_json_file(record) if record.exists() else {}
    if known | pushed == known:
        return
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=policy, commit_message=f"{record.parent.name}: {policy.parent.parent.name}"
        )
    except (OSError, httpx2.HTTPError, ValueError) as error:
        raise RunError(
            f"{repository} did not take the policy ({_first_line(error)}); it is in {policy}, and resuming pushes it "
            "again"
        ) from error
    write_json(record, pushed | {"commit": commit.oid})
    logger.info("%s is at %s", policy, commit.commit_url)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def export_answers(samples: Path, output: Path, *, layout: str, name: str) -> int:
    """Write the first answer to each prompt of a samples file, and return how many.

    Raises:
        RecipeError: if there is no such layout, or the answers do not fit it.
        RunError: if the samples cannot be read.
        DiskFullError: if there is no room.
    """
    if layout not in get_args(_Layout):
        raise RecipeError(f"layout is {layout!r}; it must be one of {', '.join(get_args(_Layout))}")
    # One answer a prompt, as these benchmarks have it; the first is as good a sample as any.
    rows = [row for row in read_rows(samples, Response) if row.number == 0]
    if layout == "alpaca_eval":
        text = json.dumps([_alpaca(row, name) for row in rows], indent=1, ensure_ascii=False) + "\n"
    else:
        answers = [_arena(row, name) if layout == "arena-hard" else _mt(row, name) for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers)
    write_text(output, text)
    return len(rows)


def _alpaca(row: Response, name: str) -> dict[str, Any]:
    messages = _messages(row)
    if len(messages) != 1:
        raise RecipeError(
            f"prompt {row.prompt_id!r} has {len(messages)} messages; alpaca_eval has one instruction each"
        )
    return {"dataset": "paragone", "instruction": messages[0]["content"], "output": row.text, "generator": name}


def _arena(row: Response, name: str) -> dict[str, Any]:
    return {
        "uid": row.prompt_id,
        "ans_id": _id(row, name),
        "model": name,
        "messages": [*_messages(row), {"role": "assistant", "content": {"answer": row.text}}],
        "tstamp": 0.0,
        "metadata": {"token_len": len(row.token_ids)},
    }


def _mt(row: Response, name: str) -> dict[str, Any]:
    earlier = [message["content"] for message in _messages(row) if message["role"] == "assistant"]
    return {
        "question_id": int(row.prompt_id) if row.prompt_id.isdigit() else row.prompt_id,
        "answer_id": _id(row, name),
        "model_id": name,
        "choices": [{"index": 0, "turns": [*earlier, row.text]}],
        "tstamp": 0.0,
    }


def _messages(row: Response) -> list[dict[str, Any]]:
    # A prompt of several messages was kept as their JSON; any other text is one message.
    if row.prompt.startswith("[{"):
        try:
            messages: list[dict[str, Any]] = json.loads(row.prompt)
        except ValueError:
            pass
        else:
            return messages
    return [{"role": "user", "content": row.prompt}]


def _id(row: Response, name: str) -> str:
    """Return an id that is the same whenever the same answers are exported."""
    return hashlib.blake2b(f"{name}\0{row.prompt_id}\0{row.text}".encode(), digest_size=11).hexdigest()
