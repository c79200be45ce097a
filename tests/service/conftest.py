"""What the service's tests share: tiny real models, a real Redis, and the application through ASGI."""

import asyncio
import contextlib
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from processes import CORPUS, Redis
from redis import Redis as RedisConnection
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from paragone_models import PreferenceModel, load_model
from paragone_models.files.saving import save_model
from paragone_models.network import PreferenceNetwork, RepresentationHead
from paragone_models.spec import ModelSpec
from paragone_service.app import create_app
from paragone_service.config import Settings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
SPECS = {
    "bt": ModelSpec(kind="bradley-terry", dimension=1, pooling="mean", max_length=256),
    "gpm": ModelSpec(
        kind="general-preference", dimension=4, gate="softmax", normalise=True, temperature=0.1, max_length=256
    ),
    "ratings": ModelSpec(kind="regression", dimension=2, attributes=("helpful", "verbose"), max_length=256),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def make_model(folder: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerFast | None, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) if tokenizer else 400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    head = RepresentationHead(32, spec)
    torch.nn.init.normal_(head.value_head.weight, std=0.2)
    return save_model(folder, PreferenceNetwork(LlamaModel(config), head), spec, tokenizer)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models by name: bt, gpm, ratings, and mute, which has no tokenizer."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    made = {name: make_model(root / name, spec, tokenizer, seed) for seed, (name, spec) in enumerate(SPECS.items())}
    return {**made, "mute": make_model(root / "mute", SPECS["bt"], None, 7)}


@pytest.fixture(scope="session")
def hosted(folders: dict[str, Path]) -> dict[str, PreferenceModel]:
    """The loaded tiny models by name, the general preference model first."""
    return {name: load_model(folders[name], name=name, device="cpu") for name in ("gpm", "bt", "ratings", "mute")}


@contextlib.asynccontextmanager
async def serving(
    models: dict[str, PreferenceModel], /, *, engines=None, pair_sources=(), drain=None, headers=None, **settings
):
    """Yield a client of the application, its lifespan running."""
    app = create_app(Settings(**settings), models, engines=engines, pair_sources=pair_sources, drain=drain)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            client.app = app
            yield client


@pytest.fixture
async def client(hosted: dict[str, PreferenceModel]) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(hosted) as client:
        yield client


@pytest.fixture
def redis_server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def raw(shared_redis: Redis) -> Iterator[RedisConnection]:
    """A connection to a Redis that holds nothing."""
    with RedisConnection(port=shared_redis.port) as connection:
        connection.flushall()
        yield connection


@pytest.fixture(params=["memory", "redis"])
def store_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where a server keeps its groups and reference sets."""
    if request.param == "memory":
        return {}
    request.getfixturevalue("raw")
    return {"redis_url": request.getfixturevalue("shared_redis").url}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PARAGONE_"):
            monkeypatch.delenv(name)


async def until(condition, *, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds; it may be asynchronous."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.005)
