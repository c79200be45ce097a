"""What the tests of dialects share: a built-in reward model, and one that is read at its last token and has a BOS."""

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from paragone_models import PreferenceModel, load_model
from paragone_models.spec import ModelSpec
from tests.evaluation.conftest import served
from tests.service.conftest import make_model, make_tokenizer, serving

PROMPT = "Should plastic water bottles be banned?"
RESPONSES = ["Yes, because of the environment.", "lol no", "Bottled water makes mountains of plastic waste."]
REWARDS = [-3.122530937194824, -6.009203910827637]
"""Of the built-in Bradley-Terry model for the first two, by /v1/rewards."""


def rendered(prompt: str, response: str) -> str:
    """Return a conversation in the built-in models' template, as a policy of theirs writes it."""
    return f"<|user|>{prompt}<|end|><|assistant|>{response}<|end|>"


def chatml(*turns: tuple[str, str]) -> str:
    """Return a conversation in ChatML, the template of the tiny models."""
    return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)


def plain(model: PreferenceModel, token_ids: list[int]) -> float:
    """Return the reward that plain transformers give a sequence that is read at its last token."""
    with torch.no_grad():
        hidden = model.network.backbone(input_ids=torch.tensor([token_ids])).last_hidden_state[0, -1]
        return float(model.network.head.value_head(hidden.float())[0])


def with_bos() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    bos = "<|endoftext|>"
    tokenizer.add_special_tokens({"bos_token": bos})
    number = tokenizer.convert_tokens_to_ids(bos)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token=bos,
        chat_template="{{ bos_token }}" + tokenizer.chat_template,
    )


@pytest.fixture(scope="session")
def mini() -> dict[str, PreferenceModel]:
    return {"mini-bradley-terry": load_model("builtin:mini-bradley-terry", name="mini-bradley-terry", device="cpu")}


@pytest.fixture(scope="session")
def last(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreferenceModel]:
    folder = tmp_path_factory.mktemp("last")
    make_model(folder, ModelSpec(kind="bradley-terry", dimension=1, max_length=64), with_bos(), 3)
    return {"last": load_model(folder, name="last", device="cpu")}


@pytest.fixture(scope="session")
def address(mini):
    """The URL of a real server of the built-in model, for clients that cannot be given the application."""
    with served(mini) as url:
        yield url


@pytest.fixture
async def ask_mini(mini):
    async with serving(mini) as client:
        yield client


@pytest.fixture
async def ask_last(last):
    async with serving(last) as client:
        yield client
