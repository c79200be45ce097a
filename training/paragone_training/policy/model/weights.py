"""The policy in memory: one causal language model whose weights are exchanged, whole or in shares of FSDP2.

Weights are whole in every process before training (frozen columns and the first-batch check need them) and after it:
the outcome is written once and read back. Only while gradient steps are taken does a process have its share alone.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from paragone_models.files.sources import POLICIES, builtin_folder
from paragone_models.rotary import depending_on_length, positions_of
from paragone_training.adapters import take_adapters, with_adapters
from paragone_training.errors import RecipeError, RunError
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import need_space, write_folder
from paragone_training.settings import LoraSection

__all__ = [
    "Policy",
    "check_sharding",
    "context_of",
    "is_sharded",
    "load_policy",
    "load_tokenizer",
    "output_logits",
    "policy_config",
    "update_kept",
    "weight_samples",
    "whole_state",
]

logger = logging.getLogger(__name__)

# Of each tensor: what storing an iterate does to an update is a mean over millions of weights, and needs no more.
_SAMPLED = 4096
# How far logits of ours may be from the model's own, in nats: rounding, and no scale or cap that we do not know.
_HEAD_TOLERANCE = 1e-3


def _resolve_policy(source: str) -> str:
    """Return the folder or the id of a source: ``builtin:NAME``, a folder, or a Hugging Face id."""
    if not source.startswith("builtin:"):
        return source
    name = source.removeprefix("builtin:")
    if name not in POLICIES:
        raise RecipeError(f"policy.source {source!r}: there is no such built-in policy; try builtin:mini-policy")
    return str(builtin_folder(name))


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """Return a policy's tokenizer.

    Raises:
        RecipeError: if it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(_resolve_policy(source), revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load a tokenizer from policy.source {source}: {error}") from error
    # Padding is masked everywhere, so any token does.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def policy_config(source: str, revision: str | None = None) -> Any:
    """Return a policy's configuration.

    Raises:
        RecipeError: if it cannot be loaded.
    """
    try:
        return AutoConfig.from_pretrained(_resolve_policy(source), revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load policy.source {source}: {error}") from error


class Policy:
    """A causal language model, its tokenizer and whose weights it has at the moment."""

    def __init__(
        self, model: Any, tokenizer: Any, source: str, revision: str | None = None, *, bf16: bool = False
    ) -> None:
        self.model = model
        self._bf16 = bf16
        self.tokenizer = tokenizer
        self.source = self._initial = source
        self._revision = revision
        self._home: torch.device | None = None
        self._tied = bool(getattr(model.config, "tie_word_embeddings", False))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def passes(self) -> AbstractContextManager[Any]:
        """Return a block whose passes compute in the policy's dtype; its weights are float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: chat models have several, and the tokenizer's is not always among them."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        known = [ends] if isinstance(ends, int) else list(ends or [])
        return tuple(dict.fromkeys([*known, self.tokenizer.eos_token_id]))

    @property
    def origin(self) -> tuple[str, str | None]:
        """Folder or id, and revision, of the initial policy."""
        place = _resolve_policy(self._initial)
        return (str(Path(place).resolve()), None) if Path(place).is_dir() else (place, self._revision)

    def servable(self, source: str) -> str:
        """Return what a server of another program can load: an absolute folder, or an id of the Hub."""
        place = _resolve_policy(source)
        if Path(place).is_dir():
            return str(Path(place).resolve())
        # Given the id alone, a server would load the newest revision.
        return snapshot_download(place, revision=self._revision) if self._revision else place

    def park(self) -> None:
        """Move the weights to main memory, so that servers have the device; ``unpark`` brings them back."""
        # Parked twice, by a phase and by a server that takes weights, it is parked once.
        if self._home is None and self.device.type != "cpu":
            self._home = self.device
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def unpark(self) -> None:
        """Move parked weights back to their device."""
        if self._home is not None:
            self.model.to(self._home)
            self._home = None

    def become(self, source: str | Path) -> None:
        """Take the weights of another iterate's folder, or of the initial policy, in place.

        Raises:
            RunError: if the folder lacks weights of this model.
        """
        # A step begins with the weights that the one before it wrote: nothing is read twice.
        if str(source) == self.source:
            return
        folder = Path(_resolve_policy(str(source)))
        if folder.is_dir():
            self._read(folder)
        else:
            # An id of the Hub has no folder to read tensors from one by one; only the initial policy can be one.
            other = AutoModelForCausalLM.from_pretrained(str(source), revision=self._revision, dtype=torch.float32)
            self.model.load_state_dict(other.state_dict())
        self.source = str(source)

    def _read(self, folder: Path) -> None:
        # In place: a second model may not fit into memory.
        weights = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        missing = {name for name, _ in self.model.named_parameters()}
        with torch.no_grad():
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - no mapping
                        if name in weights:
                            weights[name].copy_(tensors.get_tensor(name))
                            missing.discard(name)
        # A file of other names would leave the old weights standing, and nothing else would tell.
        if missing:
            raise RunError(f"{folder} lacks {len(missing)} weights of the policy, {sorted(missing)[0]} for one")

    def reload(self, source: str | Path) -> None:
        """Take the weights of an iterate in a new model; a model that was sharded cannot become whole in place."""
        # Read off the old model, which is gone in a moment.
        device, attention = self.device, self.model.config._attn_implementation  # noqa: SLF001 - it has no other name
        # Given up first, so that the old and the new model are never in memory together.
        self.model = None
        place = _resolve_policy(str(source))
        revision = None if Path(place).is_dir() else self._revision
        model: Any = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, dtype=torch.float32, attn_implementation=attention
        )
        self.model = model.to(device).eval()
        self.source = str(source)

    def save(self, folder: Path, *, dtype: str, state: dict[str, Tensor] | None = None) -> None:
        """Write the weights and the tokenizer as a folder that any transformers or vLLM loads.

        Args:
            state: the whole weights, where the model in memory has a share of them.

        Raises:
            DiskFullError: if there is no room.
        """
        kept = getattr(torch, dtype)
        size = sum(weight.numel() for weight in self.model.parameters()) * kept.itemsize
        # A half-written iterate is never left behind, but a disk that is full stops the run.
        need_space(folder.parent, size + 10_000_000, "the next iterate")
        state = {name: tensor.to(kept) for name, tensor in (state or self.model.state_dict()).items()}
        if self._tied:
            # safetensors refuses two names of one tensor; the reader ties them again.
            state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}

        def write(temporary: Path) -> None:
            self.model.save_pretrained(temporary, state_dict=state)
            self.tokenizer.save_pretrained(temporary)

        write_folder(folder, write)
        self.source = str(folder)

    @contextmanager
    def adapted(self, lora: LoraSection | None, learnt: Callable[[Any], None] = lambda _: None) -> Iterator[nn.Module]:
        """Yield what is trained: the model, or the model with adapters that are merged into it at the end.

        Adapters of a sharded model are merged into the whole one, which every process reads again.

        Args:
            learnt: gets the whole model with its trained adapters, before they are merged.

        Raises:
            RecipeError: if the model has no layer of the names asked for.
        """
        # From here on the weights are nobody's: an interrupted step must not be taken for the base.
        base, self.source = self.source, "in training"
        if lora is None:
            yield self.model
            return
        adapted = with_adapters(self.model, lora)
        yield adapted
        if is_sharded(adapted):
            # Merging needs whole matrices: the base is read anew, and the adapters are put on it.
            trained = _whole_trained(adapted)
            del adapted
            self.reload(base)
            self.source = "in training"
            adapted = with_adapters(self.model, lora)
            take_adapters(adapted, trained)
        learnt(adapted)
        self.model = adapted.merge_and_unload()
        for weight in self.model.parameters():
            # peft had frozen the base.
            weight.requires_grad_(requires_grad=True)


def check_sharding(plugin: Any, config: Any, training: PolicyTrainingSection) -> None:
    """Refuse what does not work with a sharded model.

    Args:
        plugin: accelerate's settings of FSDP, or None.
        config: of the model.

    Raises:
        RunError: if the settings are those of FSDP1, ranks would load without weights, checkpoints would not be
            written in shares, or ranks would need different numbers of passes.
    """
    if plugin is None:
        return
    # Texts on both sides of a switch need two passes, and a rank that has one side alone would not join the second.
    if ropes := depending_on_length(config):
        raise RunError(
            f"the model's rotary positions depend on a text's length ({', '.join(ropes)}), and processes that share "
            "weights must make the same passes: train it in one process"
        )
    # FSDP1 flattens parameters: names and whole weights, which iterates are made of, are lost.
    if plugin.fsdp_version != 2:
        raise RunError(f"fsdp_version is {plugin.fsdp_version}; only 2 is supported: set it in accelerate's file")
    if plugin.cpu_ram_efficient_loading:
        raise RunError(
            "fsdp_cpu_ram_efficient_loading leaves all ranks but the first without weights, and the first-batch check "
            "needs them: set it to false"
        )
    if training.save_steps and plugin.state_dict_type is not StateDictType.SHARDED_STATE_DICT:
        raise RunError(
            f"training.save_steps is {training.save_steps} and fsdp_state_dict_type {plugin.state_dict_type.name}: "
            "each process writes its share of a checkpoint, so set it to SHARDED_STATE_DICT, or save_steps to 0"
        )


def is_sharded(model: Any) -> bool:
    """Return whether a model's weights are spread over processes."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(model: Any) -> dict[str, Tensor]:
    """Return the whole weights on the CPU, in the first process alone; every process has to call this."""
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def weight_samples(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return some weights of every tensor, in float32 on the CPU, the same ones at each call."""
    # Copies: the tensors go on being trained.
    return {
        name: tensor.detach().flatten()[:: max(tensor.numel() // _SAMPLED, 1)].float().cpu().clone()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def update_kept(before: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: str) -> dict[str, float]:
    """Return what is left of an update once its outcome is stored in a dtype.

        update_kept = cos²(stored - before, after - before);  1: all of it, 0: nothing

    For weights that were on the grid of the dtype before, this is the share of the update's square that moved to
    another number of the grid; for others the rounding of the old weights counts as what it is, noise.
    ``weights_changed`` is the share of weights that are stored as another number than they were. No update at all has
    ``update_kept`` 0.

    Args:
        before, after: of ``weight_samples``.
    """
    inner = wanted = got = 0.0
    changed = count = 0
    for name, old in before.items():
        moved = (after[name] - old).double()
        kept = (after[name].to(getattr(torch, dtype)).float() - old).double()
        inner += float(kept @ moved)
        wanted += float(moved @ moved)
        got += float(kept @ kept)
        changed += int((kept != 0).sum())
        count += len(old)
    share = max(inner, 0.0) ** 2 / (wanted * got) if wanted and got else 0.0
    return {"update_kept": share, "weights_changed": changed / max(count, 1)}


def _whole_trained(model: Any) -> dict[str, Tensor]:
    """Return the whole weights that are trained, by name, in every process; every process has to call this."""
    # Adapters alone are gathered: the base is on disk already.
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    # A second name of a frozen weight, as that of a tied output layer, is left in.
    return {name: state[name] for name, weight in model.named_parameters() if weight.requires_grad}


def load_policy(source: str, *, revision: str | None = None, bf16: bool = False, attention: str = "sdpa") -> Policy:
    """Return a policy with the weights of a source, in float32.

    Args:
        bf16: passes compute in bfloat16.

    Raises:
        RecipeError: if it cannot be loaded, or computes its logits in a way that is not known here.
    """
    tokenizer = load_tokenizer(source, revision)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            _resolve_policy(source), revision=revision, dtype=torch.float32, attn_implementation=attention
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load policy.source {source}: {error}") from error
    if torch.cuda.is_available():
        model.to("cuda")
    policy = Policy(model.eval(), tokenizer, source, revision, bf16=bf16)
    _check_logits(policy)
    return policy


def context_of(config: Any, asked: int) -> int:
    """Return how many tokens a prompt and a response may have together.

    Raises:
        RecipeError: if more is asked for than the model has positions.
    """
    has = positions_of(config)
    if asked and has and asked > has:
        raise RecipeError(f"policy.max_length is {asked}; the model has {has} positions: ask for no more")
    # Some configurations do not say. Positions beyond these are there for who asks for them.
    return asked or getattr(config, "max_position_embeddings", None) or 2048


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return the logits of hidden states as the model itself computes them, in float32. [M, V].

    Args:
        hidden: last hidden states. [M, H]
    """
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def _check_logits(policy: Policy) -> None:
    # Any tokens do: a scale or a cap shows at every one of them.
    tokens = torch.tensor([[policy.end_ids[0], 1, 2, 3]], device=policy.device)
    hidden = policy.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    ours = output_logits(policy.model, hidden)
    theirs = policy.model(input_ids=tokens, use_cache=False).logits[0].float()
    if not torch.allclose(ours, theirs, atol=_HEAD_TOLERANCE, rtol=_HEAD_TOLERANCE):
        raise RecipeError(
            f"policy.source: a {policy.model.config.model_type} computes its logits from its hidden states in a way "
            "that is not known here (a scale?), so log-probabilities would be wrong: choose another architecture"
        )
