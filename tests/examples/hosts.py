"""Stand-ins for trainers that do not install beside this project: the names that the examples import, and no more.

Each has the interface of the version that its example names. The examples of verifiers, tinker-cookbook and SkyRL were
also run by hand with the packages themselves.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
from pydantic import BaseModel

Parsed = TypeVar("Parsed")
Config = TypeVar("Config")


class JudgeConfig(BaseModel):
    id: str = ""
    name: str = ""
    weight: float = 1.0


class Judge(Generic[Parsed, Config]):
    def __init__(self, config: Any) -> None:
        self.config = config


class BestOfNEnv:
    async def finalize(self, _: Any, episode: Any) -> None:
        top = max(trace.reward for trace in episode.traces)
        for trace in episode.traces:
            trace.metrics["best"] = float(trace.reward == top)


class PairwisePreferenceGroupBuilder:
    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def get_response_message(self, trajectory: Any) -> tuple[list[Any], bool]:
        text, ends = self.policy_renderer(trajectory)
        return [{"role": "assistant", "content": text}], ends

    def _preprocess_message(self, message: Any) -> Any:
        return message


class PairwisePreferenceDataset:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def _labeled_comparison_to_env_group(self, comparison: Any) -> Any:
        return PairwisePreferenceGroupBuilder(convo_prefix=comparison, **self.fields)


class BaseTextEnv:
    def __init__(self) -> None:
        self.turns, self.max_turns = 0, 1


class EnvironmentReturn(NamedTuple):
    observations: list[dict[str, str]]
    metadata: list[Any]
    next_stop_strings: list[Any]
    rewards: Any
    terminateds: Any
    answers: list[str | None] | None = None


_MODULES: dict[str, dict[str, Any]] = {
    "verifiers.v1": {"Judge": Judge, "JudgeConfig": JudgeConfig, "ID": str}
    | dict.fromkeys(("Task", "TaskData", "Trace", "Episode"), SimpleNamespace),
    "verifiers.v1.envs.best_of_n": {"BestOfNEnv": BestOfNEnv},
    "tinker_cookbook.rl.preference_envs": {
        "PairwisePreferenceGroupBuilder": PairwisePreferenceGroupBuilder,
        "PairwisePreferenceDataset": PairwisePreferenceDataset,
    },
    "skyrl_gym.envs.base_text_env": {"BaseTextEnv": BaseTextEnv},
    "nemo_rl.environments.interfaces": {"EnvironmentInterface": object, "EnvironmentReturn": EnvironmentReturn},
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-ins importable, with the packages above them."""
    for path, names in _MODULES.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules or end == len(parts):
                module = ModuleType(name)
                module.__path__ = []  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, name, module)
            if end > 1:
                monkeypatch.setattr(
                    sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[name], raising=False
                )
        vars(sys.modules[path]).update(names)
