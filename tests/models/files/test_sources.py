"""The built-in models: small, honest about what they are, and on the right side of an easy pair."""

import pytest

from paragone_models import load_model
from paragone_models.files import sources

NAMES = pytest.mark.parametrize("name", sources.NAMES)
PROMPT = "Should the main street be closed to cars?"
GOOD = "The street should be closed to cars, because children could play there again and the air would be cleaner."
BAD = "idk lol"


@NAMES
def test_a_built_in_model_loads_and_says_that_it_is_a_demonstration(name):
    model = load_model(f"builtin:{name}", device="cpu")
    assert (model.name, model.provenance.source) == (name, f"builtin:{name}")
    assert model.kind == name.removeprefix("mini-")
    assert model.spec.demonstration
    assert model.spec.domain
    assert model.provenance.numerics["dtype"] == "float32"


@NAMES
def test_a_built_in_model_prefers_an_argument_to_none(name):
    answer = load_model(f"builtin:{name}", device="cpu").score(PROMPT, [GOOD, BAD])
    assert answer.probabilities[0, 1] > 0.5
    assert answer.dropped_tokens == [0, 0]


@NAMES
def test_a_built_in_model_is_at_most_four_megabytes_and_has_a_card(name):
    folder = sources.builtin_folder(name)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 4_000_000
    assert len((folder / "README.md").read_text(encoding="utf-8")) > 500
    assert not list(folder.glob("*token*"))


@pytest.mark.parametrize("name", sources.HEADS)
def test_a_built_in_head_is_kilobytes_and_compares_on_the_backbone_that_it_names(name):
    folder = sources.builtin_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000
    assert len((folder / "README.md").read_text(encoding="utf-8")) > 500
    # The identity of the backbone is checked by this: a mini that is trained anew needs its heads fitted anew.
    model = load_model(f"builtin:{name}", device="cpu")
    assert (model.name, model.spec.demonstration) == (name, True)
    assert model.spec.backbone.source.removeprefix("builtin:") in sources.NAMES
    answers = ["Wash the rice first, keep the lid on and the heat low, and let it rest for ten minutes.", "idk lol"]
    assert model.score("My rice always sticks to the pot. What can I do?", answers).probabilities[0, 1] > 0.5


def test_all_built_in_models_read_text_alike():
    readers = [load_model(f"builtin:{name}", device="cpu").reader for name in sources.NAMES]
    texts = {reader.template.signature for reader in readers}
    assert len(texts) == 1
    assert sources.tokenizer_folder().is_dir()


def test_a_name_that_is_not_built_in_is_a_key_error():
    with pytest.raises(KeyError):
        sources.builtin_folder("../builtin/mini-bradley-terry")
